"""The memory that a shard takes, by its kind, from the sizes of what it holds.

Knows nothing of what was measured. Codes and ids lie in files that are mapped; they count where a search for the
nearest, or loading, reads them all. Rows are mapped too and read one by one: they do not count. A replica is taken to
share nothing with others, although on one machine those with local files share the mapped ones.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from cluster.index.kinds import TABLE_BITS, IndexKind

PROCESS_BYTES = 256 * 2**20
"""A replica of the service that holds no codes: Python, Ray and what a shard imports."""
_ID_BYTES, _POSITION_BYTES = 8, 8
_BUCKET_BYTES, _GROWN = 96, 1.5
"""Of FAISS' hash tables: an occupied bucket (node, vector, allocator), and what a vector has beyond what is in it."""


class ShardMemory(NamedTuple):
    """Bytes of a shard in the process that searches it."""

    resident: float
    """Once it is loaded and is searched."""
    loading: float
    """The most while it is loaded; at least `resident`."""


def shard_memory(
    kind: IndexKind, parameters: Mapping[str, int], count: float, distinct: float, bits: int, *, contiguous: bool
) -> ShardMemory:
    """Memory of a shard.

    Args:
        kind: Of the index.
        parameters: All of the shard, of an approximate kind.
        count: Codes.
        distinct: How many of them differ; matters to the kind unique.
        bits: Code length.
        contiguous: Its ids have no gaps, so they take none.
    """
    width = bits // 8
    codes, ids = count * width, 0.0 if contiguous else count * float(_ID_BYTES)
    if kind == "flat":
        return ShardMemory(codes + ids, codes + ids)
    if kind == "unique":
        held = codes + ids + count * _POSITION_BYTES + distinct * (width + 2 * _POSITION_BYTES)
        # Sorting holds the order and two copies of the words in it.
        return ShardMemory(held, held + 2 * count * width + count * 2)
    if kind == "table":
        held = codes + ids + count * _table_position_bytes(count) + 2**TABLE_BITS * 3 * _POSITION_BYTES
        return ShardMemory(held, held + count * 2 * _POSITION_BYTES)
    structure, stored = _structure(kind, parameters, count, width)
    return ShardMemory(ids + structure, ids + structure + stored)


def file_bytes(kind: IndexKind, parameters: Mapping[str, int], count: float, bits: int, *, contiguous: bool) -> float:
    """Bytes of the files of a shard without rows."""
    width = bits // 8
    codes = count * (width + (0 if contiguous else _ID_BYTES))
    if kind in ("flat", "unique", "table"):
        return codes
    return codes + _structure(kind, parameters, count, width)[1]


def _table_position_bytes(count: float) -> int:
    return next(size for size in (1, 2, 4, 8) if count < 2.0 ** (8 * size))


def _structure(kind: IndexKind, parameters: Mapping[str, int], count: float, width: int) -> tuple[float, float]:
    """Bytes of a structure of FAISS in memory and in its file."""
    if kind == "ivf":
        held = count * (width + _ID_BYTES) + parameters["nlist"] * width
        return held, held
    if kind == "hnsw":
        links = parameters["m"]
        # Levels and offsets, twice the links on the lowest level, and one code of m has another level.
        held = count * (width + 4 + 8 + 4 * (2 * links + links / (links - 1)))
        return held, held
    if kind == "multihash":
        tables, hash_bits = parameters["nhash"], parameters["hash_bits"]
        values = 2.0**hash_bits
        buckets = values * -math.expm1(count * math.log1p(-1.0 / values)) if hash_bits else 1.0
        held = count * width + tables * (buckets * _BUCKET_BYTES + count * _ID_BYTES * _GROWN)
        position_bits = max(1, math.ceil(math.log2(max(count, 2))))
        stored = count * width + tables * (buckets * (hash_bits + position_bits) + count * position_bits) / 8
        return held, stored
    raise ValueError(f"{kind} is not an approximate kind of index")
