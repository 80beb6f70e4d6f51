"""What lies below a URI, and what is known of it without reading it.

Knows nothing of content. For finding out what a person points at: whatever this project wrote is found by its manifest.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from cibhash.errors import NotFound
from cluster.local_files import local_errors
from cluster.s3_client import bucket_key, client, s3_errors
from cluster.storage import is_s3


def list_folder(uri: str) -> list[str]:
    """Names directly below a folder or prefix, sorted; those of folders end with a slash.

    Raises:
        NotFound: there is no such folder or bucket, or nothing below the prefix.
    """
    if not is_s3(uri):
        with local_errors(uri):
            return sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in os.scandir(uri))
    bucket, _, prefix = uri[len("s3://") :].partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    names: set[str] = set()
    with s3_errors(uri, "s3:ListBucket"):
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        for page in pages:
            names.update(folder["Prefix"] for folder in page.get("CommonPrefixes", ()))
            names.update(item["Key"] for item in page.get("Contents", ()))
    if not names:
        raise NotFound(f"{uri}: nothing is there")
    return sorted(name.removeprefix(prefix) for name in names if name != prefix)


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
        bucket, key = bucket_key(uri)
        with s3_errors(uri, "s3:GetObject"):
            answer = client().head_object(Bucket=bucket, Key=key)
        return Stat(answer["ContentLength"], answer["ETag"].strip('"'))
    with local_errors(uri):
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
        with s3_errors(prefix, "s3:ListBucket"):
            pages = (
                client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{start}/" if start else "")
            )
            keys = (entry["Key"] for page in pages for entry in page.get("Contents", ()))
            yield from (f"s3://{bucket}/{key}" for key in keys if not _is_hidden(key[len(start) :]))
    else:
        yield from sorted(_local_files(os.path.abspath(prefix)))


def _local_files(root: str) -> Iterator[str]:
    seen: set[str] = set()

    def fail(error: OSError) -> None:
        raise error

    with local_errors(root):
        for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
            seen.add(os.path.realpath(folder))
            kept = (name for name in sorted(folders) if not name.startswith("."))
            folders[:] = [name for name in kept if os.path.realpath(os.path.join(folder, name)) not in seen]
            yield from (os.path.join(folder, name) for name in files if not name.startswith("."))


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/")) or path.endswith("/")
