"""Bytes by URI: a plain local path or `s3://bucket/key`, with atomic, create-only and compare-and-swap writes.

Knows nothing of what the bytes mean, and of how either kind of storage does it: that is in `cluster.local_files` and
`cluster.s3_objects`. What goes wrong for a moment in S3 is tried again there, until it works or a `StorageError` names
the URI.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from cibhash.errors import ConfigError, StorageError
from cluster import local_files, s3_objects
from cluster.local_files import local_errors
from cluster.redaction import redacted
from cluster.s3_stream import ObjectStream

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")
CHUNK_BYTES = 1 << 20


def is_s3(uri: str) -> bool:
    """Whether `uri` names an S3 object; refuses every scheme but `s3://` and plain paths.

    Raises:
        ConfigError: another scheme (`pipe:`, `http://`, ...), an S3 URI without a bucket, or one with credentials.
    """
    match = _SCHEME.match(uri)
    if match is None:
        if not uri:
            raise ConfigError("an empty location: expected a path or s3://bucket/prefix")
        return False
    bucket = uri[5:].split("/", 1)[0]
    if match.group(1) != "s3" or not uri.startswith("s3://") or not bucket:
        raise ConfigError(f"unsupported location {redacted(uri)!r}: expected a plain path or s3://bucket/prefix")
    if ":" in bucket or "@" in bucket:
        raise ConfigError("s3://... with ':' or '@' before its first '/': credentials come from the environment only")
    return True


def join(base: str, *parts: str) -> str:
    """Appends path components to a URI; an absolute last component or an S3 URI replaces the base."""
    for part in parts:
        base = part if part.startswith(("/", "s3://")) else f"{base.rstrip('/')}/{part}"
    return base


def absolute(uri: str) -> str:
    """The URI as every node must read it: local paths made absolute, S3 URIs unchanged."""
    return uri.rstrip("/") if is_s3(uri) else os.path.abspath(uri)


def read_bytes(uri: str) -> bytes:
    """The whole content.

    Raises:
        NotFound: there is no such file or object.
        StorageError: it cannot be read.
    """
    with open_stream(uri) as stream:
        return stream.read()


def read_range(uri: str, offset: int, size: int) -> bytes:
    """Exactly `size` bytes from `offset`, by one range read.

    Raises:
        StorageError: the object is shorter.
        ValueError: one of the numbers is negative.
    """
    if offset < 0 or size < 0:
        raise ValueError(f"{uri}: {size} bytes at offset {offset}: expected 0 or more")
    if is_s3(uri):
        body = s3_objects.read_range(uri, offset, size) if size else b""
    else:
        body = local_files.read_range(uri, offset, size)
    if len(body) != size:
        raise StorageError(f"{uri}: {len(body)} of {size} bytes at offset {offset}")
    return body


@contextlib.contextmanager
def open_stream(uri: str) -> Iterator[BinaryIO]:
    """A sequential binary stream over the content."""
    if is_s3(uri):
        with contextlib.closing(ObjectStream(uri)) as stream:
            yield cast(BinaryIO, stream)
    else:
        with local_errors(uri):
            file = open(uri, "rb")  # noqa: SIM115 (only opening may be blamed on the URI)
        with file:
            yield file


def exists(uri: str) -> bool:
    """Whether a file or object (not a folder) is there."""
    return s3_objects.exists(uri) if is_s3(uri) else os.path.isfile(uri)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes atomically, replacing what was there."""
    (s3_objects if is_s3(uri) else local_files).write_bytes(uri, data)


def create_bytes(uri: str, data: bytes) -> None:
    """Writes atomically and only where nothing is.

    Raises:
        AlreadyExists: somebody wrote it first.
    """
    (s3_objects if is_s3(uri) else local_files).create_bytes(uri, data)


def swap_bytes(uri: str, expected: bytes | None, data: bytes) -> None:
    """Replaces content that still equals `expected` (None: does not exist yet).

    Raises:
        AlreadyExists: the content is another one by now; the race is lost.
    """
    if expected is None:
        create_bytes(uri, data)
    else:
        (s3_objects if is_s3(uri) else local_files).swap_bytes(uri, expected, data)


def put_file(path: Path, uri: str) -> None:
    """Copies a local file to a URI, atomically."""
    if is_s3(uri):
        with local_errors(str(path)), open(path, "rb") as file:
            s3_objects.put_stream(file, uri)
    else:
        local_files.put_file(path, uri)


def remove(uri: str) -> None:
    """Removes a file or object, and the local folder that it leaves empty; what is not there needs no removing."""
    (s3_objects if is_s3(uri) else local_files).remove(uri)


def get_file(uri: str, path: Path) -> None:
    """Copies the content to a local file."""
    with open_stream(uri) as stream, local_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            shutil.copyfileobj(stream, file, CHUNK_BYTES)


def sha256_of(uri: str) -> tuple[str, int]:
    """SHA-256 (hex) and number of bytes of the content, read once as a stream."""
    digest, size = hashlib.sha256(), 0
    with open_stream(uri) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size
