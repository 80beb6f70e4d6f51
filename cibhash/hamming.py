"""Exact Hamming search and distance histograms over packed codes, in compiled code where there is any, else in numpy.

Knows nothing of indexes, shards or files. Shapes: Q queries, N database codes, B bits, K neighbors. Which way is taken
shows in the time alone, and so does the number of threads.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cibhash import hamming_numpy
from cibhash.binary import check_codes
from cibhash.native import hamming as native
from cibhash.relevance import checked_labels, share_label
from cibhash.types import PADDING_DISTANCE, PADDING_ID, Codes, Distances, Ids, Labels, Neighbors, RangeNeighbors

_Part = TypeVar("_Part")
_SHARED_BYTES = 2**25
"""Codes from which on threads share them, if there are fewer queries than threads: a thread takes half a millisecond to
start, in which one alone scans 16 MB."""


def distances(queries: Codes, database: Codes) -> Distances:
    """All Hamming distances between two sets of codes; the answer alone takes 4 Q N bytes.

    Args:
        queries: Packed codes, uint8 (Q, B/8).
        database: Packed codes, uint8 (N, B/8).

    Returns:
        int32 (Q, N).

    Raises:
        ValueError: an argument is not a packed code array, or their widths differ.
    """
    check_pair(queries, database)
    return hamming_numpy.distances(queries, database)


def search(queries: Codes, database: Codes, k: int, *, ids: Ids | None = None, threads: int = 1) -> Neighbors:
    """The k nearest codes of every query, exact, in the order of (distance, id).

    Args:
        queries: Packed codes, uint8 (Q, B/8).
        database: Packed codes, uint8 (N, B/8); one whose ids do not ascend is copied.
        k: Number of neighbors, at least 1; beyond N the columns are padding.
        ids: Id of each database code, int64 (N,), in any order; 0 to N - 1 if absent.
        threads: That share the queries, or a large database where these are fewer; at least 1.

    Returns:
        Ids and distances, (Q, k), padded with (-1, 2147483647).

    Raises:
        ValueError: `k` or `threads` is below 1, an argument is not a packed code array, widths differ, or `ids` do not
            fit.
    """
    check_pair(queries, database)
    k = operator.index(k)
    if k <= 0:
        raise ValueError(f"k is {k}, expected at least 1")
    database, sorted_ids = _in_order(database, ids)
    kept = min(k, len(database))

    def nearest(rows: slice, part: slice) -> tuple[Ids, Distances]:
        codes = database[part]
        count = min(kept, len(codes))
        found = native.search(queries[rows], codes, count) if count else None
        positions, found_distances = hamming_numpy.search(queries[rows], codes, count) if found is None else found
        return positions + part.start if part.start else positions, found_distances

    if len(queries) < threads and database.nbytes >= _SHARED_BYTES:
        parts = _each(functools.partial(nearest, slice(None)), _ranges(len(database), threads))
        positions, found_distances = (np.concatenate(columns, axis=1) for columns in zip(*parts, strict=True))
        order = np.lexsort((positions, found_distances), axis=1)[:, :kept]
        positions, found_distances = (np.take_along_axis(found, order, 1) for found in (positions, found_distances))
    else:
        every = slice(0, len(database))
        found = _by_threads(lambda rows: nearest(rows, every), len(queries), threads)
        positions, found_distances = map(_joined, zip(*found, strict=True))
    found_ids = positions if sorted_ids is None else sorted_ids[positions]
    return Neighbors(_padded(found_ids, k, PADDING_ID), _padded(found_distances, k, PADDING_DISTANCE))


def range_search(
    queries: Codes, database: Codes, radius: int, *, ids: Ids | None = None, threads: int = 1
) -> RangeNeighbors:
    """All codes within an inclusive radius of every query, exact, in the order of (distance, id).

    Args:
        queries: Packed codes, uint8 (Q, B/8).
        database: Packed codes, uint8 (N, B/8); one whose ids do not ascend is copied.
        radius: Largest distance that counts, at least 0.
        ids: Id of each database code, int64 (N,), in any order; 0 to N - 1 if absent.
        threads: That share the queries, at least 1.

    Returns:
        Ids and distances of query q in rows `limits[q]:limits[q + 1]`. Memory grows with the answer.

    Raises:
        ValueError: `radius` is below 0 or `threads` below 1, an argument is not a packed code array, widths differ, or
            `ids` do not fit.
    """
    check_pair(queries, database)
    radius = _checked_radius(radius, queries)
    database, sorted_ids = _in_order(database, ids)

    def within(rows: slice) -> tuple[Ids, Ids, Distances]:
        found = native.range_search(queries[rows], database, radius)
        return hamming_numpy.range_search(queries[rows], database, radius) if found is None else found

    part_limits, *parts = zip(*_by_threads(within, len(queries), threads), strict=True)
    limits = np.zeros(len(queries) + 1, dtype=np.int64)
    np.cumsum(_joined([np.diff(part) for part in part_limits]), out=limits[1:])
    positions, found_distances = map(_joined, parts)
    return RangeNeighbors(limits, positions if sorted_ids is None else sorted_ids[positions], found_distances)


def range_counts(queries: Codes, database: Codes, radius: int, *, threads: int = 1) -> npt.NDArray[np.int64]:
    """How many codes lie within an inclusive radius of every query: half the work of `range_search`.

    Args:
        queries: Packed codes, uint8 (Q, B/8).
        database: Packed codes, uint8 (N, B/8).
        radius: Largest distance that counts, at least 0.
        threads: That share the queries, at least 1.

    Returns:
        int64 (Q,).

    Raises:
        ValueError: `radius` is below 0 or `threads` below 1, an argument is not a packed code array, or widths differ.
    """
    check_pair(queries, database)
    radius = _checked_radius(radius, queries)

    def counts(rows: slice) -> Ids:
        found = native.range_counts(queries[rows], database, radius)
        return hamming_numpy.range_counts(queries[rows], database, radius) if found is None else found

    return _joined(_by_threads(counts, len(queries), threads))


def histogram(
    queries: Codes, database: Codes, query_labels: Labels, database_labels: Labels, *, threads: int = 1
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Counts, per query and Hamming distance, the database codes there and how many of them are relevant.

    Two images are relevant when they share a label. The counts of the parts of a database add up to those of the
    whole.

    Args:
        queries: Packed codes, uint8 (Q, B/8).
        database: Packed codes, uint8 (N, B/8).
        query_labels: int (Q,), one label each, -1 for none; or bool (Q, C), several each.
        database_labels: int (N,) or bool (N, C), as for the queries.
        threads: That share the queries, at least 1.

    Returns:
        `(total, relevant)`, int64 (Q, B + 1) each; column d is distance d.

    Raises:
        ValueError: an argument is not a packed code array, widths differ, the labels are not as above, or `threads` is
            below 1.
    """
    check_pair(queries, database)
    labels = checked_labels(query_labels, database_labels, len(queries), len(database))
    of_queries, of_database = map(native.comparable, labels)

    def counts(rows: slice) -> tuple[Ids, Ids]:
        found = native.histogram(queries[rows], database, of_queries[..., rows], of_database)
        if found is not None:
            return found
        relevant_pairs = share_label(labels[0][rows], labels[1], len(queries[rows]), len(database))
        return hamming_numpy.histogram(queries[rows], database, relevant_pairs)

    total, relevant = map(_joined, zip(*_by_threads(counts, len(queries), threads), strict=True))
    return total, relevant


