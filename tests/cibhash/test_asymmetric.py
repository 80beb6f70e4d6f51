"""Asymmetric distance: weights, distances, search and histograms against plain loops, and against Hamming distance."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cibhash import asymmetric, hamming
from cibhash.asymmetric import LEVELS, MAX_BITS, query_weights
from cibhash.binary import pack_bits
from cibhash.metrics import from_histogram
from tests import oracles

PADDING = (2**31 - 1, -1)
PROPERTY = settings(derandomize=True, deadline=None, max_examples=40)


@st.composite
def weighted_sets(draw):
    """Weights, query codes, database codes and generator; few distinct weights and codes, so that ties are the rule."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bits = draw(st.sampled_from([8, 16, 24, 64, 128]))
    num_queries, num_database = draw(st.integers(0, 5)), draw(st.integers(0, 40))
    logits = rng.choice([-3.0, -1.0, -0.25, 0.0, 0.25, 1.0], (num_queries, bits))
    distinct = rng.random((draw(st.integers(1, 12)), bits)) < 0.5
    database = pack_bits(distinct[rng.integers(0, len(distinct), num_database)])
    return query_weights(logits, bits), pack_bits(logits > 0), database, rng


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request, monkeypatch):
    if request.param == "many blocks":
        monkeypatch.setattr(asymmetric, "_QUERY_ROWS", 2)
        monkeypatch.setattr(asymmetric, "_DATABASE_ROWS", 7)


def labels_for(rng, count, kind):
    return rng.integers(-1, 4, count) if kind == "single" else rng.random((count, 70)) < 0.02


