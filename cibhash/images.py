"""The one way to decode an image, for training, encoding and queries alike.

Knows nothing of tensors and of where samples come from. RGB out of JPEG, PNG, WebP and GIF: EXIF orientation honored,
16 bits scaled rather than clipped, alpha composed on white, first frame of an animation, ICC profiles ignored. Limits
are read from the header before anything is decoded.
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from cibhash.errors import BadImage, OversizedImage
from cibhash.types import Sample

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_PIXELS = 50_000_000
MAX_BYTES = 20 * 2**20
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    ArithmeticError,
    LookupError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise for damaged files."""
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an EXIF orientation."""


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """Decodes compressed image bytes to RGB.

    Raises:
        BadImage: not an image, truncated, of a refused format, or above a limit; the message is the reason.
    """
    image = open_image(data, max_pixels=max_pixels, max_bytes=max_bytes)
    with _refusals(data, max_pixels):
        image.load()
        return _to_rgb(image)


def decode_sample(sample: Sample) -> Image.Image:
    """Decodes the image of a sample to RGB.

    Raises:
        BadImage: as `decode_image`, or the sample is not one that can be used.
    """
    if sample.trouble:
        raise BadImage(sample.trouble)
    return decode_image(sample.image)


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """Reads the header of compressed image bytes and holds it against the limits; no pixel is decoded yet.

    Raises:
        OversizedImage: above a limit.
        BadImage: not an image, or of a refused format; the message is the reason.
    """
    if not data:
        raise BadImage("empty: 0 bytes")
    if len(data) > max_bytes:
        raise OversizedImage(f"{len(data)} bytes, the limit is {max_bytes}")
    with _refusals(data, max_pixels):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise OversizedImage(f"{image.width} x {image.height} pixels, the limit is {max_pixels}")
        return image


@contextlib.contextmanager
def _refusals(data: bytes, max_pixels: int) -> Iterator[None]:
    """Turns what Pillow raises into a reason."""
    try:
        yield
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"not a JPEG, PNG, WebP or GIF image (first bytes {data[:8]!r})") from None
    except Image.DecompressionBombError:
        raise OversizedImage(f"more pixels than the limit of {max_pixels}") from None
    except BROKEN as error:
        raise BadImage(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation in _ORIENTATIONS:
        image = image.transpose(_ORIENTATIONS[orientation])
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257.0).round().clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise BadImage("floating-point pixels have no defined range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")
