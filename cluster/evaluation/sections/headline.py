"""The top of the report: what was evaluated, the verdict, mAP@k of every method, differences between encoders.

Knows nothing of how the numbers came about.
"""

from html import escape

from cluster.evaluation.charts.retrieval import map_bars
from cluster.evaluation.methods import FLOAT_NAME, OURS, method_name
from cluster.evaluation.metric_cells import ASYMMETRIC_ABOUT, difference_about
from cluster.evaluation.results import Evaluation
from cluster.reports import html


def head(evaluation: Evaluation) -> str:
    """Title, verdicts and notes."""
    lines = [
        '<p class="kicker">Retrieval evaluation</p>',
        f"<h1>{escape(evaluation.title)}</h1>",
        f'<p class="lead">{evaluation.queries:,} queries against {evaluation.database:,} images, ranked by Hamming '
        f"distance. Two images are relevant to each other when they share a label.</p>",
    ]
    for beats_itq, sentence in evaluation.verdicts:
        lost = "" if beats_itq else " lost"
        lines.append(f'<p class="verdict{lost}" role="status">{escape(sentence)}</p>')
    if evaluation.notes:
        lines.append(f'<ul class="notes">{html.items(evaluation.notes)}</ul>')
    return "\n".join(lines)


def headline(evaluation: Evaluation) -> str:
    """mAP@k of every method at every length, as a table and as bars."""
    rows = []
    for method in evaluation.methods:
        found = [evaluation.find(method, bits) for bits in evaluation.lengths]
        cells = "".join(html.value(one.map_at_k, one.interval) if one is not None else "<td>–</td>" for one in found)
        rows.append(html.row(method_name(method, evaluation.name), cells, "ours" if method == OURS else ""))
    if (upper := evaluation.float_cosine) is not None:
        cells = html.value(upper.map_at_k, upper.interval, columns=len(evaluation.lengths))
        rows.append(html.row(FLOAT_NAME, cells, "upper"))
    asymmetric = f" {escape(ASYMMETRIC_ABOUT)}" if evaluation.is_asymmetric else ""
    table = html.table("headline", ["method", *(f"{bits} bits" for bits in evaluation.lengths)], rows)
    return (
        f"<h2>mAP@{evaluation.k}</h2>\n"
        '<p class="about">Expectation over all orders of equal distances; the denominator is the relevant images in '
        f"the top {evaluation.k:,}. Small: the bootstrap 95&nbsp;% interval over queries.{asymmetric}</p>\n"
        f'<div class="charts beside">{table}<figure>{map_bars(evaluation)}</figure></div>'
    )


def differences(evaluation: Evaluation) -> str:
    """Between the main encoder and the compared ones; empty without any."""
    if not evaluation.compared:
        return ""
    rows = [
        html.row(one.name, "".join(html.difference(one.margin(bits)) for bits in evaluation.lengths))
        for one in evaluation.compared
    ]
    return (
        f'<h2>Differences</h2>\n<p class="about">{escape(difference_about(evaluation))} Small: the paired bootstrap '
        "95&nbsp;% interval; where it holds 0, the difference is within the noise of the queries.</p>\n"
        + html.table("fine", ["difference to", *(f"{bits} bits" for bits in evaluation.lengths)], rows)
    )
