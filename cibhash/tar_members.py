"""The members of a tar, read as a stream that survives damage: what is broken is reported and stepped over.

Knows nothing of samples. The library's `tarfile` stops at a damaged header in silence, and holds headers of any size
in memory; here the next intact header is searched and every limit is checked before a read. Uncompressed tars only.
"""

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

BLOCK = 512
MAX_EXTENSION_BYTES = 2**20
"""Largest long name or PAX record that is read; a path is a few thousand bytes at most."""
_CHUNK = 1 << 20
_MAGIC = slice(257, 262)
_PAX_RECORD = re.compile(rb"(\d{1,9}) ([^=]{1,256})=")
_STARTS = (
    (b"\x1f\x8b", "gzip data: uncompress it"),
    (b"BZh", "bzip2 data: uncompress it"),
    (b"\xfd7zXZ", "xz data: uncompress it"),
    (b"\x28\xb5\x2f\xfd", "zstd data: uncompress it"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"PAR1", "a Parquet file"),
)

DamageKind = Literal["not_a_tar", "damaged_tar", "truncated_tar", "no_end_marker", "after_end"]


class Readable(Protocol):
    """A sequential binary stream."""

    def read(self, size: int = -1, /) -> bytes:
        """Reads up to `size` bytes."""
        ...


class TarMember(NamedTuple):
    """One entry of a tar."""

    name: str
    is_regular: bool
    """A plain, non-sparse file."""
    is_folder: bool
    size: int
    offset: int
    """Where its data begins."""
    data: bytes | None
    """None: it was not asked for, is not regular, or is above the limit."""


class TarDamage(NamedTuple):
    """Something of the tar that is not as it should be."""

    kind: DamageKind
    detail: str
    name: str = ""
    """The member that it cost, where known."""


class _Cut(Exception):
    """The stream ended inside of something."""


