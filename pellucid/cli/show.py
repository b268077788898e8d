"""`pellucid show`: what a model is, from its headers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from pellucid.checkpoints.adapters import AdapterFolder
    from pellucid.checkpoints.describe import Description

TEMPLATE_LINES = 4
ABOUT = {"version": "written by pellucid", "base": "made from", "tokens_seen": "tokens seen", "last_loss": "last loss"}


def show(
    model: Annotated[str, typer.Argument(help="A model folder, a .gguf file, a hub id or a packaged name (smollm2).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a model is: sizes, parameters by part, memory, context, template, special tokens, where it came from.

    Reads headers only, so it is fast for a model of any size.

    Example: pellucid show smollm2
    """
    from pellucid.checkpoints.describe import describe

    description = describe(model)
    if as_json:
        print(json.dumps(as_dictionary(description), indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        print_description(description, Console())


def as_dictionary(description: Description) -> dict[str, Any]:
    """Everything that `show` tells, for scripts. Sizes in bytes."""
    d, tokenizer = description, description.tokenizer
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id, "stop": list(tokenizer.stop_ids)}
    return {
        "origin": d.source.origin,
        "path": str(d.source.path),
        "kind": d.source.kind,
        "about": d.about,
        "config": d.config.model_dump(mode="json"),
        "parameters": {**d.parameters, "total": sum(d.parameters.values())},
        "stored_bytes": d.stored,
        "dtype": str(d.dtype).removeprefix("torch."),
        "weight_bytes": d.weight_bytes,
        "kept_bytes": d.kept_bytes,
        "cache_bytes_per_token": d.cache_bytes_per_token,
        "cache_bytes": d.cache_bytes,
        "context": d.config.max_positions,
        "vocabulary": tokenizer.vocab_size,
        "ids": ids,
        "special_tokens": tokenizer.special_tokens,
        "chat_template": tokenizer.chat_template,
        "generation": d.generation,
        "labels": d.labels,
        "adapter": d.adapter and {**d.adapter.fields, "quantize": d.adapter.quantize},
    }


def print_description(description: Description, console: Console) -> None:
    """The same for people."""
    from rich.table import Table
    from rich.text import Text

    d, told = description, as_dictionary(description)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in facts_of(d, told):
        facts.add_row(Text(name, style="bold"), Text(value))
    console.print(facts)

    parts = Table("part", "parameters", "share", title="Parameters", title_justify="left", title_style="bold")
    for column in parts.columns[1:]:
        column.justify = "right"
    total = sum(d.parameters.values())
    for part, count in d.parameters.items():
        tied = part == "head" and d.config.tie_embeddings and d.labels is None
        parts.add_row(part, "the embeddings' own" if tied else f"{count:,}", "" if tied else f"{count / total:.1%}")
    parts.add_section()
    parts.add_row("all", f"{total:,}", "100.0%")
    console.print(parts)

    fields = Table("field", "value", title="Config", title_justify="left", title_style="bold")
    for name, value in d.config.model_dump(exclude_defaults=True, mode="json").items():
        fields.add_row(name, Text(brief(value)))
    console.print(fields)
    console.print(Text("Special tokens", style="bold"))
    named = "  ".join(f"{token} {number}" for token, number in list(d.tokenizer.special_tokens.items())[:24])
    console.print(Text(named or "none"))
    console.print(Text("Chat template", style="bold"))
    console.print(Text(first_lines(d.tokenizer.chat_template)))


def facts_of(d: Description, told: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines at the top."""
    stored = ", ".join(f"{name} {size(count)}" for name, count in sorted(d.stored.items(), key=lambda item: -item[1]))
    at_context = f"{size(d.cache_bytes)} for {d.config.max_positions:,} tokens"
    ids = ", ".join(f"{role} {number}" for role, number in told["ids"].items() if number not in (None, []))
    generation = ", ".join(f"{name} {brief(value)}" for name, value in d.generation.items())
    kept = f"; {size(d.kept_bytes)} where few bits stay as they lie" if d.kept_bytes != d.weight_bytes else ""
    return [
        ("from", d.source.origin),
        ("file" if d.source.kind == "gguf" else "folder", str(d.source.path)),
        *([] if d.adapter is None else [("adapter", adapter_line(d.adapter))]),
        ("stored", stored),
        ("weights", f"{size(d.weight_bytes)} in memory ({told['dtype']}){kept}"),
        ("KV cache", f"{size(d.cache_bytes_per_token)} a token, {at_context} ({told['dtype']})"),
        ("context", f"{d.config.max_positions:,} tokens"),
        ("vocabulary", f"{d.tokenizer.vocab_size:,} ids; {ids}"),
        *(
            [("generation", generation or "no defaults of its own")]
            if d.labels is None
            else [("gives", f"{d.labels} {'score' if d.labels == 1 else 'scores'} a text, at its last token")]
        ),
        *((ABOUT.get(name, name), brief(value)) for name, value in d.about.items()),
    ]


def adapter_line(adapter: AdapterFolder) -> str:
    """What an adapter is, and of which base."""
    told = adapter.fields
    targets = told.get("target_modules")
    where = targets if isinstance(targets, str) else ", ".join(targets or ())
    kind = "DoRA" if told.get("use_dora") else "LoRA"
    base = adapter.base if adapter.quantize is None else f"{adapter.base} in {adapter.quantize.upper()}"
    return f"{kind} of rank {told.get('r')}, alpha {told.get('lora_alpha')}, on {where}, for the base {base}"


def first_lines(template: str | None) -> str:
    """How a template begins, and how much of it there is; whole lines can be long."""
    if template is None:
        return "none: this model has no chat format of its own"
    lines = [line[:200] for line in template.splitlines()]
    left = f"\n({len(template):,} characters; --json prints all)"
    return "\n".join(lines[:TEMPLATE_LINES]) + left


def brief(value: Any) -> str:
    """A value on one line; a list of flags as a count."""
    if isinstance(value, list) and len(value) > 8:
        return f"{sum(map(bool, value))} of {len(value)}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {brief(part)}" for name, part in value.items() if part is not None)
    return str(value)


def size(count: int) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    amount, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{count} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"
