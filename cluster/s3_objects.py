"""S3 objects by URI: reading, atomic, create-only and compare-and-swap writing, and uploads in parts.

Knows nothing of local files and of what the bytes mean. An object is there as a whole or not at all. A conditional
write whose answer was lost is sent again and then refused, for the condition no longer holds; so a refusal of a
repeated request is settled by reading the object back: its content is ours, or the race is lost. Another writer of the
very same bytes cannot be told from us then, which is harmless.
"""

import contextlib
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO

from cibhash.errors import AlreadyExists, NotFound
from cluster.s3_client import LostRace, OutOfRange, UploadGone, bucket_key, client, s3_errors
from cluster.s3_stream import ObjectStream


def read_bytes(uri: str) -> bytes:
    """The whole content."""
    with contextlib.closing(ObjectStream(uri)) as stream:
        return stream.read()


def read_range(uri: str, offset: int, size: int) -> bytes:
    """At most `size` (at least 1) bytes from `offset`, fewer where the object ends."""
    try:
        with contextlib.closing(ObjectStream(uri, offset, offset + size)) as stream:
            return stream.read()
    except OutOfRange:
        return b""


def exists(uri: str) -> bool:
    """Whether there is such an object."""
    bucket, key = bucket_key(uri)
    try:
        with s3_errors(uri, "s3:GetObject"):
            client().head_object(Bucket=bucket, Key=key)
    except NotFound:
        return False
    return True


def write_bytes(uri: str, data: bytes) -> None:
    """Writes, replacing what was there; at most 5 GB."""
    _put(uri, data)


def create_bytes(uri: str, data: bytes) -> None:
    """Writes only where nothing is.

    Raises:
        AlreadyExists: somebody wrote it first.
    """
    _put(uri, data, IfNoneMatch="*")


def swap_bytes(uri: str, expected: bytes, data: bytes) -> None:
    """Replaces content that still equals `expected`.

    Raises:
        AlreadyExists: the content is another one by now.
    """
    with contextlib.closing(ObjectStream(uri)) as stream:
        found = stream.read()
    if found != expected:
        raise AlreadyExists(f"{uri}: changed by another writer")
    _put(uri, data, IfMatch=stream.etag)


def put_stream(source: BinaryIO, uri: str) -> None:
    """Writes what a seekable stream holds, much of it in parts that a failure removes again.

    A process that is killed cannot remove them: `abort_uploads` does, or a lifecycle rule of the bucket
    (`AbortIncompleteMultipartUpload`). The same goes for an upload whose first answer was lost: it is begun anew, and
    the lost one stays without parts.
    """
    try:
        _upload(source, uri)
    except UploadGone:  # the answer to its last request was lost, or somebody aborted it: which, nobody can tell
        source.seek(0)
        _upload(source, uri)


def remove(uri: str) -> None:
    """Removes an object; a missing one needs no removing."""
    bucket, key = bucket_key(uri)
    with s3_errors(uri, "s3:DeleteObject"):
        client().delete_object(Bucket=bucket, Key=key)


def abort_uploads(prefix_uri: str, older_than: timedelta) -> tuple[str, ...]:
    """Aborts multipart uploads that were begun below a prefix and never finished.

    Args:
        prefix_uri: `s3://bucket` or `s3://bucket/prefix`.
        older_than: Age by the store's clock; choose one that no live upload reaches.

    Returns:
        URIs of the objects that were being uploaded.
    """
    bucket, _, prefix = prefix_uri[len("s3://") :].partition("/")
    aborted = []
    with s3_errors(prefix_uri, "s3:ListBucketMultipartUploads, s3:AbortMultipartUpload"):
        for page in client().get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
            for upload in page.get("Uploads", ()):
                if now - upload["Initiated"] >= older_than:
                    client().abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                    aborted.append(f"s3://{bucket}/{upload['Key']}")
    return tuple(aborted)


def _put(uri: str, data: bytes, **condition: Any) -> None:
    bucket, key = bucket_key(uri)
    try:
        with s3_errors(uri, "s3:PutObject"):
            client().put_object(Bucket=bucket, Key=key, Body=data, **condition)
    except LostRace as lost:
        if not (lost.was_repeated and _holds(uri, data)):
            raise AlreadyExists(str(lost)) from None


def _holds(uri: str, data: bytes) -> bool:
    try:
        return read_bytes(uri) == data
    except NotFound:
        return False


def _upload(source: BinaryIO, uri: str) -> None:
    bucket, key = bucket_key(uri)
    with s3_errors(uri, "s3:PutObject"):
        client().upload_fileobj(source, bucket, key)
