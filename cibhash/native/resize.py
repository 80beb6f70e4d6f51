"""Pillow's bilinear resize of an image to a square, bit for bit and several times as fast.

Knows nothing of what the pixels are for. Pillow 13 rounds to 8 bits between two passes and lets the shape of the image
decide which goes first; so does this.
"""

import ctypes
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from cibhash.native.image_memory import ImageMemory, image_memory
from cibhash.native.library import BEST, Level, library

Pixels = npt.NDArray[np.uint8]
_STRIP_BYTES = 2**20
"""Of a large image that is cut: well below what Pillow cuts itself, and within the cache."""


def resize(image: Image.Image, size: int, level: Level = BEST) -> Pixels | None:
    """What `image.resize((size, size), Image.Resampling.BILINEAR)` gives, as planes.

    Args:
        image: RGB.
        size: Side of the square in pixels.
        level: The most that the CPU is used for.

    Returns:
        uint8 (3, size, size), or None where Pillow has to do it: without a library, for other modes than RGB, sides
        below 1 or above 65,536, and tall images of more than 4 megapixels.
    """
    native = library()
    if native is None or image.mode != "RGB" or min(*image.size, size) < 1:
        return None
    rows_first = image.height - size > 2 * max(0, image.width - size)
    square = (_rows_first if rows_first else _columns_first)(native, image, size, level)
    if square is None:
        return None
    planes = np.empty((3, size, size), np.uint8)
    native.cibhash_planes(_address(square), size * size, _address(planes), level)
    return planes


def _rows_first(native: ctypes.CDLL, image: Image.Image, size: int, level: Level) -> Pixels | None:
    memory = image_memory(image)
    if memory is None:
        return None
    lowered = np.empty((size, image.width, 4), np.uint8)
    if native.cibhash_resize_rows(memory.address, image.height, image.width, size, _address(lowered), level):
        return None
    square = np.empty((size, size, 4), np.uint8)
    refused = native.cibhash_resize_columns(_address(lowered), image.width, size, size, _address(square), level)
    return None if refused else square


def _columns_first(native: ctypes.CDLL, image: Image.Image, size: int, level: Level) -> Pixels | None:
    narrowed = np.empty((image.height, size, 4), np.uint8)
    top = 0
    for memory, rows in _strips(image):
        part = _address(narrowed[top:])
        if memory is None or native.cibhash_resize_columns(memory.address, image.width, rows, size, part, level):
            return None
        top += rows
    square = np.empty((size, size, 4), np.uint8)
    refused = native.cibhash_resize_rows(_address(narrowed), image.height, size, size, _address(square), level)
    return None if refused else square


def _strips(image: Image.Image) -> Iterator[tuple[ImageMemory | None, int]]:
    """The pixels from top to bottom, and how many rows of them: at once where they are in one piece."""
    whole = image_memory(image)
    if whole is not None:
        yield whole, image.height
        return
    rows = max(1, _STRIP_BYTES // (4 * image.width))
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield image_memory(image.crop((0, top, image.width, bottom))), bottom - top


def _address(array: Pixels) -> int:
    return array.ctypes.data
