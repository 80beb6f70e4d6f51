"""The tables as one HTML page that needs no other file, no network and no script.

Knows nothing of how numbers come about. Every text from outside is escaped.
"""

from collections.abc import Mapping, Sequence
from html import escape

from cluster.reports import html
from cluster.reports.page import report_page
from cluster.reproduction.lines import EVIDENCE_LINE, NUMBERS_ABOUT, Line, TableSection


def page_html(title: str, lead: str, sections: Sequence[TableSection], origin: Mapping[str, str]) -> str:
    """The page.

    Args:
        title: Its heading.
        lead: What became of the rows, in a sentence.
        sections: The tables.
        origin: Where it comes from, by name.
    """
    parts = (
        f'<p class="kicker">Reproduction</p>\n<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        f'<p class="about">{escape(NUMBERS_ABOUT)}</p>\n<p class="about">{escape(EVIDENCE_LINE)}</p>',
        *(_section(section) for section in sections),
        _origin(origin),
    )
    return report_page(title, parts, ("cluster.reproduction", "page.css"))


def _section(section: TableSection) -> str:
    head = ["method", "backbone", *(f"{bits} bits" for bits in section.lengths), "from"]
    table = html.table("rows", head, map(_line, section.lines))
    notes = f'\n<ul class="notes">{html.items(section.remarks)}</ul>' if section.remarks else ""
    return f'<h2>{escape(section.title)}</h2>\n<p class="about">{escape(section.about)}</p>\n{table}{notes}'


def _line(line: Line) -> str:
    cells = "".join(
        f"<td>{escape(cell.main)}{f'<small>{escape(cell.small)}</small>' if cell.small else ''}</td>"
        for cell in line.cells
    )
    kind = f"{line.kind}{' missed' if line.is_good is False else ''}"
    return html.row(
        line.method,
        f'<td class="text">{escape(line.backbone)}</td>{cells}<td class="text">{escape(line.origin)}</td>',
        kind,
    )


def _origin(origin: Mapping[str, str]) -> str:
    rows = (f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in origin.items())
    return f'<h2>Where this comes from</h2>\n<table class="provenance fine"><tbody>{"".join(rows)}</tbody></table>'
