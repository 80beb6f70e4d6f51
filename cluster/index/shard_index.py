"""Search over the codes of one index shard, exact or not by the index's kind, and the rows that the codes stand for.

Knows nothing of Ray, versions or other shards. The ids of a shard ascend, so the order (distance, id) is that of
(distance, position) in which every kind searches.
"""

import bisect
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cibhash.binary import check_codes
from cibhash.types import PADDING_DISTANCE, PADDING_ID, Codes, Neighbors, RangeNeighbors
from cluster.index.bucket_codes import BucketCodes
from cluster.index.flat_codes import flat_codes
from cluster.index.kinds import APPROXIMATE, IndexKind, KindSpec
from cluster.index.searchable_codes import SearchableCodes
from cluster.index.shard_files import read_shard_files
from cluster.index.shard_ids import AscendingIds, ids_at, positions_of
from cluster.index.structure_files import open_structure
from cluster.index.unique_codes import UniqueCodes
from cluster.manifests import IndexShardEntry


@dataclass(frozen=True)
class Row:
    """What a code stands for: an image inside a tar shard; of an index without rows nothing but the id is known."""

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
    """The codes of one shard and their rows, memory-mapped where they can be. Safe to use from several threads."""

    def __init__(
        self,
        codes: Codes,
        ids: AscendingIds,
        rows: Sequence[pa.RecordBatch] | None,
        *,
        kind: IndexKind = "flat",
        searchable: SearchableCodes | None = None,
        threads: int = 1,
    ) -> None:
        """Builds what searches the codes, unless it is there.

        Args:
            codes: Packed codes, uint8 (N, B/8).
            ids: int64 (N,), ascending and unique, or their range.
            rows: Batches of `ROW_SCHEMA`, together N rows in the order of `ids`; None: the index has no rows.
            kind: Of the index.
            searchable: The codes with their structure; default: made by the kind, an exact one.
            threads: Of a search.
        """
        self.kind = kind
        self.bits = 8 * codes.shape[1]
        self.count = len(ids)
        self._codes, self._ids = codes, ids
        self._searchable = searchable or _searchable(codes, kind, threads)
        self.has_rows = rows is not None
        self._batches = [batch for batch in rows or () if batch.num_rows]
        self._batch_starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    @classmethod
    def load(
        cls,
        base_uri: str,
        entry: IndexShardEntry,
        bits: int,
        *,
        kind: IndexKind = "flat",
        threads: int = 1,
        device: str = "",
    ) -> "ShardIndex":
        """Loads a shard after its files were verified.

        Args:
            base_uri: Directory of the index version.
            entry: What the version's manifest says of the shard.
            bits: Code length of the index.
            kind: Of the index.
            threads: Of a search.
            device: Where it is searched, as torch names it; empty: on CPUs.

        Raises:
            ConfigError: there is no such CUDA device, it has no room, or the kind is not searched on one.
            ManifestMismatch: a file differs from its digest, or its content from what the manifest says.
            DataError: a file cannot be read although its digest is right.
        """
        KindSpec(kind).check_device(base_uri, device)
        codes, ids, rows = read_shard_files(base_uri, entry, bits)
        stored = kind in APPROXIMATE and len(codes) > 0
        searchable: SearchableCodes | None = open_structure(base_uri, entry, codes, threads) if stored else None
        if device:
            from cluster.index.device_flat import DeviceFlat  # torch takes seconds to import

            searchable = DeviceFlat(codes, device)
        return cls(codes, ids, rows, kind=kind, searchable=searchable, threads=threads)

    def search(self, codes: Codes, k: int) -> Neighbors:
        """The k nearest codes of every query in the order of (distance, id); of approximate kinds, most of them.

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
        if kept and len(codes):
            positions, found.distances[:, :kept] = self._searchable.search(codes, kept)
            found.ids[:, :kept] = ids_at(self._ids, positions)
        return found

    def range_search(self, codes: Codes, radius: int) -> RangeNeighbors:
        """All codes within an inclusive radius of every query, exact, in the order of (distance, id).

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
        if not self.count or not len(codes):
            return RangeNeighbors(np.zeros(len(codes) + 1, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))
        limits, positions, distances = self._searchable.range_search(codes, min(radius, self.bits))
        return RangeNeighbors(limits, ids_at(self._ids, positions), distances)

    def rows_by_id(self, ids: Iterable[int]) -> list[Row | None]:
        """The row of every id, None where the shard does not have it."""
        ids = list(ids)
        if not self.has_rows:
            return [
                Row(id_, "", (), "", 0, 0) if position >= 0 else None
                for id_, position in zip(ids, self._positions(ids), strict=True)
            ]
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
        ids = list(ids)
        places = zip(ids, self._positions(ids), strict=True)
        return {id_: self._codes[position].tobytes() for id_, position in places if position >= 0}

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

    def _positions(self, ids: Iterable[int]) -> list[int]:
        positions: list[int] = positions_of(self._ids, np.fromiter(ids, np.int64)).tolist()
        return positions


def _searchable(codes: Codes, kind: IndexKind, threads: int) -> SearchableCodes:
    """What searches the codes of a shard for which nothing was stored; an empty one needs no structure."""
    if kind == "unique":
        return UniqueCodes(codes, threads)
    if kind == "table":
        return BucketCodes(codes)
    if kind in APPROXIMATE and len(codes):
        raise ValueError(f"{len(codes)} codes of kind {kind} need the structure that was built for them")
    return flat_codes(codes, threads)
