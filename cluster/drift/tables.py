"""The findings on two encoders as a table for the terminal.

Knows nothing of files.
"""

import io

from rich.console import Console
from rich.table import Table

from cluster.drift.drift import DriftResult

_COLUMNS = 100


def format_table(result: DriftResult) -> str:
    """What a person sees at the end; nothing after a dry run."""
    if result.may_mix is None:
        return ""
    table = Table(title=f"{result.images:,} images, {result.queries:,} queries, {result.bits} bits")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("bits that differ, of a code", f"{result.mean_flipped:.2f}")
    table.add_row("codes that are the same", f"{result.unchanged:.1%}")
    table.add_row("neighbors that stay, everything anew", f"{result.overlap:.1%}")
    table.add_row("neighbors that stay, only queries anew", f"{result.overlap_mixed:.1%}")
    for name, value in (("old", result.map_old), ("new", result.map_new), ("new among old", result.map_mixed)):
        if value is not None:
            table.add_row(f"mAP, {name}", f"{value:.4f}")
    sink = io.StringIO()
    console = Console(file=sink, width=_COLUMNS)
    console.print(table)
    console.print(result.verdict, markup=False)
    return sink.getvalue().rstrip()
