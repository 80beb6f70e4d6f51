"""Charts of a comparison of two encoders.

Knows nothing of the page.
"""

from typing import Any

from cluster.drift.findings import Findings
from cluster.reports.svg import FAINT, INK, chart

_BAR, _OTHER = "#0e6b63", "#c98a1b"


def flip_bars(findings: Findings) -> str:
    """How often every bit flips, beside the half that codes have which know nothing of each other."""

    def draw(axes: Any) -> None:
        axes.bar(range(findings.bits), findings.flip_rates, 0.8, color=_BAR)
        axes.axhline(0.5, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_xlim(-1, findings.bits)
        axes.set_ylim(0, max(0.55, *findings.flip_rates))
        axes.set_xlabel("bit")
        axes.set_ylabel("share of images")
        axes.grid(False, axis="x")

    return chart("flips", "Bar chart: share of images in whose codes a bit differs, for every bit", draw)


def flipped_bars(findings: Findings) -> str:
    """How many bits of a code flip."""
    last = max(place for place, share in enumerate(findings.flipped) if share)

    def draw(axes: Any) -> None:
        axes.bar(range(last + 1), findings.flipped[: last + 1], 0.8, color=_BAR)
        axes.set_xlabel("bits that differ")
        axes.set_ylabel("share of images")
        axes.grid(False, axis="x")

    return chart("flipped", "Bar chart: share of images by the number of bits in which their codes differ", draw)


def map_bars(findings: Findings) -> str:
    """MAP of old codes, new ones, and new queries among old codes, with 95 % intervals."""
    named = (("old", findings.map_old), ("new", findings.map_new), ("new among old", findings.map_mixed))
    scores = [(name, score) for name, score in named if score is not None]

    def draw(axes: Any) -> None:
        means = [score.mean for _, score in scores]
        errors = [
            [max(0.0, score.mean - score.interval.low) for _, score in scores],
            [max(0.0, score.interval.high - score.mean) for _, score in scores],
        ]
        style = {"ecolor": INK, "elinewidth": 0.9, "capsize": 2, "capthick": 0.9}
        colors = [FAINT, _BAR, _OTHER]
        axes.bar([name for name, _ in scores], means, 0.6, yerr=errors, error_kw=style, color=colors)
        axes.set_ylabel(f"mAP@{findings.k}")
        axes.set_ylim(0, None)
        axes.grid(False, axis="x")

    return chart("maps", "Bar chart: mAP of old codes, new codes, and new queries among old codes", draw)
