"""Slow twin of `cibhash.shards.read_samples`: the same samples by the library's `tarfile` and webdataset's grouping.

Where `tarfile` stops or guesses in silence, so that members would be lost or come under another name, the twin refuses;
every such place is a check of its own here.
"""

import io
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from webdataset.tariterators import base_plus_ext, group_by_keys

from cibhash.shards import IMAGE_SUFFIXES, LABEL_SUFFIXES, MAX_MEMBER_BYTES, parse_cls, parse_json
from cibhash.tar_headers import MAX_EXTENSIONS
from cibhash.tar_members import MAX_EXTENSION_BYTES

BLOCK = 512


class Refused(Exception):
    """The tar, or a sample of it, cannot be read."""


class SilentLoss(Refused):
    """The library goes on without a word, but something is lost."""


class TwinSample(NamedTuple):
    """What a sample must be, but for the words of its trouble."""

    key: str
    image: bytes
    labels: tuple[int, ...]
    offset: int
    is_usable: bool


def twin_samples(data: bytes) -> list[TwinSample]:
    """All samples of a tar.

    Raises:
        Refused: there is anything wrong with it.
    """
    samples: list[TwinSample] = []
    try:
        for raw in group_by_keys(_members(data)):
            if any(raw["__key__"] == sample.key for sample in samples):
                raise Refused("key twice")
            samples.append(_sample(raw))
    except Refused:
        raise
    except Exception as error:  # whatever it is: tarfile lets IndexError and RecursionError out too
        raise Refused(str(error)) from error
    return samples


def _members(data: bytes) -> Iterator[dict[str, Any]]:
    start = 0
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|", bufsize=BLOCK) as tar:
        for info in tar:
            _check_extensions(data, start, info.offset_data - BLOCK)
            start = tar.offset
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise Refused("irregular")
            if info.size > MAX_MEMBER_BYTES:
                raise Refused("oversized")
            if info.size < 0:
                raise SilentLoss("negative size")
            key, suffix = base_plus_ext(info.name)
            read = info.name.rsplit("/", 1)[-1].partition(".")[2].lower() in (*IMAGE_SUFFIXES, *LABEL_SUFFIXES)
            if read and (key is None or key != key.encode("utf-8", "ignore").decode()):
                raise Refused("no key")
            if key is not None and suffix.lower() == "__bad__":
                raise SilentLoss("webdataset drops the sample")
            file = tar.extractfile(info) if read else None
            content = file.read() if file else b""
            if read and len(content) != info.size:
                raise Refused("cut")
            yield {"fname": info.name, "data": (content, info.offset_data), "__url__": ""}
        _check_end(data, tar.offset)


def _check_end(data: bytes, end: int) -> None:
    """The library stops at whatever is no header, as if it were the end marker."""
    last = data[end : end + BLOCK]
    if last and (len(last) < BLOCK or any(last)):
        raise SilentLoss("no header, no end marker")
    for start in range(end, len(data) - BLOCK + 1, BLOCK):
        block = data[start : start + BLOCK]
        if block[257:262] == b"ustar" and _is_header(block):
            raise SilentLoss("members behind the end marker")


def _is_header(block: bytes) -> bool:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size >= 0
    except tarfile.HeaderError:
        return False


def _check_extensions(data: bytes, start: int, end: int) -> None:
    """Headers that speak of a member: the library passes over what it does not understand of them."""
    count = 0
    while start < end:
        info = tarfile.TarInfo.frombuf(data[start : start + BLOCK], "utf-8", "surrogateescape")
        size = -(-info.size // BLOCK) * BLOCK
        count += 1
        if info.size > MAX_EXTENSION_BYTES or count > MAX_EXTENSIONS:
            raise SilentLoss("larger than is read")
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE):
            _check_records(data[start + BLOCK : start + BLOCK + size], info.type == tarfile.XGLTYPE)
        start += BLOCK + size


def _check_records(content: bytes, is_global: bool) -> None:
    while content and content[0]:
        length = content.partition(b" ")[0]
        if not length.isdigit() or len(length) > 9:
            raise SilentLoss("no length")
        record, content = content[: int(length)], content[int(length) :]
        keyword, equals, value = record[len(length) + 1 :].partition(b"=")
        if len(record) != int(length) or not keyword or not equals or not value.endswith(b"\n"):
            raise SilentLoss("no record")
        if keyword == b"size" and (is_global or not value[:-1].isdigit()):
            raise SilentLoss("a size that is none")
        if keyword.startswith(b"GNU.sparse."):
            raise SilentLoss("the data is a map and what it maps")


def _sample(raw: dict[str, Any]) -> TwinSample:
    labels: tuple[int, ...] = ()
    is_usable = True
    try:
        if "cls" in raw:
            labels = parse_cls(raw["cls"][0])
        elif "json" in raw:
            labels = parse_json(raw["json"][0]) or ()
    except ValueError:
        is_usable = False
    images = [raw[suffix] for suffix in IMAGE_SUFFIXES if suffix in raw]
    if len(images) != 1:
        return TwinSample(raw["__key__"], b"", labels, 0, False)
    return TwinSample(raw["__key__"], images[0][0], labels, images[0][1], is_usable)
