"""The bars of every class of queries.

Knows nothing of the page.
"""

from typing import Any

from cluster.evaluation.results import QueryClass, SeriesMetrics
from cluster.reports.svg import INK, chart

MAX_BARS = 40
_WIDTH_INCHES, _ROW_INCHES, _FRAME_INCHES = 4.6, 0.19, 0.5
_LONGEST_NAME = 22


def shown_classes(classes: tuple[QueryClass, ...], one: SeriesMetrics) -> list[int]:
    """Which classes are drawn, by place, best first: all, or the best and worst `MAX_BARS` together."""
    order = sorted(range(len(classes)), key=lambda place: (-one.map_by_class[place], place))
    return order if len(order) <= MAX_BARS else order[: MAX_BARS // 2] + order[-MAX_BARS // 2 :]


def class_bars(classes: tuple[QueryClass, ...], one: SeriesMetrics, k: int) -> str:
    """Bars of mAP@k by class, best first, with a tick at precision@k."""
    shown = shown_classes(classes, one)

    def draw(axes: Any) -> None:
        rows = range(len(shown))
        heights = [one.map_by_class[place] for place in shown]
        axes.barh(rows, heights, 0.72, color="#0e6b63", label=f"mAP@{k}")
        precision = [one.precision_by_class[place] for place in shown]
        axes.scatter(
            precision, rows, marker="|", s=42, color="#c98a1b", linewidth=1.8, label=f"precision@{k}", zorder=3
        )
        for row, height in zip(rows, heights, strict=True):
            axes.text(1.02, row, f"{height:.3f}", va="center", color=INK, fontsize=8)
        axes.set_yticks(rows, [_name(classes[place]) for place in shown], fontsize=8)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.grid(False, axis="y")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3 / (len(shown) * _ROW_INCHES)), ncols=2)

    size = _WIDTH_INCHES, len(shown) * _ROW_INCHES + _FRAME_INCHES
    return chart("classes", f"Bar chart: mAP@{k} of the queries of each class", draw, size)


def _name(one: QueryClass) -> str:
    name = one.name if len(one.name) <= _LONGEST_NAME else f"{one.name[: _LONGEST_NAME - 1]}…"
    return f"{name or one.label} ({one.queries:,})"
