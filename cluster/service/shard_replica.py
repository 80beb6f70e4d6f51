"""The deployment that answers for one slot: some of the shards of whatever version of the index it is asked about.

Knows nothing of the other slots. A replica starts even when its shards cannot be loaded (see `loaded_versions`). All
methods only read, so a caller may repeat them.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cibhash.types import Codes, Ids, Neighbors, RangeNeighbors
from cluster.index.shard_index import Row
from cluster.service import threads
from cluster.service.loaded_versions import LoadedVersions
from cluster.service.schema import Item, RequestRefused
from cluster.service.shard_group import ShardGroup
from cluster.service.slots import Misplaced, Placement

RANGE_CHUNK = 64
"""Queries per range search, so that an answer too large is noticed before all of it is in memory."""
RowsWanted = Literal["none", "rows", "with codes"]
"""What an answer carries of its neighbors beyond their ids."""


@dataclass(frozen=True)
class ShardAnswer:
    """Neighbors within one slot; exactly one of `nearest` and `within` is not None."""

    nearest: Neighbors | None
    within: RangeNeighbors | None
    items: tuple[Item, ...]
    """The rows of all neighbors, each once, if they were asked for."""

    @property
    def size(self) -> int:
        """Neighbors of all queries, padding too."""
        found = self.nearest if self.nearest is not None else self.within
        return found.ids.size if found is not None else 0


@dataclass(frozen=True)
class Resolved:
    """What a slot knows of the keys and ids asked for; the others are absent."""

    ids: dict[str, int]
    codes: dict[int, bytes]


@dataclass(frozen=True)
class ShardState:
    """A replica that has loaded its shards."""

    pid: int
    count: int


class ShardReplica:
    """Holds the slot's shards of the versions in use; searches run in threads, so that health checks are answered."""

    def __init__(
        self, index_uri: str, slot: int, num_slots: int, version: str, watch_s: float, device: str = ""
    ) -> None:
        self._placement = Placement(index_uri, num_slots)
        self._versions = LoadedVersions(index_uri, slot, num_slots, version, watch_s, device)

    async def ask(self, placement: Placement, method: str, version: str, *arguments: object) -> Any:
        """What another method says about a version, of a caller who knows what this replica must hold.

        Raises:
            Misplaced: it holds shards of another index, or as they are dealt to more or fewer slots.
        """
        if placement != self._placement:
            raise Misplaced(f"holds {self._placement}, asked about {placement}")
        return await getattr(self, method)(version, *arguments)

    async def state(self, version: str) -> ShardState:
        """The replica's process, once its shards of a version are loaded.

        Raises:
            CIBHashError: why they are not.
        """
        return ShardState(os.getpid(), (await self._versions.get(version)).count)

    async def search(
        self,
        version: str,
        codes: Codes,
        k: int | None,
        radius: int | None,
        rows: RowsWanted,
        max_neighbors: int,
    ) -> ShardAnswer:
        """Neighbors of packed codes uint8 (Q, B/8): the k nearest, or all within the radius.

        Raises:
            RequestRefused: more than `max_neighbors` lie within the radius.
        """
        group = await self._versions.get(version)
        is_short = len(codes) * group.count <= threads.SHORT_SEARCH and (k or group.count) <= threads.SHORT_ANSWER
        return await threads.run(is_short, _search, group, codes, k, radius, rows, max_neighbors)

    async def resolve(self, version: str, keys: Sequence[str], ids: Sequence[int]) -> Resolved:
        """Ids of keys, and codes of these and of `ids`."""
        group = await self._versions.get(version)
        by_key = await asyncio.to_thread(group.ids_by_key, list(keys)) if keys else {}
        wanted = [*ids, *by_key.values()]
        return Resolved(by_key, group.codes_by_id(wanted) if wanted else {})

    async def row(self, version: str, row_id: int) -> Row | None:
        """The row with this id, or None if it is not in the slot."""
        return (await self._versions.get(version)).rows_by_id([row_id])[0]

    async def sample(self, version: str, number: int, seed: int) -> list[Item]:
        """Rows drawn at random without repetition; fewer than `number` if the ids have wide gaps."""
        group = await self._versions.get(version)
        return [_item(row, {}) for row in await asyncio.to_thread(group.sample, number, seed)]


def _search(
    group: ShardGroup, codes: Codes, k: int | None, radius: int | None, rows: RowsWanted, max_neighbors: int
) -> ShardAnswer:
    if k is not None:
        nearest = group.search(codes, min(k, max(group.count, 1)))
        ids = nearest.ids[nearest.ids >= 0]
        return ShardAnswer(nearest, None, _items(group, ids, rows))
    within = _range_search(group, codes, radius or 0, max_neighbors)
    return ShardAnswer(None, within, _items(group, within.ids, rows))


def _range_search(group: ShardGroup, codes: Codes, radius: int, max_neighbors: int) -> RangeNeighbors:
    chunks, found = [], 0
    for start in range(0, len(codes), RANGE_CHUNK):
        chunks.append(group.range_search(codes[start : start + RANGE_CHUNK], radius))
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


def _items(group: ShardGroup, ids: Ids, wanted: RowsWanted) -> tuple[Item, ...]:
    if wanted == "none":
        return ()
    each = np.unique(ids).tolist()
    codes = group.codes_by_id(each) if wanted == "with codes" else {}
    return tuple(_item(row, codes) for row in group.rows_by_id(each) if row is not None)


def _item(row: Row, codes: dict[int, bytes]) -> Item:
    code = {"code": codes[row.id].hex()} if row.id in codes else {}
    return Item(id=row.id, key=row.key, labels=row.labels, **code)
