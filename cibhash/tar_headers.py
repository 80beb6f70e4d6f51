"""What the header blocks of a tar say: kind, name and size of a member, and what PAX and GNU headers add to them.

Knows nothing of streams and of damage around a block. `tarfile` decides what a header is; those that most writers
make are read without it, ten times as fast, and with the same result. Names are UTF-8, whatever the locale.
"""

import functools
import re
import tarfile
import zlib
from typing import NamedTuple

BLOCK = 512
MAX_EXTENSIONS = 16
"""Headers that may speak of one member."""
EXTENSION_KINDS = frozenset({*b"LKxgX"})
REGULAR_KINDS = frozenset({*b"07\0"})
FOLDER_KIND, SPARSE_KIND = b"5S"
_WITHOUT_DATA = frozenset({*b"123456"})
_LONG_NAME, _LONG_LINK, _OF_ALL = b"LKg"
_KIND = 156
_USUAL = re.compile(
    rb"(?s)(?=([^\0]{0,100})).{100}"  # name
    rb"(?:[0-7]{6}[0-7 ][\0 ]){3}"  # mode, owner and group
    rb"([0-7]{11})[\0 ]"  # size
    rb"[0-7]{11}[\0 ]"  # time
    rb"([0-7]{6}[\0 ]{2})"  # checksum
    rb"[0xL]"  # kind
    rb".{172}"  # of links, and who owns it
    rb"(?:\0{16}|0{7}\x000{7}\0|0{6} \x000{6} \0)"  # devices
    rb"([^\0]{0,155})"  # first part of a long name
)
"""The header of a plain file or of what speaks of one, as most writers make it."""
_PAX_RECORD = re.compile(rb"(\d{1,9}) ([^=]{1,1024})=")
_SPARSE_KEYWORDS = b"GNU.sparse."


class Header(NamedTuple):
    """A header block, or what it comes to with those before it."""

    kind: int
    """The type flag; a folder of the old format is one here too."""
    name: str
    """Bytes that are no UTF-8 are lone surrogates."""
    size: int
    """Bytes that follow, without their padding; 0 for links, devices and folders."""
    is_sparse: bool = False


class Said(NamedTuple):
    """What a header says of the member behind it."""

    path: str | None = None
    size: int | None = None
    is_sparse: bool = False

    def over(self, below: "Said") -> "Said":
        """This, and where it is silent what is below."""
        path = below.path if self.path is None else self.path
        size = below.size if self.size is None else self.size
        return Said(path, size, self.is_sparse or below.is_sparse)


_NOTHING = Said()


def read_header(block: bytes) -> Header | None:
    """What a block of `BLOCK` bytes says; None: it is no intact header, or one of zeros."""
    usual = _read_usual(block, 0)
    return Header(block[_KIND], *usual) if usual else _read_unusual(block)


def read_plain(content: bytes, start: int) -> tuple[str, int] | None:
    """Name and size of a file by the header at `start`; None: there is no header of a file as most writers make it."""
    return _read_usual(content, start) if content[start + _KIND : start + _KIND + 1] == b"0" else None


def _read_usual(content: bytes, start: int) -> tuple[str, int] | None:
    usual = _USUAL.match(content, start)
    block = content[start : start + BLOCK]
    if usual is None or not block.isascii():
        return None
    name, size, checksum, prefix = usual.groups()
    # bytes of ASCII add up to less than the modulus of Adler-32, whose low half is their sum then
    if zlib.adler32(block, 0) & 0xFFFF != _sum_with(checksum):
        return None
    text = name.decode()
    if prefix and block[_KIND] != _LONG_NAME:
        text = f"{prefix.decode()}/{text}"
    return text, int(size, 8)


@functools.lru_cache(4096)
def _sum_with(checksum: bytes) -> int:
    """What the bytes of a header with this checksum add up to, itself included; it counts as spaces in itself."""
    return int(checksum[:6], 8) + sum(checksum) - 8 * ord(" ")


def _read_unusual(block: bytes) -> Header | None:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    if info.size < 0:
        return None
    kind = info.type[0]
    return Header(kind, info.name, 0 if kind in _WITHOUT_DATA else info.size, kind == SPARSE_KIND)


class Extensions:
    """What the headers before a member say of it, and what was said of all that follow."""

    def __init__(self) -> None:
        self._of_all = _NOTHING
        self._of_next: list[Said] = []
        self.is_open = False
        """Whether a member must follow."""
        self.is_needed = False
        """Whether anything was said that may differ from what the member's own header says."""

    def add(self, kind: int, content: bytes) -> str:
        """Takes one of `EXTENSION_KINDS`.

        Args:
            kind: Of the header.
            content: What follows it, padding included.

        Returns:
            What cannot be read of it, and is passed over; empty: nothing.
        """
        if len(self._of_next) == MAX_EXTENSIONS:
            self.drop()
            return f"more than {MAX_EXTENSIONS} headers before a member"
        said, trouble = _NOTHING, ""
        if kind == _LONG_NAME:
            said = Said(_text(content))
        elif kind != _LONG_LINK:
            said, trouble = _read_pax(content)
            if kind == _OF_ALL:
                trouble = trouble or ("a size for all members that follow" if said.size is not None else "")
                self._of_all, said = said._replace(size=None).over(self._of_all), _NOTHING
            elif self._of_all != _NOTHING:
                said = said.over(self._of_all)
        self._of_next.append(said)
        self.is_open = True
        self.is_needed = self.is_needed or said != _NOTHING or self._of_all != _NOTHING
        return trouble

    def take(self, header: Header) -> Header:
        """The member's header with what was said of it; the first that spoke has the last word, as in `tarfile`."""
        said = self._of_all
        for earlier in reversed(self._of_next):
            said = earlier.over(said)
        self.drop()
        name = header.name if said.path is None else said.path
        size = header.size if said.size is None or header.kind in _WITHOUT_DATA else said.size
        return Header(header.kind, name, size, header.is_sparse or said.is_sparse)

    def drop(self) -> None:
        """Forgets what was said of the next member alone."""
        self._of_next, self.is_open, self.is_needed = [], False, self._of_all != _NOTHING


def _read_pax(content: bytes) -> tuple[Said, str]:
    """The records `LENGTH NAME=VALUE` up to a broken one, and where that is."""
    path, size, is_sparse = None, None, False
    position = 0
    while position < len(content) and content[position]:
        record = _PAX_RECORD.match(content, position)
        end = position + int(record[1]) if record else 0
        if not record or not record.end() < end <= len(content) or content[end - 1] != ord("\n"):
            return Said(path, size, is_sparse), f"no PAX record at byte {position} of a header"
        keyword, value = record[2], content[record.end() : end - 1]
        if keyword == b"path":
            path = value.decode("utf-8", "surrogateescape").rstrip("/")
        elif keyword == b"size":
            if not re.fullmatch(rb"\d{1,20}", value):
                return Said(path, size, is_sparse), f"a PAX size of {value[:40]!r}"
            size = int(value)
        elif keyword.startswith(_SPARSE_KEYWORDS):
            is_sparse = True
        position = end
    return Said(path, size, is_sparse), ""


def _text(field: bytes) -> str:
    """A field up to its first zero byte."""
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
