"""The members of a tar, read as a stream that survives damage: what is broken is reported and stepped over.

Knows nothing of samples. The library's `tarfile` stops at a damaged header in silence, and holds headers of any size
in memory; here the next intact header is searched and every limit is checked before a read. Uncompressed tars only.
Members come as `tarfile` would give them; where it guesses, a damage is told.
"""

import re
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, Protocol

from cibhash.tar_headers import (
    BLOCK,
    EXTENSION_KINDS,
    FOLDER_KIND,
    REGULAR_KINDS,
    SPARSE_KIND,
    Extensions,
    Header,
    read_header,
    read_plain,
)

MAX_EXTENSION_BYTES = 2**20
"""Largest long name or PAX record that is read; a path is a few thousand bytes at most."""
_CHUNK = 1 << 20
_MAGIC = slice(257, 262)
_ZEROS = bytes(BLOCK)
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
    """None: it was not asked for, or is not regular."""


class TarDamage(NamedTuple):
    """Something of the tar that is not as it should be."""

    kind: DamageKind
    detail: str
    name: str = ""
    """The member that it cost, where known."""


class _Cut(Exception):
    """The stream ended inside of something."""


class _Source:
    """Reads a stream in chunks and gives it out in pieces."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._chunk = b""
        self._at = self._passed = 0
        self.first = b""
        """The first block, once something was read."""

    @property
    def position(self) -> int:
        """Bytes given out or skipped so far."""
        return self._passed + self._at

    def take(self, size: int) -> bytes:
        """Exactly `size` bytes, or what is left."""
        start, end = self._at, self._at + size
        if end <= len(self._chunk):
            self._at = end
            return self._chunk[start:end]
        pieces = [self._chunk[start:]]
        missing = end - len(self._chunk)
        while missing and self._fill():
            pieces.append(self._chunk[:missing])
            self._at = len(pieces[-1])
            missing -= self._at
        return b"".join(pieces)

    def take_plain(self, wanted: Callable[[str, int], bool]) -> TarMember | None:
        """The next member, where its header is as most are and all of it lies in this chunk."""
        plain = read_plain(self._chunk, self._at)
        if plain is None:
            return None
        name, size = plain
        start = self._at + BLOCK
        end = start + size
        if (behind := end + -size % BLOCK) > len(self._chunk):
            return None
        data = self._chunk[start:end] if wanted(name, size) else None
        self._at = behind
        return TarMember(name, True, False, size, self._passed + start, data)

    def take_padded(self, size: int) -> bytes:
        """Exactly `size` bytes; passes over what fills their last block.

        Raises:
            _Cut: there are fewer.
        """
        content = self.take(size)
        if len(content) < size:
            raise _Cut
        self.skip(-size % BLOCK)
        return content

    def skip(self, size: int) -> None:
        """Passes over `size` bytes.

        Raises:
            _Cut: there are fewer.
        """
        self._at += size
        while (missing := self._at - len(self._chunk)) > 0:
            if not self._fill():
                raise _Cut
            self._at = missing

    def _fill(self) -> bool:
        """Goes on to the next chunk; False: there is none."""
        self._passed += len(self._chunk)
        self._chunk, self._at = self._stream.read(_CHUNK), 0
        self.first = self.first or self._chunk[:BLOCK]
        return bool(self._chunk)


def tar_members(
    stream: Readable, *, wanted: Callable[[str, int], bool], survives: bool = True
) -> Iterator[TarMember | TarDamage]:
    """Members and damages in the order in which they lie in the tar, to the end of the stream.

    After a damaged header the search goes on at the next block that is the intact header of a USTAR, PAX or GNU tar;
    after the end marker too, for tars that were written one behind the other.

    Args:
        stream: Positioned at the start; read sequentially, to its end however broken the tar is.
        wanted: Whether the data of a regular member with this name and size is to be read; what it raises ends the
            walk before they are.
        survives: False: a damaged header is the last that is told, and nothing behind it is read.
    """
    source, extensions = _Source(stream), Extensions()
    found, ended, announced = 0, False, False
    while True:
        while not (ended or extensions.is_needed) and (plain := source.take_plain(wanted)) is not None:
            if extensions.is_open:
                extensions.drop()
            found += 1
            yield plain
        start = source.position
        if len(block := source.take(BLOCK)) < BLOCK:
            break
        header = read_header(block) if not ended or block[_MAGIC] == b"ustar" else None
        if header is None and (ended or block == _ZEROS):
            if extensions.is_open:
                yield TarDamage("damaged_tar", f"no member at byte {start}, but a header that speaks of it")
            ended, extensions = True, Extensions()
            continue
        if header is None:
            block, header = _search(source) if survives else (b"", None)
            if header is None and not found:
                yield TarDamage("not_a_tar", _described(source.first))
                return
            skipped = f": {source.position - start - len(block)} bytes skipped" if survives else ""
            yield TarDamage("damaged_tar", f"no header at byte {start}{skipped}")
            if header is None:
                return
            extensions = Extensions()
        if ended and not announced:
            announced = True
            yield TarDamage("after_end", f"members from byte {start} on lie behind the end marker", header.name)
        try:
            if header.kind in EXTENSION_KINDS:
                if trouble := _read_extension(source, header, extensions):
                    yield TarDamage("damaged_tar", f"at byte {start}: {trouble}")
                continue
            header = extensions.take(header)
            member = _read_member(source, header, block, wanted)
        except _Cut:
            yield TarDamage("truncated_tar", f"ends at byte {source.position} inside {header.name!r}", header.name)
            return
        found, ended = found + 1, False
        yield member
    if not ended:
        yield _missing_end(source, found, len(block), extensions.is_open)


def _search(source: _Source) -> tuple[bytes, Header | None]:
    """The next block that is an intact header, and what it says; empty: there is none."""
    while len(block := source.take(BLOCK)) == BLOCK:
        if block[_MAGIC] == b"ustar" and (header := read_header(block)) is not None:
            return block, header
    return b"", None


def _missing_end(source: _Source, found: int, rest: int, is_open: bool) -> TarDamage:
    """Why a tar ends without its marker; `rest` bytes of a last block were there."""
    if source.position < BLOCK:
        return TarDamage("not_a_tar", _described(source.first))
    if rest:
        return TarDamage("truncated_tar", f"ends at byte {source.position} inside a header")
    if is_open:
        return TarDamage("truncated_tar", f"ends at byte {source.position} behind a header that speaks of a member")
    return TarDamage("no_end_marker", f"ends at byte {source.position} without an end marker, after {found} members")


def _read_member(source: _Source, header: Header, block: bytes, wanted: Callable[[str, int], bool]) -> TarMember:
    """The member of a header, which is the last block that was read.

    Raises:
        _Cut: the stream ends before it does.
    """
    kind, name, size, is_sparse = header
    if kind == SPARSE_KIND:
        _skip_sparse_map(source, block)
    offset = source.position
    is_regular = kind in REGULAR_KINDS and not is_sparse
    if is_regular and wanted(name, size):
        return TarMember(name, True, False, size, offset, source.take_padded(size))
    source.skip(size + -size % BLOCK)
    return TarMember(name, is_regular, kind == FOLDER_KIND, size, offset, None)


def _read_extension(source: _Source, header: Header, extensions: Extensions) -> str:
    """Takes a header that speaks of the next member, and returns what is wrong with it.

    Raises:
        _Cut: the stream ends before it does.
    """
    padded = header.size + -header.size % BLOCK
    if header.size > MAX_EXTENSION_BYTES:
        source.skip(padded)
        extensions.drop()
        return f"a header of {header.size} bytes, the limit is {MAX_EXTENSION_BYTES}"
    return extensions.add(header.kind, source.take_padded(padded))


def _skip_sparse_map(source: _Source, block: bytes) -> None:
    is_extended = block[482]
    while is_extended:
        is_extended = source.take_padded(BLOCK)[504]


def foreign_start(start: bytes) -> str:
    """What a file is that does not begin as a tar does, told by its first `BLOCK` bytes; empty: it may be a tar."""
    if len(start) == BLOCK and (start == _ZEROS or read_header(start) is not None):
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
