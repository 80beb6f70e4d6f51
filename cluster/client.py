"""A client of the search service: typed answers, typed errors, bounded retries.

Knows nothing of the index. Every call only reads, so it may be repeated: 503, lost connections, timeouts and answers
cut short are tried again with growing pauses, nothing else is. Redirects are not followed and no proxy is used, so the
token goes nowhere but to `url`.
"""

import http.client
import json
import random
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import IO, TypeVar, overload
from urllib.parse import urlencode, urlsplit

from pydantic import BaseModel, ValidationError

from cibhash.errors import BadImage, CIBHashError, ConfigError, NotFound
from cibhash.types import Codes, Neighbors, RangeNeighbors
from cluster.code_batches import (
    VERSION_ROUNDS,
    BatchAnswer,
    code_batches,
    forget_stale,
    joined_answers,
    unasked,
)
from cluster.code_tables import packed_array
from cluster.service.arrow_answer import code_stream, read_answer
from cluster.service.schema import ARROW_TYPE, JSON_TYPE, SearchAnswer, StatsAnswer
from cluster.service_errors import RequestRejected, ServiceUnavailable
from cluster.tokens import read_tokens

Answer = TypeVar("Answer", bound=BaseModel)
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0
_CUT_SHORT = (http.client.HTTPException, ConnectionError, TimeoutError)


