"""Calibration on the spot: every kind is measured over real shards. No clock is asserted."""

import pytest

from cibhash.binary import prefix
from cluster.index.approximate_codes import ApproximateCodes, build_structure
from cluster.index.flat_codes import flat_codes
from cluster.index.kinds import KindSpec
from cluster.index.structure_files import index_recall, sample_positions
from cluster.planning import calibration
from cluster.planning.calibration import ASKED, Stopwatch, build_probes, calibrate, sizes_for
from cluster.planning.code_quality import num_distinct
from cluster.planning.generated_codes import GeneratedCodes
from cluster.planning.kind_model import search_work
from tests.benchmarks.clustered_codes import make_data

SAMPLE = make_data(64, 2000, 1, 0).database


def test_sizes_are_at_least_two_and_never_above_all_items() -> None:
    assert sizes_for(10**9) == calibration.SIZES
    assert sizes_for(70_000) == calibration.SIZES[:2]
    assert sizes_for(20_000) == (5000, 20_000)
    assert sizes_for(1) == (1,)


def test_every_kind_is_measured_at_two_sizes_however_short_the_time() -> None:
    generated = {bits: GeneratedCodes(prefix(SAMPLE, bits), 0) for bits in (16, 64)}
    wanted = [(16, "flat"), (64, "flat"), (16, "unique"), (16, "table"), (64, "ivf"), (64, "multihash")]
    stopwatch = Stopwatch("cpu")
    models = calibrate(generated, wanted, 6000, 10, 1e-6, stopwatch)  # type: ignore[arg-type]
    assert len(models) == 4 + len(ASKED["ivf"]) + len(ASKED["multihash"])
    for one in models:
        assert one.measured == 6000
        assert 0 < one.seconds(6000) <= one.seconds(6000, 64)
        assert 0 < one.recall_of(6000) <= 1
        assert (one.recall is None) == (not one.spec.is_approximate)
    assert stopwatch.contention >= 1.0
    unique = models[2]
    assert unique.inner is models[0]
    assert unique.distinct.at(6000) == pytest.approx(num_distinct(generated[16].first(6000)))
    assert unique.work(6000) < models[0].work(6000) == 6000


def test_more_time_measures_larger_shards() -> None:
    generated = {64: GeneratedCodes(SAMPLE, 0)}
    (one,) = calibrate(generated, [(64, "flat")], calibration.SIZES[2], 10, 60.0, Stopwatch("wall"))
    assert one.measured == calibration.SIZES[2]


def test_recall_is_what_the_index_job_would_record() -> None:
    codes, k = GeneratedCodes(SAMPLE, 0).first(5000), 100
    queries = codes[sample_positions(len(codes))]
    exact = flat_codes(codes, 1).search(queries, k)[1]
    for probe in build_probes(codes, "ivf", k):
        parameters = probe.spec.of_shard(len(codes), 64)
        alone = ApproximateCodes(codes, build_structure("ivf", codes, parameters), 1)
        assert probe.recall == index_recall(alone.search(queries, k)[1], exact)


def test_what_is_answered_exactly_for_want_of_candidates_is_not_believed_of_larger_shards() -> None:
    codes = GeneratedCodes(SAMPLE, 0).first(3000)
    least = build_probes(codes, "multihash", 100)[0]
    assert least.recall > least.unaided


def test_work_follows_the_kind() -> None:
    assert search_work(KindSpec("flat"), 64, 1000, 10, 5) == 1000
    assert search_work(KindSpec("unique"), 64, 1000, 10, 5) == 10
    assert search_work(KindSpec("table"), 16, 1000, 10, 5) == 2**16 * 5 / 1000
    assert search_work(KindSpec("table"), 16, 2, 2, 5) == 2**16
    assert search_work(KindSpec("ivf", {"nlist": 100, "nprobe": 10}), 64, 10**6, 0, 5) == 100 + 10**5
    buckets = 2 * (1 + 8)
    spec = KindSpec("multihash", {"nhash": 2, "hash_bits": 8, "nflip": 1})
    assert search_work(spec, 64, 2560, 0, 5) == buckets * 11
    works = [search_work(KindSpec("hnsw"), 64, n, 0, 5) for n in (1, 10, 10**6)]
    assert works == sorted(works)
