"""Which rows go into which new index shard: contiguous ranges of ids, of nearly equal size.

Knows nothing of Ray and of how rows are read.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cluster.index.sources import Source, reaching, read_ids, rows_in

_ID_BYTES = 8


@dataclass(frozen=True)
class ShardPlan:
    """The rows with `first_id <= id < end_id`, and the parts they lie in."""

    number: int
    first_id: int
    end_id: int
    count: int
    sources: tuple[Source, ...]


def rows_per_shard(shard_bytes: int, bits: int) -> int:
    """The most rows whose codes and ids take at most this many bytes in memory; at least one."""
    return max(1, shard_bytes // (bits // 8 + _ID_BYTES))


def plan_shards(sources: Iterable[Source], num_shards: int, first_number: int = 0) -> list[ShardPlan]:
    """Contiguous ranges of ids whose numbers of rows differ by at most one; without rows one empty shard.

    Args:
        sources: All that the shards are made from.
        num_shards: How many, at most one per row.
        first_number: Number of the first one.
    """
    ordered = sorted(sources, key=lambda source: source.part.min_id)
    if not ordered:
        return [ShardPlan(first_number, 0, 0, 0, ())]
    count = rows_in(ordered)
    ranks = [count * number // num_shards for number in range(num_shards + 1)]
    cuts = [ordered[0].part.min_id, *_ids_at(ordered, ranks[1:-1]), max(source.part.max_id for source in ordered) + 1]
    return [
        ShardPlan(
            first_number + number,
            cuts[number],
            cuts[number + 1],
            ranks[number + 1] - ranks[number],
            reaching(ordered, cuts[number], cuts[number + 1]),
        )
        for number in range(num_shards)
    ]


def _ids_at(sources: list[Source], ranks: list[int]) -> Iterable[int]:
    """The ids at some ascending ranks in the order of all ids; reads only parts whose manifest does not tell."""
    start, remaining = 0, list(ranks)
    for group in _overlapping(sources):
        rows = rows_in(group)
        inside = [rank - start for rank in remaining if rank < start + rows]
        first = group[0].part
        if len(group) == 1 and first.max_id - first.min_id + 1 == rows:
            yield from (first.min_id + rank for rank in inside)
        elif inside:
            ids = np.sort(np.concatenate([read_ids(source) for source in group]))
            yield from ids[inside].tolist()
        start, remaining = start + rows, remaining[len(inside) :]


def _overlapping(sources: list[Source]) -> list[list[Source]]:
    """Groups of parts, in the order of their ids, such that parts of different groups share no range of ids."""
    groups: list[list[Source]] = []
    end = -1
    for source in sources:
        if not groups or source.part.min_id > end:
            groups.append([])
        groups[-1].append(source)
        end = max(end, source.part.max_id)
    return groups
