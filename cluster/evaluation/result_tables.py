"""The headline numbers of an evaluation as plain text: for the terminal and for `metrics.md`.

Knows nothing of files and pages.
"""

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.evaluation.methods import ASYMMETRIC, FLOAT_NAME, method_name
from cluster.evaluation.results import Evaluation, Margin, SeriesMetrics

if TYPE_CHECKING:
    from cluster.evaluation.evaluate import EvaluateResult

ASYMMETRIC_ABOUT = (
    "Asymmetric: the same database codes, ranked by the sum of the query’s logits, by size, over the bits that differ."
)
_TERMINAL_COLUMNS = 100


def difference_about(evaluation: Evaluation) -> str:
    """What the table of differences to compared encoders shows."""
    return f"mAP@{evaluation.k} of {evaluation.name} minus the other encoder’s, over the same queries."


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
    k = evaluation.k
    head = [
        "method",
        "bits",
        "ties worst",
        "ties best",
        f"P@{k}",
        f"R@{k}",
        "empty balls, radius 2",
        "median tie block",
    ]
    lines += ["", *_grid(head, [_detail_row(evaluation.name, one) for one in evaluation.series])]
    head = ["bits", "distinct codes", "mean imbalance", "least balanced bit", "constant bits"]
    rows = [
        [
            str(one.bits),
            f"{one.distinct_share:.2%}",
            f"{one.mean_imbalance:.3f}",
            f"{one.least_balanced:.3f} ones",
            str(one.constant_bits),
        ]
        for one in evaluation.health
    ]
    if evaluation.compared:
        lines += ["", f"The database’s codes by {evaluation.name}:"]
    lines += ["", *_grid(head, rows), "", f"Encoder `{evaluation.encoder_digest}`, seed {evaluation.seed}."]
    lines += [f"{one.name}: encoder `{one.encoder_digest}`." for one in evaluation.compared]
    lines += ["", *(f"- {note}" for note in evaluation.notes)] if evaluation.notes else []
    return "\n".join(lines) + "\n"


def empty_balls(one: SeriesMetrics) -> str:
    """`empty_ball_share` as a cell of a table."""
    return "–" if one.empty_ball_share is None else f"{one.empty_ball_share:.1%}"


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


def _detail_row(main: str, one: SeriesMetrics) -> list[str]:
    shares = (one.map_worst, one.map_best, one.precision_at_k, one.recall_at_k)
    numbers = [f"{value:.4f}" for value in shares]
    return [
        method_name(one.method, main),
        str(one.bits),
        *numbers,
        empty_balls(one),
        f"{one.median_tie_block:,.0f}",
    ]


def _grid(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(map(_cell, cells))} |" for cells in (head, rule, *rows)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(text: str) -> str:
    return " ".join(text.split())