def _checked_radius(radius: int, queries: Codes) -> int:
    radius = operator.index(radius)
    if radius < 0:
        raise ValueError(f"radius is {radius}, expected at least 0")
    return min(radius, 8 * int(queries.shape[1]))


def _by_threads(work: Callable[[slice], _Part], num_queries: int, threads: int) -> list[_Part]:
    """Does the work for ranges of queries, one per thread; the results are in their order."""
    threads = operator.index(threads)
    if threads <= 0:
        raise ValueError(f"threads is {threads}, expected at least 1")
    return _each(work, _ranges(num_queries, threads))


def _ranges(count: int, threads: int) -> list[slice]:
    num_parts = max(1, min(threads, count))
    limits = [part * count // num_parts for part in range(num_parts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(limits)]


def _each(work: Callable[[slice], _Part], ranges: Sequence[slice]) -> list[_Part]:
    if len(ranges) == 1:
        return [work(ranges[0])]
    with ThreadPoolExecutor(len(ranges)) as pool:
        return list(pool.map(work, ranges))


def _joined(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _padded(columns: npt.NDArray[Any], k: int, value: int) -> npt.NDArray[Any]:
    missing = k - columns.shape[1]
    return np.pad(columns, ((0, 0), (0, missing)), constant_values=value) if missing else columns


def _in_order(database: Codes, ids: Ids | None) -> tuple[Codes, Ids | None]:
    """The codes in the order of their ids, and those; none where they are the positions."""
    if ids is None:
        return database, None
    order, sorted_ids = id_order(ids, len(database))
    return database if order is None else database[order], sorted_ids


def id_order(ids: Ids | None, num_database: int) -> tuple[Ids | None, Ids]:
    """The rows in the order of their ids, None if they are in it already, and the ids in that order.

    Raises:
        ValueError: `ids` are not integers, one per code of the database.
    """
    if ids is None:
        return None, np.arange(num_database, dtype=np.int64)
    ids = np.asarray(ids)
    if ids.shape != (num_database,) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids are {ids.dtype} {ids.shape}, expected integers of shape ({num_database},)")
    ids = ids.astype(np.int64, copy=False)
    if np.all(ids[1:] >= ids[:-1]):
        return None, ids
    order = np.argsort(ids, kind="stable")
    return order, ids[order]


def check_pair(queries: Codes, database: Codes) -> None:
    """Refuses two arguments that cannot be compared.

    Raises:
        ValueError: one is not a packed code array, or their widths differ.
    """
    check_codes(queries, "queries")
    check_codes(database, "database")
    if queries.shape[1] != database.shape[1]:
        raise ValueError(
            f"queries have {8 * queries.shape[1]} bits ({queries.shape[1]} bytes), "
            f"the database has {8 * database.shape[1]} bits ({database.shape[1]} bytes)"
        )
