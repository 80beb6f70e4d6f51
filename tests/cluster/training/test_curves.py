"""The picture of the curves: every point where it belongs, and none where there is nothing to draw."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.training.curves import write_curves

_SVG = "{http://www.w3.org/2000/svg}"


def _rows(steps: int) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, steps + 1):
        rows.append({"kind": "step", "step": step, "loss": 3 - step / 10, "bit_entropy": 0.5, "images_per_s": 100.0})
        if step % 5 == 0:
            rows.append({"kind": "look", "step": step, "nt_xent": 4 - step / 10, "sep10": step / 10, "oracle": 0.5})
    return rows


def _lines(folder: Path) -> list[list[tuple[float, float]]]:
    """The curves of the picture as points on the page; axes, grid and legends have two points or lie in `defs`."""
    tree = ElementTree.parse(folder / "training.svg")
    found = []
    for group in tree.iter(f"{_SVG}g"):
        if re.fullmatch(r"axes_\d+", group.get("id", "")):
            for line in group.findall(f"{_SVG}g"):
                if line.get("id", "").startswith("line2d"):
                    path = line.find(f"{_SVG}path")
                    assert path is not None
                    numbers = re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path.get("d", ""))
                    found.append([(float(x), float(y)) for x, y in numbers])
    return found


def test_every_curve_has_its_points(tmp_path: Path) -> None:
    write_curves(str(tmp_path), _rows(40))
    text = (tmp_path / "training.svg").read_text()
    for title in ("loss", "bit entropy", "separation of neighbors", "held-out mAP", "images per second"):
        assert f"<!-- {title} -->" in text
    assert "agreement of views" not in text
    curves = _lines(tmp_path)
    # loss, held-out loss, entropy, sep10, oracle, rate: matplotlib leaves out points within a straight line.
    assert len(curves) == 6
    for points in curves:
        across = [x for x, _ in points]
        assert across == sorted(across)
    (first_x, first_y), (last_x, last_y) = curves[0][0], curves[0][-1]
    (held_first_x, held_first_y), (held_last_x, held_last_y) = curves[1][0], curves[1][-1]
    per_step, per_loss = (last_x - first_x) / 39, (last_y - first_y) / 3.9
    assert (per_step > 0, per_loss > 0) == (True, True)  # the page's y grows downward, the loss falls
    np.testing.assert_allclose(held_first_x, first_x + 4 * per_step, rtol=1e-4)
    np.testing.assert_allclose(held_last_x, last_x, rtol=1e-4)
    # At step 5 the held-out loss is 3.5, the first training loss 2.9.
    np.testing.assert_allclose(held_first_y, first_y - 0.6 * per_loss, rtol=1e-4)
    np.testing.assert_allclose(held_last_y, last_y - 1.0 * per_loss, rtol=1e-4)


def test_equal_rows_give_equal_pictures(tmp_path: Path) -> None:
    pictures = set()
    for name in ("a", "b"):
        write_curves(str(tmp_path / name), _rows(10))
        pictures.add(re.sub(r'"[^"]*[0-9a-f]{10}[^"]*"', "", (tmp_path / name / "training.svg").read_text()))
    assert len(pictures) == 1


@pytest.mark.parametrize("rows", [[], [{"kind": "epoch", "step": 3, "epoch": 0, "loss": 1.0}]])
def test_nothing_to_draw_gives_no_picture(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    write_curves(str(tmp_path), rows)
    assert list(tmp_path.iterdir()) == []