class SearchClient:
    """Asks one service; safe to use from several threads."""

    def __init__(
        self, url: str, token: str = "", timeout_s: float = 30.0, retries: int = 3, *, encoder_digest: str = ""
    ) -> None:
        """Stores where to ask; nothing is sent yet.

        Args:
            url: `http://host:port` or `https://...`.
            token: Bearer token, if the service wants one.
            timeout_s: Of each attempt, for connecting and between two reads.
            retries: Further attempts after the first.
            encoder_digest: Of the encoder that makes the codes to search for, or how it begins: once the service goes
                over to another one, its answers would mean nothing and are refused instead.

        Raises:
            ConfigError: not such a URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"{url!r} is not the address of a service: expected http://host:port")
        if parts.username or parts.password:
            raise ConfigError(f"{parts.hostname}: give the token apart, not inside the address")
        self.url = url.rstrip("/")
        self._token, self._timeout_s, self._retries = token, timeout_s, retries
        self._of_codes = {"encoder_digest": encoder_digest} if encoder_digest else {}
        self._opener = urllib.request.OpenerDirector()
        handlers = (urllib.request.HTTPHandler, urllib.request.HTTPSHandler, urllib.request.HTTPErrorProcessor)
        for handler in (*handlers, urllib.request.HTTPDefaultErrorHandler):
            self._opener.add_handler(handler())

    @overload
    def search_codes(self, codes: Codes, *, k: int, batch_size: int = ...) -> Neighbors: ...
    @overload
    def search_codes(self, codes: Codes, *, radius: int, batch_size: int = ...) -> RangeNeighbors: ...
    def search_codes(
        self, codes: Codes, *, k: int | None = None, radius: int | None = None, batch_size: int = 1000
    ) -> Neighbors | RangeNeighbors:
        """Neighbors of packed codes, always from the whole of one version of the index, sent and received as Arrow.

        Args:
            codes: uint8 (Q, B/8).
            k: Neighbors per query: ids and distances (Q, k), padded where the index holds fewer.
            radius: Instead of k, all neighbors within this distance, inclusive.
            batch_size: Queries per request.

        Raises:
            RequestRejected: wrong width, k or radius.
            ServiceUnavailable: no complete answer after all attempts.
        """
        batches = code_batches(codes, k, radius, batch_size)
        answers: dict[int, BatchAnswer] = {}
        for _ in range(VERSION_ROUNDS):
            for number in (asked := unasked(len(batches), answers)):
                answers[number] = self.search_batch(batches[number], k, radius)
            forget_stale(answers, asked)
        return joined_answers(self.url, len(batches), answers, k)

    def search_batch(self, codes: Codes, k: int | None, radius: int | None) -> BatchAnswer:
        """Neighbors of packed codes by one request; the answers to several may come from different versions.

        Raises:
            RequestRejected, ServiceUnavailable: as `search_codes`.
        """
        wanted = {"k": k} if k is not None else {"radius": radius}
        path = f"/search?{urlencode({**wanted, **self._of_codes})}"
        body = code_stream(packed_array(codes))
        raw = self._request(path, body, {"Content-Type": ARROW_TYPE, "Accept": ARROW_TYPE})
        try:
            neighbors, coverage = read_answer(raw)
        except ValueError as error:
            raise ServiceUnavailable(f"{self.url}{path}: {error}") from None
        return BatchAnswer(neighbors, coverage.index_version)

    def search_image(
        self,
        image: bytes,
        *,
        k: int | None = None,
        radius: int | None = None,
        allow_partial: bool = False,
        rerank: int | None = None,
    ) -> SearchAnswer:
        """Neighbors of one compressed image.

        Args:
            image: JPEG, PNG, WebP or GIF.
            k: How many.
            radius: Instead of k, all within this distance, inclusive.
            allow_partial: Take a flagged answer from fewer shards.
            rerank: So many nearest are ordered by asymmetric distance before the first k are taken: the bits of which
                the encoder is sure weigh more.

        Raises:
            BadImage: the service cannot decode it.
            RequestRejected, ServiceUnavailable: as `search_codes`.
        """
        asked = _wanted(k, radius, allow_partial) | {"rerank": rerank}
        query = {name: value for name, value in asked.items() if value is not None}
        path = f"/search/image?{urlencode({name: json.dumps(value) for name, value in query.items()})}"
        headers = {"Content-Type": "application/octet-stream", "Accept": JSON_TYPE}
        return self._parsed(SearchAnswer, path, self._request(path, image, headers))

    def search_keys(
        self, keys: Sequence[str], *, k: int | None = None, radius: int | None = None, allow_partial: bool = False
    ) -> SearchAnswer:
        """Neighbors of rows of the index by key, themselves included.

        Raises:
            NotFound: a key is not in the index.
            RequestRejected, ServiceUnavailable: as `search_codes`.
        """
        return self._search({"keys": list(keys), **_wanted(k, radius, allow_partial)})

    def search_ids(
        self, ids: Sequence[int], *, k: int | None = None, radius: int | None = None, allow_partial: bool = False
    ) -> SearchAnswer:
        """Neighbors of rows of the index by id, themselves included.

        Raises:
            NotFound: an id is not in the index.
            RequestRejected, ServiceUnavailable: as `search_codes`.
        """
        return self._search({"ids": [int(row_id) for row_id in ids], **_wanted(k, radius, allow_partial)})

    def search_hex(
        self, codes: Sequence[str], *, k: int | None = None, radius: int | None = None, allow_partial: bool = False
    ) -> SearchAnswer:
        """Neighbors of codes written in hex or base64, with keys and labels.

        Raises:
            RequestRejected, ServiceUnavailable: as `search_codes`.
        """
        return self._search({"codes": list(codes), **_wanted(k, radius, allow_partial), **self._of_codes})

    def stats(self) -> StatsAnswer:
        """What the service serves.

        Raises:
            RequestRejected, ServiceUnavailable: as `search_codes`.
        """
        return self._parsed(StatsAnswer, "/stats", self._request("/stats", None, {"Accept": JSON_TYPE}))

    def _search(self, request: dict[str, object]) -> SearchAnswer:
        body = json.dumps({name: value for name, value in request.items() if value is not None}).encode()
        raw = self._request("/search", body, {"Content-Type": JSON_TYPE, "Accept": JSON_TYPE})
        return self._parsed(SearchAnswer, "/search", raw)

    def _parsed(self, cls: type[Answer], path: str, raw: bytes) -> Answer:
        try:
            return cls.model_validate_json(raw)
        except ValidationError:
            raise ServiceUnavailable(f"{self.url}{path}: not an answer of this service: {raw[:80]!r}") from None

    def _request(self, path: str, body: bytes | None, headers: dict[str, str]) -> bytes:
        """The body of a 200, after as many attempts as it takes and are allowed."""
        if self._token:
            headers = {**headers, "Authorization": f"Bearer {self._token}"}
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        for attempt in range(self._retries + 1):
            wait_s = random.uniform(0.5, 1.0) * min(FIRST_PAUSE_S * 2**attempt, MAX_PAUSE_S)
            try:
                response: IO[bytes] | None
                with self._opener.open(request, timeout=self._timeout_s) as response:
                    return response.read()
            except urllib.error.HTTPError as error:
                with error:
                    reason = _reason(error)
                if error.code != 503:
                    raise _rejection(error.code, f"{self.url}{path.partition('?')[0]}", reason) from None
                wait_s += _retry_after(error.headers.get("Retry-After"))  # not all who were told so come back at once
            except urllib.error.URLError as error:
                reason = str(error.reason)
                if isinstance(error.reason, ssl.SSLError):
                    raise ServiceUnavailable(f"{self.url}: TLS: {reason}") from None
            except _CUT_SHORT as error:
                reason = f"{type(error).__name__}: {error}"
            if attempt < self._retries:
                time.sleep(wait_s)
        raise ServiceUnavailable(f"{self.url}: {reason} ({self._retries + 1} attempts)")


def read_token(token_file: str) -> str:
    """The first token in a file, or "" for no file.

    Raises:
        ConfigError: the file cannot be read or is empty.
    """
    if not token_file:
        return ""
    return read_tokens(token_file)[0]


def _wanted(k: int | None, radius: int | None, allow_partial: bool) -> dict[str, object]:
    if (k is None) == (radius is None):
        raise ValueError("exactly one of k and radius is needed")
    return {"k": k, "radius": radius, "allow_partial": allow_partial}


def _rejection(status: int, where: str, reason: str) -> CIBHashError:
    if status == 404:
        return NotFound(f"{where}: {reason}")
    if status == 422 and reason.startswith("image: "):
        return BadImage(reason.removeprefix("image: "))
    if 400 <= status < 500:
        return RequestRejected(f"{where}: {reason} ({status})")
    return ServiceUnavailable(f"{where}: {reason} ({status})")


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        raw = error.read(10_000)
        return str(json.loads(raw)["error"])
    except (ValueError, KeyError, TypeError, *_CUT_SHORT):
        return str(error.reason)


def _retry_after(header: str | None) -> float:
    return min(float(header), MAX_PAUSE_S) if header and header.isdigit() else 0.0
