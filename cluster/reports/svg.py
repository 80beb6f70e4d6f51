"""Charts as SVG text that can stand several times in one HTML page.

Knows nothing of what is drawn. Drawn by matplotlib without a display; texts stay texts, in the font of the page.
"""

import io
import re
from collections.abc import Callable
from typing import Any

SIZE_INCHES = (4.6, 3.15)
INK, FAINT, GRID = "#33383d", "#7b838a", "#e4e2dc"
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


def chart(
    prefix: str,
    description: str,
    draw: Callable[[Any], None],
    size_inches: tuple[float, float] = SIZE_INCHES,
) -> str:
    """What `draw` draws on matplotlib axes, as an element of an HTML page.

    Args:
        prefix: Of all ids, another one for every chart of a page.
        description: For those who do not see it.
        draw: Gets the axes.
        size_inches: Width and height; pages scale it.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size_inches)
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
