"""The self-join of distinct codes as Ray tasks: blocks of rows against blocks, or one piece table each.

Knows nothing of images but their counts. Unfinished tasks are bounded, and so is what each returns, however many pairs
it finds; a task that is lost with its worker is run again by Ray. Neither the blocks nor the method change the result.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import ray

from cibhash.near_groups import PairSummarizer, PairSummary, summarize
from cibhash.near_pairs import PieceTables, all_pairs, best_tables, cheapest
from cibhash.types import Codes
from cluster.in_flight import completed, default_limit, named_call
from cluster.telemetry import log, progress

Method = Literal["all-pairs", "multi-index"]
_BLOCK_ROWS, _MAX_BLOCKS = 2**16, 256


@dataclass(frozen=True)
class Join:
    """What is joined, and how."""

    radius: int
    limit: int
    """Pairs of distinct codes that are kept of a group."""
    method: Literal["auto", "all-pairs", "multi-index"] = "auto"
    block_rows: int = 0


@dataclass(frozen=True)
class Joined:
    """All pairs, summed up."""

    summary: PairSummary
    method: Method


def join_codes(codes: Codes, images: npt.NDArray[np.int64], join: Join) -> Joined:
    """Finds all pairs of distinct codes within the radius.

    Args:
        codes: Distinct packed codes, uint8 (D, B/8).
        images: How many images of each split a code stands for, int64 (D, T).
        join: Radius and method.
    """
    tables = _tables(codes, join)
    summarizer = PairSummarizer(images, join.radius, join.limit)
    shared = ray.put(codes), ray.put(images)
    total, unit = (len(tables), "tables") if tables is not None else (len(codes) * (len(codes) + 1) // 2, "comparisons")
    with progress("dedup", total, unit) as line:
        calls = _table_calls(tables, shared, join) if tables is not None else _block_calls(len(codes), shared, join)
        for work, summary in completed(calls, default_limit()):
            summarizer.merge(summary)
            line.advance(work)
    return Joined(summarizer.summary(), "multi-index" if tables is not None else "all-pairs")


def _tables(codes: Codes, join: Join) -> PieceTables | None:
    if join.method == "all-pairs":
        return None
    tables = cheapest(codes, join.radius) if join.method == "auto" else best_tables(codes, join.radius)[0]
    if tables is not None:
        log("dedup: by shared pieces", pieces=tables.num_pieces, tables=len(tables))
    return tables


def _table_calls(tables: PieceTables, shared: tuple[Any, Any], join: Join) -> Iterator[tuple[int, Callable[[], Any]]]:
    for number in range(len(tables)):
        yield 1, named_call(_join_table, f"dedup table {number}", *shared, tables, number, join)


def _block_calls(num_codes: int, shared: tuple[Any, Any], join: Join) -> Iterator[tuple[int, Callable[[], Any]]]:
    """The upper triangle, one call per pair of blocks."""
    size = join.block_rows or max(_BLOCK_ROWS, -(-num_codes // _MAX_BLOCKS))
    starts = range(0, num_codes, size)
    for start in starts:
        rows = slice(start, min(start + size, num_codes))
        count = rows.stop - rows.start
        for other in range(start, num_codes, size):
            others = slice(other, min(other + size, num_codes))
            work = count * (count + 1) // 2 if other == start else count * (others.stop - others.start)
            yield work, named_call(_join_blocks, f"dedup {start} x {other}", *shared, rows, others, join)


@ray.remote(num_cpus=1)
def _join_table(codes: Codes, images: Any, tables: PieceTables, number: int, join: Join) -> PairSummary:
    return summarize(tables.pairs(codes, number), images, join.radius, join.limit)


@ray.remote(num_cpus=1)
def _join_blocks(codes: Codes, images: Any, rows: slice, others: slice, join: Join) -> PairSummary:
    return summarize(all_pairs(codes, rows, others, join.radius), images, join.radius, join.limit)
