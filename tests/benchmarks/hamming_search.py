"""Exact Hamming search against FAISS, and distance histograms against numpy, in comparisons per second.

    python tests/benchmarks/hamming_search.py [--bits 64 ...] [--count 1000000] [--k 10 100 ...] [--queries 64 256]

Candidates: `ours`, `cibhash.hamming`; `ours, AVX2` and `ours, PORTABLE`, its compiled code without what newer CPUs
have; `faiss counting` and `faiss heap`, both modes of IndexBinaryFlat; `usearch` where it is installed; `numpy`, ours
without compiled code. Slow ones take fewer queries. Ratios are to the better mode of FAISS in each round, those of
histograms to numpy. `of_ceiling` is the share of what this CPU reaches at comparing whole 64-bit codes from its first
cache, with nothing kept: one more candidate, where a C compiler and AVX-512 are present. Comparing plane by plane may
exceed it.

Codes lie around 1,000 centers, 15.6 % of the bits flipped, a fifth of them anywhere. Distances, and the ids of all that
are ours, are found equal before anything is timed. Goals, one thread and 64 queries or more: for k up to 100 at least
10 times FAISS at 32 bits, 7 at 64, 4 at 128, 2.5 at 256; at 64 bits 3 for k = 1000, 1.5 for 5000 and 0.55 of the
ceiling for 100; with AVX2 twice FAISS for k up to 100; 1e9
pairs/s in histograms.
"""

import argparse
import ctypes
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash import hamming, hamming_numpy
from cibhash.native import hamming as native
from cibhash.native.library import Level, library
from cibhash.relevance import share_label
from cibhash.types import Codes, Ids
from tests.benchmarks import measuring
from tests.benchmarks.clustered_codes import Data, make_data

OURS, FAISS, CEILING = "ours", "faiss", "ceiling"
_SLOW_QUERIES = 4
_PASSES = 2000
_Found = tuple[Ids | None, npt.NDArray[np.int32]]

_CEILING_SOURCE = """
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
uint64_t compare(const uint64_t *codes, size_t count, const uint64_t *queries, size_t passes)
{
    __m512i least[4], query[4];
    for (int a = 0; a < 4; a++) least[a] = _mm512_set1_epi64(99);
    for (size_t pass = 0; pass < passes; pass++) {
        for (int a = 0; a < 4; a++) query[a] = _mm512_set1_epi64((long long)(queries[a] + pass));
        for (size_t i = 0; i < count; i += 8) {
            __m512i code = _mm512_loadu_si512(codes + i);
            for (int a = 0; a < 4; a++)
                least[a] = _mm512_min_epu32(least[a], _mm512_popcnt_epi64(_mm512_xor_si512(code, query[a])));
        }
    }
    __m512i both = _mm512_add_epi64(_mm512_add_epi64(least[0], least[1]), _mm512_add_epi64(least[2], least[3]));
    return (uint64_t)_mm512_reduce_add_epi64(both);
}
"""


class Candidate(NamedTuple):
    """One way to search."""

    search: Callable[[Codes], _Found]
    """Ids, if they are to be compared, and distances."""
    num_queries: int


