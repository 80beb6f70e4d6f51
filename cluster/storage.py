"""Bytes by URI: a plain local path or `s3://bucket/key`, with atomic, create-only and compare-and-swap writes.

Knows nothing of what the bytes mean. Credentials, region and endpoint of S3 come from the AWS SDK's own environment
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, instance roles, ...) and appear in no config. Reads and conditional writes
are retried by the SDK (standard mode, 5 attempts); 403 and 404 are not. Local writes go to a temporary file that is
fsynced and then linked or renamed, so a reader never sees half a file.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from cibhash.errors import AlreadyExists, ConfigError, NotFound, StorageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")
_CONFLICT_ATTEMPTS = 5
CHUNK_BYTES = 1 << 20


def is_s3(uri: str) -> bool:
    """Whether `uri` names an S3 object; refuses every scheme but `s3://` and plain paths.

    Raises:
        ConfigError: another scheme (`pipe:`, `http://`, ...) or an S3 URI without a bucket.
    """
    match = _SCHEME.match(uri)
    if match is None:
        if not uri:
            raise ConfigError("an empty location: expected a path or s3://bucket/prefix")
        return False
    if match.group(1) != "s3" or not uri.startswith("s3://") or not uri[5:].split("/", 1)[0]:
        raise ConfigError(f"unsupported location {uri!r}: expected a plain path or s3://bucket/prefix")
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
    """
    if is_s3(uri):
        bucket, key = _bucket_key(uri)
        with _s3_errors(uri, "s3:GetObject"):
            body = _s3().get_object(Bucket=bucket, Key=key, Range=f"bytes={offset}-{offset + size - 1}")["Body"].read()
    else:
        with _local_errors(uri), open(uri, "rb") as file:
            file.seek(offset)
            body = file.read(size)
    if len(body) != size:
        raise StorageError(f"{uri}: {len(body)} of {size} bytes at offset {offset}")
    return body


@contextlib.contextmanager
def open_stream(uri: str) -> Iterator[BinaryIO]:
    """A sequential binary stream over the content."""
    if is_s3(uri):
        bucket, key = _bucket_key(uri)
        with _s3_errors(uri, "s3:GetObject"):
            body = _s3().get_object(Bucket=bucket, Key=key)["Body"]
            with contextlib.closing(body):
                yield cast(BinaryIO, body)
    else:
        with _local_errors(uri):
            file = open(uri, "rb")  # noqa: SIM115 (only opening may be blamed on the URI)
        with file:
            yield file


def exists(uri: str) -> bool:
    """Whether a file or object (not a folder) is there."""
    if not is_s3(uri):
        return os.path.isfile(uri)
    bucket, key = _bucket_key(uri)
    try:
        with _s3_errors(uri, "s3:GetObject"):
            _s3().head_object(Bucket=bucket, Key=key)
    except NotFound:
        return False
    return True


def list_folder(uri: str) -> list[str]:
    """Names directly below a folder or prefix, sorted; those of folders end with a slash.

    For finding out what a person points at: whatever this project wrote is found by its manifest.

    Raises:
        NotFound: there is no such folder or bucket, or nothing below the prefix.
    """
    if not is_s3(uri):
        with _local_errors(uri):
            return sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in os.scandir(uri))
    bucket, _, prefix = uri[len("s3://") :].partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    names: set[str] = set()
    with _s3_errors(uri, "s3:ListBucket"):
        pages = _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        for page in pages:
            names.update(folder["Prefix"] for folder in page.get("CommonPrefixes", ()))
            names.update(item["Key"] for item in page.get("Contents", ()))
    if not names:
        raise NotFound(f"{uri}: nothing is there")
    return sorted(name.removeprefix(prefix) for name in names if name != prefix)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes atomically, replacing what was there."""
    _write(uri, data, create_only=False)


def create_bytes(uri: str, data: bytes) -> None:
    """Writes atomically and only where nothing is.

    Raises:
        AlreadyExists: somebody wrote it first.
    """
    _write(uri, data, create_only=True)


def swap_bytes(uri: str, expected: bytes | None, data: bytes) -> None:
    """Replaces content that still equals `expected` (None: does not exist yet).

    Raises:
        AlreadyExists: the content is another one by now; the race is lost.
    """
    if expected is None:
        create_bytes(uri, data)
    elif is_s3(uri):
        bucket, key = _bucket_key(uri)
        with _s3_errors(uri, "s3:GetObject"):
            answer = _s3().get_object(Bucket=bucket, Key=key)
            found, etag = answer["Body"].read(), answer["ETag"]
        if found != expected:
            raise AlreadyExists(f"{uri}: changed by another writer")
        _put(uri, data, IfMatch=etag)
    else:
        with _local_errors(uri), open(f"{uri}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if Path(uri).read_bytes() != expected:
                raise AlreadyExists(f"{uri}: changed by another writer")
            _write_local(uri, data, create_only=False)


def put_file(path: Path, uri: str) -> None:
    """Copies a local file to a URI, atomically."""
    if is_s3(uri):
        bucket, key = _bucket_key(uri)
        with _s3_errors(uri, "s3:PutObject"):
            _s3().upload_file(str(path), bucket, key)
    else:
        with _temporary(uri) as temporary:
            shutil.copyfile(path, temporary)
            _sync(temporary)
            os.replace(temporary, uri)
            _sync(os.path.dirname(os.path.abspath(uri)))


def remove(uri: str) -> None:
    """Removes a file or object, and the local folder that it leaves empty; what is not there needs no removing."""
    if is_s3(uri):
        bucket, key = _bucket_key(uri)
        with _s3_errors(uri, "s3:DeleteObject"):
            _s3().delete_object(Bucket=bucket, Key=key)
        return
    with _local_errors(uri), contextlib.suppress(FileNotFoundError):
        os.unlink(uri)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(os.path.abspath(uri)))


def get_file(uri: str, path: Path) -> None:
    """Copies the content to a local file."""
    with open_stream(uri) as stream, _local_errors(str(path)):
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


def _write(uri: str, data: bytes, *, create_only: bool) -> None:
    if is_s3(uri):
        _put(uri, data, **({"IfNoneMatch": "*"} if create_only else {}))
    else:
        _write_local(uri, data, create_only=create_only)


def _write_local(uri: str, data: bytes, *, create_only: bool) -> None:
    with _temporary(uri) as temporary:
        with open(temporary, "wb") as file:
            file.write(data)
        _sync(temporary)
        try:
            if create_only:
                os.link(temporary, uri)
            else:
                os.replace(temporary, uri)
        except FileExistsError:
            raise AlreadyExists(f"{uri}: exists already") from None
        _sync(os.path.dirname(os.path.abspath(uri)))


def _sync(path: str) -> None:
    """Has the content of a file, or the entries of a folder, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _temporary(uri: str) -> Iterator[str]:
    folder = os.path.dirname(os.path.abspath(uri))
    with _local_errors(uri):
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(uri)}.", dir=folder)
        os.close(handle)
        os.chmod(temporary, 0o644)
        try:
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


