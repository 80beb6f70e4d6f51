"""Search and histograms with one thread and with more: how much of a core each further thread is worth.

    python tests/benchmarks/thread_scaling.py [--count 2000000] [--max-threads 2] [--rounds 15]

`per_thread` is the speed beside that of one thread in the same round, divided by the threads: 1 is linear. On a machine
with other work the best rounds tell more than the medians. Answers are found equal first. Goal: 0.9 on idle cores.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash import hamming
from tests.benchmarks import measuring
from tests.benchmarks.clustered_codes import make_data


def main() -> None:
    """Checks, measures and prints."""
    parser = measuring.parser(__doc__, one_process=False)
    parser.add_argument("--count", type=int, default=10_000_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--max-threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if options.quick:
        options.count, options.queries, options.rounds, options.max_threads = 3000, 16, 2, 2
    data = make_data(options.bits, options.count, options.queries, options.seed)
    draws = np.random.default_rng(options.seed)
    labels = draws.integers(0, 10, options.queries), draws.integers(0, 10, options.count)
    works: dict[str, Callable[[int], object]] = {
        "search, k = 100": lambda threads: hamming.search(data.queries, data.database, 100, threads=threads),
        "one query, k = 100": lambda threads: hamming.search(data.queries[:1], data.database, 100, threads=threads),
        "histogram": lambda threads: hamming.histogram(data.queries, data.database, *labels, threads=threads),
    }
    rows = []
    for name, work in works.items():
        one, several = work(1), work(options.max_threads)
        same = all(np.array_equal(a, b) for a, b in zip(one, several, strict=True))  # type: ignore[call-overload]
        measuring.require(same, f"{name}: the answers of several threads are those of one")
        ways = {
            str(threads): measuring.clocked(partial(work, threads), options)
            for threads in range(1, options.max_threads + 1)
        }
        found = measuring.compared(measuring.interleaved(ways, options.rounds), "1")
        rows += [
            {"work": name, "threads": int(threads), **row, "per_thread_best": row["ratio_best"] / int(threads)}
            for threads, row in found.items()
        ]
    measuring.report("thread_scaling", options, {"answers": "equal"}, rows)


if __name__ == "__main__":
    main()
