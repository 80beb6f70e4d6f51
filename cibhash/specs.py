"""What a person chooses of a backbone and of its views: plain values, checked, that rebuild the real things.

Knows nothing of torch: a command line that only parses these starts at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ViewEngine = Literal["pillow", "opencv", "device"]
Option = str | int | float | bool
CONVNET_SMALL = "convnet-small"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BackboneSpec:
    """What rebuilds a backbone; the default is the paper's: VGG-16 up to fc7, ImageNet weights, frozen."""

    name: str = "vgg16.tv_in1k"
    """A timm model name, or convnet-small."""
    weights: str = "hub"
    """`hub`: timm's pretrained weights; `none`: random; else a safetensors file in timm's layout (path or s3://)."""
    image_size: int = 224
    """Side of the square input in pixels."""
    mean: tuple[float, ...] = ()
    """Per channel, of values scaled to [0, 1]; default: the pretrained model's, ImageNet's where it has none."""
    std: tuple[float, ...] = ()
    """As mean."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Further arguments of timm.create_model, as pad_type: same."""
    train_from: str = ""
    """Empty: frozen, in evaluation mode; `all`: trained; else the first module that learns, as blocks.5: it and all
    that the model registers after it learn, what comes before is frozen."""
    dropout: bool = False
    """Keep the dropout layers of the frozen backbone active in training, with p = 0.5, as the released code does."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 8 <= self.image_size <= 1024:
            raise ValueError(f"image_size {self.image_size}: expected 8 to 1024 pixels")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, 3):
                raise ValueError(f"{name} {getattr(self, name)}: expected 3 values, or none for the model's own")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std {self.std}: expected positive values")

    @property
    def trainable(self) -> bool:
        """Whether any of it learns."""
        return bool(self.train_from)


@dataclass(frozen=True)
class ViewSpec:
    """Strength of the augmentation; the defaults are the paper's (released code, order as listed here)."""

    engine: ViewEngine = "opencv"
    """What applies it: `pillow` as the released code, `opencv` ten times as fast on a CPU, or `device`: OpenCV cuts and
    resizes, colors and blur are applied to whole batches where the backbone is (a GPU)."""
    rotation: float = 0.0
    """Largest rotation in degrees; not part of the paper, meant for handwriting and the like."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Share of the area that a random crop keeps."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of the crop."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.7
    """Probability of color jitter."""
    brightness: float = 0.4
    """Jitter factor is uniform in 1 +- this."""
    contrast: float = 0.4
    """Jitter factor is uniform in 1 +- this."""
    saturation: float = 0.4
    """Jitter factor is uniform in 1 +- this."""
    hue: float = 0.1
    """Jitter shift is uniform in +- this, as a share of the color circle."""
    grayscale: float = 0.2
    """Probability of losing color."""
    blur: float = 0.5
    """Probability of a 3 x 3 Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's sigma in pixels."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("flip", "jitter", "grayscale", "blur", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected 0 to 1")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue {self.hue}: expected 0 to 0.5")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale {self.crop_scale}: expected 0 < low <= high <= 1")
        for name in ("crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} {(low, high)}: expected 0 < low <= high, finite")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation {self.rotation}: expected 0 to 180 degrees")
