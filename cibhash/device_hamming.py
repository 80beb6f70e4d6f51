"""Exact Hamming search and distance histograms over packed codes on a torch device, as a GPU.

Knows nothing of indexes, shards or files. Answers are those of `cibhash.hamming`. Shapes: Q queries, N database codes,
B bits, K neighbors, W words of 64 bits per code. Work goes by blocks of q queries and n codes within a budget of
scratch memory; answers do not depend on the blocks. A neighbor is one int64 key, query of the block, distance and
position from the highest bits down, so that one sort has them in order.
"""

import operator
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cibhash.binary import check_codes
from cibhash.device_codes import DeviceCodes, ranges, to_words
from cibhash.device_distances import bytes_per_code, distances_from
from cibhash.relevance import NO_LABEL, checked_labels
from cibhash.types import PADDING_DISTANCE, PADDING_ID, Codes, Ids, Labels, Neighbors, RangeNeighbors

SCRATCH_BYTES = 2**30
_POSITION_BITS, _DISTANCE_BITS = 40, 10
_POSITION_MASK, _DISTANCE_MASK = 2**_POSITION_BITS - 1, 2**_DISTANCE_BITS - 1
_QUERY_SHIFT = _POSITION_BITS + _DISTANCE_BITS
_MAX_QUERIES = 1024
"""Queries of a block; beyond that a matrix product gains nothing, and a key has bits for 8,192."""
_FIRST_CODES = 2**14
_KEY_BYTES = 80
"""Scratch of one key at most, while it is made and sorted; or of one pair that is counted."""
_NEIGHBOR_BYTES = 3 * _KEY_BYTES
"""Scratch of one neighbor that is kept, of three times as many candidates."""

_Relevant = Callable[[slice, slice], Tensor]
"""From ranges of queries and codes to bool (q, n): whether the pair shares a label."""


def search(queries: Codes, database: DeviceCodes, k: int, *, scratch_bytes: int = SCRATCH_BYTES) -> Neighbors:
    """The k nearest codes of every query, exact, in the order of (distance, id).

    Args:
        queries: Packed codes, uint8 (Q, B/8).
        database: Codes of the same length.
        k: Number of neighbors, at least 1; beyond N the columns are padding.
        scratch_bytes: Memory that is taken on the device beyond the codes; more if a single query needs more, which
            is some 240 bytes for each of its neighbors.

    Returns:
        Ids and distances, (Q, k), padded with (-1, 2147483647).

    Raises:
        ValueError: `k` or `scratch_bytes` is below 1, or `queries` are not packed codes of the database's length.
    """
    _check(queries, database, scratch_bytes)
    k = operator.index(k)
    if k <= 0:
        raise ValueError(f"k is {k}, expected at least 1")
    found = Neighbors(
        np.full((len(queries), k), PADDING_ID, np.int64), np.full((len(queries), k), PADDING_DISTANCE, np.int32)
    )
    kept = min(k, len(database))
    if kept:
        for rows, block in _query_blocks(queries, database, scratch_bytes, kept):
            positions, found.distances[rows, :kept] = _parts(block.nearest(kept).cpu().numpy())
            found.ids[rows, :kept] = positions if database.ids is None else database.ids[positions]
    return found


def range_search(
    queries: Codes, database: DeviceCodes, radius: int, *, scratch_bytes: int = SCRATCH_BYTES
) -> RangeNeighbors:
    """All codes within an inclusive radius of every query, exact, in the order of (distance, id).

    Args:
        queries: Packed codes, uint8 (Q, B/8).
        database: Codes of the same length.
        radius: Largest distance that counts, at least 0.
        scratch_bytes: Memory that is taken on the device beyond the codes.

    Returns:
        Ids and distances of query q in rows `limits[q]:limits[q + 1]`. Memory outside the device grows with the answer.

    Raises:
        ValueError: `radius` is below 0, `scratch_bytes` below 1, or `queries` are not packed codes of the database's
            length.
    """
    _check(queries, database, scratch_bytes)
    radius = operator.index(radius)
    if radius < 0:
        raise ValueError(f"radius is {radius}, expected at least 0")
    counts, parts = np.zeros(len(queries) + 1, np.int64), [np.empty(0, np.int64)]
    for rows, block in _query_blocks(queries, database, scratch_bytes):
        keys = block.within(min(radius, database.bits))
        counts[rows.start + 1 : rows.stop + 1] = np.bincount(keys >> _QUERY_SHIFT, minlength=rows.stop - rows.start)
        parts.append(keys)
    positions, distances = _parts(np.concatenate(parts))
    ids = positions if database.ids is None else database.ids[positions]
    return RangeNeighbors(np.cumsum(counts), ids, distances)


