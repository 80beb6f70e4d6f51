"""Colors and blur of a batch of views where the tensors are: parameters of their own for every image.

Knows nothing of draws and files. Gives what `cibhash.fast_views` gives, to two gray levels. Shapes: N images of H x W.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad


class ColorDraws(NamedTuple):
    """What is left to do to the views of a batch once they are cut out."""

    maps: Tensor
    """Affine maps of RGB values in 0..255, float32 (N, 3, 4)."""
    blur: Tensor
    """Weight of the middle and of either neighbor in a 3-tap blur, float32 (N, 2); (1, 0) does nothing."""


def blur_weights(sigma: float) -> tuple[float, float]:
    """Middle and side weight of a normalized 3-tap Gaussian; a sigma of 0 is no blur."""
    side = math.exp(-0.5 / sigma**2) if sigma else 0.0
    return 1 / (1 + 2 * side), side / (1 + 2 * side)


def color_draws(maps: list[npt.NDArray[np.float32]], sigmas: list[float]) -> ColorDraws:
    """Stacks the draws of a batch."""
    weights = np.array([blur_weights(sigma) for sigma in sigmas], np.float32)
    return ColorDraws(torch.from_numpy(np.stack(maps)), torch.from_numpy(weights))


def apply_colors(images: Tensor, draws: ColorDraws) -> Tensor:
    """Applies color map and blur to every image.

    Args:
        images: uint8 (N, 3, H, W), H and W at least 2.
        draws: Of the same N images, on the same device.

    Returns:
        uint8 (N, 3, H, W).
    """
    x = torch.einsum("nij,njhw->nihw", draws.maps[:, :, :3], images.float()) + draws.maps[:, :, 3, None, None]
    x = x.round().clamp(0, 255)
    middle, side = (draws.blur[:, column, None, None, None] for column in (0, 1))
    wide = pad(x, (1, 1, 0, 0), mode="reflect")
    x = middle * x + side * (wide[..., :-2] + wide[..., 2:])
    tall = pad(x, (0, 0, 1, 1), mode="reflect")
    x = middle * x + side * (tall[..., :-2, :] + tall[..., 2:, :])
    return x.round().clamp(0, 255).to(torch.uint8)