@contextlib.contextmanager
def _local_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"{uri}: no such file") from None
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason += f" ({_free_bytes(uri) // 2**20} MiB free)"
        raise StorageError(f"{uri}: {reason}") from error


def _free_bytes(uri: str) -> int:
    folder = Path(uri).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _bucket_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri[len("s3://") :].partition("/")
    if not key:
        raise ConfigError(f"{uri}: names a bucket but no object")
    return bucket, key


@functools.cache
def _s3() -> "S3Client":
    import boto3
    from botocore.config import Config

    retries: Any = {"mode": "standard", "total_max_attempts": 5}
    return boto3.client("s3", config=Config(retries=retries, connect_timeout=10, read_timeout=60))


def _put(uri: str, data: bytes, **condition: str) -> None:
    bucket, key = _bucket_key(uri)
    for attempt in range(_CONFLICT_ATTEMPTS):
        try:
            with _s3_errors(uri, "s3:PutObject"):
                _s3().put_object(Bucket=bucket, Key=key, Body=data, **condition)  # type: ignore[arg-type]
            return
        except _Conflict:
            time.sleep(0.1 * 2**attempt)
    raise StorageError(f"{uri}: still in conflict with another writer after {_CONFLICT_ATTEMPTS} attempts")


class _Conflict(StorageError):
    """S3 answered 409: a concurrent conditional write, to be tried again."""


@contextlib.contextmanager
def _s3_errors(uri: str, permission: str) -> Iterator[None]:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error.response.get("Error", {}).get("Code", "")
        if status == 404 or code in ("NoSuchKey", "NoSuchBucket"):
            raise NotFound(f"{uri}: no such {'bucket' if code == 'NoSuchBucket' else 'object'}") from None
        if status == 403:
            raise StorageError(f"{uri}: access denied, {permission} is needed ({code})") from None
        if status == 412:
            raise AlreadyExists(f"{uri}: written by another writer") from None
        if status == 409:
            raise _Conflict(f"{uri}: conflict") from None
        raise StorageError(f"{uri}: S3 answered {status} {code}") from error
    except (BotoCoreError, Boto3Error) as error:
        raise StorageError(f"{uri}: {' '.join(str(error).split())}") from error


class Stat(NamedTuple):
    """What is known of a file or object without reading it."""

    bytes: int
    version: str
    """Another one once the content is replaced: the ETag, or the time of the last change."""


def stat(uri: str) -> Stat:
    """Size and version of a file or object.

    Raises:
        NotFound: there is none.
    """
    if is_s3(uri):
        bucket, key = _bucket_key(uri)
        with _s3_errors(uri, "s3:GetObject"):
            answer = _s3().head_object(Bucket=bucket, Key=key)
        return Stat(answer["ContentLength"], answer["ETag"].strip('"'))
    with _local_errors(uri):
        found = os.stat(uri)
    return Stat(found.st_size, str(found.st_mtime_ns))


def list_uris(prefix: str) -> Iterator[str]:
    """All files or objects below a folder or an S3 prefix, sorted by URI; hidden files and folders are left out.

    Links to folders are followed, each folder once.

    Raises:
        StorageError: it cannot be listed; a local folder that is not there is NotFound, an S3 prefix is just empty.
    """
    if is_s3(prefix):
        bucket, _, start = prefix.rstrip("/")[len("s3://") :].partition("/")
        with _s3_errors(prefix, "s3:ListBucket"):
            pages = _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{start}/" if start else "")
            keys = (entry["Key"] for page in pages for entry in page.get("Contents", ()))
            yield from (f"s3://{bucket}/{key}" for key in keys if not _is_hidden(key[len(start) :]))
    else:
        yield from sorted(_local_files(os.path.abspath(prefix)))


def _local_files(root: str) -> Iterator[str]:
    seen: set[str] = set()

    def fail(error: OSError) -> None:
        raise error

    with _local_errors(root):
        for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
            seen.add(os.path.realpath(folder))
            kept = (name for name in sorted(folders) if not name.startswith("."))
            folders[:] = [name for name in kept if os.path.realpath(os.path.join(folder, name)) not in seen]
            yield from (os.path.join(folder, name) for name in files if not name.startswith("."))


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/")) or path.endswith("/")
