"""The report's table of numbers that others published under the same protocol.

Knows nothing of where they are from.
"""

from html import escape

from cluster.evaluation.published_cells import published_about, published_head, published_rows, published_title
from cluster.evaluation.results import Evaluation
from cluster.reports import html


def published(evaluation: Evaluation) -> str:
    """The table; empty where no protocol is named."""
    if evaluation.protocol is None:
        return ""
    rows = [
        html.row(head, html.cells(cells)) for head, *cells in published_rows(evaluation.protocol, evaluation.lengths)
    ]
    return (
        f"<h2>{escape(published_title(evaluation.protocol))}</h2>\n"
        f'<p class="about">{escape(published_about(evaluation.protocol))}</p>\n'
        + (html.table("fine", published_head(evaluation.lengths), rows) if rows else "<p>Nothing at these lengths.</p>")
    )
