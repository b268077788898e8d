"""The report of `pellucid quantize` as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pellucid.inference.quantisation.report import Report, Side


def print_report(report: Report) -> None:
    """Both models side by side, and how far they are apart."""
    from rich.console import Console
    from rich.table import Table

    from pellucid.cli.show import size
    from pellucid.operations.machine import read_processor

    def memory(side: Side) -> str:
        return f"{size(sum(side.memory.values()))} ({', '.join(side.memory)})"

    before, after, d = report.before, report.after, report.difference
    table = Table("", "original", "quantised")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("on disk", size(before.disk), size(after.disk))
    table.add_row("weights in memory", memory(before), memory(after))
    speeds = (f"{side.tokens_per_second:.1f} tokens/s" for side in (before, after))
    table.add_row("one answer at a time", *speeds)
    table.add_row("perplexity", f"{d.perplexity_before:.3f}", f"{d.perplexity_after:.3f}")
    table.add_row("KL divergence, mean", "0", f"{d.kl_mean:.4f} nats a token")
    table.add_row("KL divergence, 99th percentile", "0", f"{d.kl_99:.4f} nats a token")
    table.add_row("the same likeliest token", "", f"{d.agreement:.1%}")
    console = Console()
    console.print(table)
    console.print(
        f"On {d.tokens:,} tokens of {report.text}, computed in {report.precision}; memory and speed as each model runs "
        f"here by default, on {read_processor()[0]}.",
        highlight=False,
        markup=False,
    )
