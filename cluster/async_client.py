"""The client of the search service for asynchronous programs: the same calls, several of them at a time.

Knows nothing of HTTP: `cluster.client` does the work in threads, its attempts, errors and answers are those here.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, Self, TypeVar, overload

from cibhash.types import Codes, Neighbors, RangeNeighbors
from cluster.client import SearchClient
from cluster.code_batches import (
    VERSION_ROUNDS,
    BatchAnswer,
    code_batches,
    forget_stale,
    joined_answers,
    unasked,
)
from cluster.service.schema import SearchAnswer, StatsAnswer

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class AsyncSearchClient:
    """Asks one service; `async with` ends its threads. What a method raises, its twin of `SearchClient` says."""

    def __init__(
        self,
        url: str,
        token: str = "",
        timeout_s: float = 30.0,
        retries: int = 3,
        at_a_time: int = 16,
        *,
        encoder_digest: str = "",
    ) -> None:
        """Stores where to ask; nothing is sent yet.

        Args:
            url: `http://host:port` or `https://...`.
            token: Bearer token, if the service wants one.
            timeout_s: Of each attempt, for connecting and between two reads.
            retries: Further attempts after the first.
            at_a_time: Requests under way at once; further ones wait.
            encoder_digest: Of the encoder that makes the codes to search for, as for `SearchClient`.

        Raises:
            ConfigError: not such a URL.
        """
        self._client = SearchClient(url, token, timeout_s, retries, encoder_digest=encoder_digest)
        self._threads = ThreadPoolExecutor(at_a_time, thread_name_prefix="search")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @overload
    async def search_codes(self, codes: Codes, *, k: int, batch_size: int = ...) -> Neighbors: ...
    @overload
    async def search_codes(self, codes: Codes, *, radius: int, batch_size: int = ...) -> RangeNeighbors: ...
    async def search_codes(
        self, codes: Codes, *, k: int | None = None, radius: int | None = None, batch_size: int = 1000
    ) -> Neighbors | RangeNeighbors:
        """Neighbors of packed codes uint8 (Q, B/8), always from the whole index; its batches are asked at once."""
        batches = code_batches(codes, k, radius, batch_size)
        answers: dict[int, BatchAnswer] = {}
        for _ in range(VERSION_ROUNDS):
            asked = unasked(len(batches), answers)
            calls = (self._run(self._client.search_batch, batches[number], k, radius) for number in asked)
            answers.update(zip(asked, await asyncio.gather(*calls), strict=True))
            forget_stale(answers, asked)
        return joined_answers(self._client.url, len(batches), answers, k)

    async def search_image(
        self,
        image: bytes,
        *,
        k: int | None = None,
        radius: int | None = None,
        allow_partial: bool = False,
        rerank: int | None = None,
    ) -> SearchAnswer:
        """Neighbors of one compressed image."""
        return await self._run(
            self._client.search_image, image, k=k, radius=radius, allow_partial=allow_partial, rerank=rerank
        )

    async def search_keys(
        self, keys: Sequence[str], *, k: int | None = None, radius: int | None = None, allow_partial: bool = False
    ) -> SearchAnswer:
        """Neighbors of rows of the index by key, themselves included."""
        return await self._run(self._client.search_keys, keys, k=k, radius=radius, allow_partial=allow_partial)

    async def search_ids(
        self, ids: Sequence[int], *, k: int | None = None, radius: int | None = None, allow_partial: bool = False
    ) -> SearchAnswer:
        """Neighbors of rows of the index by id, themselves included."""
        return await self._run(self._client.search_ids, ids, k=k, radius=radius, allow_partial=allow_partial)

    async def stats(self) -> StatsAnswer:
        """What the service serves."""
        return await self._run(self._client.stats)

    async def _run(
        self, call: Callable[Arguments, Answer], *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(*arguments, **named))
