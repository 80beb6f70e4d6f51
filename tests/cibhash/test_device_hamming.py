"""Search on a device is `cibhash.hamming` and the slow twins; nothing here needs more than torch, numpy and pytest."""

import math

import numpy as np
import pytest
import torch

from cibhash import device_distances, hamming
from cibhash.device_codes import check_device, device_codes
from cibhash.device_hamming import SCRATCH_BYTES, histogram, range_search, search
from cibhash.errors import ConfigError
from tests import oracles

_NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, _NO_CUDA])]
BUDGETS = [1, 40_000, SCRATCH_BYTES]
"""One pair at a time; blocks that end within the database and the queries; everything at once."""


@pytest.fixture(params=["counted", "float32", "float16"])
def way(request, monkeypatch):
    """Few queries are counted, many multiplied: here all are the one or the other, in either type."""
    monkeypatch.setattr(device_distances, "_PRODUCT_QUERIES", math.inf if request.param == "counted" else 1)
    types = dict.fromkeys(("cpu", "cuda"), getattr(torch, request.param, None))
    monkeypatch.setattr(device_distances, "_PRODUCT_TYPES", types)


def code_sets(seed, bits, num_queries=3, num_database=40, distinct=9):
    """Queries, database and generator; few distinct codes, so that ties and duplicates are the rule."""
    rng = np.random.default_rng([seed, bits])
    pool = rng.integers(0, 256, (distinct, bits // 8), dtype=np.uint8)
    pool[:2] = np.array([[0], [255]])
    return pool[rng.integers(0, distinct, num_queries)], pool[rng.integers(0, distinct, num_database)], rng


def labels_for(rng, count, kind):
    return rng.integers(-1, 4, count) if kind == "single" else rng.random((count, 70)) < 0.02


def assert_equal(found, expected):
    assert type(found) is type(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [8, 16, 40, 64, 72, 256, 512])
@pytest.mark.parametrize("scratch_bytes", BUDGETS)
class TestAgainstHammingAndTheSlowTwins:
    def test_search(self, device, bits, scratch_bytes):
        queries, database, rng = code_sets(1, bits)
        for ids in (None, rng.permutation(400)[:40]):
            held = device_codes(database, device, ids=ids)
            assert (len(held), held.bits, held.words.device.type) == (40, bits, device)
            for k in (1, 7, 40, 45):
                found = search(queries, held, k, scratch_bytes=scratch_bytes)
                assert_equal(found, hamming.search(queries, database, k, ids=ids))
                for query, row_ids, row_distances in zip(queries, *found, strict=True):
                    expected = oracles.search(query, database, np.arange(40) if ids is None else ids)[:k]
                    expected += [(2**31 - 1, -1)] * (k - len(expected))
                    assert list(zip(row_distances.tolist(), row_ids.tolist(), strict=True)) == expected

    def test_range_search(self, device, bits, scratch_bytes):
        queries, database, rng = code_sets(2, bits)
        for ids in (None, rng.permutation(400)[:40]):
            held = device_codes(database, device, ids=ids)
            for radius in sorted({0, 1, bits // 4, bits // 2, bits - 1, bits, 10**12}):
                found = range_search(queries, held, radius, scratch_bytes=scratch_bytes)
                assert_equal(found, hamming.range_search(queries, database, radius, ids=ids))
                for q, query in enumerate(queries):
                    rows = slice(found.limits[q], found.limits[q + 1])
                    ranking = oracles.search(query, database, np.arange(40) if ids is None else ids)
                    pairs = list(zip(found.distances[rows].tolist(), found.ids[rows].tolist(), strict=True))
                    assert pairs == [pair for pair in ranking if pair[0] <= radius]

    @pytest.mark.parametrize("kind", ["single", "several"])
    def test_histogram(self, device, bits, scratch_bytes, kind):
        queries, database, rng = code_sets(3, bits)
        labels = labels_for(rng, 3, kind), labels_for(rng, 40, kind)
        for ids in (None, rng.permutation(400)[:40]):
            held = device_codes(database, device, ids=ids)
            found = histogram(queries, held, *labels, scratch_bytes=scratch_bytes)
            assert_equal(found, hamming.histogram(queries, database, *labels))
            assert_equal(found, oracles.histogram(queries, database, *labels))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scratch_bytes", [2**20, SCRATCH_BYTES])
@pytest.mark.parametrize("bits", [16, 64, 136])
def test_large_databases(device, bits, scratch_bytes):
    """Farthest first, so that every block improves on all before it; and with a few codes alone, all ties."""
    rng = np.random.default_rng(bits)
    database = rng.integers(0, 256, (50_000, bits // 8), dtype=np.uint8)
    database = database[np.argsort(-np.bitwise_count(database).sum(axis=1, dtype=np.int64), kind="stable")]
    queries = np.vstack((np.zeros((1, bits // 8), np.uint8), database[:10]))
    for codes in (database, database[rng.integers(0, 3, len(database))]):
        held = device_codes(codes, device)
        for k in (1, 100, 3000, 50_000)[: 4 if scratch_bytes > 2**20 else 3]:
            few = queries if k < 50_000 else queries[:2]
            found = search(few, held, k, scratch_bytes=scratch_bytes)
            assert_equal(found, hamming.search(few, codes, k))
        found = range_search(queries, held, bits // 4, scratch_bytes=scratch_bytes)
        assert_equal(found, hamming.range_search(queries, codes, bits // 4))
        labels = rng.integers(0, 3, len(queries)), rng.integers(-1, 3, len(codes))
        found = histogram(queries, held, *labels, scratch_bytes=scratch_bytes)
        assert_equal(found, hamming.histogram(queries, codes, *labels))


@pytest.mark.parametrize("device", DEVICES)
def test_more_queries_than_a_block(device):
    queries, database, rng = code_sets(4, 32, num_queries=1100, num_database=130, distinct=200)
    held = device_codes(database, device)
    assert_equal(search(queries, held, 9), hamming.search(queries, database, 9))
    assert_equal(range_search(queries, held, 12), hamming.range_search(queries, database, 12))
    labels = labels_for(rng, 1100, "several"), labels_for(rng, 130, "several")
    assert_equal(histogram(queries, held, *labels), hamming.histogram(queries, database, *labels))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("num_queries", "num_database"), [(0, 5), (2, 0), (0, 0)])
def test_nothing_to_ask_or_to_find(device, num_queries, num_database):
    queries, database = np.zeros((num_queries, 8), np.uint8), np.zeros((num_database, 8), np.uint8)
    for ids in (None, np.arange(num_database)[::-1]):
        held = device_codes(database, device, ids=ids)
        assert_equal(search(queries, held, 3), hamming.search(queries, database, 3))
        assert_equal(range_search(queries, held, 3), hamming.range_search(queries, database, 3))
        for shape in ((), (0,), (3,)):
            labels = [np.zeros((count, *shape), bool if shape else int) for count in (num_queries, num_database)]
            assert_equal(histogram(queries, held, *labels), hamming.histogram(queries, database, *labels))


def test_codes_that_cannot_be_written_are_taken_without_a_warning(recwarn):
    codes = np.arange(48, dtype=np.uint8).reshape(6, 8)
    codes.flags.writeable = False
    labels = np.arange(6)
    labels.flags.writeable = False
    held = device_codes(codes, "cpu")
    assert_equal(search(codes, held, 6), hamming.search(codes, codes, 6))
    assert_equal(histogram(codes, held, labels, labels), hamming.histogram(codes, codes, labels, labels))
    assert not recwarn.list


def test_refused_arguments():
    codes = np.zeros((3, 8), np.uint8)
    held = device_codes(codes, "cpu")
    with pytest.raises(ValueError, match="k is 0"):
        search(codes, held, 0)
    with pytest.raises(ValueError, match="radius is -1"):
        range_search(codes, held, -1)
    with pytest.raises(ValueError, match="scratch_bytes is 0"):
        search(codes, held, 1, scratch_bytes=0)
    with pytest.raises(ValueError, match="queries have 32 bits, the database has 64 bits"):
        range_search(codes[:, :4].copy(), held, 1)
    with pytest.raises(ValueError, match="but there are 3 and 3 codes"):
        histogram(codes, held, np.zeros(2, int), np.zeros(3, int))
    with pytest.raises(ValueError, match="codes of 520 bits, expected at most 512"):
        device_codes(np.zeros((1, 65), np.uint8), "cpu")
    with pytest.raises(ValueError, match="ids are"):
        device_codes(codes, "cpu", ids=np.arange(2))
    with pytest.raises(ValueError, match="device 'quantum'"):
        check_device("quantum")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_cuda_device_that_is_not_there_is_refused_in_one_line(device):
    with pytest.raises(ConfigError, match=f"^no CUDA device: {device} was asked for") as refusal:
        device_codes(np.zeros((3, 8), np.uint8), device)
    assert "\n" not in str(refusal.value)


@pytest.mark.gpu
@_NO_CUDA
def test_a_number_beyond_the_cuda_devices_is_refused():
    with pytest.raises(ConfigError, match=r"^no CUDA device: cuda:99 was asked for, torch sees"):
        device_codes(np.zeros((3, 8), np.uint8), "cuda:99")


@pytest.mark.gpu
@_NO_CUDA
@pytest.mark.parametrize("num_queries", [1, 64])
@pytest.mark.parametrize("k", [10, 5000])
def test_scratch_stays_within_the_budget(num_queries, k):
    """Also where every code survives every bound: the nearest come last."""
    rng = np.random.default_rng(0)
    database = rng.integers(0, 256, (2_000_000, 8), dtype=np.uint8)
    database = database[np.argsort(-np.bitwise_count(database).sum(axis=1, dtype=np.int64), kind="stable")]
    queries, labels = np.zeros((num_queries, 8), np.uint8), np.zeros(len(database), int)
    held, budget = device_codes(database, "cuda"), 2**28
    for work in (
        lambda: search(queries, held, k, scratch_bytes=budget),
        lambda: range_search(queries, held, 20, scratch_bytes=budget),
        lambda: histogram(queries, held, np.zeros(num_queries, int), labels, scratch_bytes=budget),
    ):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        # cuBLAS keeps a workspace of its own, and labels are not scratch.
        assert torch.cuda.max_memory_allocated() - before < budget + 2**26 + labels.nbytes
