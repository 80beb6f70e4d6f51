"""Charts of how well methods retrieve: mAP at every length, curves by rank and by radius.

Knows nothing of the page.
"""

import itertools
from collections.abc import Callable
from typing import Any

from cluster.evaluation.methods import (
    ASYMMETRIC,
    ITQ,
    OURS,
    PCA_SIGN,
    RANDOM_HYPERPLANES,
    asymmetric_name,
    method_name,
)
from cluster.evaluation.results import Evaluation, SeriesMetrics
from cluster.reports.svg import INK, chart

METHOD_COLORS = {
    OURS: "#0e6b63",
    ASYMMETRIC: "#3d7fb5",
    ITQ: "#c98a1b",
    PCA_SIGN: "#e2c184",
    RANDOM_HYPERPLANES: "#98a2ab",
}
COMPARED_COLORS = (("#7d6aa8", "#b9aed6"), ("#b4573c", "#dda893"), ("#5f7f2c", "#b1c88a"), ("#9c3f73", "#d59dbd"))
"""Of compared encoders, and of the same with the logits of their queries."""
OUR_SHADES = ("#9fd0c8", "#4aa79b", "#0e6b63", "#07403b")


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

    return chart("bars", f"Bar chart: mAP@{evaluation.k} of each method at each code length", draw)


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


def precision_by_rank(evaluation: Evaluation) -> str:
    """Precision of the top N over N, which is drawn by its logarithm."""
    return _over_ranks(evaluation, "precision", lambda one: one.precision_by_rank)


def recall_by_rank(evaluation: Evaluation) -> str:
    """Recall of the top N over N, which is drawn by its logarithm."""
    return _over_ranks(evaluation, "recall", lambda one: one.recall_by_rank)


def within_radius(evaluation: Evaluation) -> str:
    """Precision, recall and mAP within a radius, and the share of empty balls, of our codes at the longest length."""
    one = evaluation.find(OURS, max(evaluation.lengths))

    def draw(axes: Any) -> None:
        assert one is not None
        shown = (
            ("mAP", one.map_by_radius, OUR_SHADES[3], "-"),
            ("precision", one.precision_by_radius, OUR_SHADES[2], (0, (4, 2))),
            ("recall", one.recall_by_radius, METHOD_COLORS[ITQ], "-"),
            ("empty balls", one.empty_balls_by_radius, METHOD_COLORS[RANDOM_HYPERPLANES], (0, (1, 1.5))),
        )
        for label, values, color, style in shown:
            axes.plot(range(len(values)), values, color=color, linestyle=style, label=label, clip_on=False)
        axes.set_xlabel("radius")
        axes.set_xlim(0, one.bits)
        axes.set_ylim(0, 1)
        _legend_below(axes, 4)

    return chart("within", "Line chart: precision, recall, mAP and empty balls within a Hamming radius", draw)


def map_by_radius(evaluation: Evaluation) -> str:
    """The mAP within a radius over the radius, of the series whose distance is Hamming's."""

    def scale(axes: Any) -> None:
        axes.set_xlim(0, max(evaluation.lengths))
        axes.set_xlabel("radius")
        axes.set_ylabel("mAP within the radius")

    def points(one: SeriesMetrics) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return tuple(range(len(one.map_by_radius))), one.map_by_radius

    return _curves(evaluation, "map-radius", points, "Line chart: mAP within a Hamming radius over the radius", scale)


def _over_ranks(evaluation: Evaluation, name: str, values: Callable[[SeriesMetrics], tuple[float, ...]]) -> str:
    def scale(axes: Any) -> None:
        last = evaluation.series[0].ranks[-1]
        powers = [10**exponent for exponent in range(len(str(last)))]
        axes.set_xscale("log")
        axes.set_xticks(powers, [f"{power:,}" for power in powers])
        axes.set_xticks([], minor=True)
        axes.set_xlim(1, max(2, last))
        axes.set_xlabel("N")
        axes.set_ylabel(f"{name} of the top N")

    description = f"Line chart: {name} of the top N over N"
    return _curves(evaluation, f"{name}-n", lambda one: (one.ranks, values(one)), description, scale)


def _precision_over_recall(axes: Any) -> None:
    axes.set_xlim(0, 1)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")


def _curves(
    evaluation: Evaluation,
    prefix: str,
    points: Callable[[SeriesMetrics], tuple[tuple[float, ...], tuple[float, ...]]],
    description: str,
    scale: Callable[[Any], None] = _precision_over_recall,
) -> str:
    """Our codes at every length, other methods at their longest."""
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
        scale(axes)
        axes.set_ylim(0, 1)
        _legend_below(axes, 2)

    return chart(prefix, description, draw)


def _legend_below(axes: Any, columns: int) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, columnspacing=1.2)


def _colors(evaluation: Evaluation) -> dict[str, str]:
    colors = dict(METHOD_COLORS)
    for one, (color, light) in zip(evaluation.compared, itertools.cycle(COMPARED_COLORS), strict=False):
        colors |= {one.name: color, asymmetric_name(one.name): light}
    return colors


def _label(evaluation: Evaluation, method: str) -> str:
    """What the legend calls a method; matplotlib would leave out what begins with an underscore."""
    name = method_name(method, evaluation.name)
    return f" {name}" if name.startswith("_") else name
