"""The plan as plain text for the terminal.

Knows nothing of files.
"""

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.planning.choice import Candidate, gib

if TYPE_CHECKING:
    from cluster.planning.plan import PlanResult
    from cluster.planning.verification import Verification

_TERMINAL_COLUMNS = 150
_MIB = 2**20


def format_table(result: "PlanResult") -> str:
    """Lengths, candidates with what they fail at, the choice with its commands, and what verifying found."""
    sink = io.StringIO()
    console = Console(file=sink, width=_TERMINAL_COLUMNS)
    console.print(_lengths(result))
    console.print(_candidates(result))
    for line in _lines(result):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if result.verification is not None:
        console.print(_verified(result.verification))
    return sink.getvalue().rstrip()


def _lengths(result: "PlanResult") -> Table:
    table = Table(title=f"Code lengths  ({result.sample_rows:,} codes of the sample)")
    for name in ("bits", result.quality_is, "of the best", "distinct codes", f"ties at rank {result.k}"):
        table.add_column(name, justify="right")
    for one in result.lengths:
        cells = (f"{one.quality:.4f}", f"{one.relative:.3f}", f"{one.distinct_share:.1%}", f"{one.tie_block:,.0f}")
        table.add_row(str(one.bits), *cells)
    return table


def _candidates(result: "PlanResult") -> Table:
    table = Table(title=f"Predicted for {result.items:,} codes")
    table.add_column("kind")
    columns = ("bits", "shards", "replicas", "nodes", "memory per node", "latency", "queries/s", "recall", "quality")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("fails at")
    for one in result.candidates:
        table.add_row(*map(Text, _cells(one)), style="bold" if one is result.chosen else None)
    return table


def _cells(one: Candidate) -> tuple[str, ...]:
    return (
        " ".join((one.kind, *(f"{name}={value}" for name, value in one.parameters.items()))),
        str(one.bits),
        str(one.shards),
        str(one.replicas),
        str(one.nodes),
        gib(one.memory_per_node),
        f"{one.latency_ms:.1f} ms",
        f"{one.queries_per_second:,.0f}",
        f"{one.recall:.3f}",
        f"{one.quality:.3f}",
        "; ".join(f"{shortfall.constraint}: {shortfall.text}" for shortfall in one.shortfalls),
    )


def _lines(result: "PlanResult") -> list[str]:
    chosen = result.chosen
    if chosen is None:
        return []
    lines = [
        f"Chosen: {chosen.kind} of {chosen.bits} bits, shards {chosen.shards}, replicas {chosen.replicas}, nodes "
        f"{chosen.nodes}. Times are p50 while nothing else is asked."
    ]
    if chosen.beyond_measured > 1:
        lines.append(
            f"A shard is to hold {chosen.beyond_measured:.1f} times as many codes as the largest that was measured: "
            "what lies beyond is extrapolated, and recall of an approximate kind least surely."
        )
    return [*lines, *(f"  {command}" for command in result.commands)]


def _verified(verification: "Verification") -> Table:
    of_what = f"{verification.items:,} codes, {verification.rows_per_shard:,} in each shard"
    table = Table(title=f"Verified on {of_what}")
    table.add_column("")
    for name in ("predicted", "measured", "ratio"):
        table.add_column(name, justify="right")
    for name, one in verification.figures.items():
        in_mib = name.endswith("_bytes")
        label = f"{name.removesuffix('_bytes')} MiB" if in_mib else name.replace("_", " ")
        values = [value / _MIB if in_mib else value for value in (one.predicted, one.measured)]
        table.add_row(label, *(f"{value:.4g}" for value in values), f"{one.ratio:.3f}")
    return table
