"""The exact self-join of a code table within a radius, by both methods, beside FAISS, in seconds of one thread.

    python tests/benchmarks/dedup_speed.py [--count 1000000] [--bits 64] [--radius 0 2 3 6 8] [--sample 4096] [--whole]

Candidates: `multi-index`, tables of shared pieces, run in whole; `all-pairs`, the kernel over the upper triangle;
`faiss`, range_search of IndexBinaryFlat with every code as a query. The last two compare `--sample` codes with all, and
the seconds are extrapolated to the whole (all-pairs: to half of the square; FAISS has none). `--whole` runs all-pairs
in whole too, `whole_s`, and finds its pairs equal. `auto` says what `cibhash dedup` would choose. The search alone:
reading Parquet and writing results is the job's.

Codes are distinct and lie around 1,000 centers, 15.6 % of the bits flipped, a fifth of them anywhere; 1,000 pairs are
planted at each distance from 1 to the radius, and must be found before anything is shown. Goals at a million codes of
64 bits and one thread: multi-index within 30 s up to radius 6, and 20 times FAISS up to radius 3.
"""

import argparse
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.distinct_codes import distinct_codes
from cibhash.near_pairs import NearPairs, PieceTables, all_pairs, best_tables, cheapest, concatenated
from cibhash.types import Codes
from tests.benchmarks import measuring
from tests.benchmarks.clustered_codes import make_data

FAISS = "faiss"
_PLANTED = 1000


def main() -> None:
    """Checks, measures and prints."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="codes")
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--radius", type=int, nargs="+", default=[0, 2, 3, 6, 8])
    parser.add_argument("--sample", type=int, default=4096, help="codes that all-pairs and FAISS compare with all")
    parser.add_argument("--whole", action="store_true", help="run all-pairs in whole and compare what is found")
    parser.set_defaults(rounds=1)
    options = parser.parse_args()
    if options.quick:
        options.count, options.radius, options.sample, options.whole = 20_000, [0, 3], 500, True
    faiss.omp_set_num_threads(1)
    rows, checks = [], {"planted pairs": "found", "all-pairs in whole": "equal" if options.whole else "not run"}
    for radius in options.radius:
        codes, planted = _codes(options, radius)
        rows += _measure(codes, planted, radius, options)
    measuring.report("dedup_speed", options, checks, rows)


def _codes(options: argparse.Namespace, radius: int) -> tuple[Codes, npt.NDArray[np.int64]]:
    """Distinct codes in random order, and the planted pairs of rows."""
    draws = np.random.default_rng([options.seed, radius])
    codes = make_data(options.bits, options.count, 1, options.seed).database
    codes = codes[draws.permutation(distinct_codes(codes).order)]
    rows = draws.permutation(len(codes))[: 2 * _PLANTED * radius].reshape(-1, 2)
    for number, (first, second) in enumerate(rows):
        bits = np.zeros(options.bits, np.uint8)
        bits[draws.permutation(options.bits)[: 1 + number % radius]] = 1
        codes[second] = codes[first] ^ np.packbits(bits, bitorder="little")
    distinct = distinct_codes(codes)
    kept = np.sort(distinct.order[distinct.starts[:-1]])
    number_of = np.full(len(codes), -1)
    number_of[kept] = np.arange(len(kept))
    planted = np.sort(number_of[rows], axis=1)
    return codes[kept], planted[planted[:, 0] >= 0] if len(planted) else planted.reshape(0, 2)


def _measure(
    codes: Codes, planted: npt.NDArray[np.int64], radius: int, options: argparse.Namespace
) -> list[measuring.Row]:
    tables, _ = best_tables(codes, radius)
    assert tables is not None
    pieces, chosen, count, sample = tables, cheapest(codes, radius), len(codes), min(options.sample, len(codes) // 2)
    index = faiss.IndexBinaryFlat(options.bits)
    index.add(codes)
    found: dict[str, NearPairs] = {}

    def by_pieces() -> None:
        found["multi-index"] = _by_tables(codes, pieces)

    def by_comparing() -> None:
        list(all_pairs(codes, slice(0, sample), slice(sample, count), radius))

    work = {
        "multi-index": (by_pieces, 1.0),
        "all-pairs": (by_comparing, sample * (count - sample) / (count * (count - 1) / 2)),
        FAISS: (lambda: index.range_search(codes[:sample], radius + 1), sample / count),
    }
    runs = {name: measuring.clocked(run, options, share) for name, (run, share) in work.items()}  # type: ignore[arg-type]
    times = measuring.interleaved(runs, options.rounds, warmup=0)
    pairs = found["multi-index"]
    keys = pairs.first * count + pairs.second
    measuring.require(
        bool(np.isin(planted[:, 0] * count + planted[:, 1], keys).all()), f"planted pairs are found at radius {radius}"
    )
    measuring.require(len(np.unique(keys)) == len(keys), "no pair is found twice")
    whole_s = "-"
    if options.whole:
        begun = time.perf_counter()
        every = slice(0, count)
        compared = concatenated(list(all_pairs(codes, every, every, radius)))
        whole_s = f"{time.perf_counter() - begun:.3g}"
        same = np.array_equal(np.sort(keys), np.sort(compared.first * count + compared.second))
        measuring.require(same, f"both methods find the same at radius {radius}")
    return [
        {
            "bits": options.bits,
            "codes": count,
            "radius": radius,
            "pairs": len(keys),
            "candidate": name,
            "tables": f"{len(pieces)} of {pieces.num_pieces} pieces" if name == "multi-index" else "-",
            "auto": ("multi-index" if chosen else "all-pairs") == name,
            "seconds": row["median_s"],
            "whole_s": whole_s if name == "all-pairs" else "-",
            "ratio": row["ratio"],
            "ratio_best": row["ratio_best"],
        }
        for name, row in measuring.compared(times, FAISS).items()
    ]


def _by_tables(codes: Codes, tables: PieceTables) -> NearPairs:
    return concatenated([part for table in range(len(tables)) for part in tables.pairs(codes, table)])


if __name__ == "__main__":
    main()
