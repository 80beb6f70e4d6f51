"""What the header of an image says: format, size, depth, colors, animation, rotation; no pixel is decoded.

Knows nothing of which traits are welcome. Limits are those of `cibhash.images`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from PIL import ExifTags, Image

from cibhash.images import BROKEN, open_image

T = TypeVar("T")
SUFFIX_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
"""The format that a suffix promises."""
_GRAY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I", "F")
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
_PNG_DEPTH_OFFSET = 24
_SRGB_NAMES = (b"sRGB", "sRGB".encode("utf-16-be"))


@dataclass(frozen=True)
class ImageTraits:
    """Facts of one image as it is stored."""

    format: str
    """JPEG, PNG, WEBP or GIF, by content."""
    mode: str
    """Pillow's mode before any conversion."""
    width: int
    """In pixels, before a rotation that EXIF asks for."""
    height: int
    bit_depth: int
    """Bits per channel, or per palette index."""
    is_animated: bool
    orientation: int
    """EXIF orientation, 1 to 8; 1: as stored. In a PNG it is found only before the pixels."""
    has_alpha: bool
    """An alpha channel, or a color or palette entry declared transparent."""
    color_profile: str
    """Empty: none. `sRGB`, or `other`."""

    @property
    def is_gray(self) -> bool:
        """One channel of brightness, not counting alpha."""
        return self.mode in _GRAY_MODES

    @property
    def is_rotated(self) -> bool:
        """EXIF asks for another orientation than the stored one."""
        return 2 <= self.orientation <= 8


def read_traits(data: bytes) -> ImageTraits:
    """The traits of compressed image bytes.

    Raises:
        OversizedImage: above a limit of `cibhash.images`.
        BadImage: not an image, or of a refused format.
    """
    image = open_image(data)
    profile = image.info.get("icc_profile") or b""
    return ImageTraits(
        format=image.format or "",
        mode=image.mode,
        width=image.width,
        height=image.height,
        bit_depth=data[_PNG_DEPTH_OFFSET] if image.format == "PNG" else 1 if image.mode == "1" else 8,
        orientation=_or_else(lambda: _orientation(image), 1),
        has_alpha=image.mode in _ALPHA_MODES or "transparency" in image.info,
        color_profile="" if not profile else "sRGB" if any(name in profile for name in _SRGB_NAMES) else "other",
        is_animated=_or_else(lambda: bool(getattr(image, "is_animated", False)), False),
    )


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the pixels to look behind them
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _or_else(read: Callable[[], T], default: T) -> T:
    """What is read, or the default where that part of the file is damaged: the decoder says whether that matters."""
    try:
        return read()
    except BROKEN:
        return default
