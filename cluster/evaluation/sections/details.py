"""The middle of the report: curves, every metric of every method, classes.

Knows nothing of how the numbers came about.
"""

from collections.abc import Callable, Iterable
from html import escape

from cluster.evaluation.charts import retrieval
from cluster.evaluation.charts.classes import class_bars, shown_classes
from cluster.evaluation.methods import OURS, method_name
from cluster.evaluation.metric_cells import (
    DETAILS_ABOUT,
    RADIUS_ABOUT,
    detail_cells,
    detail_head,
    radius_cells,
    radius_head,
    stored_order_about,
)
from cluster.evaluation.results import Evaluation, SeriesMetrics
from cluster.reports import html

Cells = Callable[[Evaluation, SeriesMetrics], list[str]]


def curves(evaluation: Evaluation) -> str:
    """Precision and recall by rank and by radius."""
    ours = f"{evaluation.name} at {max(evaluation.lengths)} bits"
    figures = (
        html.figure(
            "Precision and recall by rank",
            "Top 1 to the whole database, ties averaged.",
            retrieval.curves_by_rank(evaluation),
        ),
        html.figure(
            "Precision and recall by radius",
            "Radius 0 to the code length; a query without an image within the radius counts as 0.",
            retrieval.curves_by_radius(evaluation),
        ),
        html.figure("Precision at N", "Of the top N, ties averaged.", retrieval.precision_by_rank(evaluation)),
        html.figure("Recall at N", "Of the top N, ties averaged.", retrieval.recall_by_rank(evaluation)),
        html.figure("Within a radius", f"{ours}; an empty ball counts as 0.", retrieval.within_radius(evaluation)),
        html.figure("mAP within a radius", "Of the images there alone.", retrieval.map_by_radius(evaluation)),
    )
    return f'<h2>Curves</h2>\n<div class="charts">{"".join(figures)}</div>'


def details(evaluation: Evaluation) -> str:
    """Every metric of every method."""
    about = f"{DETAILS_ABOUT} {stored_order_about(evaluation)}".rstrip()
    weightless = [one for one in evaluation.series if one.ramap is not None]
    return (
        f'<h2>In detail</h2>\n<p class="about">{about}</p>\n'
        + html.table("fine", ["codes", *detail_head(evaluation)], _rows(evaluation, evaluation.series, detail_cells))
        + f'\n<p class="about">{RADIUS_ABOUT}</p>\n'
        + html.table("fine", ["codes", *radius_head()], _rows(evaluation, weightless, radius_cells))
    )


def classes(evaluation: Evaluation) -> str:
    """mAP@k by class of the query, of our codes at the longest length; empty where classes are not told apart."""
    one = evaluation.find(OURS, max(evaluation.lengths))
    if one is None or not evaluation.classes:
        return ""
    shown, every = len(shown_classes(evaluation.classes, one)), len(evaluation.classes)
    some = "" if shown == every else f" The best and worst {shown} of {every:,} classes; all are in metrics.json."
    return (
        f'<h2>By class</h2>\n<p class="about">mAP@{evaluation.k} of {escape(evaluation.name)} at {one.bits} bits '
        "over the queries of each class, best first; in brackets how many. A query with several labels counts for "
        f"each.{some}</p>\n<figure>{class_bars(evaluation.classes, one, evaluation.k)}</figure>"
    )


def _rows(evaluation: Evaluation, series: Iterable[SeriesMetrics], cells: Cells) -> list[str]:
    return [
        html.row(f"{method_name(one.method, evaluation.name)} {one.bits}", html.cells(cells(evaluation, one)))
        for one in series
    ]
