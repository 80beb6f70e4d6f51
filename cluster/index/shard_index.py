"""Exact search over the codes of one index shard with FAISS, and the rows that the codes stand for.

Knows nothing of Ray, versions or other shards. FAISS gets codes in memory and never reads a file of its own format.
The ids of a shard ascend, so the order (distance, id) is (distance, position), and one int64 key `distance << 40 |
position` holds both. FAISS does not define which of several equally distant codes it returns: where its answer ends
inside a group of ties, the rest of the group is fetched by a range search and the smallest ids are kept.
"""

import bisect
import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cibhash.binary import check_codes
from cibhash.types import PADDING_DISTANCE, PADDING_ID, Codes, Ids, Neighbors, RangeNeighbors
from cluster import runtime
from cluster.index.shard_files import read_shard_files
from cluster.manifests import IndexShardEntry

_SEGMENT_ROWS = 2**20
"""Codes per FAISS index; bounds what one range search of one query can return."""
_BLOCK_CELLS = 2**23
"""Entries that a block of queries may get back from FAISS at once, in the worst case."""
_POSITION_BITS = 40
_POSITION_MASK = 2**_POSITION_BITS - 1


@dataclass(frozen=True)
class Row:
    """What a code stands for: an image inside a tar shard."""

    id: int
    key: str
    labels: tuple[int, ...]
    shard: str
    """Absolute URI of the tar shard."""
    offset: int
    """Byte offset of the image inside the tar."""
    size: int
    """Bytes of the image."""


