"""Exact Hamming search on a device against that on CPUs and against FAISS on the GPU, in comparisons per second.

    python tests/benchmarks/device_search.py --device cuda [--bits 64 ...] [--count 10000000] [--k 10 100 ...]

Candidates: `device`, `cibhash.device_hamming`; `cpu`, `cibhash.hamming` with --threads, for few queries; `faiss gpu`,
GpuIndexBinaryFlat, where FAISS has it and sees a GPU, for k up to 2048. Ratios are to `cpu`. Codes on the device are
there before; queries and answers travel. Answers of `device` and `cpu`, and the distances of FAISS, are found equal
before anything is timed.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash import device_hamming, hamming
from cibhash.device_codes import DeviceCodes, device_codes
from tests.benchmarks import measuring
from tests.benchmarks.clustered_codes import Data, make_data

DEVICE, CPU, FAISS = "device", "cpu", "faiss gpu"
_CPU_QUERIES = 16
_FAISS_MAX_K = 2048


def main() -> None:
    """Checks, measures and prints."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--count", type=int, default=10_000_000, help="codes of the database (default 10,000,000)")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100, 1000, 5000])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 64, 1000])
    options = parser.parse_args()
    if options.quick:
        options.bits, options.count, options.k, options.queries, options.rounds = [24, 64], 20_000, [10], [2, 20], 2
    rows = []
    for bits in options.bits:
        data = make_data(bits, options.count, max(options.queries), options.seed)
        held, flat = device_codes(data.database, options.device), _faiss_flat(data, options.device)
        for num_queries in options.queries:
            for k in options.k:
                rows += _searches(data, held, flat, num_queries, k, options)
            rows += _histograms(data, held, num_queries, options)
    measuring.report("device_search", options, {"answers compared": "equal"}, rows)


def _faiss_flat(data: Data, device: str) -> Any | None:
    if device == "cpu" or importlib.util.find_spec("faiss") is None:
        return None
    import faiss

    # Without a driver, asking for resources would abort the process.
    if not hasattr(faiss, "GpuIndexBinaryFlat") or faiss.get_num_gpus() == 0:
        return None
    flat = faiss.GpuIndexBinaryFlat(faiss.StandardGpuResources(), 8 * data.database.shape[1])
    flat.add(data.database)
    return flat


def _searches(
    data: Data, held: DeviceCodes, flat: Any | None, num_queries: int, k: int, options: argparse.Namespace
) -> list[measuring.Row]:
    queries, few = data.queries[:num_queries], data.queries[: min(num_queries, _CPU_QUERIES)]
    works: dict[str, tuple[Callable[[], Any], int]] = {
        DEVICE: (lambda: device_hamming.search(queries, held, k), len(queries)),
        CPU: (lambda: hamming.search(few, data.database, k, threads=options.threads), len(few)),
    }
    found, expected = works[DEVICE][0](), works[CPU][0]()
    same = all(np.array_equal(ours[: len(few)], theirs) for ours, theirs in zip(found, expected, strict=True))
    measuring.require(same, f"the CPU finds the same at {held.bits} bits, k = {k}")
    if flat is not None and k <= _FAISS_MAX_K:
        works[FAISS] = (lambda: flat.search(queries, k), len(queries))
        measuring.require(np.array_equal(works[FAISS][0]()[0], found.distances), f"FAISS finds our distances, k = {k}")
    return _measured("search", works, held, k, options)


def _histograms(data: Data, held: DeviceCodes, num_queries: int, options: argparse.Namespace) -> list[measuring.Row]:
    draws = np.random.default_rng(options.seed)
    labels, of_database = (draws.integers(0, 10, count) for count in (num_queries, len(held)))
    queries, few = data.queries[:num_queries], slice(0, min(num_queries, _CPU_QUERIES))
    on_cpu = partial(hamming.histogram, queries[few], data.database, labels[few], of_database, threads=options.threads)
    works: dict[str, tuple[Callable[[], Any], int]] = {
        DEVICE: (lambda: device_hamming.histogram(queries, held, labels, of_database), len(queries)),
        CPU: (on_cpu, few.stop),
    }
    found, expected = works[DEVICE][0](), works[CPU][0]()
    same = all(np.array_equal(ours[few], theirs) for ours, theirs in zip(found, expected, strict=True))
    measuring.require(same, f"the CPU counts the same at {held.bits} bits")
    return _measured("histogram", works, held, "-", options)


def _measured(
    work: str,
    works: dict[str, tuple[Callable[[], Any], int]],
    held: DeviceCodes,
    k: int | str,
    options: argparse.Namespace,
) -> list[measuring.Row]:
    runs = {name: measuring.clocked(run, options, size * len(held)) for name, (run, size) in works.items()}
    times = measuring.interleaved(runs, options.rounds)
    return [
        {
            "work": work,
            "bits": held.bits,
            "count": len(held),
            "k": k,
            "queries": works[name][1],
            "candidate": name,
            "g_per_s": 1e-9 / row["median_s"],
            "g_per_s_best": 1e-9 / row["best_s"],
            "ratio": row["ratio"],
            "ratio_best": row["ratio_best"],
        }
        for name, row in measuring.compared(times, CPU).items()
    ]


if __name__ == "__main__":
    main()
