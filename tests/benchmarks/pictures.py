"""Made-up photos for the benchmarks: smooth color fields with edges and grain, compressed like photos are.

Knows nothing of views.
"""

import io

import cv2
import numpy as np
from PIL import Image

_JPEG_QUALITY = 90
_COLORFULNESS = 0.35
"""Standard deviation of what the channels do not share, as a share of what they do."""


def photo(width: int, height: int, number: int) -> Image.Image:
    """An RGB picture that depends on its number."""
    draws = np.random.default_rng([11, number])
    picture = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((3, 40.0), (8, 25.0), (24, 14.0), (64, 7.0)):
        light = draws.normal(0.0, strength, (cells, cells, 1))
        field = (light + draws.normal(0.0, _COLORFULNESS * strength, (cells, cells, 3))).astype(np.float32)
        picture += cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(6):
        corner = tuple(int(v) for v in draws.integers(0, (width, height)))
        color = tuple(float(v) for v in draws.normal(0.0, 40.0) + draws.normal(0.0, 40.0 * _COLORFULNESS, 3))
        shape = np.zeros_like(picture)
        cv2.circle(shape, corner, int(draws.integers(2, max(3, min(width, height) // 4))), color, -1)
        picture += shape
    picture += 120 + draws.normal(0.0, 4.0, picture.shape).astype(np.float32)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def compressed(image: Image.Image) -> bytes:
    """PNG for what is as small as in CIFAR-10, JPEG for the rest."""
    sink = io.BytesIO()
    if max(image.size) <= 64:
        image.save(sink, "PNG")
    else:
        image.save(sink, "JPEG", quality=_JPEG_QUALITY)
    return sink.getvalue()


def size_of(text: str) -> tuple[int, int]:
    """Width and height of `500x375`."""
    width, height = text.split("x")
    return int(width), int(height)