def histogram(
    queries: Codes,
    database: DeviceCodes,
    query_labels: Labels,
    database_labels: Labels,
    *,
    scratch_bytes: int = SCRATCH_BYTES,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Counts, per query and Hamming distance, the database codes there and how many of them are relevant.

    Args:
        queries: Packed codes, uint8 (Q, B/8).
        database: Codes of the same length.
        query_labels: int (Q,), one label each, -1 for none; or bool (Q, C), several each.
        database_labels: int (N,) or bool (N, C), of the codes as they were given.
        scratch_bytes: Memory that is taken on the device beyond codes and labels.

    Returns:
        `(total, relevant)`, int64 (Q, B + 1) each; column d is distance d.

    Raises:
        ValueError: `queries` are not packed codes of the database's length, the labels are not as above, or
            `scratch_bytes` is below 1.
    """
    _check(queries, database, scratch_bytes)
    of_queries, of_database = checked_labels(query_labels, database_labels, len(queries), len(database))
    if database.order is not None:
        of_database = of_database[database.order]
    shares = (_share_single if of_queries.ndim == 1 else _share_any)(of_queries, of_database, database.words.device)
    total, relevant = (np.zeros((len(queries), database.bits + 1), np.int64) for _ in range(2))
    for rows, block in _query_blocks(queries, database, scratch_bytes):
        counts = block.counts(shares, rows).cpu().numpy()
        relevant[rows] = counts[:, 1]
        total[rows] = counts.sum(axis=1)
    return total, relevant


class _QueryBlock:
    """Some queries on the device; half of the budget is for distances, half for what is made of them at once."""

    def __init__(self, queries: Codes, database: DeviceCodes, scratch_bytes: int) -> None:
        self._words, self._bits = database.words, database.bits
        self._num = len(queries)
        self._distances = distances_from(to_words(queries).to(self._words.device), self._bits)
        self._num_codes = max(1, scratch_bytes // 2 // bytes_per_code(self._num, self._bits))
        self._num_keys = max(1, scratch_bytes // 2 // _KEY_BYTES)

    def nearest(self, kept: int) -> Tensor:
        """Keys (q, kept) of the nearest codes, ascending; `kept` is 1 to N.

        Blocks go up in position, so once `kept` codes within a distance are known, later ones must be nearer.
        """
        width = self._bits + 1
        bound_q1 = torch.full((self._num, 1), width, device=self._words.device)
        counts = torch.zeros((self._num, width), dtype=torch.int64, device=self._words.device)
        pool: list[Tensor] = []
        for keys in self._nearer(bound_q1, max(_FIRST_CODES, 2 * kept)):
            cells = (keys >> _QUERY_SHIFT) * width + ((keys >> _POSITION_BITS) & _DISTANCE_MASK)
            counts += torch.bincount(cells, minlength=counts.numel()).view(counts.shape)
            bound_q1.copy_((counts.cumsum(1) < kept).sum(1, keepdim=True))
            pool.append(keys)
            if sum(map(len, pool)) > 3 * self._num * kept:
                pool = [self._first(pool, kept)]
        return self._first(pool, kept).view(self._num, kept)

    def within(self, radius: int) -> Ids:
        """Keys of all codes within the radius, ascending, not on the device."""
        bound_q1 = torch.full((self._num, 1), radius + 1, device=self._words.device)
        parts = [keys.cpu().numpy() for keys in self._nearer(bound_q1, self._num_codes)]
        return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))

    def counts(self, shares: _Relevant, rows: slice) -> Tensor:
        """Codes by relevance and distance, int64 (q, 2, B + 1)."""
        width = self._bits + 1
        counts = torch.zeros((self._num, 2, width), dtype=torch.int64, device=self._words.device)
        first_q1 = 2 * width * torch.arange(self._num, device=self._words.device)[:, None]
        most = min(self._num_codes, max(1, self._num_keys // self._num))
        for columns in ranges(self._words.shape[1], most):
            cells = self._distances(self._words[:, columns]).long().add_(first_q1)
            cells.add_(shares(rows, columns), alpha=width)
            counts += torch.bincount(cells.view(-1), minlength=counts.numel()).view(counts.shape)
        return counts

    def _nearer(self, bound_q1: Tensor, first: int) -> Iterator[Tensor]:
        """Keys of all codes nearer than the bounds, as these are by then, from the first position to the last."""
        for columns in self._blocks(first):
            distances = self._distances(self._words[:, columns])
            num_codes = columns.stop - columns.start
            num_near = int((distances < bound_q1.to(distances.dtype)).count_nonzero())
            step = num_codes if num_near <= self._num_keys else max(1, self._num_keys // self._num)
            for piece in ranges(num_codes, step):
                part = distances[:, piece]
                yield _keys(part, part < bound_q1.to(part.dtype), columns.start + piece.start)

    def _first(self, pool: Sequence[Tensor], kept: int) -> Tensor:
        """Of every query the `kept` smallest keys, or all that it has, ascending."""
        keys = torch.cat(tuple(pool)).sort().values
        query = keys >> _QUERY_SHIFT
        starts = torch.searchsorted(query, torch.arange(self._num, device=keys.device))
        return keys[torch.arange(len(keys), device=keys.device) - starts[query] < kept]

    def _blocks(self, first: int) -> Iterator[slice]:
        """Ranges of codes, each as long as all before it, within the budget: early ones tighten later bounds."""
        start, num_codes = 0, self._words.shape[1]
        while start < num_codes:
            stop = min(num_codes, start + min(self._num_codes, max(first, start)))
            yield slice(start, stop)
            start = stop


def _query_blocks(
    queries: Codes, database: DeviceCodes, scratch_bytes: int, kept: int = 0
) -> Iterator[tuple[slice, _QueryBlock]]:
    """Ranges of queries whose neighbors take half of the budget, with what compares them in the other half."""
    half = max(1, scratch_bytes // 2)
    most = min(_MAX_QUERIES, half // max(kept * _NEIGHBOR_BYTES, _KEY_BYTES))
    for rows in ranges(len(queries), max(1, most)):
        yield rows, _QueryBlock(queries[rows], database, half)


def _keys(distances: Tensor, chosen: Tensor, first: int) -> Tensor:
    """Keys of the chosen cells (q, n), codes counted from `first`."""
    query, column = chosen.nonzero(as_tuple=True)
    distance = distances[query, column].long()
    return (query << _QUERY_SHIFT) | (distance << _POSITION_BITS) | (column + first)


def _parts(keys: Ids) -> tuple[Ids, npt.NDArray[np.int32]]:
    """Positions and distances."""
    return keys & _POSITION_MASK, ((keys >> _POSITION_BITS) & _DISTANCE_MASK).astype(np.int32)


def _share_single(query_labels: Ids, database_labels: Ids, device: torch.device) -> _Relevant:
    of_queries, of_database = (
        torch.from_numpy(np.require(labels, requirements="W")).to(device) for labels in (query_labels, database_labels)
    )

    def relevant(rows: slice, columns: slice) -> Tensor:
        label_q1 = of_queries[rows, None]
        return (label_q1 == of_database[columns]) & (label_q1 != NO_LABEL)

    return relevant


def _share_any(
    query_labels: npt.NDArray[np.bool_], database_labels: npt.NDArray[np.bool_], device: torch.device
) -> _Relevant:
    of_queries, of_database = (
        to_words(np.packbits(labels, axis=1)).to(device) for labels in (query_labels, database_labels)
    )

    def relevant(rows: slice, columns: slice) -> Tensor:
        shape = (of_queries[:, rows].shape[1], of_database[:, columns].shape[1])
        shared = torch.zeros(shape, dtype=torch.bool, device=device)
        for query_mask, database_mask in zip(of_queries[:, rows], of_database[:, columns], strict=True):
            shared |= (query_mask[:, None] & database_mask) != 0
        return shared

    return relevant


def _check(queries: Codes, database: DeviceCodes, scratch_bytes: int) -> None:
    check_codes(queries, "queries")
    if 8 * queries.shape[1] != database.bits:
        raise ValueError(f"queries have {8 * queries.shape[1]} bits, the database has {database.bits} bits")
    if scratch_bytes <= 0:
        raise ValueError(f"scratch_bytes is {scratch_bytes}, expected at least 1")
