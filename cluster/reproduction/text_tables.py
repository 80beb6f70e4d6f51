"""The tables as Markdown and for a terminal, and the list of rows for a terminal.

Knows nothing of how numbers come about.
"""

import io
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.reproduction.lines import EVIDENCE_LINE, NUMBERS_ABOUT, Cell, Line, TableSection
from cluster.reproduction.outcomes import Outcome

_TERMINAL_COLUMNS = 140
_INDENTED = ("published", "difference", "expected")
_STYLES = {"ours": "bold", "difference": "dim", "expected": "dim", "published": "", "baseline": "dim"}


def markdown(title: str, sections: Sequence[TableSection]) -> str:
    """The content of `table.md`."""
    lines = [f"# {title}", "", NUMBERS_ABOUT, "", EVIDENCE_LINE]
    for section in sections:
        head = ["method", "backbone", *(f"{bits} bits" for bits in section.lengths), "from"]
        lines += ["", f"## {section.title}", "", section.about, "", _row(head)]
        lines += [_row(["---", "---", *["---:"] * len(section.lengths), "---"])]
        lines += [_row(_cells(line)) for line in section.lines]
        lines += ["", *(f"- {_plain(remark)}" for remark in section.remarks)] if section.remarks else []
    return "\n".join(lines) + "\n"


def terminal(sections: Sequence[TableSection]) -> str:
    """All tables for a terminal."""
    console = Console(file=io.StringIO(), width=_TERMINAL_COLUMNS)
    for section in sections:
        table = Table(title=escape(section.title), title_justify="left")
        for name in ("method", "backbone"):
            table.add_column(name)
        for bits in section.lengths:
            table.add_column(f"{bits} bits", justify="right")
        table.add_column("from")
        for line in section.lines:
            style = "red" if line.is_good is False else _STYLES[line.kind]
            cells = (f"{cell.main}\n{cell.small}".rstrip() for cell in line.cells)
            table.add_row(*map(escape, (_indented(line, "  "), line.backbone, *cells, line.origin)), style=style)
        console.print(table)
        for remark in section.remarks:
            console.print(remark, markup=False, highlight=False, soft_wrap=True)
    return _text(console)


def listing(outcomes: Sequence[Outcome]) -> str:
    """The rows, and which of them can run, for a terminal; reasons stand below, by number."""
    table = Table("row", "backbone", "bits", "seeds", "published", "status")
    reasons: dict[str, int] = {}
    for one in outcomes:
        numbers = [reasons.setdefault(reason, len(reasons) + 1) for reason in (*one.missing, *one.deviations)]
        nested = " nested" if one.row.training == "nested" else ""
        published = f"{one.published.name} ({one.published.evidence})" if one.published else ""
        progress = f"{one.runs_complete} of {one.runs_planned} runs complete"
        status = one.status if one.missing else progress if one.runs_complete else "at hand"
        cells = (
            one.row.name,
            one.row.backbone,
            f"{','.join(map(str, one.row.bits))}{nested}",
            ",".join(map(str, one.row.seeds)),
            published,
            f"{status} [{', '.join(map(str, numbers))}]" if numbers else status,
        )
        table.add_row(*(escape(cell) for cell in cells), style="dim" if one.missing else "")
    console = Console(file=io.StringIO(), width=_TERMINAL_COLUMNS)
    console.print(table)
    for reason, number in reasons.items():
        console.print(f"[{number}] {reason}", markup=False, highlight=False, soft_wrap=True)
    return _text(console)


def _text(console: Console) -> str:
    return str(console.file.getvalue()).rstrip()  # type: ignore[attr-defined]


def _cells(line: Line) -> list[str]:
    strong = "**" if line.kind == "ours" else ""
    method = f"{strong}{_indented(line, '– ')}{strong}"
    return [method, line.backbone, *map(_joined, line.cells), line.origin]


def _indented(line: Line, mark: str) -> str:
    return f"{mark if line.kind in _INDENTED else ''}{line.method}"


def _joined(cell: Cell) -> str:
    return f"{cell.main} ({cell.small})" if cell.small else cell.main


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _plain(text: str) -> str:
    return " ".join(text.split())
