"""Pairs and groups as Parquet parts.

Knows nothing of how they were found. Equal results give equal bytes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cibhash.near_pairs import NearPairs, code_distances
from cibhash.types import Ids
from cluster.code_tables import parquet_bytes, write_listed
from cluster.dedup.plan import DedupPlan
from cluster.dedup.results import PartFile
from cluster.dedup.rows import Rows, look_up

PAIR_SCHEMA = pa.schema(
    [
        pa.field("id_a", pa.int64(), nullable=False),
        pa.field("id_b", pa.int64(), nullable=False),
        pa.field("key_a", pa.string(), nullable=False),
        pa.field("key_b", pa.string(), nullable=False),
        pa.field("split_a", pa.string(), nullable=False),
        pa.field("split_b", pa.string(), nullable=False),
        pa.field("distance", pa.int32(), nullable=False),
        pa.field("correlation", pa.float32()),
    ]
)
GROUP_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
        pa.field("group", pa.int64(), nullable=False),
        pa.field("is_representative", pa.bool_(), nullable=False),
        pa.field("distance", pa.int32(), nullable=False),
    ]
)
ROWS_PER_PART = 2**19


def grouped_rows(representative: Ids) -> tuple[Ids, Ids]:
    """Images in groups of two or more, group by group, and the number of the group of each.

    Args:
        representative: int64 (N,): the smallest row of each image's group.

    Returns:
        Rows and group numbers, int64 each: the largest group is 0, equally large ones go by representative; within one
        the representative comes first, then ascending rows.
    """
    sizes = np.bincount(representative, minlength=len(representative))
    members = np.flatnonzero(sizes[representative] > 1)
    heads = np.flatnonzero(sizes > 1)
    by_size = heads[np.lexsort((heads, -sizes[heads]))]
    number = np.zeros(len(representative), np.int64)
    number[by_size] = np.arange(len(by_size))
    groups = number[representative[members]]
    order = np.argsort(groups, kind="stable")
    return members[order], groups[order]


def write_pairs(
    uri: str, plan: DedupPlan, rows: Rows, pairs: NearPairs, correlation: npt.NDArray[np.float32] | None
) -> tuple[PartFile, ...]:
    """Writes the pairs in their order; `correlation` is of each pair, None where nobody looked."""
    keys = look_up(plan, rows, np.concatenate((pairs.first, pairs.second)), ["key"])["key"]
    a, b = pairs.first, pairs.second
    table = pa.table(
        [
            pa.array(rows.ids[a]),
            pa.array(rows.ids[b]),
            keys.slice(0, len(a)),
            keys.slice(len(a)),
            _names(plan, rows.splits[a]),
            _names(plan, rows.splits[b]),
            pa.array(pairs.distances),
            pa.nulls(len(a), pa.float32()) if correlation is None else pa.array(correlation),
        ],
        schema=PAIR_SCHEMA,
    )
    return tuple(_write(uri, "pairs", table))


class WrittenGroups(NamedTuple):
    """The parts, and what was seen on the way."""

    parts: tuple[PartFile, ...]
    disagreeing: int
    """Groups with an image that has labels, but none of its representative's."""


def write_groups(uri: str, plan: DedupPlan, rows: Rows, representative: Ids) -> WrittenGroups:
    """Writes all images that are in a group; those that are in none are not listed."""
    members, groups = grouped_rows(representative)
    found = look_up(plan, rows, members, ["key", "labels"])
    heads = representative[members]
    table = pa.table(
        [
            pa.array(rows.ids[members]),
            found["key"],
            _names(plan, rows.splits[members]),
            found["labels"],
            pa.array(groups),
            pa.array(heads == members),
            pa.array(code_distances(rows.codes[members], rows.codes[heads])),
        ],
        schema=GROUP_SCHEMA,
    )
    return WrittenGroups(tuple(_write(uri, "groups", table)), _disagreeing(groups, found["labels"].to_pylist()))


def _disagreeing(groups: Ids, labels: list[list[int]]) -> int:
    """Groups of which some image shares no label with the first one, where both have labels."""
    firsts = np.searchsorted(groups, groups).tolist()
    numbers = groups.tolist()
    return len(
        {
            numbers[at]
            for at, first in enumerate(firsts)
            if labels[at] and labels[first] and set(labels[at]).isdisjoint(labels[first])
        }
    )


def _names(plan: DedupPlan, splits: Ids) -> pa.Array:
    return pa.array(plan.names, pa.string()).take(pa.array(splits))


def _write(uri: str, folder: str, table: pa.Table) -> Iterator[PartFile]:
    for number, start in enumerate(range(0, max(table.num_rows, 1), ROWS_PER_PART)):
        part = table.slice(start, ROWS_PER_PART)
        listed = write_listed(uri, f"{folder}/part-{number:06d}.parquet", parquet_bytes(part))
        yield PartFile(**listed.model_dump(), rows=part.num_rows)
