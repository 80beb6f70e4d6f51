"""From samples to a batch of augmented views, by whichever engine is asked for.

Knows nothing of steps, epochs and shards. An engine is a choice of `cibhash.specs.ViewSpec`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cibhash.device_views import ColorDraws, apply_colors, color_draws
from cibhash.errors import BadImage, DataError
from cibhash.fast_views import ColorMap, color_map, cut_out, fast_view
from cibhash.images import decode_sample
from cibhash.specs import ViewSpec
from cibhash.types import Sample
from cibhash.view_draws import draw_view, view_generator
from cibhash.views import Pixels, eval_view, random_view

PLAIN = -1
"""Number of the view that is not augmented: the one that is encoded."""


class Views(NamedTuple):
    """Views of several images, made as far as a CPU is to make them."""

    images: Tensor
    """uint8 (N, 3, H, W)."""
    colors: ColorDraws | None
    """What is left to do on the device."""

    def on(self, device: torch.device) -> Tensor:
        """The finished views on a device, uint8 (N, 3, H, W)."""
        images = self.images.to(device, non_blocking=True)
        if self.colors is None:
            return images
        return apply_colors(images, ColorDraws(*(draws.to(device, non_blocking=True) for draws in self.colors)))


def decoded(dataset_uri: str, sample: Sample) -> Image.Image:
    """The image of a sample.

    Raises:
        DataError: it cannot be used or decoded; names dataset and key.
    """
    try:
        return decode_sample(sample)
    except BadImage as error:
        raise DataError(f"{dataset_uri}: key {sample.key!r}: {error}") from None


def make_views(
    images: Sequence[Image.Image], ids: Sequence[int], spec: ViewSpec, size: int, *, seed: int, epoch: int, view: int
) -> Views:
    """One view of every image.

    Args:
        images: RGB.
        ids: Of the images; with seed, epoch and view they key the draws.
        spec: Strength and engine.
        size: Side of the views in pixels.
        seed: Of the draws.
        epoch: Of the draws.
        view: Which view, or `PLAIN`.
    """
    if view == PLAIN:
        return _channels_first([eval_view(image, size) for image in images])
    draws = [view_generator(seed, epoch, number, view) for number in ids]
    if spec.engine == "pillow":
        return _channels_first([random_view(i, spec, size, g) for i, g in zip(images, draws, strict=True)])
    arrays = [np.asarray(image) for image in images]
    if spec.engine == "opencv":
        return _channels_last([fast_view(i, spec, size, g) for i, g in zip(arrays, draws, strict=True)], None)
    made = [_cut_with_colors(i, spec, size, g) for i, g in zip(arrays, draws, strict=True)]
    colors = color_draws([color for _, color, _ in made], [sigma for _, _, sigma in made])
    return _channels_last([view for view, _, _ in made], colors)


def _cut_with_colors(
    image: Pixels, spec: ViewSpec, size: int, generator: np.random.Generator
) -> tuple[Pixels, ColorMap, float]:
    draw = draw_view(image.shape[1], image.shape[0], spec, generator)
    view = cut_out(image, draw, size)
    return view, color_map(draw, np.array(cv2.mean(view)[:3])), draw.blur_sigma


def _channels_first(views: list[Pixels]) -> Views:
    return Views(torch.from_numpy(np.stack(views)), None)


def _channels_last(views: list[Pixels], colors: ColorDraws | None) -> Views:
    return Views(torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2), colors)
