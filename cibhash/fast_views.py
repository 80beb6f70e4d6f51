"""Random views by OpenCV, many times as fast as Pillow's: all color steps of a view are one affine map of its pixels.

Knows nothing of files, batches and devices. The draws are those of `cibhash.view_draws`, so a view differs from
`cibhash.views.random_view` only in how they are applied: nothing is clipped between two color steps, hue turns in the
YIQ plane instead of HSV, and shrinking by less than 2 does not filter. `cibhash.device_views` applies the colors on a
device.
"""

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cibhash.specs import ViewSpec
from cibhash.view_draws import ViewDraw, draw_view

Pixels = npt.NDArray[np.uint8]
ColorMap = npt.NDArray[np.float32]
"""Affine map of RGB values in 0..255, float32 (3, 4): the last column is added."""
_GRAY = (0.299, 0.587, 0.114)
"""ITU-R BT.601 luma, as Pillow and torchvision have it."""
_YIQ = np.array([_GRAY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
_RGB = np.linalg.inv(_YIQ)
_IDENTITY = np.eye(3, 4)
_AREA_FROM = 2
"""From this factor on, shrinking averages areas; below, four pixels say enough and are several times as fast."""


def fast_view(image: Pixels, spec: ViewSpec, size: int, generator: np.random.Generator) -> Pixels:
    """One random view.

    Args:
        image: RGB, uint8 (height, width, 3).
        spec: Strength of each step.
        size: Side of the view in pixels.
        generator: From `cibhash.view_draws.view_generator`.

    Returns:
        uint8 (size, size, 3): channels last, as OpenCV has it.
    """
    draw = draw_view(image.shape[1], image.shape[0], spec, generator)
    view: Any = cut_out(image, draw, size)
    if draw.color or draw.grayscale:
        view = cv2.transform(view, color_map(draw, np.array(cv2.mean(view)[:3])))
    if draw.blur_sigma:
        view = cv2.GaussianBlur(view, (3, 3), draw.blur_sigma)
    made: Pixels = view
    return made


def cut_out(image: Pixels, draw: ViewDraw, size: int) -> Pixels:
    """The geometry of a view: rotation, crop, resize and flip of an RGB image, uint8 (size, size, 3)."""
    if draw.angle:
        height, width = image.shape[:2]
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), draw.angle, 1.0)
        image = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR)  # type: ignore[assignment]
    left, top, right, bottom = draw.box
    shrinks = min(right - left, bottom - top) > _AREA_FROM * size
    view = cv2.resize(
        image[top:bottom, left:right], (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return cv2.flip(view, 1) if draw.flip else view  # type: ignore[return-value]


def color_map(draw: ViewDraw, mean: npt.NDArray[np.float64]) -> ColorMap:
    """All color steps of a view as one affine map.

    Args:
        draw: The view.
        mean: Mean RGB of the view before any color step: contrast is relative to the mean gray of what it is given.
    """
    total = _IDENTITY
    for name, amount in draw.color:
        step = _step(name, amount, total, mean)
        total = np.column_stack((step[:, :3] @ total[:, :3], step[:, :3] @ total[:, 3] + step[:, 3]))
    if draw.grayscale:
        total = np.tile(np.asarray(_GRAY) @ total, (3, 1))
    return total.astype(np.float32)


def _step(
    name: str,
    amount: float,
    before: npt.NDArray[np.float64],
    mean: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """One color step as an affine map (3, 4); `before` is what has been done so far."""
    step = np.zeros((3, 4))
    if name == "brightness":
        np.fill_diagonal(step, amount)
    elif name == "contrast":
        np.fill_diagonal(step, amount)
        step[:, 3] = (1 - amount) * (_GRAY @ (before[:, :3] @ mean + before[:, 3]))
    elif name == "saturation":
        step[:, :3] = (1 - amount) * np.asarray(_GRAY)
        step[[0, 1, 2], [0, 1, 2]] += amount
    else:
        # From red over green to blue, as in HSV: the IQ plane has these the other way around.
        angle = -2 * math.pi * amount
        turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
        step[:, :3] = _RGB @ turn @ _YIQ
    return step
