"""The section on the health of the database's codes.

Knows nothing of how the numbers came about.
"""

from html import escape

from cluster.evaluation.charts.code_health import balance_bars, information_map, tie_block_bars
from cluster.evaluation.metric_cells import HEALTH_ABOUT, health_cells, health_head, sampling_about
from cluster.evaluation.results import Evaluation
from cluster.reports import html


def code_health(evaluation: Evaluation) -> str:
    """Bits, tie blocks and collisions, as a table and as charts."""
    rows = [html.row(f"{one.bits} bits", html.cells(health_cells(one))) for one in evaluation.health]
    bits = evaluation.bit_health
    sampled = f" {escape(sampling_about(evaluation))}" if sampling_about(evaluation) else ""
    figures = (
        html.figure("Bit balance", f"Share of ones of each of the {bits.bits} bits.", balance_bars(bits)),
        html.figure(
            "Tie blocks",
            "Images by how many images share their code, themselves included.",
            tie_block_bars(evaluation.health),
        ),
        html.figure(
            "Mutual information of bits",
            "What a bit tells of another one: 0 where they are independent, 1 where they are the same.",
            information_map(bits),
        ),
    )
    return (
        f'<h2>Code health</h2>\n<p class="about">The database’s codes by {escape(evaluation.name)}. '
        f"{HEALTH_ABOUT}{sampled}</p>\n"
        + html.table("fine", ["codes", *health_head()], rows)
        + f'\n<div class="charts">{"".join(figures)}</div>'
    )
