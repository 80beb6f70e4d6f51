"""The kinds of an index against exact search over all codes: time per query, share of the nearest found, size.

    python tests/benchmarks/index_kinds.py [--count 1000000] [--kinds ivf hnsw ...] [--table-count 100000 1000000 ...]

Candidates at --bits: `flat`, `unique`, and `ivf`, `multihash` and `hnsw` with what they take where nobody says, then
with other values of the parameter that trades time for recall. At 16 bits: `flat`, `unique` and `table` over
--table-count codes. Codes are those of hamming_search.py, queries are alike but not among them; recall counts whatever
is as close as the k-th nearest. Answers of the exact kinds are found equal, and all distances those of the codes,
before anything is timed. `build_s` is what a load or, for the last three kinds, the index job takes once; ratios are to
`flat`. HNSW takes minutes to build at a million codes.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash import hamming
from cibhash.types import Codes
from cluster.index.approximate_codes import ApproximateCodes, build_structure, to_bytes
from cluster.index.bucket_codes import BucketCodes
from cluster.index.flat_codes import flat_codes
from cluster.index.kinds import APPROXIMATE, TABLE_BITS, IndexKind, KindSpec
from cluster.index.searchable_codes import SearchableCodes
from cluster.index.structure_files import index_recall
from cluster.index.unique_codes import UniqueCodes
from tests.benchmarks import measuring
from tests.benchmarks.clustered_codes import Data, make_data

FLAT = "flat"
_SLOW_QUERIES = 8
_OTHERS: dict[IndexKind, tuple[int, ...]] = {"ivf": (4, 16, 64, 256), "multihash": (1,), "hnsw": (64, 128, 512)}
"""Further values of the parameter that trades time for recall."""


class Candidate(NamedTuple):
    """One kind, with parameters."""

    codes: SearchableCodes
    set_up: Callable[[], None]
    """Sets the parameter with which the structure is to be searched; several candidates share one."""
    num_queries: int
    build_s: float
    structure_bytes: int


def main() -> None:
    """Checks, measures and prints."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--count", type=int, default=1_000_000, help="codes of a shard; 0: none")
    parser.add_argument("--table-count", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--kinds", nargs="*", default=["unique", *sorted(APPROXIMATE)])
    options = parser.parse_args()
    if options.quick:
        options.count, options.table_count, options.k, options.queries, options.rounds = 4000, [2000, 4000], 10, 8, 2
    rows = []
    if options.count:
        data = make_data(options.bits, options.count, options.queries, options.seed)
        rows += _measured(data, _at_any_length(data.database, options), options)
    for count in options.table_count:
        data = make_data(TABLE_BITS, count, options.queries, options.seed)
        rows += _measured(data, _at_16_bits(data.database, options), options)
    measuring.report("index_kinds", options, {"answers of exact kinds": "equal", "distances": "exact"}, rows)


def _at_any_length(codes: Codes, options: argparse.Namespace) -> dict[str, Candidate]:
    candidates = _exact(
        {FLAT: flat_codes} | ({"unique": UniqueCodes} if "unique" in options.kinds else {}), codes, options
    )
    for kind in _OTHERS:
        if kind not in options.kinds:
            continue
        parameters = KindSpec(kind).of_shard(len(codes), 8 * codes.shape[1])
        name, default = list(parameters.items())[-1]
        begun = time.perf_counter()
        structure = build_structure(kind, codes, parameters)
        build_s, size = time.perf_counter() - begun, len(to_bytes(structure))
        searched = ApproximateCodes(codes, structure, options.threads)
        owner = structure.hnsw if kind == "hnsw" else structure
        attribute = {"ef_search": "efSearch"}.get(name, name)
        for value in (default, *(other for other in _OTHERS[kind] if other != default)):
            num_queries = min(options.queries, _SLOW_QUERIES) if (kind, value) == ("multihash", 2) else options.queries
            shown = " ".join(f"{key}={value if key == name else chosen}" for key, chosen in parameters.items())
            set_up = partial(setattr, owner, attribute, value)
            candidates[f"{kind} {shown}"] = Candidate(searched, set_up, num_queries, build_s, size)
    return candidates


def _at_16_bits(codes: Codes, options: argparse.Namespace) -> dict[str, Candidate]:
    return _exact(
        {FLAT: flat_codes, "unique": UniqueCodes, "table": lambda codes, _: BucketCodes(codes)}, codes, options
    )


def _exact(
    kinds: dict[str, Callable[[Codes, int], SearchableCodes]], codes: Codes, options: argparse.Namespace
) -> dict[str, Candidate]:
    candidates = {}
    for kind, made in kinds.items():
        begun = time.perf_counter()
        searched = made(codes, options.threads)
        build_s = time.perf_counter() - begun
        candidates[kind] = Candidate(searched, lambda: None, options.queries, build_s, 0)
    return candidates


def _measured(data: Data, candidates: dict[str, Candidate], options: argparse.Namespace) -> list[measuring.Row]:
    expected_positions, expected = candidates[FLAT].codes.search(data.queries, options.k)
    recalls, runs = {}, {}
    for name, candidate in candidates.items():
        queries = data.queries[: candidate.num_queries]
        candidate.set_up()
        positions, distances = candidate.codes.search(queries, options.k)
        recalls[name] = index_recall(distances, expected[: len(queries)])
        for query, found, told in zip(queries, positions, distances, strict=True):
            exact = np.array_equal(hamming.distances(query[None], data.database[found])[0], told)
            measuring.require(exact, f"distances of {name} are those of the codes")
        if name.partition(" ")[0] not in APPROXIMATE:
            measuring.require(np.array_equal(positions, expected_positions), f"{name} finds what {FLAT} finds")
        runs[name] = partial(_seconds, candidate, queries, options)
    times = measuring.interleaved(runs, options.rounds)
    return [
        {
            "candidate": name,
            "bits": 8 * data.database.shape[1],
            "count": len(data.database),
            "k": options.k,
            "queries": candidates[name].num_queries,
            "build_s": candidates[name].build_s,
            "structure_mb": candidates[name].structure_bytes / 1e6,
            "recall": recalls[name],
            "us": 1e6 * row["median_s"],
            "us_best": 1e6 * row["best_s"],
            "ratio": row["ratio"],
            "ratio_best": row["ratio_best"],
        }
        for name, row in measuring.compared(times, FLAT).items()
    ]


def _seconds(candidate: Candidate, queries: Codes, options: argparse.Namespace) -> float:
    candidate.set_up()
    work: Callable[[], Any] = partial(candidate.codes.search, queries, options.k)
    return measuring.clocked(work, options, len(queries))()


if __name__ == "__main__":
    main()
