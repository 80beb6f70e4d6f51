"""The deployment that answers for one index shard.

Knows nothing of the other shards. A replica starts even when its shard cannot be loaded (see `reloading`). All methods
only read, so a caller may repeat them.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cibhash.types import Codes, Ids, Neighbors, RangeNeighbors
from cluster.index.shard_index import Row, ShardIndex
from cluster.manifests import IndexShardEntry
from cluster.service.reloading import Reloading
from cluster.service.schema import Item, RequestRefused

RANGE_CHUNK = 64
"""Queries per range search, so that an answer too large is noticed before all of it is in memory."""


SAMPLE_ROUNDS, SAMPLE_DRAWS = 64, 256
"""Ids are drawn blindly from the shard's range, in rounds, until enough of them exist."""


@dataclass(frozen=True)
class ShardAnswer:
    """Neighbors within one shard; exactly one of `nearest` and `within` is not None."""

    nearest: Neighbors | None
    within: RangeNeighbors | None
    items: tuple[Item, ...]
    """The rows of all neighbors, each once, if they were asked for."""


@dataclass(frozen=True)
class Resolved:
    """What a shard knows of the keys and ids asked for; the others are absent."""

    ids: dict[str, int]
    codes: dict[int, bytes]


@dataclass(frozen=True)
class ShardState:
    """A replica that has loaded its shard."""

    pid: int
    count: int


class ShardReplica:
    """Holds one `ShardIndex`; searches run in threads, so that health checks are answered meanwhile."""

    def __init__(self, base_uri: str, entry: IndexShardEntry, bits: int) -> None:
        self._entry = entry
        self._index = Reloading(lambda: ShardIndex.load(base_uri, entry, bits))

    async def state(self) -> ShardState:
        """The replica's process, once its shard is loaded.

        Raises:
            CIBHashError: why it is not.
        """
        return ShardState(os.getpid(), (await self._index.get()).count)

    async def search(
        self, codes: Codes, k: int | None, radius: int | None, with_items: bool, max_neighbors: int
    ) -> ShardAnswer:
        """Neighbors of packed codes uint8 (Q, B/8): the k nearest, or all within the radius.

        Raises:
            RequestRefused: more than `max_neighbors` lie within the radius.
        """
        index = await self._index.get()
        return await asyncio.to_thread(_search, index, codes, k, radius, with_items, max_neighbors)

    async def resolve(self, keys: Sequence[str], ids: Sequence[int]) -> Resolved:
        """Ids of keys, and codes of these and of `ids`."""
        index = await self._index.get()
        by_key = await asyncio.to_thread(index.ids_by_key, list(keys)) if keys else {}
        wanted = np.array([*ids, *by_key.values()], np.int64)
        return Resolved(by_key, index.codes_by_id(wanted) if len(wanted) else {})

    async def row(self, row_id: int) -> Row | None:
        """The row with this id, or None if it is not in the shard."""
        return (await self._index.get()).rows_by_id(np.array([row_id], np.int64))[0]

    async def sample(self, number: int, seed: int) -> list[Item]:
        """Rows drawn at random without repetition; fewer than `number` if the ids have wide gaps."""
        index = await self._index.get()
        return await asyncio.to_thread(_sample, index, self._entry, number, seed)


def _search(
    index: ShardIndex, codes: Codes, k: int | None, radius: int | None, with_items: bool, max_neighbors: int
) -> ShardAnswer:
    if k is not None:
        nearest = index.search(codes, min(k, max(index.count, 1)))
        ids = nearest.ids[nearest.ids >= 0]
        return ShardAnswer(nearest, None, tuple(_items(index, np.unique(ids))) if with_items else ())
    within = _range_search(index, codes, radius or 0, max_neighbors)
    return ShardAnswer(None, within, tuple(_items(index, np.unique(within.ids))) if with_items else ())


def _range_search(index: ShardIndex, codes: Codes, radius: int, max_neighbors: int) -> RangeNeighbors:
    chunks, found = [], 0
    for start in range(0, len(codes), RANGE_CHUNK):
        chunks.append(index.range_search(codes[start : start + RANGE_CHUNK], radius))
        found += len(chunks[-1].ids)
        if found > max_neighbors:
            raise RequestRefused(
                422, f"radius: {radius} finds more than {max_neighbors} neighbors, the most that one answer can hold"
            )
    counts = np.concatenate([np.diff(chunk.limits) for chunk in chunks])
    limits = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return RangeNeighbors(
        limits, np.concatenate([c.ids for c in chunks]), np.concatenate([c.distances for c in chunks])
    )


def _items(index: ShardIndex, ids: Ids) -> list[Item]:
    rows = index.rows_by_id(ids)
    return [Item(id=row.id, key=row.key, labels=row.labels) for row in rows if row is not None]


def _sample(index: ShardIndex, entry: IndexShardEntry, number: int, seed: int) -> list[Item]:
    generator = np.random.default_rng(seed)
    found: dict[int, Item] = {}
    for _ in range(SAMPLE_ROUNDS):
        if len(found) >= min(number, entry.count):
            break
        drawn = generator.integers(entry.min_id, entry.max_id, size=SAMPLE_DRAWS, endpoint=True)
        found.update((item.id, item) for item in _items(index, drawn))
    return list(found.values())[:number]
