"""What is drawn at random for one view of one image, apart from how it is applied to pixels.

Knows nothing of pixels, batches and devices. Every draw comes from a generator keyed by (seed, epoch, sample id,
view), so views do not depend on workers, order or on which implementation applies them.
"""

import math
from dataclasses import dataclass

import numpy as np

from cibhash.specs import ViewSpec

COLOR_STEPS = ("brightness", "contrast", "saturation", "hue")
_CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class ViewDraw:
    """One view of one image."""

    angle: float
    """Rotation in degrees, counterclockwise."""
    box: tuple[int, int, int, int]
    """Left, top, right, bottom of the crop, in pixels of the whole image."""
    flip: bool
    color: tuple[tuple[str, float], ...]
    """Steps of the color jitter in their order: a factor each, and for hue a shift as a share of the color circle."""
    grayscale: bool
    blur_sigma: float
    """Of a 3 x 3 Gaussian, in pixels of the view; 0 for none."""


def view_generator(seed: int, epoch: int, sample_id: int, view: int) -> np.random.Generator:
    """The generator that draws one view of one sample in one epoch, whoever asks."""
    return np.random.Generator(np.random.PCG64([seed, epoch, sample_id, view]))


def draw_view(width: int, height: int, spec: ViewSpec, generator: np.random.Generator) -> ViewDraw:
    """Draws one view of an image of `width` x `height` pixels.

    Source: released code of arXiv 2105.06138 (crop, flip, jitter, grayscale, blur, in this order).
    """
    angle = generator.uniform(-spec.rotation, spec.rotation) if spec.rotation else 0.0
    box = _draw_crop(width, height, spec, generator)
    flip = bool(generator.random() < spec.flip)
    color = _draw_color(spec, generator) if generator.random() < spec.jitter else ()
    grayscale = bool(generator.random() < spec.grayscale)
    sigma = generator.uniform(*spec.blur_sigma) if generator.random() < spec.blur else 0.0
    return ViewDraw(angle, box, flip, color, grayscale, sigma)


def _draw_crop(width: int, height: int, spec: ViewSpec, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """A crop with random area and aspect ratio; a central one if none fits."""
    area, low, high = width * height, *spec.crop_ratio
    for _ in range(_CROP_ATTEMPTS):
        target = area * generator.uniform(*spec.crop_scale)
        ratio = math.exp(generator.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(generator.integers(0, width - w + 1))
            top = int(generator.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < low:
        h = max(1, round(width / low))
    elif width / height > high:
        w = max(1, round(height * high))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _draw_color(spec: ViewSpec, generator: np.random.Generator) -> tuple[tuple[str, float], ...]:
    """Brightness, contrast, saturation and hue in random order; those of strength 0 do nothing and are left out."""
    strength = {name: getattr(spec, name) for name in COLOR_STEPS}
    amounts = {name: generator.uniform(1 - v, 1 + v) for name, v in strength.items() if v and name != "hue"}
    amounts["hue"] = generator.uniform(-spec.hue, spec.hue)
    order = (COLOR_STEPS[step] for step in generator.permutation(len(COLOR_STEPS)))
    return tuple((name, amounts[name]) for name in order if strength[name])
