"""Exact search over as many codes as memory holds: a single query against the memory's bandwidth, batches beside it.

    python tests/benchmarks/billion.py [--count 1000000000] [--bits 64] [--threads 1 2]

Half of the codes are uniform, half lie around 1,000 centers. The bandwidth is that of summing the codes as 64-bit
numbers, by as many threads. The answers are compared with those of the ten tenths of the database, merged.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash import hamming
from cibhash.types import Codes
from cluster.index.merge import merge_neighbors
from tests.benchmarks import measuring
from tests.benchmarks.clustered_codes import large_part

_PART = 2**24


def main() -> None:
    """Generates, checks, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 4, 64, 256])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    begun = time.perf_counter()
    database, queries = _codes(options.count, options.bits, max(options.queries))
    generated_s = time.perf_counter() - begun
    _check(queries[:3], database, options.k)
    rows = []
    for threads in options.threads:
        gigabytes = database.nbytes / 1e9 / _median_s(lambda n=threads: _sum(database, n), options.rounds)
        rows.append({"queries": "sum", "threads": threads, "gb_per_s": gigabytes})
        for count in options.queries:
            asked = queries[:count]
            seconds = _median_s(
                lambda q=asked, n=threads: hamming.search(q, database, options.k, threads=n), options.rounds
            )
            rate = {"g_per_s": count * options.count / seconds / 1e9, "gb_per_s": database.nbytes / seconds / 1e9}
            rows.append({"queries": count, "threads": threads, "seconds": seconds, **rate})
        for row in [row for row in rows if row["threads"] == threads]:
            print({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()})
    record = {"benchmark": "billion", "count": options.count, "bits": options.bits, "generated_s": generated_s}
    print(json.dumps({**record, "rows": rows, "machine": measuring.machine()}))


def _codes(count: int, bits: int, num_queries: int) -> tuple[Codes, Codes]:
    """Database and queries; memory holds little more than the database."""
    database = np.empty((count, bits // 8), np.uint8)
    for number, start in enumerate(range(0, count, _PART)):
        part = database[start : start + _PART]
        part[:] = large_part(number, len(part), bits)
    return database, database[np.random.default_rng(0).integers(0, count, num_queries)].copy()


def _check(queries: Codes, database: Codes, k: int) -> None:
    whole = hamming.search(queries, database, k)
    limits = [part * len(database) // 10 for part in range(11)]
    parts = [
        hamming.search(queries, database[start:stop], k, ids=np.arange(start, stop))
        for start, stop in itertools.pairwise(limits)
    ]
    merged = merge_neighbors(parts, k)
    same = np.array_equal(whole.ids, merged.ids) and np.array_equal(whole.distances, merged.distances)
    measuring.require(same, "the answers are those of the parts, merged")


def _sum(database: Codes, threads: int) -> int:
    parts = np.array_split(database.reshape(-1).view(np.uint64), 64)
    with ThreadPoolExecutor(threads) as pool:
        return sum(int(total) for total in pool.map(np.sum, parts))


def _median_s(work: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
