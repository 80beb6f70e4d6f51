"""The curves of a run as one picture, `training.svg`.

Knows nothing of Ray. Drawn from the rows of `metrics.jsonl`.
"""

import io
from collections.abc import Sequence

from cluster import storage
from cluster.training.metrics_log import Row

PICTURE = "training.svg"
_PANELS = (
    ("loss", (("step", "loss", "training"), ("look", "nt_xent", "held out"))),
    ("bit entropy", (("step", "bit_entropy", "training batch"), ("look", "bit_entropy", "held out"))),
    ("separation of neighbors", (("look", "sep10", "sep10 (label-free)"),)),
    ("held-out mAP", (("look", "oracle", "by labels, for comparison only"),)),
    ("agreement of views", (("look", "alignment", "two views"), ("look", "alignment_gap", "less other images"))),
    ("images per second", (("step", "images_per_s", "training"),)),
)


def write_curves(output: str, rows: Sequence[Row]) -> None:
    """Draws what there is and writes it beside the metrics."""
    shown = [panel for panel in _PANELS if any(_points(rows, kind, name)[0] for kind, name, _ in panel[1])]
    if not shown:
        return
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * min(3, len(shown)), 2.9 * -(-len(shown) // 3)), layout="constrained")
    FigureCanvasSVG(figure)
    for number, (title, lines) in enumerate(shown, start=1):
        axes = figure.add_subplot(-(-len(shown) // 3), min(3, len(shown)), number)
        for kind, name, label in lines:
            steps, values = _points(rows, kind, name)
            if steps:
                axes.plot(steps, values, label=label, linewidth=1.4, marker="." if len(steps) < 30 else None)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    storage.write_bytes(storage.join(output, PICTURE), content.getvalue())


def _points(rows: Sequence[Row], kind: str, name: str) -> tuple[list[int], list[float]]:
    found = [(int(row["step"]), float(row[name])) for row in rows if row["kind"] == kind and name in row]
    return [step for step, _ in found], [value for _, value in found]
