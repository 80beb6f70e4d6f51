"""Pieces of tars, intact or not: headers of every format, with what is wrong in them summed up as if it were right."""

import tarfile

from cibhash.tar_headers import BLOCK

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
END = bytes(2 * BLOCK)


def summed(header: bytes) -> bytes:
    """A header block with the checksum that it should have."""
    total = sum(header[:148]) + 8 * 32 + sum(header[156:BLOCK])
    return header[:148] + b"%06o\0 " % total + header[156:]


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def patched(header: bytes, at: int, value: bytes) -> bytes:
    return summed(header[:at] + value + header[at + len(value) :])


def plain(name: str, content: bytes = b"x", kind: bytes = b"0", tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    """One entry, with the headers before it that its format needs."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    return info.tobuf(tar_format) + padded(content)


def record(keyword: bytes, value: bytes) -> bytes:
    size = len(keyword) + len(value) + 3
    return b"%d %s=%s\n" % (next(n for n in range(size, size + 9) if size + len(str(n)) == n), keyword, value)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    return plain("PaxHeader", b"".join(records), kind)


def long(name: str, kind: bytes = b"L") -> bytes:
    return plain("././@LongLink", name.encode("utf-8", "surrogateescape") + b"\0", kind)
