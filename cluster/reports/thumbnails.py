"""Small pictures of originals, read out of their tar shards, as data URIs that a page can hold.

Knows nothing of pages. An original that cannot be read or decoded gives no picture but a reason.
"""

import base64
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from cibhash.errors import BadImage, CIBHashError
from cibhash.images import decode_image
from cluster.originals import Original, original_bytes

EDGE_PIXELS = 128
_LOSSLESS_EDGE_PIXELS = 64
_READERS = 8


@dataclass(frozen=True)
class Thumbnails:
    """Pictures of some originals."""

    pictures: dict[Original, str]
    """Data URIs; an original that could not be read is missing."""
    reasons: tuple[str, ...]
    """One line for each missing picture."""


def read_thumbnails(originals: Iterable[Original]) -> Thumbnails:
    """Reads and shrinks the originals, several at a time, each once."""
    wanted = list(dict.fromkeys(originals))
    with ThreadPoolExecutor(_READERS) as readers:
        results = list(readers.map(_read, wanted))
    pictures = {original: picture for original, (picture, _) in zip(wanted, results, strict=True) if picture}
    return Thumbnails(pictures, tuple(reason for _, reason in results if reason))


def thumbnail(image: Image.Image) -> str:
    """The image with at most `EDGE_PIXELS` on its longer side, as a data URI; small images stay lossless."""
    small = image.copy()
    small.thumbnail((EDGE_PIXELS, EDGE_PIXELS), Image.Resampling.LANCZOS)
    kind = "png" if max(image.size) <= _LOSSLESS_EDGE_PIXELS else "jpeg"
    sink = io.BytesIO()
    small.save(sink, format=kind, **({"optimize": True} if kind == "png" else {"quality": 82}))
    return f"data:image/{kind};base64,{base64.b64encode(sink.getvalue()).decode()}"


def _read(original: Original) -> tuple[str, str]:
    try:
        return thumbnail(decode_image(original_bytes(original))), ""
    except BadImage as error:
        return "", f"{original.uri} at offset {original.offset}: {error}"
    except CIBHashError as error:
        return "", str(error)
