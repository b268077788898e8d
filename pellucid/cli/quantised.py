"""The report of `pellucid quantize` as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pellucid.inference.quantisation.report import Report


def print_report(report: Report) -> None:
    """Both models side by side, and how far they are apart."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pellucid.cli.show import size
    from pellucid.operations.machine import read_processor

    before, after, d = report.before, report.after, report.difference
    table = Table("", "original", "quantised", box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("on disk", size(before.disk), size(after.disk))
    table.add_row("weights in memory", *(size(sum(side.memory.values())) for side in (before, after)))
    table.add_row("their forms", *(", ".join(side.memory) for side in (before, after)))
    table.add_row("tokens/s, one answer at a time", *(f"{side.tokens_per_second:.1f}" for side in (before, after)))
    table.add_row("perplexity", f"{d.perplexity_before:.3f}", f"{d.perplexity_after:.3f}")
    table.add_row("KL a token, mean", "", f"{d.kl_mean:.4f}")
    table.add_row("KL a token, 99th percentile", "", f"{d.kl_99:.4f}")
    table.add_row("the same likeliest token", "", f"{d.agreement:.1%}")
    console = Console()
    console.print(table)
    console.print(
        f"KL(original || quantised) in nats, perplexity and agreement: {d.tokens:,} tokens of {report.text}, computed "
        f"in {report.precision}. Memory and speed: as each runs here by default, on {read_processor()[0]}.",
        highlight=False,
        markup=False,
    )
