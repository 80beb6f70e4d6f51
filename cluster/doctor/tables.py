"""The result of a check as plain text for the terminal.

Knows nothing of files and pages. Names from outside are shown with their control characters escaped.
"""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.doctor.findings import KINDS
from cluster.doctor.results import BriefFinding, BriefOffender

if TYPE_CHECKING:
    from cluster.doctor.doctor import DoctorResult

_TERMINAL_COLUMNS = 120
_SHOWN = 3


def format_table(result: "DoctorResult") -> str:
    """What was found, worst first, the places of errors and warnings, and one sentence."""
    sink = io.StringIO()
    console = Console(file=sink, width=_TERMINAL_COLUMNS)
    if result.findings:
        console.print(_findings(result.findings))
    for kind, finding in result.findings.items():
        if finding.severity != "note":
            for line in _offender_lines(kind, finding):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    for name, copy in result.fixed.items():
        told = f"{copy.samples:,} samples, {copy.left_out:,} left out, {copy.renamed:,} renamed"
        console.print(f"cleaned copy of {name}: {copy.uri} ({told})", markup=False, highlight=False, soft_wrap=True)
    console.print(result.verdict, markup=False, highlight=False)
    return sink.getvalue().rstrip()


def _offender_lines(kind: str, finding: BriefFinding) -> list[str]:
    """The first places of a finding, a line each."""
    start = f"{finding.severity} {kind}: "
    lines = [f"{start}{place(one)}" for one in finding.offenders[:_SHOWN]]
    more = finding.count - len(lines)
    return [*lines, f"{start}and {more:,} more"] if more > 0 and lines else lines


def place(offender: BriefOffender) -> str:
    """Where and what, in one line that may stand on a terminal."""
    parts = (offender.shard or offender.dataset, offender.name, offender.detail)
    return ": ".join(visible(part) for part in parts if part)


def visible(text: str) -> str:
    """The text with everything escaped that a terminal would not show as a character."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _findings(findings: Mapping[str, BriefFinding]) -> Table:
    table = Table()
    for name in ("", "finding", "what it is", "what happens to it"):
        table.add_column(name)
    table.add_column("count", justify="right")
    table.add_column("share", justify="right")
    for name, one in findings.items():
        kind = KINDS[name]
        cells = (one.severity, name, kind.meaning, kind.consequence, f"{one.count:,}", percent(one.share))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def percent(share: float) -> str:
    """A share as people read it; what is there is never 0."""
    return "< 0.01 %" if 0 < share < 0.0001 else f"{share:.2%}".replace("%", " %")
