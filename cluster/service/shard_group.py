"""Several index shards searched as one: what a slot of the service holds of a version.

Knows nothing of where they come from and of the other slots.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from cibhash.types import PADDING_DISTANCE, PADDING_ID, Codes, Neighbors, RangeNeighbors
from cluster.index.merge import merge_neighbors, merge_ranges
from cluster.index.shard_index import Row, ShardIndex
from cluster.manifests import IndexShardEntry

SAMPLE_ROUNDS, SAMPLE_DRAWS = 64, 256
"""Ids are drawn blindly from a shard's range, in rounds, until enough of them exist."""


class ShardGroup:
    """Shards that have no id in common; the group may be empty."""

    def __init__(self, shards: Sequence[ShardIndex], entries: Sequence[IndexShardEntry]) -> None:
        """Takes loaded shards, and what the manifest says of each."""
        self.shards, self.entries = tuple(shards), tuple(entries)
        self.count = sum(shard.count for shard in shards)

    def search(self, codes: Codes, k: int) -> Neighbors:
        """The k nearest codes of every query uint8 (Q, B/8), ids and distances (Q, k), padded."""
        if not self.shards:
            shape = (len(codes), k)
            return Neighbors(np.full(shape, PADDING_ID, np.int64), np.full(shape, PADDING_DISTANCE, np.int32))
        return merge_neighbors([shard.search(codes, min(k, max(shard.count, 1))) for shard in self.shards], k)

    def range_search(self, codes: Codes, radius: int) -> RangeNeighbors:
        """All codes within the inclusive radius of every query."""
        if not self.shards:
            return RangeNeighbors(np.zeros(len(codes) + 1, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))
        return merge_ranges([shard.range_search(codes, radius) for shard in self.shards])

    def rows_by_id(self, ids: Sequence[int]) -> list[Row | None]:
        """The row of every id, None where the group does not have it."""
        found: list[Row | None] = [None] * len(ids)
        for shard in self.shards:
            for place, row in enumerate(shard.rows_by_id(ids)):
                found[place] = found[place] or row
        return found

    def codes_by_id(self, ids: Sequence[int]) -> dict[int, bytes]:
        """The packed codes of those ids that the group has."""
        return {row_id: code for shard in self.shards for row_id, code in shard.codes_by_id(ids).items()}

    def ids_by_key(self, keys: Iterable[str]) -> dict[str, int]:
        """The id of every key that the group has, the smallest where a key occurs twice."""
        wanted, found = list(keys), dict[str, int]()
        for shard in self.shards:
            for key, row_id in shard.ids_by_key(wanted).items():
                found[key] = min(row_id, found.get(key, row_id))
        return found

    def sample(self, number: int, seed: int) -> list[Row]:
        """Rows drawn at random without repetition; fewer than `number` if the ids have wide gaps."""
        generator = np.random.default_rng(seed)
        counts = np.array([entry.count for entry in self.entries], np.int64)
        shares = generator.multivariate_hypergeometric(counts, min(number, self.count)) if len(counts) else counts
        found: dict[int, Row] = {}
        for shard, entry, share in zip(self.shards, self.entries, shares, strict=True):
            wanted = len(found) + int(share)
            for _ in range(SAMPLE_ROUNDS):
                if len(found) >= wanted:
                    break
                drawn = generator.integers(entry.min_id, entry.max_id, size=SAMPLE_DRAWS, endpoint=True)
                rows = [row for row in shard.rows_by_id(drawn) if row is not None and row.id not in found]
                found.update((row.id, row) for row in rows[: wanted - len(found)])
        return list(found.values())
