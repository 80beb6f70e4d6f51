"""Charts of the health of codes: balance of bits, information that pairs of bits share, sizes of tie blocks.

Knows nothing of the page.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.evaluation.charts.retrieval import OUR_SHADES
from cluster.evaluation.health import size_names
from cluster.evaluation.results import BitHealth, Health
from cluster.reports.svg import FAINT, INK, chart

MAX_CELLS = 128
"""Rows of the heat map; of longer codes a cell stands for several bits."""
_STEPS = ("#f3f1ea", "#dcebe6", "#bfdcd5", "#9ccac0", "#74b3a8", "#4b998e", "#257f75", "#0e6b63", "#084c47", "#042f2c")


def balance_bars(bits: BitHealth) -> str:
    """The share of ones of every bit, as a bar from one half."""

    def draw(axes: Any) -> None:
        shares = np.array(bits.ones)
        far = np.abs(shares - 0.5) > 0.4
        colors = ["#b4443c" if one else OUR_SHADES[2] for one in far]
        axes.bar(range(bits.bits), shares - 0.5, 0.8, bottom=0.5, color=colors)
        axes.axhline(0.5, color=INK, linewidth=0.8)
        axes.set_xlim(-1, bits.bits)
        axes.set_ylim(0, 1)
        axes.set_xlabel("bit")
        axes.set_ylabel("share of ones")
        axes.grid(False, axis="x")

    return chart("balance", "Bar chart: share of ones of every bit", draw)


def tie_block_bars(health: tuple[Health, ...]) -> str:
    """Shares of the images by how many share their code, per length."""
    names = size_names(max(len(one.tie_blocks_by_size) for one in health))

    def draw(axes: Any) -> None:
        width = 0.8 / len(health)
        for place, one in enumerate(health):
            x = [size + (place - (len(health) - 1) / 2) * width for size in range(len(one.tie_blocks_by_size))]
            color = OUR_SHADES[-1 - (len(health) - 1 - place) % len(OUR_SHADES)]
            axes.bar(x, one.tie_blocks_by_size, width * 0.9, color=color, label=f"{one.bits} bits")
        turned = {"rotation": 40, "ha": "right", "fontsize": 7.5} if len(names) > 5 else {}
        axes.set_xticks(range(len(names)), names, **turned)
        axes.set_ylim(0, 1)
        axes.set_xlabel("images with the same code")
        axes.set_ylabel("share of images")
        axes.grid(False, axis="x")
        axes.legend(loc="upper right")

    return chart("ties", "Bar chart: shares of the images by how many share their code", draw)


def information_map(bits: BitHealth) -> str:
    """A heat map of the mutual information of all pairs of bits, as SVG of one path per shade."""
    cells = _cells(bits)
    size, largest = len(cells), float(cells.max(initial=0))
    shades = np.minimum((cells / largest * len(_STEPS)).astype(np.int64), len(_STEPS) - 1) if largest else cells * 0
    left, top, unit = 26, 4, 300 / size
    paths = []
    for shade, color in enumerate(_STEPS):
        rows, columns = np.nonzero((shades == shade) & ~np.eye(size, dtype=bool))
        moves = "".join(f"M{column} {row}h1v1h-1z" for row, column in zip(rows.tolist(), columns.tolist(), strict=True))
        if moves:
            paths.append(f'<path fill="{color}" d="{moves}"/>')
    return (
        f'<svg role="img" aria-label="Heat map: mutual information of all pairs of bits, at most {largest:.4f} bits" '
        f'viewBox="0 0 400 340"><g transform="translate({left} {top}) scale({unit:.6f})" shape-rendering="crispEdges">'
        f"{''.join(paths)}</g>{_axes(bits.bits, left, top)}{_legend(largest, left + 316, top)}</svg>"
    )


def _cells(bits: BitHealth) -> npt.NDArray[np.float64]:
    """The matrix, (C, C), of the largest value of each cell; 0 on the diagonal."""
    matrix = np.zeros((bits.bits, bits.bits))
    matrix[np.triu_indices(bits.bits, k=1)] = bits.mutual_information
    matrix += matrix.T
    width = -(-bits.bits // MAX_CELLS)
    padded = np.pad(matrix, (0, -bits.bits % width))
    size = len(padded) // width
    cells: npt.NDArray[np.float64] = padded.reshape(size, width, size, width).max(axis=(1, 3))
    return cells


def _axes(bits: int, left: int, top: int) -> str:
    ticks = [0, bits // 4, bits // 2, 3 * bits // 4, bits - 1]
    texts = []
    for tick in ticks:
        place = 300 * (tick + 0.5) / bits
        texts.append(_text(left + place, top + 314, str(tick), "middle"))
        texts.append(_text(left - 5, top + place + 4, str(tick), "end"))
    return "".join(texts) + _text(left + 150, top + 330, "bit", "middle")


def _legend(largest: float, x: float, y: int) -> str:
    step = 160 / len(_STEPS)
    boxes = (
        f'<rect x="{x}" y="{y + 160 - step * (place + 1):.2f}" width="12" height="{step:.2f}" fill="{color}"/>'
        for place, color in enumerate(_STEPS)
    )
    marks = _text(x + 17, y + 10, f"{largest:.3f}", "start") + _text(x + 17, y + 160, "0", "start")
    return "".join(boxes) + marks + _text(x, y + 178, "bits", "start")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" text-anchor="{anchor}" fill="{FAINT}">{text}</text>'