class ShardIndex:
    """The codes of one shard in memory, and their rows, memory-mapped. Safe to use from several threads."""

    def __init__(self, codes: Codes, ids: Ids, rows: Sequence[pa.RecordBatch], *, threads: int = 1) -> None:
        """Builds the search structure.

        Args:
            codes: Packed codes, uint8 (N, B/8).
            ids: int64 (N,), ascending and unique.
            rows: Batches of `ROW_SCHEMA`, together N rows in the order of `ids`.
            threads: OpenMP threads of a search.
        """
        faiss = _faiss()
        self.bits = 8 * codes.shape[1]
        self.count = len(ids)
        self._ids, self._threads = ids, threads
        self._batches = [batch for batch in rows if batch.num_rows]
        self._batch_starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._segments: list[tuple[int, Any]] = []
        for start in range(0, self.count, _SEGMENT_ROWS):
            flat = faiss.IndexBinaryFlat(self.bits)
            flat.add(np.ascontiguousarray(codes[start : start + _SEGMENT_ROWS]))
            self._segments.append((start, flat))

    @classmethod
    def load(cls, base_uri: str, entry: IndexShardEntry, bits: int, *, threads: int = 1) -> "ShardIndex":
        """Loads a shard after its files were verified.

        Args:
            base_uri: Directory of the index version.
            entry: What the version's manifest says of the shard.
            bits: Code length of the index.
            threads: OpenMP threads of a search.

        Raises:
            ManifestMismatch: a file differs from its digest, or its content from what the manifest says.
            DataError: a file cannot be read although its digest is right.
        """
        codes, ids, rows = read_shard_files(base_uri, entry, bits)
        return cls(codes, ids, rows, threads=threads)

    def search(self, codes: Codes, k: int) -> Neighbors:
        """The k nearest codes of every query, exact, in the order of (distance, id).

        Args:
            codes: Packed queries, uint8 (Q, B/8).
            k: Number of neighbors, at least 1; beyond `count` the columns are padding.

        Returns:
            Ids and distances (Q, k), padded with (-1, 2147483647).

        Raises:
            ValueError: `k` is below 1, or `codes` are not packed codes of the index's length.
        """
        self._check(codes)
        k = operator.index(k)
        if k <= 0:
            raise ValueError(f"k is {k}, expected at least 1")
        found = Neighbors(
            np.full((len(codes), k), PADDING_ID, np.int64), np.full((len(codes), k), PADDING_DISTANCE, np.int32)
        )
        kept = min(k, self.count)
        if kept:
            for rows in _blocks(len(codes), kept + 1):
                keys = self._nearest_keys(np.ascontiguousarray(codes[rows]), kept)
                found.ids[rows, :kept] = self._ids[keys & _POSITION_MASK]
                found.distances[rows, :kept] = keys >> _POSITION_BITS
        return found

    def range_search(self, codes: Codes, radius: int) -> RangeNeighbors:
        """All codes within an inclusive radius of every query, in the order of (distance, id).

        Args:
            codes: Packed queries, uint8 (Q, B/8).
            radius: Largest distance that counts, at least 0.

        Returns:
            Ids and distances of query q in rows `limits[q]:limits[q + 1]`. Memory grows with the answer.

        Raises:
            ValueError: `radius` is below 0, or `codes` are not packed codes of the index's length.
        """
        self._check(codes)
        radius = operator.index(radius)
        if radius < 0:
            raise ValueError(f"radius is {radius}, expected at least 0")
        keys, queries = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for first, flat in self._segments:
            for rows in _blocks(len(codes), flat.ntotal):
                limits, found = _within(flat, first, np.ascontiguousarray(codes[rows]), min(radius, self.bits))
                keys.append(found)
                queries.append(rows.start + np.repeat(np.arange(len(limits) - 1), np.diff(limits)))
        query, key = np.concatenate(queries), np.concatenate(keys)
        key = key[np.lexsort((key, query))]
        limits = np.zeros(len(codes) + 1, np.int64)
        np.cumsum(np.bincount(query, minlength=len(codes)), out=limits[1:])
        return RangeNeighbors(limits, self._ids[key & _POSITION_MASK], (key >> _POSITION_BITS).astype(np.int32))

    def rows_by_id(self, ids: Iterable[int]) -> list[Row | None]:
        """The row of every id, None where the shard does not have it."""
        found: list[Row | None] = []
        by_batch: dict[int, list[tuple[int, int]]] = {}
        for place, position in enumerate(self._positions(ids)):
            found.append(None)
            if position >= 0:
                batch = bisect.bisect_right(self._batch_starts, position) - 1
                by_batch.setdefault(batch, []).append((place, position - int(self._batch_starts[batch])))
        for batch, pairs in by_batch.items():
            taken = self._batches[batch].take(pa.array([position for _, position in pairs], pa.int64()))
            for (place, _), row in zip(pairs, taken.to_pylist(), strict=True):
                found[place] = Row(**{**row, "labels": tuple(row["labels"])})
        return found

    def codes_by_id(self, ids: Iterable[int]) -> dict[int, bytes]:
        """The packed codes of those ids that the shard has."""
        positions = [position for position in self._positions(ids) if position >= 0]
        return {
            int(self._ids[position]): self._segments[position // _SEGMENT_ROWS][1]
            .reconstruct(position % _SEGMENT_ROWS)
            .tobytes()
            for position in positions
        }

    def ids_by_key(self, keys: Iterable[str]) -> dict[str, int]:
        """The id of every key that the shard has, the smallest where a key occurs twice; scans the shard's keys."""
        wanted = set(keys)
        found: dict[str, int] = {}
        for batch in self._batches:
            if not wanted:
                break
            places = pc.indices_nonzero(pc.is_in(batch["key"], value_set=pa.array(sorted(wanted), pa.string())))
            for key, id_ in zip(
                batch["key"].take(places).to_pylist(), batch["id"].take(places).to_pylist(), strict=True
            ):
                found.setdefault(key, id_)
            wanted.difference_update(found)
        return found

    def _check(self, codes: Codes) -> None:
        check_codes(codes, "queries")
        if 8 * codes.shape[1] != self.bits:
            raise ValueError(f"queries have {8 * codes.shape[1]} bits, the index has {self.bits} bits")
        # OpenMP keeps this number per calling thread, so it is set where the search runs.
        _faiss().omp_set_num_threads(self._threads)

    def _positions(self, ids: Iterable[int]) -> list[int]:
        wanted = np.fromiter(ids, np.int64)
        places = np.searchsorted(self._ids, wanted)
        inside = places < self.count
        inside[inside] = self._ids[places[inside]] == wanted[inside]
        return [int(place) for place in np.where(inside, places, -1)]

    def _nearest_keys(self, codes: Codes, kept: int) -> Ids:
        """Keys (Q, kept) of the nearest codes, ascending; `kept` is at most `count`."""
        keys = np.empty((len(codes), 0), np.int64)
        ends = np.full((len(self._segments), len(codes)), PADDING_DISTANCE)
        for segment, (first, flat) in enumerate(self._segments):
            asked = min(kept + 1, flat.ntotal)
            distances, positions = flat.search(codes, asked)
            found = (distances.astype(np.int64) << _POSITION_BITS) | (positions + first)
            keys = np.sort(np.concatenate((keys, found), axis=1), axis=1)[:, : kept + 1]
            if asked < flat.ntotal:
                ends[segment] = distances.max(axis=1)
        keys = keys[:, :kept]
        # What a segment left out is at least as far as what it returned last. It matters only where that is the
        # distance of the k-th neighbor, and only while that neighbor's position is not before the segment.
        last = keys[:, -1] >> _POSITION_BITS
        for segment, (first, flat) in enumerate(self._segments):
            open_queries = np.flatnonzero((ends[segment] == last) & ((keys[:, -1] & _POSITION_MASK) >= first))
            for distance in np.unique(last[open_queries]).tolist():
                tied = open_queries[last[open_queries] == distance]
                for rows in _blocks(len(tied), flat.ntotal):
                    limits, found = _within(flat, first, codes[tied[rows]], distance)
                    for query, group in zip(tied[rows], np.split(found, limits[1:-1]), strict=True):
                        group = group[group >> _POSITION_BITS == distance]
                        keys[query] = np.union1d(keys[query], group)[:kept]
        return keys


def _within(flat: Any, first: int, codes: Codes, radius: int) -> tuple[Ids, Ids]:
    """Limits (Q + 1,) and keys, in no order, of a segment's codes within the inclusive radius."""
    # FAISS: distance < radius; distances float32, limits uint64.
    limits, distances, positions = flat.range_search(codes, radius + 1)
    return limits.astype(np.int64), (distances.astype(np.int64) << _POSITION_BITS) | (positions + first)


def _blocks(num_queries: int, cells: int) -> Iterator[slice]:
    """Ranges of queries that may get `cells` entries each."""
    step = max(1, _BLOCK_CELLS // cells)
    for start in range(0, num_queries, step):
        yield slice(start, min(num_queries, start + step))


@functools.cache
def _faiss() -> Any:
    runtime.check_faiss()
    import faiss

    return faiss
