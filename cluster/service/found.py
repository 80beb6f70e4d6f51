"""What the slots answered, as one answer: merged by (distance, id), or reordered by asymmetric distance.

Knows nothing of where the answers come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cibhash.asymmetric import Weights, distances
from cibhash.types import PADDING_ID, Codes, Neighbors, RangeNeighbors
from cluster.index.merge import merge_neighbors, merge_ranges
from cluster.service.schema import Coverage, Item
from cluster.service.shard_replica import ShardAnswer


@dataclass(frozen=True)
class Found:
    """The merged answer of the slots that answered."""

    codes: Codes
    """Of the queries."""
    neighbors: RangeNeighbors
    """Per query ordered by (distance, id), without padding."""
    items: dict[int, Item]
    """The row of every neighbor by id, if rows were asked for."""
    coverage: Coverage
    weighted: dict[int, int] | None = None
    """Asymmetric distance of the one query's neighbors by id, where they are ordered by it."""


def reranked(found: Found, weights: Weights, k: int) -> Found:
    """The k first of the one query's neighbors in the order of (asymmetric distance, id).

    Args:
        found: Neighbors of one query, their codes among the items.
        weights: Of the query's bits, int32 (1, B).
        k: How many are kept.
    """
    ids, hamming = found.neighbors.ids, found.neighbors.distances
    packed = b"".join(bytes.fromhex(found.items[row_id].code) for row_id in ids.tolist())
    codes = np.frombuffer(packed, np.uint8).reshape(len(ids), -1)
    weighted = distances(weights, found.codes, codes)[0] if len(ids) else hamming
    order = np.lexsort((ids, weighted))[:k]
    neighbors = RangeNeighbors(np.array([0, len(order)]), ids[order], hamming[order])
    by_id = dict(zip(ids[order].tolist(), weighted[order].tolist(), strict=True))
    return Found(found.codes, neighbors, found.items, found.coverage, by_id)


def merged(answers: Sequence[ShardAnswer], k: int | None, num_queries: int) -> RangeNeighbors:
    """The answers of several slots as that of one; `k` is what each was asked for, None: a radius."""
    if not answers:
        return RangeNeighbors(np.zeros(num_queries + 1, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))
    if k is not None:
        return _unpadded(merge_neighbors([a.nearest for a in answers if a.nearest is not None], k))
    return merge_ranges([a.within for a in answers if a.within is not None])


def _unpadded(neighbors: Neighbors) -> RangeNeighbors:
    real = neighbors.ids != PADDING_ID
    limits = np.concatenate([[0], np.cumsum(real.sum(axis=1))]).astype(np.int64)
    return RangeNeighbors(limits, neighbors.ids[real], neighbors.distances[real])
