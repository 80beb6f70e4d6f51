"""The pixels of a Pillow image where they lie, without a copy: Arrow's C data interface, read through ctypes.

Knows nothing of what is done with them.
"""

import ctypes
from typing import NamedTuple

from PIL import Image


class ImageMemory(NamedTuple):
    """Pixels of four bytes, uint8 (height, width, 4), read-only; the last byte of a pixel means nothing."""

    address: int
    owner: object
    """Keeps the pixels where they are for as long as it lives."""


class _ArrowArray(ctypes.Structure):
    """Of https://arrow.apache.org/docs/format/CDataInterface.html."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]
"""The fields that follow are the owner's."""
_address_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def image_memory(image: Image.Image) -> ImageMemory | None:
    """Where the pixels of an RGB image are; None where they are not in one piece, as by default above 16 MB."""
    if image.mode != "RGB" or 0 in image.size:
        return None
    try:
        _, owner = image.__arrow_c_array__()
    except ValueError:
        return None
    pixels = _ArrowArray.from_address(_address_in(owner, b"arrow_array"))
    if pixels.n_children != 1 or pixels.offset != 0 or pixels.length != image.width * image.height:
        return None
    channels = pixels.children[0].contents
    if channels.n_buffers != 2 or channels.offset != 0 or channels.length != 4 * pixels.length:
        return None
    return ImageMemory(channels.buffers[1], owner)
