"""Sequential reading of one S3 object, or of a range of it, that survives broken answers.

Knows nothing of what is read. A body that breaks off, ends early, stops or crawls is continued by a range request from
the byte reached, on the condition that the object is still the same (`If-Match` with the first answer's ETag).
"""

import contextlib
import http.client
import io
import re
import time
from typing import Any

from urllib3.exceptions import HTTPError

from cibhash.errors import StorageError
from cluster import retries
from cluster.s3_client import LostRace, bucket_key, client, s3_errors

OPERATION = "GetObject.body"
"""Name under which continued bodies are counted."""
_CHUNK_BYTES = 1 << 18
_PROGRESS_BYTES = 1 << 16
"""Read since the last break, they make the next break the first in a row again."""


class ObjectStream(io.RawIOBase):
    """What `open` gives for a file, for an object; `read(n)` gives n bytes unless the end comes first.

    Args:
        uri: Of the object.
        start: First byte.
        end: One past the last byte; default, or if the object is shorter: its end.

    Raises:
        NotFound: there is no such object.
        OutOfRange: it has no byte `start`.
        StorageError: it cannot be read, was replaced meanwhile, or broke off too often without getting further.
    """

    def __init__(self, uri: str, start: int = 0, end: int | None = None) -> None:
        self.uri, self.etag = uri, ""
        self._position, self._end = start, end
        self._patience = retries.Patience()
        self._answer = contextlib.ExitStack()
        self._body: Any = None
        self._broken_at = start
        self._waited_s, self._received = 0.0, 0
        self._request()

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fills the buffer, unless the end comes first."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads `size` bytes, all that is left if negative."""
        left = self._left if size is None or size < 0 else min(size, self._left)
        chunks = []
        while left:
            chunk = self._next_chunk(min(left, _CHUNK_BYTES))
            chunks.append(chunk)
            left -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def readall(self) -> bytes:
        """Reads all that is left."""
        return self.read()

    def close(self) -> None:
        """Ends the request; a body that was read to its end leaves its connection to the next one."""
        self._answer.close()
        super().close()

    @property
    def _left(self) -> int:
        return (self._end or 0) - self._position

    def _next_chunk(self, most: int) -> bytes:
        """At least one byte and at most `most`; asks for the rest anew as often as it must."""
        while True:
            asked_s = time.monotonic()
            try:
                chunk: bytes = self._body.read1(most)
                problem = "" if chunk else "it ended too early"
            except (HTTPError, http.client.HTTPException, OSError) as error:
                chunk, problem = b"", type(error).__name__
            self._waited_s += time.monotonic() - asked_s
            self._received += len(chunk)
            self._position += len(chunk)
            if not self._left:
                self._body.drain_conn()
            elif problem or self._is_crawling():
                self._go_on(problem or "it came too slowly")
            if chunk:
                return chunk

    def _is_crawling(self) -> bool:
        """Whether less came in the time that a silent connection is given than must come; the reader's time is free."""
        if self._waited_s < retries.LIMITS.read_timeout_s:
            return False
        slow = self._received < retries.LIMITS.least_bytes_per_s * self._waited_s
        self._waited_s, self._received = 0.0, 0
        return slow

    def _go_on(self, problem: str) -> None:
        """Has the body go on where it broke off, after a while."""
        self._answer.close()
        if self._position - self._broken_at >= _PROGRESS_BYTES:
            self._patience.reset()
        wait_s = self._patience.wait_s()
        if wait_s is None:
            raise StorageError(
                f"{self.uri}: the body broke off at byte {self._position} of {self._end}: {problem}, "
                f"{self._patience.failures} times in a row"
            )
        retries.note_retry(OPERATION, self.uri, f"{problem} at byte {self._position} of {self._end}", wait_s)
        time.sleep(wait_s)
        self._request()

    def _request(self) -> None:
        """Asks for everything from the position on."""
        bucket, key = bucket_key(self.uri)
        wanted: dict[str, Any] = {"Bucket": bucket, "Key": key}
        if self._position or self._end is not None:
            wanted["Range"] = f"bytes={self._position}-{'' if self._end is None else self._end - 1}"
        if self.etag:
            wanted["IfMatch"] = self.etag
        try:
            with s3_errors(self.uri, "s3:GetObject"):
                answer = client().get_object(**wanted)
        except LostRace:
            raise self._replaced(self._etag_now()) from None
        self._body = self._answer.enter_context(answer["Body"])
        self._broken_at, self._waited_s, self._received = self._position, 0.0, 0
        self._check(answer)

    def _check(self, answer: Any) -> None:
        """Refuses an answer that is not what was asked for, and takes size and ETag from the first."""
        if "ContentLength" not in answer:
            raise StorageError(f"{self.uri}: the store answered without Content-Length")
        came_from = re.match(r"bytes (\d+)-", answer.get("ContentRange", "bytes 0-"))
        is_longer = self._end is not None and answer["ContentLength"] > self._end - self._position
        if came_from is None or int(came_from[1]) != self._position or is_longer:
            raise StorageError(f"{self.uri}: asked for bytes from {self._position}, the store does not do range reads")
        if not self.etag:
            end = self._position + answer["ContentLength"]
            self._end = end if self._end is None else min(self._end, end)
            self.etag = answer["ETag"]
        elif self.etag != answer["ETag"]:
            raise self._replaced(answer["ETag"])

    def _replaced(self, etag: str) -> StorageError:
        return StorageError(
            f"{self.uri}: replaced while it was read: ETag {self.etag} at first, {etag} at byte {self._position}"
        )

    def _etag_now(self) -> str:
        bucket, key = bucket_key(self.uri)
        with s3_errors(self.uri, "s3:GetObject"):
            return client().head_object(Bucket=bucket, Key=key)["ETag"]
