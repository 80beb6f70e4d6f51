"""Views of an image by Pillow: the exact random augmentation, and the one deterministic view of everything else.

Knows nothing of batches, tensors on devices and normalization. A view is uint8 (3, size, size), RGB.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from cibhash.native.resize import resize
from cibhash.specs import ViewSpec
from cibhash.view_draws import draw_view

Pixels = npt.NDArray[np.uint8]


def eval_view(image: Image.Image, size: int) -> Pixels:
    """The deterministic view: the whole image resized to a square by Pillow, bilinear with antialiasing.

    Compiled code gives the same pixels in less time, where there is any.
    """
    view = resize(image, size)
    return _pixels(image.resize((size, size), Image.Resampling.BILINEAR)) if view is None else view


def random_view(image: Image.Image, spec: ViewSpec, size: int, generator: np.random.Generator) -> Pixels:
    """One random view, every step as the released code's libraries do it; `cibhash.fast_views` is the quick one.

    Args:
        image: RGB.
        spec: Strength of each step.
        size: Side of the view in pixels.
        generator: From `cibhash.view_draws.view_generator`.

    Returns:
        uint8 (3, size, size).
    """
    from torchvision.transforms.v2 import functional  # seconds to import, and only this engine needs it

    draw = draw_view(image.width, image.height, spec, generator)
    if draw.angle:
        image = image.rotate(draw.angle, Image.Resampling.BILINEAR)
    image = image.crop(draw.box).resize((size, size), Image.Resampling.BILINEAR)
    if draw.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, amount in draw.color:
        image = getattr(functional, f"adjust_{name}")(image, amount)
    if draw.grayscale:
        image = functional.rgb_to_grayscale(image, num_output_channels=3)
    if draw.blur_sigma:
        image = functional.gaussian_blur(image, [3, 3], [draw.blur_sigma, draw.blur_sigma])
    return _pixels(image)


def _pixels(image: Image.Image) -> Pixels:
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
