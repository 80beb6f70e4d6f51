"""Loads shards in a process of its own, searches them as the service does, and tells what they take and find.

Knows nothing of predictions. The process is a fresh one, so that what it holds is what the shards take.
"""

import ctypes
import itertools
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from cibhash.errors import CIBHashError
from cibhash.types import Codes
from cluster.code_tables import packed_array
from cluster.index.flat_codes import flat_codes
from cluster.index.kinds import IndexKind, KindSpec
from cluster.index.shard_files import read_shard_codes, write_shard_files
from cluster.index.shard_index import ShardIndex
from cluster.index.structure_files import index_recall, sample_positions, write_structure
from cluster.manifests import IndexShardEntry
from cluster.planning.calibration import BLOCK, Stopwatch

_ALONE, _ROUNDS, _WARM_ROWS, _GAP = 8, 9, 1000, 2


@dataclass(frozen=True)
class TrialShards:
    """Shards that were written, and how they are searched."""

    base_uri: str
    entries: tuple[IndexShardEntry, ...]
    bits: int
    kind: IndexKind
    k: int
    clock: Literal["cpu", "wall"]


@dataclass(frozen=True)
class Trial:
    """What was measured."""

    resident_bytes: int
    """Of all shards together, once each was searched."""
    one_s: float
    """Seconds of a query alone, median; each shard is asked in turn."""
    block_s: float
    """Seconds of each query of a block, median."""
    recall: float
    """Mean over the shards."""


def try_shards(shards: TrialShards) -> Trial:
    """Measures in a new process.

    Raises:
        CIBHashError: the process died, as it does where memory runs out; or a shard cannot be loaded.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, shards).result()
        except BrokenProcessPool:
            raise CIBHashError(
                f"{shards.base_uri}: the process that held {len(shards.entries)} shards of kind {shards.kind} died: "
                "out of memory? Verify with fewer --verify-items"
            ) from None


def _measure(shards: TrialShards) -> Trial:
    _warm(shards)
    _give_back()
    before = _resident_bytes()
    loaded = [ShardIndex.load(shards.base_uri, entry, shards.bits, kind=shards.kind) for entry in shards.entries]
    queries = [_queries(shards, entry) for entry in shards.entries]
    for shard, asked in zip(loaded, queries, strict=True):
        shard.search(asked[:1], shards.k)
    _give_back()
    resident = _resident_bytes() - before
    recalls = [
        _recall(shards, entry, shard, asked)
        for entry, shard, asked in zip(shards.entries, loaded, queries, strict=True)
    ]
    one_s, block_s = _times(shards, loaded, queries)
    return Trial(resident, one_s, block_s, statistics.mean(recalls))


def _warm(shards: TrialShards) -> None:
    """Loads and searches a tiny shard: what a process needs for the first one of any size is then there."""
    codes = np.random.default_rng(0).integers(0, 256, (_WARM_ROWS, shards.bits // 8), np.uint8)
    table = pa.table({"id": pa.array(_GAP * np.arange(_WARM_ROWS)), "code": packed_array(codes)})
    spec = KindSpec(shards.kind)
    with tempfile.TemporaryDirectory(prefix="cibhash-plan-") as folder:
        entry = write_shard_files(folder, 0, table, shards.bits, with_rows=False)
        entry = entry.model_copy(update={"structure": write_structure(folder, 0, codes, spec)})
        shard = ShardIndex.load(folder, entry, shards.bits, kind=shards.kind)
        shard.search(codes[:BLOCK], min(shards.k, _WARM_ROWS))


def _queries(shards: TrialShards, entry: IndexShardEntry) -> Codes:
    """Codes of the shard, those that recall is measured with when an index is built."""
    return read_shard_codes(shards.base_uri, entry, shards.bits)[sample_positions(entry.count)]


def _recall(shards: TrialShards, entry: IndexShardEntry, shard: ShardIndex, queries: Codes) -> float:
    k = min(shards.k, entry.count)
    codes = read_shard_codes(shards.base_uri, entry, shards.bits)
    _, exact = flat_codes(codes, threads=1).search(queries, k)
    return index_recall(shard.search(queries, k).distances, exact)


def _times(shards: TrialShards, loaded: Sequence[ShardIndex], queries: Sequence[Codes]) -> tuple[float, float]:
    stopwatch = Stopwatch(shards.clock)
    one_s: list[float] = []
    block_s: list[float] = []
    for round_, (shard, asked) in itertools.product(range(_ROUNDS), list(zip(loaded, queries, strict=True))):
        for query in _some(asked, round_):
            one_s.append(stopwatch.seconds(lambda shard=shard, query=query: shard.search(query, shards.k)))  # type: ignore[misc]
        block = asked[:BLOCK]
        taken = stopwatch.seconds(lambda shard=shard, block=block: shard.search(block, shards.k))  # type: ignore[misc]
        block_s.append(taken / len(block))
    return statistics.median(one_s), statistics.median(block_s)


def _some(queries: Codes, number: int) -> Iterator[Codes]:
    for place in range(number * _ALONE, (number + 1) * _ALONE):
        yield queries[place % len(queries)][None]


def _give_back() -> None:
    """Has the allocator return what was freed: of large shards it keeps nothing, of small ones it would."""
    ctypes.CDLL(None).malloc_trim(0)


def _resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))
