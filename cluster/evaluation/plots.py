"""The charts of an evaluation report as SVG text that can stand several times in one HTML page.

Knows nothing of the page. Drawn by matplotlib without a display; texts stay texts, in the font of the page.
"""

import io
import itertools
import re
from collections.abc import Callable
from typing import Any

from cluster.evaluation.methods import ASYMMETRIC, ITQ, OURS, RANDOM_HYPERPLANES, asymmetric_name, method_name
from cluster.evaluation.results import Evaluation, SeriesMetrics

SIZE_INCHES = (4.6, 3.15)
INK, FAINT, GRID = "#33383d", "#7b838a", "#e4e2dc"
METHOD_COLORS = {OURS: "#0e6b63", ASYMMETRIC: "#3d7fb5", ITQ: "#c98a1b", RANDOM_HYPERPLANES: "#98a2ab"}
COMPARED_COLORS = (("#7d6aa8", "#b9aed6"), ("#b4573c", "#dda893"), ("#5f7f2c", "#b1c88a"), ("#9c3f73", "#d59dbd"))
"""Of compared encoders, and of the same with the logits of their queries."""
OUR_SHADES = ("#9fd0c8", "#4aa79b", "#0e6b63", "#07403b")
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cibhash",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#b9b6ae",
    "axes.labelcolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def map_bars(evaluation: Evaluation) -> str:
    """MAP@k of every method at every length with 95 % intervals, and the float upper bound as a line."""

    def draw(axes: Any) -> None:
        methods, lengths, colors = evaluation.methods, evaluation.lengths, _colors(evaluation)
        width = 0.78 / len(methods)
        shown = []
        for place, method in enumerate(methods):
            found = [(spot, one) for spot, bits in enumerate(lengths) if (one := evaluation.find(method, bits))]
            x = [spot + (place - (len(methods) - 1) / 2) * width for spot, _ in found]
            heights = [one.map_at_k for _, one in found]
            errors = [
                [max(0.0, one.map_at_k - one.interval.low) for _, one in found],
                [max(0.0, one.interval.high - one.map_at_k) for _, one in found],
            ]
            look = {"color": colors[method], "label": _label(evaluation, method)}
            style = {"ecolor": INK, "elinewidth": 0.9, "capsize": 2, "capthick": 0.9}
            shown.append(axes.bar(x, heights, width * 0.92, yerr=errors, error_kw=style, **look))
        if (upper := evaluation.float_cosine) is not None:
            line = {"color": INK, "linewidth": 1.1, "linestyle": (0, (4, 3))}
            shown.append(axes.axhline(upper.map_at_k, label="Float, cosine", **line))
        axes.set_xticks(range(len(lengths)), [f"{bits} bits" for bits in lengths])
        axes.set_xlim(-0.6, len(lengths) - 0.4)
        axes.grid(False, axis="x")
        axes.set_ylabel(f"mAP@{evaluation.k}")
        axes.set_ylim(0, None)
        axes.legend(handles=shown, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, columnspacing=1.4)

    return drawn_svg("bars", f"Bar chart: mAP@{evaluation.k} of each method at each code length", draw)


def curves_by_rank(evaluation: Evaluation) -> str:
    """Precision over recall at ranks 1 to the whole database."""
    return _curves(
        evaluation,
        "rank",
        lambda one: (one.recall_by_rank, one.precision_by_rank),
        "Line chart: precision over recall by rank",
    )


def curves_by_radius(evaluation: Evaluation) -> str:
    """Precision over recall at radius 0 to the code length, of the series whose distance is Hamming's."""
    return _curves(
        evaluation,
        "radius",
        lambda one: (one.recall_by_radius, one.precision_by_radius),
        "Line chart: precision over recall by Hamming radius",
    )


def _curves(
    evaluation: Evaluation,
    prefix: str,
    points: Callable[[SeriesMetrics], tuple[tuple[float, ...], tuple[float, ...]]],
    description: str,
) -> str:
    lengths, colors = evaluation.lengths, _colors(evaluation)
    longest = {one.method: one.bits for one in sorted(evaluation.series, key=lambda one: one.bits)}
    shades = [OUR_SHADES[-1 - (len(lengths) - 1 - spot) % len(OUR_SHADES)] for spot in range(len(lengths))]
    shown = [(OURS, bits, shade, "-") for bits, shade in zip(lengths, shades, strict=True)]
    shown += [
        (method, longest[method], colors[method], (0, (3, 2)))  # type: ignore[misc]
        for method in evaluation.methods
        if method != OURS
    ]

    def draw(axes: Any) -> None:
        for method, bits, color, style in shown:
            if (one := evaluation.find(method, bits)) is not None and points(one)[0]:
                label = f"{_label(evaluation, method)} {bits}"
                axes.plot(*points(one), color=color, linestyle=style, label=label, clip_on=False)
        axes.set_xlabel("recall")
        axes.set_ylabel("precision")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, columnspacing=1.2)

    return drawn_svg(prefix, description, draw)


def _colors(evaluation: Evaluation) -> dict[str, str]:
    colors = dict(METHOD_COLORS)
    for one, (color, light) in zip(evaluation.compared, itertools.cycle(COMPARED_COLORS), strict=False):
        colors |= {one.name: color, asymmetric_name(one.name): light}
    return colors


def _label(evaluation: Evaluation, method: str) -> str:
    """What the legend calls a method; matplotlib would leave out what begins with an underscore."""
    name = method_name(method, evaluation.name)
    return f" {name}" if name.startswith("_") else name


def drawn_svg(prefix: str, description: str, draw: Callable[[Any], None]) -> str:
    """A chart as an element of an HTML page: `draw` is given the axes, ids begin with `prefix`."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=SIZE_INCHES)
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        draw(axes)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", bbox_inches="tight", pad_inches=0.04, metadata={"Date": None})
    return inline_svg(sink.getvalue(), prefix, description)


def inline_svg(document: str, prefix: str, description: str) -> str:
    """An SVG document as an element of an HTML page: no prolog, no addresses, ids that begin with `prefix`."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{description}" ', svg, count=1)
