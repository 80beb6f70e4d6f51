"""Views of an image: the random augmentation of training, and the one deterministic view of everything else.

Knows nothing of batches, tensors on devices and normalization. A view is uint8 (3, size, size), RGB. Every random
draw comes from a generator keyed by (seed, epoch, sample id, view), so views do not depend on workers or order.
"""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision.transforms.v2 import functional

from cibhash.specs import ViewSpec

Pixels = npt.NDArray[np.uint8]
_CROP_ATTEMPTS = 10


def view_generator(seed: int, epoch: int, sample_id: int, view: int) -> np.random.Generator:
    """The generator that draws one view of one sample in one epoch, whoever asks."""
    return np.random.default_rng([seed, epoch, sample_id, view])


def eval_view(image: Image.Image, size: int) -> Pixels:
    """The deterministic view: the whole image resized to a square, bilinear with antialiasing."""
    return _pixels(image.resize((size, size), Image.Resampling.BILINEAR))


def random_view(image: Image.Image, spec: ViewSpec, size: int, generator: np.random.Generator) -> Pixels:
    """One random view.

    Args:
        image: RGB.
        spec: Strength of each step.
        size: Side of the view in pixels.
        generator: From `view_generator`.

    Returns:
        uint8 (3, size, size).
    """
    if spec.rotation:
        angle = generator.uniform(-spec.rotation, spec.rotation)
        image = image.rotate(angle, Image.Resampling.BILINEAR)
    box = _draw_crop(image.width, image.height, spec, generator)
    image = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    if generator.random() < spec.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if generator.random() < spec.jitter:
        image = _jitter(image, spec, generator)
    if generator.random() < spec.grayscale:
        image = functional.rgb_to_grayscale(image, num_output_channels=3)
    if generator.random() < spec.blur:
        sigma = generator.uniform(*spec.blur_sigma)
        image = functional.gaussian_blur(image, [3, 3], [sigma, sigma])
    return _pixels(image)


def _draw_crop(width: int, height: int, spec: ViewSpec, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a crop with random area and aspect ratio; a central one if none fits."""
    area, log_ratio = width * height, np.log(spec.crop_ratio)
    for _ in range(_CROP_ATTEMPTS):
        target = area * generator.uniform(*spec.crop_scale)
        ratio = math.exp(generator.uniform(*log_ratio))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(generator.integers(0, width - w + 1))
            top = int(generator.integers(0, height - h + 1))
            return left, top, left + w, top + h
    low, high = spec.crop_ratio
    w, h = width, height
    if width / height < low:
        h = max(1, round(width / low))
    elif width / height > high:
        w = max(1, round(height * high))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _jitter(image: Image.Image, spec: ViewSpec, generator: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation and hue in random order."""
    factors = {name: generator.uniform(1 - v, 1 + v) for name in _ADJUST if (v := getattr(spec, name))}
    shift = generator.uniform(-spec.hue, spec.hue)
    for step in generator.permutation(4):
        name = _STEPS[step]
        if name == "hue":
            image = functional.adjust_hue(image, shift) if spec.hue else image
        elif name in factors:
            image = _ADJUST[name](image, factors[name])
    return image


_ADJUST = {
    "brightness": functional.adjust_brightness,
    "contrast": functional.adjust_contrast,
    "saturation": functional.adjust_saturation,
}
_STEPS = (*_ADJUST, "hue")


def _pixels(image: Image.Image) -> Pixels:
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
