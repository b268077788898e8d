"""`LLM`: a model that answers many prompts at once, from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from pellucid.checkpoints.adapters import load_adapter
from pellucid.checkpoints.load import load, to_run
from pellucid.checkpoints.source import find_source
from pellucid.errors import InputError
from pellucid.inference.engine import Engine
from pellucid.inference.generate import one_each, prompt_ids
from pellucid.inference.output import Output, Outputs
from pellucid.inference.params import SamplingParams
from pellucid.inference.presets import resolve
from pellucid.inference.progress import AnswerBar
from pellucid.models.adapters import active_adapter, use_adapter
from pellucid.models.decoder import Decoder
from pellucid.operations.hardware import best_precision, use_best_threads
from pellucid.tokenizer.tokenizer import Tokenizer

Message = dict[str, Any]


class LLM:
    """A model and the engine that runs it.

    name: as for `pellucid.load`. device: "cpu" or "cuda". dtype: "auto" takes the precision that is faster here, which
    is measured once, and on a GPU the checkpoint's own.
    draft: the name of a smaller model of the same vocabulary, which guesses ahead: answers stay as they are, token for
    token, and come faster where most guesses are right.
    quantize: "int8" or "int4" (or "q8_0", "q4_0", "q4_1") rounds the weights. None: weights that lie in blocks of
    integers stay so, unless a dtype is asked for; see `checkpoints.load.to_run`.
    adapters: names, and the PEFT folders of adapters of this model; each prompt may be answered with one of them. They
    are computed beside the weights, which all prompts share.
    options: of the `Engine`, such as num_blocks or max_sequences.
    """

    def __init__(
        self,
        name: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        quantize: str | None = None,
        draft: str | Path | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        **options: Any,
    ):
        use_best_threads()
        model, self.tokenizer = load_on(device, name, dtype, quantize)
        add_adapters(model, self.tokenizer, adapters or {})
        guesser = None if draft is None else load_on(device, draft, dtype, None)
        self.engine = Engine(model, self.tokenizer, draft=guesser, **options)

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
        progress: bool = True,
    ) -> list[Output]:
        """Answers to each prompt: text, or token ids taken as they are.

        params: for all, or one for each; None: what the model's generation_config.json says.
        adapter: the name of the one that answers all, or of each prompt's; None: the model as it was loaded.
        progress: a bar on stderr, at a terminal.

        Raises `InputError` for a prompt that cannot be answered, before any is; `PellucidError` where none of the
        tokens of an answer can be drawn.
        """
        several = [prompts] if isinstance(prompts, str) else list(prompts)
        ids = [prompt_ids(self.tokenizer, one) if isinstance(one, str) else list(one) for one in several]
        return self._answers(ids, self._each(params, len(ids)), one_each_adapter(adapter, len(ids)), progress)

    def chat(
        self,
        conversations: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
        progress: bool = True,
    ) -> list[Output]:
        """The assistant's next turn in a conversation, or in each of several, through the model's chat template.

        Parameters and errors as for `generate`.
        """
        single = bool(conversations) and isinstance(conversations[0], dict)
        several = cast("Sequence[Sequence[Message]]", [conversations] if single else conversations)
        ids = [self.tokenizer.apply_chat_template(one, add_generation_prompt=True).ids for one in several]
        adapters = one_each_adapter(adapter, len(ids))
        return self._answers(ids, self._each(params, len(ids)), adapters, progress, in_chat=True)

    def _each(self, params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if params is None:
            params = resolve(generation_config=self.engine.model.generation_config).params
        return one_each(params, count)

    def _answers(
        self,
        prompts: list[list[int]],
        params: list[SamplingParams],
        adapters: list[str | None],
        progress: bool,
        *,
        in_chat: bool = False,
    ) -> list[Output]:
        with Outputs(self.engine) as outputs:
            for prompt, one, adapter in zip(prompts, params, adapters, strict=True):
                outputs.add(prompt, one, in_chat=in_chat, adapter=adapter)
            with AnswerBar(outputs, shown=progress) as bar:
                return list(outputs.answered(bar.update))


def load_on(device: str, name: str | Path, dtype: str, quantize: str | None) -> tuple[Decoder, Tokenizer]:
    """A model to be run on `device`, in the form that is the faster there. Raises `InputError` where there is none."""
    if device == "cpu":
        return load(name, dtype=best_precision(dtype).name, quantize=to_run(quantize, dtype))
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise InputError(f"device = {device!r}: PyTorch knows no such device; give cpu or cuda") from None
    if wanted.type != "cuda" or not torch.cuda.is_available():
        raise InputError(
            f"device = {device!r}: PyTorch sees no such GPU here; leave device out to run on the processor"
        )
    if wanted.index is not None and wanted.index >= torch.cuda.device_count():
        raise InputError(
            f"device = {device!r}: the last GPU here is cuda:{torch.cuda.device_count() - 1}; give that one"
        )
    return load(name, dtype=dtype, device=device, quantize=quantize)


def add_adapters(model: Decoder, tokenizer: Tokenizer, adapters: Mapping[str, str | Path]) -> None:
    """Gives the model adapters, by the names that they are to have: PEFT folders, or runs that trained one.

    What the model computes with stays as it was. Raises `InputError` for a folder that is no adapter of this model, or
    has another tokenizer or chat template than `tokenizer`, through which all prompts go.
    """
    active = active_adapter(model)
    for name, folder in adapters.items():
        path = adapter_folder(name, folder)
        _check_tokenizer(name, path, tokenizer)
        load_adapter(model, path, name)
    use_adapter(model, active)


def adapter_folder(name: str, folder: str | Path) -> Path:
    """Where the adapter lies that is to be called `name`. Raises `InputError` where there is none."""
    source = find_source(folder)
    if source.kind != "adapter":
        raise InputError(f"adapter {name!r}: {folder} is a whole model: give the folder of an adapter")
    return source.path


def _check_tokenizer(name: str, path: Path, tokenizer: Tokenizer) -> None:
    if not (path / "tokenizer.json").is_file():
        return
    own = Tokenizer.load(path)
    if own.pieces.contents != tokenizer.pieces.contents:
        other = "tokenizer"
    elif own.templates != tokenizer.templates:
        other = "chat template"
    else:
        return
    raise InputError(
        f"adapter {name!r}: {path} has another {other} than the model: convert it to a model, or serve it alone"
    )


def one_each_adapter(adapter: str | Sequence[str | None] | None, prompts: int) -> list[str | None]:
    """The adapter of each prompt. Raises `InputError` where there are neither one for all nor as many."""
    each = [adapter] * prompts if adapter is None or isinstance(adapter, str) else list(adapter)
    if len(each) != prompts:
        raise InputError(f"there are {prompts} prompts and {len(each)} adapters: give one each, or one")
    return each
