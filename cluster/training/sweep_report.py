"""How a sweep is shown: a table for the terminal and as Markdown, and a picture.

Knows nothing of how trials are run.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Setting = Mapping[str, float | int]


@dataclass(frozen=True)
class Trial:
    """One setting and what came of it; a score is None where it is not known."""

    setting: Setting
    encoder_uri: str
    encoder_digest: str
    sep10: float | None
    nt_xent: float | None
    oracle: float | None
    """By the held-out images' labels; shown for comparison, never used to rank."""
    bit_entropy: float | None
    seconds: float
    failure: str = ""
    """Why there is no encoder, such as codes that collapsed."""


def _cells(trial: Trial) -> list[str]:
    if trial.failure:
        return [trial.failure.partition(" ")[2][:60], "", "", "", f"{trial.seconds:.0f}"]
    scores = (trial.sep10, trial.nt_xent, trial.oracle, trial.bit_entropy)
    return [*("" if score is None else f"{score:.4f}" for score in scores), f"{trial.seconds:.0f}"]


_HEADINGS = ("sep10", "held-out NT-Xent", "held-out mAP (labels)", "bit entropy", "s")


def markdown(trials: Sequence[Trial], names: Sequence[str]) -> str:
    """The trials in their order, one row each."""
    lines = [f"| {' | '.join([*names, *_HEADINGS])} |", f"|{'---|' * (len(names) + len(_HEADINGS))}"]
    for trial in trials:
        values = [f"{trial.setting[name]:g}" for name in names]
        lines.append(f"| {' | '.join([*values, *_cells(trial)])} |")
    return "\n".join(lines) + "\n"


def terminal_table(trials: Sequence[Trial], names: Sequence[str]) -> str:
    """The trials in their order, one row each, for a terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*names, *_HEADINGS, title="best first, by sep10 (no labels)")
    for trial in trials:
        table.add_row(*(f"{trial.setting[name]:g}" for name in names), *_cells(trial))
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def picture(trials: Sequence[Trial], names: Sequence[str]) -> bytes:
    """One panel per parameter: its values against the label-free score, and the labels' where they are known."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0 * len(names), 3.4), layout="constrained")
    FigureCanvasSVG(figure)
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), number)
        values = [float(trial.setting[name]) for trial in trials]
        axes.scatter(values, [_number(trial.sep10) for trial in trials], s=18, color="tab:blue")
        axes.set_xlabel(name)
        axes.set_ylabel("sep10", color="tab:blue")
        axes.grid(alpha=0.25)
        positive = [value for value in values if value > 0]
        if positive and max(positive) >= 10 * min(positive):
            axes.set_xscale("log" if len(positive) == len(values) else "symlog")
        if any(trial.oracle is not None for trial in trials):
            other = axes.twinx()
            other.scatter(values, [_number(trial.oracle) for trial in trials], s=18, marker="x", color="tab:orange")
            other.set_ylabel("held-out mAP (labels)", color="tab:orange")
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def _number(value: float | None) -> float:
    return math.nan if value is None else value
