"""The whole evaluate job over a large table, its memory, and published code's way beside it.

    python tests/benchmarks/evaluation_job.py [--queries 10000] [--counts 1000000 10000000] [--classes 10]

Codes of 64 bits, half of them around 1,000 centers, one label each drawn at random. Per size of the database: seconds
of the job, Ray's start included, from call to report; the driver's peak memory; and the published way of
`evaluation_speed.py` (a float product, a sort and a product of label vectors per query) on a few queries over the
smallest database, extrapolated to all queries and in proportion to the codes. The peak grows from row to row at most,
for it is of one process. Goal: 50 times.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cluster.config import RayConfig
from cluster.evaluation.evaluate import evaluate
from cluster.evaluation_config import EvaluateConfig
from tests.benchmarks import measuring
from tests.benchmarks.clustered_codes import large_part
from tests.benchmarks.evaluation_speed import published_precision, signs_of
from tests.benchmarks.large_tables import write_large_table
from tests.datasets import published_encoder

_BITS, _OTHER = 64, 10_000


def main() -> None:
    """Writes the tables, measures and prints."""
    parser = measuring.parser(__doc__, one_process=False)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--few", type=int, default=4, help="queries of the published way (default 4)")
    options = parser.parse_args()
    if options.quick:
        options.queries, options.counts, options.k, options.few, options.rounds = 50, [3000, 5000], 100, 2, 1
    per_pair = _published_s(options)
    rows = []
    with tempfile.TemporaryDirectory(prefix="cibhash-evaluation-") as folder:
        encoder = published_encoder(f"{folder}/encoder", bits=(_BITS,))
        queries = write_large_table(
            f"{folder}/queries", options.queries, _BITS, encoder, classes=options.classes, first=_OTHER
        )
        for count in options.counts:
            database = write_large_table(f"{folder}/{count}", count, _BITS, encoder, classes=options.classes)
            config = EvaluateConfig(
                queries=queries,
                database=database,
                output=f"{folder}/out-{count}",
                k=options.k,
                example_queries=0,
                ray=RayConfig(num_cpus=8),
            )
            seconds = []
            for _ in range(options.rounds):
                begun = time.perf_counter()
                found = evaluate(config)
                seconds.append(time.perf_counter() - begun)
            published = per_pair * options.queries * count
            median, best = statistics.median(seconds), min(seconds)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            rows.append(
                {
                    "codes": count,
                    "median_s": median,
                    "g_pairs_per_s": options.queries * count / median / 1e9,
                    "published_s": published,
                    "ratio": published / median,
                    "ratio_best": published / best,
                    "driver_peak_gib": peak / 2**30,
                    "map": found.map_at_k[str(_BITS)],
                }
            )
    measuring.report("evaluation_job", options, {"rows": len(rows)}, rows)


def _published_s(options: argparse.Namespace) -> float:
    """Seconds per pair, median over rounds."""
    count = min(options.counts)
    draws = np.random.default_rng(options.seed)
    labels = draws.integers(0, options.classes, count)
    vectors = np.eye(options.classes, dtype=np.float32)[labels]
    signs = signs_of(large_part(0, count, _BITS))
    seconds = []
    for _ in range(options.rounds):
        begun = time.perf_counter()
        for row in range(options.few):
            published_precision(signs[row], signs, vectors[row], vectors, options.k)
        seconds.append((time.perf_counter() - begun) / options.few)
    return statistics.median(seconds) / count


if __name__ == "__main__":
    main()