@dataclass
class _Stream:
    """Counts what is read."""

    stream: Readable
    position: int = 0

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, or what is left."""
        chunks: list[bytes] = []
        missing = size
        while missing and (chunk := self.stream.read(min(missing, _CHUNK) if chunks else missing)):
            chunks.append(chunk)
            missing -= len(chunk)
        self.position += size - missing
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def skip(self, size: int) -> int:
        """Passes over `size` bytes and returns how many were missing."""
        while size and (chunk := self.stream.read(min(size, _CHUNK))):
            size -= len(chunk)
            self.position += len(chunk)
        return size


@dataclass
class _Extensions:
    """What special headers say of the next member, or of all that follow."""

    own: dict[str, str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)

    def take(self) -> dict[str, str]:
        """All that concerns this member."""
        found = self.shared | self.own
        self.own = {}
        return found


def tar_members(stream: Readable, *, wanted: Callable[[str], bool], max_bytes: int) -> Iterator[TarMember | TarDamage]:
    """Members and damages in the order in which they lie in the tar, to the end of the stream.

    After a damaged header the search goes on at the next block that is the intact header of a USTAR, PAX or GNU tar;
    after the end marker too, for tars that were written one behind the other.

    Args:
        stream: Positioned at the start; read to its end, however broken the tar is.
        wanted: Whether the data of a regular member with this name is to be read.
        max_bytes: Larger members come without data.
    """
    source = _Stream(stream)
    found, ended, announced = 0, False, False
    extensions = _Extensions()
    first = b""
    while True:
        start = source.position
        block = source.read(BLOCK)
        first = first or block
        if len(block) < BLOCK:
            yield from _end(found, ended, start, block, first)
            return
        if not any(block):
            ended, extensions = True, _Extensions()
            continue
        info = _header(block)
        if info is None and not ended:
            lost = _search(source)
            if isinstance(lost, int) and not found:
                yield TarDamage("not_a_tar", _described(first))
                return
            skipped = source.position - start - (0 if isinstance(lost, int) else BLOCK)
            yield TarDamage("damaged_tar", f"no header at byte {start}: {skipped} bytes skipped")
            if isinstance(lost, int):
                return
            block, info, extensions = lost, _header(lost), _Extensions()
        if info is None or (ended and block[_MAGIC] != b"ustar"):
            continue
        if ended and not announced:
            announced = True
            yield TarDamage("after_end", f"members from byte {start} on lie behind the end marker", info.name)
        try:
            member = _read_member(source, info, block, extensions, wanted, max_bytes)
        except _Cut:
            yield TarDamage("truncated_tar", f"ends at byte {source.position} inside {info.name!r}", info.name)
            return
        if isinstance(member, TarDamage):
            yield member
        elif member is not None:
            found, ended = found + 1, False
            yield member


def _end(found: int, ended: bool, start: int, rest: bytes, first: bytes) -> Iterator[TarDamage]:
    if ended:
        return
    if not start:
        yield TarDamage("not_a_tar", _described(first))
    elif rest:
        yield TarDamage("truncated_tar", f"ends at byte {start + len(rest)} inside a header")
    else:
        yield TarDamage("no_end_marker", f"ends at byte {start} without an end marker, after {found} members")


def _search(source: _Stream) -> bytes | int:
    """The next intact header, or how many bytes of a last block there were."""
    while len(block := source.read(BLOCK)) == BLOCK:
        if block[_MAGIC] == b"ustar" and _header(block) is not None:
            return block
    return len(block)


def _header(block: bytes) -> tarfile.TarInfo | None:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return info if info.size >= 0 else None


def _read_member(
    source: _Stream,
    info: tarfile.TarInfo,
    block: bytes,
    extensions: _Extensions,
    wanted: Callable[[str], bool],
    max_bytes: int,
) -> TarMember | TarDamage | None:
    """What a header announces; None if it only speaks of the next member.

    Raises:
        _Cut: the stream ends before it does.
    """
    if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *_PAX_TYPES):
        return _read_extension(source, info, extensions)
    fields = extensions.take()
    is_sparse = info.type == tarfile.GNUTYPE_SPARSE or any(name.startswith("GNU.sparse.") for name in fields)
    if info.type == tarfile.GNUTYPE_SPARSE:
        _skip_sparse_map(source, block)
    name = fields.get("path", info.name)
    size = int(fields["size"]) if fields.get("size", "").isdecimal() else info.size
    if not (info.isreg() or info.type not in tarfile.SUPPORTED_TYPES):
        return TarMember(name, False, info.isdir(), 0, source.position, None)
    offset, is_regular = source.position, info.isreg() and not is_sparse
    info.name = name
    data = None
    if is_regular and size <= max_bytes and wanted(name):
        data = source.read(size)
        if len(data) < size:
            raise _Cut
    elif source.skip(size):
        raise _Cut
    if source.skip(-size % BLOCK):
        raise _Cut
    return TarMember(name, is_regular, False, size, offset, data)


_PAX_TYPES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


def _read_extension(source: _Stream, info: tarfile.TarInfo, extensions: _Extensions) -> TarDamage | None:
    padded = info.size + -info.size % BLOCK
    if info.size > MAX_EXTENSION_BYTES:
        if source.skip(padded):
            raise _Cut
        extensions.take()
        return TarDamage("damaged_tar", f"a header of {info.size} bytes, the limit is {MAX_EXTENSION_BYTES}")
    content = source.read(padded)
    if len(content) < padded:
        raise _Cut
    if info.type == tarfile.GNUTYPE_LONGNAME:
        extensions.own["path"] = content.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    elif info.type == tarfile.XGLTYPE:
        extensions.shared |= _pax_fields(content)
    elif info.type != tarfile.GNUTYPE_LONGLINK:
        extensions.own |= _pax_fields(content)
    return None


def _pax_fields(content: bytes) -> dict[str, str]:
    """The records `LENGTH NAME=VALUE`; what follows a broken one is not read, as in `tarfile`."""
    fields: dict[str, str] = {}
    position = 0
    while (match := _PAX_RECORD.match(content, position)) and int(match[1]):
        value = content[match.end() : match.start() + int(match[1]) - 1]
        fields[match[2].decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        position += int(match[1])
    return fields


def _skip_sparse_map(source: _Stream, block: bytes) -> None:
    is_extended = block[482]
    while is_extended:
        if len(extra := source.read(BLOCK)) < BLOCK:
            raise _Cut
        is_extended = extra[504]


def foreign_start(start: bytes) -> str:
    """What a file is that does not begin as a tar does, told by its first `BLOCK` bytes; empty: it may be a tar."""
    if len(start) == BLOCK and (not any(start) or _header(start) is not None):
        return ""
    return _described(start)


def _described(start: bytes) -> str:
    if not start:
        return "empty: 0 bytes"
    for magic, kind in _STARTS:
        if start.startswith(magic):
            return f"it is {kind}"
    if re.match(rb"\s*<(!doctype|html|\?xml|head|body|error)", start, re.IGNORECASE):
        return "it is an HTML or XML page"
    return f"first bytes {start[:8]!r}"
