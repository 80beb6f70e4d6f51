"""mAP of many queries over a large database: histograms of distances against ranking as published code does.

    python tests/benchmarks/evaluation_speed.py [--count 1000000] [--bits 64] [--classes 24] [--threads 1]

The published way, per query: a float product of codes of -1 and 1, all distances sorted, a product of label vectors,
precision at every hit among the first k. Ours: `cibhash.hamming.histogram` with several labels each and the tie-aware
metrics of the histograms. Seconds are per query; the published way is timed on a few. Both are checked against each
other: ours lies between the best and worst order of ties, and the published order is one of them. Goal: 50 times.
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.hamming import histogram
from cibhash.metrics import from_histogram
from cibhash.types import Codes
from tests.benchmarks import measuring
from tests.benchmarks.clustered_codes import make_data

_OURS, _PUBLISHED = "ours, histograms", "published, sorting"
_Floats = npt.NDArray[np.float32]


def main() -> None:
    """Checks, measures and prints."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--classes", type=int, default=24)
    parser.add_argument("--k", type=int, default=5000)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--few", type=int, default=4, help="queries of the published way (default 4)")
    options = parser.parse_args()
    if options.quick:
        options.count, options.queries, options.few, options.k, options.rounds = 3000, 8, 2, 100, 2
    data = make_data(options.bits, options.count, options.queries, options.seed)
    draws = np.random.default_rng(options.seed)
    labels = draws.random((options.count, options.classes)) < 2 / options.classes
    query_labels = draws.random((options.queries, options.classes)) < 2 / options.classes
    signs, query_signs, float_labels = signs_of(data.database), signs_of(data.queries), labels.astype(np.float32)
    found: dict[str, npt.NDArray[np.float64]] = {}

    def ours() -> None:
        total, relevant = histogram(data.queries, data.database, query_labels, labels, threads=options.threads)
        metrics = from_histogram(total, relevant, k=options.k)
        found[_OURS] = np.array([metrics.map_worst, metrics.map_at_k, metrics.map_best])

    def published() -> None:
        asked = zip(query_signs[: options.few], query_labels[: options.few].astype(np.float32), strict=True)
        found[_PUBLISHED] = np.array([published_precision(q, signs, own, float_labels, options.k) for q, own in asked])

    few = histogram(data.queries[: options.few], data.database, query_labels[: options.few], labels)
    published()
    bounds = from_histogram(*few, k=options.k)
    mean = float(found[_PUBLISHED].mean())
    between = bounds.map_worst - 1e-6 <= mean <= bounds.map_best + 1e-6
    measuring.require(between, "published mAP lies between the bounds")
    candidates = {
        _PUBLISHED: measuring.clocked(published, options, options.few),
        _OURS: measuring.clocked(ours, options, options.queries),
    }
    times = measuring.interleaved(candidates, options.rounds)
    rows = [
        {"candidate": name, "ms_per_query": 1000 * row["median_s"], "ms_best": 1000 * row["best_s"]}
        | {"ratio": row["ratio"], "ratio_best": row["ratio_best"]}
        for name, row in measuring.compared(times, _PUBLISHED).items()
    ]
    checks = {"published mAP": mean, "tie-aware mAP of the same queries": bounds.map_at_k}
    measuring.report("evaluation_speed", options, checks, rows)


def signs_of(codes: Codes) -> _Floats:
    """Codes as -1 and 1, float32 (N, B)."""
    return 2 * np.unpackbits(codes, axis=1, bitorder="little").astype(np.float32) - 1


def published_precision(query: _Floats, database: _Floats, label: _Floats, labels: _Floats, k: int) -> float:
    """Average precision at k of one query, as published code computes it."""
    relevant = labels @ label > 0
    hamming = 0.5 * (database.shape[1] - database @ query)
    nearest = relevant[np.argsort(hamming)][:k]
    places = np.flatnonzero(nearest) + 1.0
    return float((np.arange(1, len(places) + 1) / places).mean()) if len(places) else 0.0


if __name__ == "__main__":
    main()