def main() -> None:
    """Checks, measures and prints."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--count", type=int, nargs="+", default=[1_000_000], help="codes of the database")
    parser.add_argument("--k", type=int, nargs="*", default=[10, 100, 1000, 5000], help="none: histograms only")
    parser.add_argument("--queries", type=int, nargs="+", default=[64])
    parser.add_argument("--no-slow", action="store_true", help="without numpy and usearch")
    parser.add_argument("--no-histogram", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.bits, options.count, options.k, options.queries, options.rounds = [24, 64], [20_000], [10], [8], 2
    faiss.omp_set_num_threads(options.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ceiling = _ceiling(Path(folder))
        for bits in options.bits:
            for count in options.count:
                data = make_data(bits, count, max(options.queries), options.seed)
                for num_queries in options.queries:
                    for k in options.k:
                        rows += _searches(data, num_queries, k, ceiling, options)
                if not options.no_histogram:
                    rows += _histograms(data, options)
    found = library()
    level = "none" if found is None else Level(found.cibhash_level()).name
    checks = {"answers compared": "equal", "library": level}
    versions = {"faiss": faiss.__version__, "usearch": _usearch_version()}
    measuring.report("hamming_search", options, checks, rows, cpu_flags=_cpu_flags(), **versions)


def _candidates(data: Data, num_queries: int, k: int, options: argparse.Namespace) -> dict[str, Candidate]:
    database = data.database
    slow = min(_SLOW_QUERIES, num_queries)

    def ours(queries: Codes) -> _Found:
        found = hamming.search(queries, database, k, threads=options.threads)
        return found.ids, found.distances

    def at_level(level: Level, queries: Codes) -> _Found:
        found = native.search(queries, database, k, level)
        measuring.require(found is not None, "the library searches")
        assert found is not None
        return found

    candidates = {OURS: Candidate(ours, num_queries)}
    available = library()
    for level in (Level.AVX2, Level.PORTABLE) if available is not None and options.threads == 1 else ():
        if level < available.cibhash_level():
            candidates[f"{OURS}, {level.name}"] = Candidate(partial(at_level, level), num_queries)
    for mode, use_heap in {"counting": False, "heap": True}.items():
        index = faiss.IndexBinaryFlat(8 * database.shape[1])
        index.add(database)
        index.use_heap = use_heap
        candidates[f"{FAISS} {mode}"] = Candidate(
            lambda queries, index=index: (None, index.search(queries, k)[0]), num_queries
        )
    if options.no_slow:
        return candidates
    if _usearch_version() is not None:
        candidates["usearch"] = Candidate(partial(_by_usearch, database, k, options.threads), slow)
    candidates["numpy"] = Candidate(lambda queries: hamming_numpy.search(queries, database, k), slow)
    return candidates


def _usearch_version() -> str | None:
    """It is not installed with the project."""
    return importlib.metadata.version("usearch") if importlib.util.find_spec("usearch") is not None else None


def _by_usearch(database: Codes, k: int, threads: int, queries: Codes) -> _Found:
    """Packed bytes are bits to it; its order among equal distances is its own."""
    from usearch.index import MetricKind, search

    found = search(database, queries, k, MetricKind.Hamming, exact=True, threads=threads)
    return None, np.asarray(found.distances).astype(np.int32).reshape(len(queries), k)


def _searches(
    data: Data, num_queries: int, k: int, ceiling: Callable[[], float] | None, options: argparse.Namespace
) -> list[measuring.Row]:
    bits, count = 8 * data.database.shape[1], len(data.database)
    candidates = _candidates(data, num_queries, k, options)
    expected_ids, expected = candidates[OURS].search(data.queries[:num_queries])
    assert expected_ids is not None
    runs = {}
    for name, (search, size) in candidates.items():
        queries = data.queries[:size]
        ids, distances = search(queries)
        measuring.require(np.array_equal(distances, expected[:size]), f"{name} finds ours at {bits} bits, k = {k}")
        measuring.require(ids is None or np.array_equal(ids, expected_ids[:size]), f"{name} finds our ids, k = {k}")
        runs[name] = measuring.clocked(partial(search, queries), options, size * count)
    if ceiling is not None:
        runs[CEILING] = ceiling
    times = measuring.interleaved(runs, options.rounds)
    both = (times[f"{FAISS} counting"].seconds, times[f"{FAISS} heap"].seconds)
    times[FAISS] = measuring.Times(tuple(map(min, *both)))
    return _rows("search", bits, count, k, {n: c.num_queries for n, c in candidates.items()}, times, FAISS)


def _histograms(data: Data, options: argparse.Namespace) -> list[measuring.Row]:
    bits, count = 8 * data.database.shape[1], len(data.database)
    sizes = {OURS: len(data.queries), "numpy": min(_SLOW_QUERIES, len(data.queries))}
    draws = np.random.default_rng(options.seed)
    rows = []
    for kind, shape in {"single": (), "several": (24,)}.items():
        labels = [
            draws.integers(0, 10, len(codes)) if not shape else draws.random((len(codes), *shape)) < 0.1
            for codes in data
        ]

        def ours(labels: list[npt.NDArray[np.int64]] = labels) -> tuple[Ids, Ids]:
            return hamming.histogram(*data, *labels, threads=options.threads)

        def by_numpy(labels: list[npt.NDArray[np.int64]] = labels) -> tuple[Ids, Ids]:
            few = slice(0, sizes["numpy"])
            relevant = share_label(labels[0][few], labels[1], sizes["numpy"], count)
            return hamming_numpy.histogram(data.queries[few], data.database, relevant)

        same = all(np.array_equal(a[: sizes["numpy"]], b) for a, b in zip(ours(), by_numpy(), strict=True))
        measuring.require(same, f"numpy counts the same at {bits} bits, {kind}")
        works = {OURS: ours, "numpy": by_numpy}
        runs = {name: measuring.clocked(work, options, sizes[name] * count) for name, work in works.items()}
        times = measuring.interleaved(runs, options.rounds)
        rows += _rows(f"histogram, {kind}", bits, count, "-", sizes, times, "numpy")
    return rows


def _rows(
    work: str,
    bits: int,
    count: int,
    k: int | str,
    sizes: dict[str, int],
    times: dict[str, measuring.Times],
    reference: str,
) -> list[measuring.Row]:
    ceiling = times.get(CEILING)
    return [
        {
            "work": work,
            "bits": bits,
            "count": count,
            "k": k,
            "queries": sizes.get(name, "-"),
            "candidate": name,
            "g_per_s": 1e-9 / row["median_s"],
            "g_per_s_best": 1e-9 / row["best_s"],
            "ratio": row["ratio"],
            "ratio_best": row["ratio_best"],
            "of_ceiling": "-" if ceiling is None or bits != 64 else ceiling.median / row["median_s"],
            "of_ceiling_best": "-" if ceiling is None or bits != 64 else ceiling.best / row["best_s"],
        }
        for name, row in measuring.compared(times, reference).items()
        if name != FAISS
    ]


def _cpu_flags() -> list[str]:
    """What the kernels may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.split(":")[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [flag for flag in flags if flag in {"popcnt", "avx2", "asimd"} or flag.startswith("avx512")]


def _ceiling(folder: Path) -> Callable[[], float] | None:
    """Seconds per comparison of 64-bit codes in the first cache with four queries; none without compiler or AVX-512."""
    compiler = shutil.which("cc")
    if compiler is None or "avx512_vpopcntdq" not in _cpu_flags():
        return None
    source, target = folder / "ceiling.c", folder / "ceiling.so"
    source.write_text(_CEILING_SOURCE)
    flags = ("-O3", "-mavx512f", "-mavx512vpopcntdq", "-shared", "-fPIC")
    if subprocess.run([compiler, *flags, str(source), "-o", str(target)], check=False).returncode:
        return None
    compare = ctypes.CDLL(str(target)).compare
    compare.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t)
    compare.restype = ctypes.c_uint64
    draws = np.random.default_rng(0)
    codes, queries = (draws.integers(0, 2**63, count, np.uint64) for count in (2048, 4))
    arguments = (codes.ctypes.data, len(codes), queries.ctypes.data, _PASSES)
    options = argparse.Namespace(device="cpu", clock="wall")

    def run(keep: tuple[object, ...] = (codes, queries)) -> float:
        return measuring.clocked(lambda: compare(*arguments), options, len(codes) * len(queries) * _PASSES)()

    return run


if __name__ == "__main__":
    main()
