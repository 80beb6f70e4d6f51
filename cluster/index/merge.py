"""Answers of several index shards merged into the answer of one index over all their codes.

Knows nothing of where the answers come from. The shards share no id; the order is (distance, id), so the result does
not depend on how the codes were split. Shapes: Q queries, K neighbors.
"""

import operator
from collections.abc import Sequence

import numpy as np

from cibhash.types import PADDING_DISTANCE, PADDING_ID, Neighbors, RangeNeighbors


def merge_neighbors(answers: Sequence[Neighbors], k: int) -> Neighbors:
    """The k nearest of all answers, per query.

    Args:
        answers: One per shard, ids and distances (Q, any K); padding is dropped.
        k: Neighbors to keep, at least 1. Exact if every shard was asked for at least k.

    Returns:
        Ids and distances (Q, k), padded with (-1, 2147483647) where all shards together have fewer.

    Raises:
        ValueError: no answers, `k` below 1, or answers to different numbers of queries.
    """
    k = operator.index(k)
    if k <= 0:
        raise ValueError(f"k is {k}, expected at least 1")
    num_queries = _common("queries", [len(answer.ids) for answer in answers])
    ids = np.concatenate([answer.ids for answer in answers], axis=1)
    distances = np.where(ids == PADDING_ID, PADDING_DISTANCE, np.concatenate([a.distances for a in answers], axis=1))
    nearest = np.lexsort((ids, distances), axis=1)[:, :k]
    merged = Neighbors(
        np.full((num_queries, k), PADDING_ID, np.int64), np.full((num_queries, k), PADDING_DISTANCE, np.int32)
    )
    merged.ids[:, : nearest.shape[1]] = np.take_along_axis(ids, nearest, axis=1)
    merged.distances[:, : nearest.shape[1]] = np.take_along_axis(distances, nearest, axis=1)
    return merged


def merge_ranges(answers: Sequence[RangeNeighbors]) -> RangeNeighbors:
    """All neighbors of all answers, per query.

    Raises:
        ValueError: no answers, or answers to different numbers of queries.
    """
    num_queries = _common("queries", [len(answer.limits) - 1 for answer in answers])
    queries = np.concatenate([np.repeat(np.arange(num_queries), np.diff(answer.limits)) for answer in answers])
    ids = np.concatenate([answer.ids for answer in answers])
    distances = np.concatenate([answer.distances for answer in answers])
    order = np.lexsort((ids, distances, queries))
    limits = np.zeros(num_queries + 1, np.int64)
    np.cumsum(np.bincount(queries, minlength=num_queries), out=limits[1:])
    return RangeNeighbors(limits, ids[order], distances[order])


def _common(noun: str, counts: list[int]) -> int:
    if not counts:
        raise ValueError("no answers to merge: expected at least one")
    if len(set(counts)) > 1:
        raise ValueError(f"answers to different numbers of {noun}: {', '.join(map(str, counts))}")
    return counts[0]
