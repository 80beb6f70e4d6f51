"""What `cibhash plan` predicts from a sample against what is measured over the corpus: time, memory, recall.

    python tests/benchmarks/planning.py [--clock cpu] [--counts 100000 1000000 4000000] [--kinds flat unique ivf]

The corpus is one of 64-bit codes around centers, for `unique` one in which every code occurs several times; the sample
is its first --sample codes, and calibration sees nothing else. It measures shards of generated codes up to --largest
(ivf: up to a quarter of that), so what is beyond is extrapolated. Shards of generated codes and of the corpus are timed
in the same rounds, one after the other, one thread; medians. Memory is that of a process of its own which loads the
shard from its files and searches it. Ratios are predicted to measured: 1 is right, the goal is .8 to 1.25.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.types import Codes
from cluster.code_tables import packed_array
from cluster.index.approximate_codes import ApproximateCodes, build_structure, to_bytes
from cluster.index.flat_codes import flat_codes
from cluster.index.kinds import IndexKind, KindSpec
from cluster.index.shard_files import put_named, write_shard_files
from cluster.index.structure_files import index_recall, sample_positions
from cluster.manifests import IndexShardEntry, SearchStructure
from cluster.planning.calibration import Probe, Stopwatch, build_probes, fitted, time_rounds
from cluster.planning.generated_codes import GeneratedCodes
from cluster.planning.kind_model import KindModel
from cluster.planning.shard_trial import TrialShards, try_shards
from tests.benchmarks import measuring
from tests.benchmarks.clustered_codes import make_data

_BITS, _PAGE = 64, 4096
_REPEATS = 20
"""A corpus for `unique` has a distinct code for so many of the largest count."""


def main() -> None:
    """Predicts, measures and prints."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000, 1_000_000, 4_000_000])
    parser.add_argument("--kinds", nargs="+", default=["flat", "unique", "ivf"], choices=["flat", "unique", "ivf"])
    parser.add_argument("--sample", type=int, default=50_000, help="codes that the plan is made from")
    parser.add_argument("--largest", type=int, default=1_048_576, help="codes of the largest shard that is calibrated")
    parser.add_argument("--k", type=int, default=100)
    options = parser.parse_args()
    if options.quick:
        options.counts, options.sample, options.largest, options.k, options.rounds = [2000, 4000], 1000, 3000, 10, 2
    rows = []
    for kind in options.kinds:
        corpus = _corpus(kind, max(options.counts), options.seed)
        rows += _compared(kind, corpus, options)
    checks = {"largest calibrated": options.largest, "files loaded": len(rows)}
    measuring.report("planning", options, checks, rows)


def _corpus(kind: IndexKind, count: int, seed: int) -> Codes:
    if kind != "unique":
        return make_data(_BITS, count, 1, seed).database
    different = make_data(_BITS, max(1, count // _REPEATS), 1, seed).database
    return different[np.random.default_rng(seed).integers(0, len(different), count)]


def _compared(kind: IndexKind, corpus: Codes, options: argparse.Namespace) -> list[measuring.Row]:
    generated, k = GeneratedCodes(corpus[: options.sample], options.seed), options.k
    largest = options.largest // 4 if kind == "ivf" else options.largest
    sizes = [largest // 4**power for power in range(3, -1, -1)]
    calibrated = [probe for size in sizes for probe in build_probes(generated.first(size), kind, k)]
    calibrated = [probe for probe in calibrated if probe.spec.parameters in ({}, {"nprobe": 32})]
    with tempfile.TemporaryDirectory(prefix="cibhash-planning-") as folder:
        built = [_built(corpus[:count].copy(), kind, k, str(Path(folder, str(count)))) for count in options.counts]
        time_rounds([*calibrated, *(probe for probe, _, _ in built)], k, Stopwatch(options.clock), options.rounds)
        (model,) = fitted(calibrated, _BITS, k, generated.most_distinct)
        return [_row(model, *one, options) for one in built]


def _built(codes: Codes, kind: IndexKind, k: int, folder: str) -> tuple[Probe, str, IndexShardEntry]:
    """A shard of the corpus: as it is timed, and its files."""
    table = pa.table({"id": pa.array(2 * np.arange(len(codes))), "code": packed_array(codes)})
    entry = write_shard_files(folder, 0, table, _BITS, with_rows=False)
    if kind != "ivf":
        (probe,) = build_probes(codes, kind, k)
        return probe, folder, entry
    spec, queries = KindSpec("ivf"), codes[sample_positions(len(codes))]
    parameters = spec.of_shard(len(codes), _BITS)
    structure = build_structure("ivf", codes, parameters)
    searched = ApproximateCodes(codes, structure, 1)
    recall = index_recall(searched.search(queries, k)[1], flat_codes(codes, 1).search(queries, k)[1])
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "structure.faiss")
        path.write_bytes(to_bytes(structure))
        listed = put_named(folder, 0, path)
    stored = SearchStructure(**listed.model_dump(), parameters=parameters, recall=recall, k=k, num_queries=len(queries))
    probe = Probe(spec, len(codes), len(codes), searched, lambda: None, queries, recall, recall)
    return probe, folder, entry.model_copy(update={"structure": stored})


def _row(
    model: KindModel, probe: Probe, folder: str, entry: IndexShardEntry, options: argparse.Namespace
) -> measuring.Row:
    trial = try_shards(TrialShards(folder, (entry,), _BITS, model.spec.kind, options.k, options.clock))
    count = probe.count
    memory = model.memory(count, contiguous=False).resident
    one_s, block_s = statistics.median(probe.one_s), statistics.median(probe.block_s)
    return {
        "kind": str(model.spec),
        "count": count,
        "beyond": count / model.measured,
        "one_us": 1e6 * one_s,
        "ratio_one": model.one_query_s(count) / one_s,
        "block_us": 1e6 * block_s,
        "ratio_block": model.block_query_s(count) / block_s,
        "memory_mb": trial.resident_bytes / 1e6,
        "ratio_memory": memory / max(trial.resident_bytes, _PAGE),
        "recall": probe.recall,
        "ratio_recall": model.recall_of(count) / probe.recall,
    }


if __name__ == "__main__":
    main()
