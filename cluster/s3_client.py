"""The S3 client of this process: its settings, which failures are tried again, and errors as a person reads them.

Knows nothing of what is read and written. Credentials, region and endpoint come from the AWS SDK's own environment
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, instance roles, ...) and appear in no config; an endpoint of one's own is
addressed by path (`endpoint/bucket/key`), which is what S3-compatible stores understand.

Retries have one place: the SDK's own are off (one attempt), and every request of every call, the parts of a multipart
upload included, asks `_wait_before_retry`. That gives them one backoff with a total deadline, `Retry-After`, a count
and a line in the log. 5xx, throttling, timeouts and broken connections are tried again, as is 409 on a conditional
write; 403, 404 and other refusals are not.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cibhash.errors import AlreadyExists, ConfigError, NotFound, StorageError
from cluster import retries
from cluster.redaction import redacted

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CONNECTIONS = 32
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
_TRANSIENT_CODES = {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling"}
_CONFLICT = 409
_HINTS = {
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION",
    "ExpiredToken": "the credentials have expired",
    "InvalidAccessKeyId": "the store does not know these credentials",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION",
    "RequestTimeTooSkewed": "the clock of this machine is too far from the store's",
    "SignatureDoesNotMatch": "the credentials are wrong, or something on the way alters requests",
    "TokenRefreshRequired": "the credentials have expired",
}
_making = threading.Lock()


class LostRace(AlreadyExists):
    """S3 answered 412: the condition of the request does not hold."""

    was_repeated = False
    """Whether the request was sent more than once, so that the writer who won may have been this one."""


class OutOfRange(StorageError):
    """S3 answered 416: the range begins behind the end of the object."""


class UploadGone(StorageError):
    """S3 does not know the multipart upload (any more)."""


def client() -> "S3Client":
    """The client of this process; a forked child makes its own, for connections cannot be shared."""
    with _making:
        return _client(os.getpid())


def forget_client() -> None:
    """Has the next call make a new client, for an environment that has changed."""
    _client.cache_clear()


@functools.lru_cache(maxsize=1)
def _client(_: int) -> "S3Client":
    import boto3
    from botocore.config import Config

    one_attempt: Any = {"mode": "standard", "total_max_attempts": 1}
    config = Config(
        retries=one_attempt,
        connect_timeout=retries.LIMITS.connect_timeout_s,
        read_timeout=retries.LIMITS.read_timeout_s,
        max_pool_connections=_CONNECTIONS,
        response_checksum_validation="when_required",  # bodies are read raw, and manifests hold their SHA-256
    )
    session = boto3.Session(region_name=os.environ.get("AWS_REGION") or None)  # boto3 alone reads AWS_DEFAULT_REGION
    made = session.client("s3", config=config)
    made.meta.events.register("needs-retry.s3", _wait_before_retry)  # type: ignore[arg-type]
    return made


def bucket_key(uri: str) -> tuple[str, str]:
    """Bucket and key of an object's URI.

    Raises:
        ConfigError: there is no key.
    """
    bucket, _, key = uri[len("s3://") :].partition("/")
    if not key:
        raise ConfigError(f"{uri}: names a bucket but no object")
    return bucket, key


@contextlib.contextmanager
def s3_errors(uri: str, permission: str) -> Iterator[None]:
    """Turns what the SDK raises into this project's errors.

    The SDK's own errors are not kept as causes: their text may hold what `redacted` takes out, and a traceback in a
    report would show it.

    Args:
        uri: Of the object or prefix.
        permission: What the call needs, as in `s3:GetObject`.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _refusal(uri, permission, error.response) from None
    except BotoCoreError as error:
        raise StorageError(f"{uri}: {_failure(error)}") from None


def _refusal(uri: str, permission: str, response: Mapping[str, Any]) -> StorageError:
    about = response.get("ResponseMetadata", {})
    status, repeated = about.get("HTTPStatusCode", 0), about.get("RetryAttempts", 0)
    code = str(response.get("Error", {}).get("Code", ""))
    if code == "NoSuchUpload":
        return UploadGone(f"{uri}: the multipart upload is gone ({code})")
    if status == 404 or code in ("NoSuchKey", "NoSuchBucket"):
        return NotFound(f"{uri}: no such {'bucket' if code == 'NoSuchBucket' else 'object'}")
    if code in _HINTS:
        return StorageError(f"{uri}: refused, {_HINTS[code]} ({status} {code})")
    if status == 403:
        return StorageError(f"{uri}: access denied, {permission} is needed ({code})")
    if status == 412:
        lost = LostRace(f"{uri}: written by another writer")
        lost.was_repeated = repeated > 0
        return lost
    if status == 416:
        return OutOfRange(f"{uri}: shorter than that")
    attempts = f" after {repeated + 1} attempts" if repeated else ""
    if status == _CONFLICT:
        return StorageError(f"{uri}: in conflict with another writer{attempts} ({code})")
    return StorageError(f"{uri}: S3 answered {status} {code}{attempts}")


def _failure(error: Exception) -> str:
    """One line for a request without an answer."""
    from botocore.exceptions import HTTPClientError

    if type(error) is HTTPClientError:  # of unforeseen errors the text may be anything, a header with its value too
        inner = error.kwargs.get("error")
        hint = ", do the credentials hold a line break?" if isinstance(inner, ValueError) else ""
        return f"the request could not be sent ({type(inner).__name__}{hint})"
    return redacted(" ".join(str(error).split()))


def _wait_before_retry(
    *, response: Any, caught_exception: Exception | None, request_dict: dict[str, Any], operation: Any, **_: Any
) -> float | None:
    """Seconds until a request is sent again; None: its answer or failure stands. Called by the SDK after each."""
    reason = _transient_failure(caught_exception) if response is None else _transient_answer(response, operation.name)
    if not reason:
        return None
    patience: retries.Patience = request_dict["context"].setdefault("cibhash_patience", retries.Patience())
    wait_s = patience.wait_s(_retry_after_s(response))
    if wait_s is not None:
        url = urlsplit(request_dict["url"])
        retries.note_retry(operation.name, f"{url.hostname}:{url.port or url.scheme}{url.path}", reason, wait_s)
    return wait_s


def _transient_answer(response: Any, operation: str) -> str:
    """The status and code of an answer that may be another one next time, else nothing."""
    status, code = response[0].status_code, str(response[1].get("Error", {}).get("Code", ""))
    conflict = status == _CONFLICT and operation in ("PutObject", "CompleteMultipartUpload")
    if conflict or status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES:
        return f"{status} {code}".strip()
    return ""


def _transient_failure(error: Exception | None) -> str:
    """The kind of a failure that the network may have caused, else nothing."""
    from botocore.exceptions import ConnectionClosedError, ConnectionError, ReadTimeoutError

    if not isinstance(error, ConnectionError | ConnectionClosedError | ReadTimeoutError):
        return ""
    return "" if "CERTIFICATE_VERIFY_FAILED" in str(error) else type(error).__name__


def _retry_after_s(response: Any) -> float:
    """What the answer asks to wait; a date is not understood."""
    asked = str(response[0].headers.get("Retry-After", "")) if response is not None else ""
    return float(asked) if asked.isdecimal() else 0.0
