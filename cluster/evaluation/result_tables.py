"""The headline numbers of an evaluation as plain text: for the terminal and for `metrics.md`.

Knows nothing of files and pages.
"""

import io
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.evaluation.methods import ASYMMETRIC, FLOAT_NAME, OURS, method_name
from cluster.evaluation.metric_cells import (
    ASYMMETRIC_ABOUT,
    DETAILS_ABOUT,
    HEALTH_ABOUT,
    RADIUS_ABOUT,
    detail_cells,
    detail_head,
    difference_about,
    health_cells,
    health_head,
    radius_cells,
    radius_head,
    sampling_about,
    stored_order_about,
)
from cluster.evaluation.published_cells import published_about, published_head, published_rows, published_title
from cluster.evaluation.results import Evaluation, Margin, SeriesMetrics

if TYPE_CHECKING:
    from cluster.evaluation.evaluate import EvaluateResult

_TERMINAL_COLUMNS = 100


def format_table(result: "EvaluateResult") -> str:
    """The results as a table for the terminal: a row per method, a column per code length."""
    table = Table(title=f"mAP@{result.k}  ({result.queries:,} queries, {result.database:,} in the database)")
    lengths = list(result.map_at_k)
    table.add_column("method")
    for bits in lengths:
        table.add_column(f"{bits} bits", justify="right")
    table.add_row(escape(result.name), *(f"[bold]{value:.4f}[/bold]" for value in result.map_at_k.values()))
    ours = {ASYMMETRIC: result.map_at_k_asymmetric} if result.map_at_k_asymmetric else {}
    for method, values in (ours | result.compared | result.baselines).items():
        cells = (f"{values[bits]:.4f}" if bits in values else "–" for bits in lengths)
        table.add_row(escape(method_name(method, result.name)), *cells)
    if result.float_cosine is not None:
        table.add_row(FLOAT_NAME, *[f"{result.float_cosine:.4f}"] * len(lengths), style="dim")
    sink = io.StringIO()
    console = Console(file=sink, width=_TERMINAL_COLUMNS)
    console.print(table)
    if result.protocol is not None:
        shown = [int(bits) for bits in lengths]
        others = Table(*published_head(shown), title=published_title(result.protocol))
        for row in published_rows(result.protocol, shown):
            others.add_row(*map(escape, row))
        console.print(others)
        if result.protocol.deviations:
            console.print(f"Not comparable: {'; '.join(result.protocol.deviations)}.", markup=False)
    for sentence in (result.verdict, *result.compared_verdicts.values()):
        if sentence:
            console.print(sentence, markup=False)
    return sink.getvalue().rstrip()


def markdown(evaluation: Evaluation) -> str:
    """The content of `metrics.md`."""
    lengths = evaluation.lengths
    lines = [
        f"# {_plain(evaluation.title)}",
        "",
        f"mAP@{evaluation.k}, tie-aware, hashing denominator; bootstrap 95 % interval over queries in brackets. "
        f"{evaluation.queries:,} queries, {evaluation.database:,} images in the database.",
        "",
        *_grid(["method", *(f"{bits} bits" for bits in lengths)], _headline_rows(evaluation)),
    ]
    if evaluation.is_asymmetric:
        lines += ["", ASYMMETRIC_ABOUT]
    for _, sentence in evaluation.verdicts:
        lines += ["", f"**{sentence}**"]
    if evaluation.compared:
        rows = [[one.name, *(_difference(one.margin(bits)) for bits in lengths)] for one in evaluation.compared]
        head = ["difference to", *(f"{bits} bits" for bits in lengths)]
        lines += ["", difference_about(evaluation), "", *_grid(head, rows)]
    if evaluation.protocol is not None:
        rows = published_rows(evaluation.protocol, lengths)
        lines += ["", f"{published_title(evaluation.protocol)}: {published_about(evaluation.protocol)}", ""]
        lines += _grid(published_head(lengths), rows)
    head = ["method", "bits", *detail_head(evaluation)]
    lines += ["", *_grid(head, _series_rows(evaluation, evaluation.series, detail_cells)), "", DETAILS_ABOUT]
    lines += [stored_order_about(evaluation)] if stored_order_about(evaluation) else []
    weightless = [one for one in evaluation.series if one.ramap is not None]
    head = ["method", "bits", *radius_head()]
    lines += ["", *_grid(head, _series_rows(evaluation, weightless, radius_cells)), "", RADIUS_ABOUT]
    lines += _class_lines(evaluation)
    head = ["bits", *health_head()]
    rows = [[str(one.bits), *health_cells(one)] for one in evaluation.health]
    if evaluation.compared:
        lines += ["", f"The database’s codes by {evaluation.name}:"]
    lines += ["", *_grid(head, rows), "", HEALTH_ABOUT]
    lines += ["", sampling_about(evaluation)] if sampling_about(evaluation) else []
    lines += ["", f"Encoder `{evaluation.encoder_digest}`, seed {evaluation.seed}."]
    lines += [f"{one.name}: encoder `{one.encoder_digest}`." for one in evaluation.compared]
    lines += ["", *(f"- {note}" for note in evaluation.notes)] if evaluation.notes else []
    return "\n".join(lines) + "\n"


def _class_lines(evaluation: Evaluation) -> list[str]:
    """Classes by our codes at the longest length."""
    one = evaluation.find(OURS, max(evaluation.lengths))
    if one is None or not evaluation.classes:
        return []
    scores = zip(evaluation.classes, one.map_by_class, one.precision_by_class, strict=True)
    rows = [
        [f"{_plain(found.name) or found.label}", f"{found.queries:,}", f"{average:.4f}", f"{precision:.4f}"]
        for found, average, precision in scores
    ]
    head = [f"class, {evaluation.name} {one.bits}", "queries", f"mAP@{evaluation.k}", f"P@{evaluation.k}"]
    return ["", *_grid(head, rows)]


def _headline_rows(evaluation: Evaluation) -> list[list[str]]:
    rows = []
    for method in evaluation.methods:
        found = [evaluation.find(method, bits) for bits in evaluation.lengths]
        cells = [
            f"{one.map_at_k:.4f} [{one.interval.low:.4f}, {one.interval.high:.4f}]" if one else "–" for one in found
        ]
        rows.append([method_name(method, evaluation.name), *cells])
    if (upper := evaluation.float_cosine) is not None:
        cell = f"{upper.map_at_k:.4f} [{upper.interval.low:.4f}, {upper.interval.high:.4f}]"
        rows.append([FLOAT_NAME, *[cell] * len(evaluation.lengths)])
    return rows


def _difference(margin: Margin | None) -> str:
    if margin is None:
        return "–"
    return f"{margin.difference:+.4f} [{margin.interval.low:+.4f}, {margin.interval.high:+.4f}]"


def _series_rows(
    evaluation: Evaluation,
    series: Iterable[SeriesMetrics],
    cells: Callable[[Evaluation, SeriesMetrics], list[str]],
) -> list[list[str]]:
    return [[method_name(one.method, evaluation.name), str(one.bits), *cells(evaluation, one)] for one in series]


def _grid(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(map(_cell, cells))} |" for cells in (head, rule, *rows)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(text: str) -> str:
    return " ".join(text.split())
