"""Tar shards of samples, read and written in the WebDataset layout, without its decoders.

Knows nothing of where shards lie: it is given an open stream or a local path. A sample is `<key>.jpg|jpeg|png|webp`
with an optional `<key>.cls` (one integer) or `<key>.json` (`{"labels": [...]}`), its members adjacent; one without a
single image, or with a label that is none, is a sample with its trouble told. Only regular,
non-sparse members of an uncompressed tar are read, nothing is ever unpickled, and keys are opaque names, never paths.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

from webdataset.tariterators import base_plus_ext
from webdataset.writer import TarWriter

from cibhash.errors import CorruptShard
from cibhash.tar_members import Readable, TarDamage, TarMember, tar_members
from cibhash.types import Sample, TarShard

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
LABEL_SUFFIXES = ("cls", "json")
RESERVED_SUFFIXES = frozenset({"__key__", "__url__", "__bad__"})
"""What webdataset writes into a sample itself; it refuses such a member, or drops its sample."""
MAX_KEY_BYTES = 90
MAX_MEMBER_BYTES = 64 * 2**20
_MAX_LABEL = 2**31 - 1
_IMAGE_SUFFIXES = frozenset(IMAGE_SUFFIXES)
_READ_SUFFIXES = frozenset({*IMAGE_SUFFIXES, *LABEL_SUFFIXES})
_READ_ENDINGS = tuple(f".{suffix}" for suffix in _READ_SUFFIXES)


class SourceImage(NamedTuple):
    """One image to be packed."""

    key: str
    suffix: str
    image: bytes
    labels: tuple[int, ...]


class HashingStream:
    """Passes reads through and keeps size and SHA-256 of what was read."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        """Reads from the stream below."""
        chunk = self._stream.read(size)
        self._digest.update(chunk)
        self.num_bytes += len(chunk)
        return chunk

    def hexdigest(self) -> str:
        """SHA-256 of everything read so far."""
        return self._digest.hexdigest()


def read_samples(stream: BinaryIO, shard: TarShard) -> Iterator[Sample]:
    """The samples of one shard, in order; the i-th has id `first_id + i`.

    Size, SHA-256 and count are compared with the manifest once the stream has been read to its end, so a caller that
    commits results must exhaust the iterator first.

    Args:
        stream: Positioned at the start of the tar; read sequentially.
        shard: What the manifest says of it.

    Raises:
        CorruptShard: not a tar, truncated, altered, or samples that break the layout; names shard and key.
    """
    hashed = HashingStream(stream)
    count = 0
    for sample in unlisted_samples(hashed, shard.uri, shard.first_id):
        if count == shard.count:
            raise CorruptShard(f"{shard.uri}: more samples than the {count} its manifest lists ({sample.key!r})")
        count += 1
        yield sample
    if count != shard.count:
        raise CorruptShard(f"{shard.uri}: {count} samples, its manifest says {shard.count}")
    if hashed.num_bytes != shard.bytes:
        raise CorruptShard(f"{shard.uri}: {hashed.num_bytes} bytes, its manifest says {shard.bytes}")
    if hashed.hexdigest() != shard.sha256:
        raise CorruptShard(
            f"{shard.uri}: sha256 {hashed.hexdigest()[:16]}..., its manifest says {shard.sha256[:16]}..."
        )


def unlisted_samples(stream: Readable, uri: str, first_id: int = 0) -> Iterator[Sample]:
    """The samples of a tar that no manifest need describe; `stream` has been read to its end when they are exhausted.

    Args:
        stream: Positioned at the start of the tar; read sequentially.
        uri: Of the tar, for messages.
        first_id: Id of the first sample.

    Raises:
        CorruptShard: not a tar, a damaged one, or samples that break the layout; names shard and key.
    """
    seen: set[str] = set()
    for position, (key, members) in enumerate(_grouped(stream, uri)):
        if key in seen:
            raise CorruptShard(f"{uri}: key {key!r} comes twice, or its members are not adjacent")
        seen.add(key)
        yield _sample(first_id + position, key, members)


def label_members(labels: tuple[int, ...]) -> dict[str, bytes]:
    """By suffix, the member beside an image that says its labels; none for an image without labels."""
    if len(labels) == 1:
        return {"cls": str(labels[0]).encode()}
    return {"json": json.dumps({"labels": list(labels)}).encode()} if labels else {}


def write_shard(path: Path, uri: str, samples: Iterable[SourceImage], first_id: int) -> TarShard:
    """Writes one shard; equal samples give equal bytes.

    Args:
        path: Local file to write.
        uri: How the manifest will name the shard.
        samples: In order; their keys must be unique and contain no dot after the last slash.
        first_id: Id of the first sample.

    Raises:
        ValueError: a key or suffix that would not be read back as it is.
    """
    count = 0
    seen: set[str] = set()
    with open(path, "wb") as file, TarWriter(file, encoder=False, mtime=0, user="", group="") as writer:
        for sample in samples:
            _check_source(sample, seen)
            seen.add(sample.key)
            members: dict[str, Any] = {"__key__": sample.key, sample.suffix: sample.image}
            writer.write({**members, **label_members(sample.labels)})
            count += 1
    with open(path, "rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    return TarShard(uri=uri, bytes=path.stat().st_size, sha256=digest, count=count, first_id=first_id)


def _check_source(sample: SourceImage, seen: set[str]) -> None:
    if sample.suffix not in IMAGE_SUFFIXES:
        raise ValueError(f"key {sample.key!r}: suffix {sample.suffix!r}, expected one of {', '.join(IMAGE_SUFFIXES)}")
    if "\0" in sample.key or base_plus_ext(f"{sample.key}.{sample.suffix}") != (sample.key, sample.suffix):
        raise ValueError(f"key {sample.key!r}: empty, a dot in its last component, or a control character")
    if any(not 0 <= label <= _MAX_LABEL for label in sample.labels):
        raise ValueError(f"key {sample.key!r}: labels {sample.labels}, expected 0 to {_MAX_LABEL}")
    if len(sample.key.encode()) > MAX_KEY_BYTES:
        raise ValueError(f"key {sample.key[:40]!r}...: {len(sample.key.encode())} bytes, the limit is {MAX_KEY_BYTES}")
    if sample.key in seen:
        raise ValueError(f"key {sample.key!r} comes twice")


def split_name(name: str) -> tuple[str | None, str]:
    """Key of a member and its suffix in lower case, as webdataset splits names; None: it finds no key."""
    folder_end = name.rfind("/") + 1
    dot = name.find(".", folder_end)
    suffix = name[dot + 1 :].lower() if dot >= 0 else ""
    if dot > folder_end and "\n" not in name:
        return name[:dot], suffix
    return base_plus_ext(name)[0], suffix


def is_read(suffix: str) -> bool:
    """Whether members with this suffix are part of a sample; others are passed over."""
    return suffix in _READ_SUFFIXES


def is_usable(key: str | None) -> TypeGuard[str]:
    """Whether there is a key, and it can be written as UTF-8."""
    return key is not None and (key.isascii() or not any("\ud800" <= character <= "\udfff" for character in key))


def parse_cls(content: bytes) -> tuple[int, ...]:
    """The label in a `cls` member.

    Raises:
        ValueError: not one integer in the range of labels.
    """
    try:
        label = int(content)
    except ValueError:
        raise ValueError(f"label {content[:40]!r}, expected one integer") from None
    return (label,) if 0 <= label <= _MAX_LABEL else _in_range([label])


def parse_json(content: bytes) -> tuple[int, ...] | None:
    """The labels in a `json` member; None if it does not speak of labels.

    Raises:
        ValueError: not JSON, or labels that are not integers in the range of labels.
    """
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("its json member is not JSON") from None
    if not isinstance(parsed, dict) or "labels" not in parsed:
        return None
    labels = parsed["labels"]
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise ValueError(f"labels {str(labels)[:40]}, expected a list of integers")
    return _in_range(labels)


def _in_range(labels: list[int]) -> tuple[int, ...]:
    if any(not 0 <= label <= _MAX_LABEL for label in labels):
        raise ValueError(f"labels {str(labels)[:40]}, expected 0 to {_MAX_LABEL}")
    return tuple(labels)


def _grouped(stream: Readable, uri: str) -> Iterator[tuple[str, dict[str, TarMember]]]:
    """Adjacent members of one key by suffix, as `webdataset.tariterators.group_by_keys` groups them.

    Raises:
        CorruptShard: a tar that is not whole, and members that it may not have.
    """
    current: str | None = None
    group: dict[str, TarMember] = {}
    for member in tar_members(stream, wanted=functools.partial(_is_wanted, uri), survives=False):
        if isinstance(member, TarDamage):
            if member.kind == "no_end_marker":
                break
            raise CorruptShard(f"{uri}: not a readable tar: {member.detail}")
        if not member.is_regular:
            if member.is_folder:
                continue
            raise CorruptShard(f"{uri}: member {member.name!r} is not a regular file")
        key, suffix = split_name(member.name)
        if suffix in _READ_SUFFIXES:
            if not is_usable(key):
                raise CorruptShard(f"{uri}: member {member.name!r} has no key, or one that is not UTF-8")
        elif key is None:
            continue
        elif suffix in RESERVED_SUFFIXES:
            raise CorruptShard(f"{uri}: member {member.name!r} has a suffix that webdataset keeps for itself")
        if key != current:
            if current is not None:
                yield current, group
            current, group = key, {}
        if suffix in group:
            raise CorruptShard(f"{uri}: member {member.name!r} comes twice")
        group[suffix] = member
    if current is not None:
        yield current, group


def _is_wanted(uri: str, name: str, size: int) -> bool:
    """Whether a member may be one that is read; its whole name is looked at afterwards."""
    if size > MAX_MEMBER_BYTES:
        raise CorruptShard(f"{uri}: member {name!r} has {size} bytes, limit {MAX_MEMBER_BYTES}")
    return name.endswith(_READ_ENDINGS) or name.lower().endswith(_READ_ENDINGS)


def _sample(sample_id: int, key: str, members: dict[str, TarMember]) -> Sample:
    images = [member for suffix, member in members.items() if suffix in _IMAGE_SUFFIXES]
    labels, trouble = _labels(members)
    if len(images) != 1:
        return Sample(sample_id, key, b"", labels, 0, f"{len(images)} image members, expected 1")
    return Sample(sample_id, key, images[0].data or b"", labels, images[0].offset, trouble)


def _labels(members: dict[str, TarMember]) -> tuple[tuple[int, ...], str]:
    """Labels, and why they cannot be read."""
    try:
        if "cls" in members:
            return parse_cls(members["cls"].data or b""), ""
        return (parse_json(members["json"].data or b"") or ()) if "json" in members else (), ""
    except ValueError as error:
        return (), str(error)
