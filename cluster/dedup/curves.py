"""The chart of a calibration: what a radius finds of copies, and of what is no copy.

Knows nothing of the page.
"""

from itertools import accumulate
from typing import Any

from cluster.dedup.results import Calibration
from cluster.reports.svg import FAINT, INK, chart

_SHOWN_SHARE = 0.995


def calibration_chart(calibration: Calibration, radius: int) -> str:
    """Shares of copies, of images with another image, and of pairs that share a label, by radius."""
    curves = {"copies found": (shares(calibration.copies), "#0e6b63", "-")} if calibration.copies else {}
    curves["images with another image"] = (shares(calibration.nearest), "#b4573c", "-")
    if calibration.sharing:
        pairs, sharing = accumulate(calibration.pairs), accumulate(calibration.sharing)
        same = [b / a if a else float("nan") for a, b in zip(pairs, sharing, strict=True)]
        curves["pairs that share a label"] = (same, "#c98a1b", (0, (3, 2)))  # type: ignore[assignment]
    last = max(radius, *(_reaches(values) for values, _, _ in list(curves.values())[:2]), 4)

    def draw(axes: Any) -> None:
        for label, (values, color, style) in curves.items():
            axes.plot(range(last + 1), values[: last + 1], color=color, linestyle=style, label=label, marker=".")
        axes.axvline(radius, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.annotate(f" radius {radius}", (radius, 1.02), color=FAINT, annotation_clip=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("Hamming distance at most")
        axes.set_ylabel("share")
        axes.set_xlim(-0.2, last + 0.2)
        axes.set_ylim(0, 1)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, columnspacing=1.2)

    return chart("calibration", "Line chart: shares by Hamming radius", draw)


def shares(counts: tuple[int, ...]) -> list[float]:
    """Share of all that lies within each distance."""
    total = max(1, sum(counts))
    return [count / total for count in accumulate(counts)]


def _reaches(values: list[float]) -> int:
    return next((distance for distance, value in enumerate(values) if value >= _SHOWN_SHARE), len(values) - 1)
