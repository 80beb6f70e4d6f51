"""The headline numbers of an evaluation as plain text: for the terminal and for `metrics.md`.

Knows nothing of files and pages.
"""

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from cluster.evaluation.results import Evaluation, SeriesMetrics

if TYPE_CHECKING:
    from cluster.evaluation.evaluate import EvaluateResult

METHOD_NAMES = {
    "cibhash": "CIBHash",
    "cibhash-asymmetric": "CIBHash, asymmetric",
    "itq": "PCA-ITQ",
    "random_hyperplanes": "Random hyperplanes",
}
FLOAT_NAME = "Float features, cosine"
ASYMMETRIC_ABOUT = (
    "Asymmetric: the same database codes, ranked by the sum of the query’s logits, by size, over the bits that differ."
)
_TERMINAL_COLUMNS = 100


def format_table(result: "EvaluateResult") -> str:
    """The results as a table for the terminal: a row per method, a column per code length."""
    table = Table(title=f"mAP@{result.k}  ({result.queries:,} queries, {result.database:,} in the database)")
    lengths = list(result.map_at_k)
    table.add_column("method")
    for bits in lengths:
        table.add_column(f"{bits} bits", justify="right")
    table.add_row(METHOD_NAMES["cibhash"], *(f"[bold]{value:.4f}[/bold]" for value in result.map_at_k.values()))
    ours = {"cibhash-asymmetric": result.map_at_k_asymmetric} if result.map_at_k_asymmetric else {}
    for method, values in (ours | result.baselines).items():
        cells = (f"{values[bits]:.4f}" if bits in values else "–" for bits in lengths)
        table.add_row(METHOD_NAMES.get(method, method), *cells)
    if result.float_cosine is not None:
        table.add_row(FLOAT_NAME, *[f"{result.float_cosine:.4f}"] * len(lengths), style="dim")
    sink = io.StringIO()
    console = Console(file=sink, width=_TERMINAL_COLUMNS)
    console.print(table)
    if result.verdict:
        console.print(result.verdict, markup=False)
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
    if "cibhash-asymmetric" in evaluation.methods:
        lines += ["", ASYMMETRIC_ABOUT]
    if evaluation.verdict:
        lines += ["", f"**{evaluation.verdict}**"]
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
    lines += ["", *_grid(head, [_detail_row(one) for one in evaluation.series])]
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
    lines += ["", *_grid(head, rows), "", f"Encoder `{evaluation.encoder_digest}`, seed {evaluation.seed}."]
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
        rows.append([METHOD_NAMES.get(method, method), *cells])
    if (upper := evaluation.float_cosine) is not None:
        cell = f"{upper.map_at_k:.4f} [{upper.interval.low:.4f}, {upper.interval.high:.4f}]"
        rows.append([FLOAT_NAME, *[cell] * len(evaluation.lengths)])
    return rows


def _detail_row(one: SeriesMetrics) -> list[str]:
    shares = (one.map_worst, one.map_best, one.precision_at_k, one.recall_at_k)
    numbers = [f"{value:.4f}" for value in shares]
    return [
        METHOD_NAMES.get(one.method, one.method),
        str(one.bits),
        *numbers,
        empty_balls(one),
        f"{one.median_tie_block:,.0f}",
    ]


def _grid(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def _plain(text: str) -> str:
    return " ".join(text.split())
