"""Items of a source: one image, where its bytes lie, and how its key is made.

Knows nothing of what kinds of sources there are.

Keys. An item of a folder, or of a list without the column `key`, is named by its path without suffix, relative to the
folder or the list. In every key `%`, control characters and backslashes, a leading slash, empty, `.` and `..`
components, and the dots of the last component (where WebDataset would cut) are percent-encoded, so
`urllib.parse.unquote` gives the name back. A path too long for a tar header is cut from the left, behind the first 16
hex digits of its SHA-256 and a `~`. Keys are unique within a split; repeated ones are refused, naming both places.
"""

import hashlib
import io
import os
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from cibhash.errors import DataError
from cibhash.shards import IMAGE_SUFFIXES, MAX_KEY_BYTES
from cluster import storage

_UNSAFE = re.compile(r"[%\\\x00-\x1f\x7f]")


@dataclass(frozen=True)
class SourceItem:
    """One image, and the split that it goes to."""

    key: str
    suffix: str
    """Of IMAGE_SUFFIXES, lower case."""
    labels: tuple[int, ...]
    split: str
    """Empty: the source does not say."""
    uri: str
    """File that holds the image; for an image made in memory, what it is."""
    offset: int = 0
    size: int = -1
    """Bytes from the offset on; -1: the whole file."""
    data: bytes = b""
    """The image itself, where no file holds it."""
    planes: int = 0
    """Side of the square image whose red, green and blue planes `data` is, to become a PNG; 0: `data` is a file."""


@dataclass(frozen=True)
class Source:
    """All items of a source."""

    name: str
    items: tuple[SourceItem, ...]
    classes: tuple[str, ...] = ()
    """Names of the labels 0, 1, ...; empty where the source has none."""
    left_out: int = 0
    """Images that belong to no split."""
    split_name: str = ""
    """What the split is called: a benchmark's protocol; empty where splits are the person's own."""
    seeded: bool = False
    """Whether the split depends on the config's seed."""
    published: dict[str, str] = field(default_factory=dict)
    """By split, the checksum that this split is known to have (`cluster.packing.split_identity`)."""
    missing: tuple[str, ...] = ()
    """Images that the source names and that are not there."""
    may_miss: bool = False
    """Images that are missing or no images are left out and counted; otherwise the first one ends the job."""
    warnings: tuple[str, ...] = ()
    """What a person must know of the source, one line each."""


def seeded_rank(seed: int, purpose: str, key: str) -> bytes:
    """Sorts keys into an order that is random to the eye and the same for ever."""
    return hashlib.sha256(f"{seed}\0{purpose}\0{key}".encode()).digest()


def read_image(item: SourceItem) -> bytes:
    """The bytes of one item.

    Raises:
        StorageError: they cannot be read.
    """
    if item.planes:
        return planes_png(item.data, item.planes)
    if item.data:
        return item.data
    return storage.read_bytes(item.uri) if item.size < 0 else storage.read_range(item.uri, item.offset, item.size)


def planes_png(planes: bytes, side: int) -> bytes:
    """A square image given by its red, green and blue planes, row by row, as PNG.

    It is stored, not compressed: at 32 pixels that costs little, and its bytes depend on no compressor's version.
    """
    pixels = np.frombuffer(planes, np.uint8).reshape(3, side, side).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def safe_key(name: str) -> str:
    """The key for a name, as the head of this module has it; reversible by `urllib.parse.unquote`."""
    key = _UNSAFE.sub(lambda match: f"%{ord(match.group()):02X}", name)
    key = re.sub(r"^/|/(?=/)|/$", "%2F", key)
    parts = [part.replace(".", "%2E") if part in (".", "..") else part for part in key.split("/")]
    parts[-1] = parts[-1].replace(".", "%2E")
    return "/".join(parts)


def path_item(path: str, base: str, *, uri: str, labels: tuple[int, ...] = (), split: str = "") -> SourceItem:
    """The item of an image file.

    Args:
        path: How the source names it, relative to `base` or absolute.
        base: The source, for messages.
        uri: Where the file lies.
        labels: Its labels.
        split: Its split.

    Raises:
        DataError: the suffix is not that of an image, or the name is not UTF-8.
    """
    suffix = image_suffix(path, base)
    name = path[: -len(suffix) - 1]
    try:
        key = fitting_key(name)
    except UnicodeEncodeError:
        raise DataError(f"{base}: {os.fsencode(path)!r}: the name is not UTF-8") from None
    return SourceItem(key, suffix, labels, split, uri)


def fitting_key(name: str) -> str:
    """The key for a name as `safe_key` makes it, cut where it is too long for a tar header."""
    key = safe_key(name)
    return key if len(key.encode()) <= MAX_KEY_BYTES else _shortened(name, key)


def image_suffix(path: str, base: str) -> str:
    """The suffix of an image file, in lower case and without its dot.

    Raises:
        DataError: another suffix.
    """
    suffix = PurePosixPath(path).suffix.lower().removeprefix(".")
    if suffix not in IMAGE_SUFFIXES:
        raise DataError(f"{base}: {path}: suffix {suffix!r}, expected one of {', '.join(IMAGE_SUFFIXES)}")
    return suffix


def _shortened(name: str, key: str) -> str:
    tail = key.encode()[-(MAX_KEY_BYTES - 17) :].decode(errors="ignore").replace("/", "_")
    return f"{hashlib.sha256(name.encode()).hexdigest()[:16]}~{tail}"