def bit(code, j):
    return int(code[j // 8]) >> (j % 8) & 1


def distance(weights, query, code):
    return sum(int(w) for j, w in enumerate(weights) if bit(query, j) != bit(code, j))


def ranking(weights, query, database, ids):
    """The whole database as (distance, id), in order."""
    return sorted((distance(weights, query, code), int(one)) for code, one in zip(database, ids, strict=True))


@pytest.mark.usefixtures("blocks")
class TestAgainstTheSlowTwins:
    @PROPERTY
    @given(weighted_sets())
    def test_distances(self, sets):
        weights, queries, database, _ = sets
        expected = [[distance(w, q, code) for code in database] for w, q in zip(weights, queries, strict=True)]
        found = asymmetric.distances(weights, queries, database)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, np.reshape(expected, (len(queries), len(database))))

    @PROPERTY
    @given(weighted_sets(), st.integers(1, 45), st.booleans())
    def test_search(self, sets, k, own_ids):
        weights, queries, database, rng = sets
        ids = rng.permutation(10 * len(database))[: len(database)] if own_ids else None
        neighbors = asymmetric.search(weights, queries, database, k, ids=ids)
        assert (neighbors.ids.dtype, neighbors.distances.dtype) == (np.int64, np.int32)
        assert neighbors.ids.shape == neighbors.distances.shape == (len(queries), k)
        for w, query, row_ids, row_distances in zip(weights, queries, *neighbors, strict=True):
            expected = ranking(w, query, database, np.arange(len(database)) if ids is None else ids)[:k]
            expected += [PADDING] * (k - len(expected))
            assert list(zip(row_distances.tolist(), row_ids.tolist(), strict=True)) == expected

    @PROPERTY
    @given(weighted_sets(), st.sampled_from(["single", "several"]))
    def test_histogram(self, sets, kind):
        weights, queries, database, rng = sets
        query_labels, database_labels = labels_for(rng, len(queries), kind), labels_for(rng, len(database), kind)
        total = np.zeros((len(queries), LEVELS + 1), np.int64)
        relevant = np.zeros_like(total)
        for q, query in enumerate(queries):
            for n, code in enumerate(database):
                d = distance(weights[q], query, code)
                total[q, d] += 1
                relevant[q, d] += oracles.is_relevant(query_labels[q], database_labels[n])
        found = asymmetric.histogram(weights, queries, database, query_labels, database_labels)
        for counts, expected in zip(found, (total, relevant), strict=True):
            assert counts.dtype == np.int64
            np.testing.assert_array_equal(counts, expected)


@PROPERTY
@given(weighted_sets(), st.sampled_from(["single", "several"]), st.integers(0, 40))
def test_histograms_of_the_parts_of_a_database_add_up(sets, kind, cut):
    weights, queries, database, rng = sets
    query_labels, database_labels = labels_for(rng, len(queries), kind), labels_for(rng, len(database), kind)
    whole = asymmetric.histogram(weights, queries, database, query_labels, database_labels)
    parts = [
        asymmetric.histogram(weights, queries, database[rows], query_labels, database_labels[rows])
        for rows in (slice(None, cut), slice(cut, None))
    ]
    np.testing.assert_array_equal(whole, np.add(*map(np.array, parts)))


@pytest.mark.parametrize("bits", [8, 16, 64, MAX_BITS])
def test_weights_equal_exact_arithmetic(bits):
    logits = np.random.default_rng(bits).standard_normal((20, bits + 8)).astype(np.float32)
    weights = query_weights(logits, bits)
    assert (weights.dtype, weights.shape) == (np.int32, (20, bits))
    for row, found in zip(logits.tolist(), weights.tolist(), strict=True):
        sizes = [abs(Fraction(value)) for value in row[:bits]]
        scale = (LEVELS - Fraction(bits, 2)) / sum(sizes)
        assert found == [round(size * scale) for size in sizes]


@PROPERTY
@given(
    st.sampled_from([8, 64, 256, MAX_BITS]),
    st.integers(0, 2**32),
    st.sampled_from([1e-320, 1e-30, 1.0, 1e30, 1e306]),
    st.sampled_from(["normal", "two sizes", "heavy tail", "mostly zero"]),
)
def test_weights_never_exceed_the_levels_and_follow_the_size_of_the_logits(bits, seed, scale, kind):
    rng = np.random.default_rng(seed)
    sizes = {
        "normal": rng.standard_normal((4, bits)),
        "two sizes": rng.choice([0.5 + 1e-9, 1.5 + 1e-9, rng.random()], (4, bits)),
        "heavy tail": np.minimum(np.exp(3 * rng.standard_normal((4, bits))), 100),
        "mostly zero": rng.standard_normal((4, bits)) * (rng.random((4, bits)) < 0.05),
    }[kind]
    logits = sizes * scale
    weights = query_weights(logits, bits)
    assert weights.min() >= 0
    assert weights.sum(axis=1).max() <= LEVELS
    for row, size in zip(weights, np.abs(logits), strict=True):
        assert (np.diff(row[np.argsort(size)]) >= 0).all()
        assert row.sum() > 0


def test_as_many_halves_as_can_be_rounded_up_stay_within_the_levels():
    """Shares just above n + 1/2 all round up: half a level per bit, all that the scale leaves free."""
    for bits in range(8, MAX_BITS + 1, 8):
        room = LEVELS - bits / 2
        halves = np.full(bits, 0.5 + 1e-9)
        halves[0] = room - halves[1:].sum()
        weights = query_weights(halves[None], bits)
        assert weights[0, 1:].tolist() == [1] * (bits - 1)
        assert weights.sum() <= LEVELS


@pytest.mark.parametrize("bits", [8, 24, 64, 128, MAX_BITS])
@pytest.mark.parametrize("size", [0.0, 1.0, 3e-39, 1e38])
def test_logits_of_equal_size_give_the_order_of_hamming_distance(bits, size):
    rng = np.random.default_rng(bits)
    logits = np.where(rng.random((6, bits)) < 0.5, -size, size).astype(np.float32)
    queries = pack_bits(rng.random((6, bits)) < 0.5) if size == 0 else pack_bits(logits > 0)
    database = rng.integers(0, 256, (300, bits // 8), dtype=np.uint8)
    weights = query_weights(logits, bits)
    step = int(weights[0, 0])
    assert step >= 1
    np.testing.assert_array_equal(
        asymmetric.distances(weights, queries, database), step * hamming.distances(queries, database)
    )
    ids = rng.permutation(1000)[:300]
    ours, plain = (
        asymmetric.search(weights, queries, database, 50, ids=ids),
        hamming.search(queries, database, 50, ids=ids),
    )
    np.testing.assert_array_equal(ours.ids, plain.ids)
    labels = rng.integers(3, size=306)
    pair = queries, database, labels[:6], labels[6:]
    weighted = from_histogram(*asymmetric.histogram(weights, *pair), k=40)
    expected = from_histogram(*hamming.histogram(*pair), k=40)
    for name in ("map_at_k", "map_best", "map_worst", "precision_at_k", "recall_at_k", "median_tie_block"):
        assert getattr(weighted, name) == pytest.approx(getattr(expected, name), abs=1e-12)


def test_order_is_that_of_the_score_where_weights_are_exact():
    """Integer logits whose sizes add up to the scale are their own weights; larger scores are nearer."""
    rng = np.random.default_rng(3)
    sizes = rng.multinomial(LEVELS - 8, np.full(16, 1 / 16), size=5)
    logits = np.where(rng.random((5, 16)) < 0.5, -sizes, sizes).astype(np.float32)
    database = rng.integers(0, 256, (200, 2), dtype=np.uint8)
    weights = query_weights(logits, 16)
    np.testing.assert_array_equal(weights, sizes)
    found = asymmetric.search(weights, pack_bits(logits > 0), database, 200)
    for row, ids in zip(logits.tolist(), found.ids.tolist(), strict=True):
        scores = [sum(value * (2 * bit(code, j) - 1) for j, value in enumerate(row)) for code in database]
        assert ids == sorted(range(200), key=lambda n: (-scores[n], n))


def test_distance_is_the_score_up_to_the_rounding_of_the_bits_that_differ():
    rng = np.random.default_rng(4)
    logits = rng.standard_normal((5, 64))
    database = rng.integers(0, 256, (100, 8), dtype=np.uint8)
    queries = pack_bits(logits > 0)
    found = asymmetric.distances(query_weights(logits, 64), queries, database)
    differing = hamming.distances(queries, database)
    for q, row in enumerate(logits.tolist()):
        total = sum(map(abs, row))
        for n, code in enumerate(database):
            score = sum(value * (2 * bit(code, j) - 1) for j, value in enumerate(row))
            assert abs(found[q, n] - (total - score) / 2 * (LEVELS - 32) / total) <= differing[q, n] / 2 + 1e-9


def test_weights_of_a_prefix_are_those_of_a_shorter_code():
    logits = np.random.default_rng(5).standard_normal((3, 64)).astype(np.float32)
    np.testing.assert_array_equal(query_weights(logits, 16), query_weights(logits[:, :16].copy(), 16))
    rows = [query_weights(logits[n : n + 1], 16)[0] for n in range(3)]
    np.testing.assert_array_equal(query_weights(np.asfortranarray(logits), 16), rows)


def test_average_precision_equals_full_enumeration():
    rng = np.random.default_rng(6)
    logits = rng.choice([-2.0, -1.0, 1.0], (12, 8))
    database, labels = rng.integers(0, 256, (9, 1), dtype=np.uint8), rng.integers(2, size=21)
    total, relevant = asymmetric.histogram(
        query_weights(logits, 8), pack_bits(logits > 0), database, labels[:12], labels[12:]
    )
    expected = []
    for items, hits in zip(total, relevant, strict=True):
        groups = np.flatnonzero(items)
        expected.append(
            oracles.enumerate_average_precision(items[groups].tolist(), hits[groups].tolist(), 5, "hashing")
        )
    found = from_histogram(total, relevant, k=5)
    assert max(total.max(axis=1)) > 1
    np.testing.assert_allclose(found.average_precision, [float(mean) for mean, _, _ in expected], atol=1e-12)


def test_the_farthest_pair_has_the_sum_of_the_weights():
    logits = np.zeros((1, 8))
    logits[0, 3] = 2.0
    weights = query_weights(logits, 8)
    assert weights.tolist() == [[0, 0, 0, LEVELS - 4, 0, 0, 0, 0]]
    everything = np.array([[255]], np.uint8)
    full = np.array([[0, 0, 0, LEVELS, 0, 0, 0, 0]], np.int32)
    total, relevant = asymmetric.histogram(full, 0 * everything, everything, np.array([1]), np.array([1]))
    assert total[0, LEVELS] == relevant[0, LEVELS] == total.sum() == relevant.sum() == 1


WEIGHTS, CODES = np.ones((3, 16), np.int32), np.zeros((3, 2), np.uint8)
LABELS = np.zeros(3, int)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: query_weights(np.zeros(16), 16), r"float64 \(16,\)"),
        (lambda: query_weights(np.zeros((2, 16), int), 16), r"int64 \(2, 16\)"),
        (lambda: query_weights(np.zeros((2, 16)), 24), "24 bits were asked of 16 logits"),
        (lambda: query_weights(np.zeros((2, 16)), 12), "code length is 12"),
        (lambda: query_weights(np.zeros((2, 1024)), 520), "at most 512 bits"),
        (lambda: query_weights(np.array([[0.0] * 8, [np.nan] * 8]), 8), "query 1 are not finite"),
        (lambda: query_weights(np.full((1, 8), np.inf, np.float32), 8), "query 0 are not finite"),
        (lambda: asymmetric.distances(WEIGHTS[:2], CODES, CODES), r"\(2, 16\), expected integers of shape \(3, 16\)"),
        (lambda: asymmetric.distances(WEIGHTS[:, :8], CODES, CODES), r"\(3, 8\)"),
        (lambda: asymmetric.distances(WEIGHTS.astype(float), CODES, CODES), "float64"),
        (lambda: asymmetric.distances(-WEIGHTS, CODES, CODES), "weights contain -1"),
        (lambda: asymmetric.distances(64 * WEIGHTS, CODES, CODES), "add up to 1024, expected at most 1023"),
        (lambda: asymmetric.distances(WEIGHTS, CODES, CODES[:, :1]), "16 bits .* 8 bits"),
        (lambda: asymmetric.search(WEIGHTS, CODES, CODES, 0), "k is 0"),
        (lambda: asymmetric.search(WEIGHTS, CODES, CODES, 1, ids=np.arange(2)), r"ids are int64 \(2,\)"),
        (lambda: asymmetric.histogram(WEIGHTS, CODES, CODES, LABELS, LABELS[:2]), "3 and 3 codes"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
