"""Pieces of HTML that every section of the report is made of. What they are given as text is escaped here.

Knows nothing of evaluations.
"""

from collections.abc import Iterable, Sequence
from html import escape

from cluster.evaluation.results import Interval, Margin


def table(kind: str, head: Sequence[str], rows: Iterable[str]) -> str:
    """A table that scrolls sideways where it is too wide; `rows` are HTML."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def row(head: str, cells: str, kind: str = "") -> str:
    """A row with a heading; `cells` are HTML."""
    style = f' class="{kind}"' if kind else ""
    return f'<tr{style}><th scope="row">{escape(head)}</th>{cells}</tr>'


def cells(values: Iterable[str]) -> str:
    """Cells with these texts."""
    return "".join(f"<td>{escape(value)}</td>" for value in values)


def value(number: float, interval: Interval, columns: int = 1) -> str:
    """A cell with a number and its interval."""
    span = f' colspan="{columns}"' if columns > 1 else ""
    return f"<td{span}>{number:.4f}<small>{interval.low:.3f} – {interval.high:.3f}</small></td>"


def difference(margin: Margin | None) -> str:
    """A cell with a difference and its interval."""
    if margin is None:
        return "<td>–</td>"
    low, high = margin.interval.low, margin.interval.high
    return f"<td>{margin.difference:+.4f}<small>{low:+.4f} to {high:+.4f}</small></td>"


def items(lines: Iterable[str]) -> str:
    """Items of a list."""
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def figure(title: str, about: str, svg: str) -> str:
    """A chart with a caption; `svg` is HTML."""
    return f"<figure><figcaption><b>{escape(title)}</b>{escape(about)}</figcaption>{svg}</figure>"
