"""Keys that come in more than one shard, found in bounded memory however many shards there are.

Knows nothing of tars: it compares the sorted digests of keys that scanning left per shard. Each task takes the
digests that begin with some of the 256 bytes, from all shards.
"""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cluster import storage
from cluster.packing.adopted_shard import KEY_DIGEST_BYTES, ScanRecord

KEYS_PER_TASK = 4_000_000
"""About 160 MB while they are sorted."""
_FIRST_BYTES = 256
_READERS = 16


@dataclass(frozen=True)
class Repeated:
    """Keys that come in more than one shard."""

    count: int
    """Samples beyond the first one of their key."""
    first_shard: int = -1
    second_shard: int = -1
    """Places, in the list of records, of two shards that share a key: the first such pair."""
    digest: bytes = b""
    """Of the key that they share."""


def key_ranges(num_keys: int) -> Iterator[tuple[int, int]]:
    """First bytes, from and up to, such that each range holds about KEYS_PER_TASK keys at most."""
    tasks = min(_FIRST_BYTES, max(1, -(-num_keys // KEYS_PER_TASK)))
    bounds = [number * _FIRST_BYTES // tasks for number in range(tasks + 1)]
    yield from itertools.pairwise(bounds)


def repeated_keys(records: Sequence[ScanRecord], start: int, stop: int) -> Repeated:
    """The repeated keys among those whose digest begins with a byte from `start` up to `stop`."""
    with ThreadPoolExecutor(_READERS) as readers:
        parts = list(readers.map(lambda record: _digests(record, start, stop), records))
    shards = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    high, low = np.concatenate(parts).T if parts else np.empty((2, 0), np.uint64)
    order = np.lexsort((shards, low, high))
    high, low, shards = high[order], low[order], shards[order]
    same = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1]))
    if not len(same):
        return Repeated(0)
    first = same[np.lexsort((shards[same + 1], shards[same]))[0]]
    digest = np.array([high[first], low[first]], ">u8").tobytes()
    return Repeated(len(same), int(shards[first]), int(shards[first + 1]), digest)


def combined(found: Sequence[Repeated]) -> Repeated:
    """What several ranges found, together."""
    some = sorted((f for f in found if f.count), key=lambda f: (f.first_shard, f.second_shard, f.digest))
    if not some:
        return Repeated(0)
    return Repeated(sum(f.count for f in some), some[0].first_shard, some[0].second_shard, some[0].digest)


def _digests(record: ScanRecord, start: int, stop: int) -> np.ndarray:
    """Digests of one shard as two numbers each, uint64 (N, 2)."""
    first, last = record.key_starts[start], record.key_starts[stop]
    if first == last:
        return np.empty((0, 2), np.uint64)
    raw = storage.read_range(record.keys_uri, first * KEY_DIGEST_BYTES, (last - first) * KEY_DIGEST_BYTES)
    return np.frombuffer(raw, ">u8").astype(np.uint64).reshape(-1, 2)
