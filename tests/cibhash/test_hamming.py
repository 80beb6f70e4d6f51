import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cibhash import hamming, hamming_numpy
from cibhash.native import hamming as native
from tests import oracles

PADDING = (2**31 - 1, -1)
PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)


@st.composite
def code_sets(draw):
    """Queries, database and generator; few distinct codes, so that ties and duplicates are the rule."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    width = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 12, 16, 32]))
    num_queries, num_database = draw(st.integers(0, 5)), draw(st.integers(0, 40))
    distinct = rng.integers(0, 256, (draw(st.integers(1, 12)), width), dtype=np.uint8)
    return (
        distinct[rng.integers(0, len(distinct), num_queries)],
        distinct[rng.integers(0, len(distinct), num_database)],
        rng,
    )


@pytest.fixture(params=["compiled", "numpy", "numpy, many blocks"])
def way(request, monkeypatch):
    """Compiled code where it is, and numpy."""
    if request.param != "compiled":
        monkeypatch.setattr(native, "library", lambda: None)
    if request.param == "numpy, many blocks":
        for name, size in (("_QUERY_ROWS", 2), ("_FIRST_ROWS", 2), ("_DATABASE_ROWS", 7), ("_TILE_CELLS", 6)):
            monkeypatch.setattr(hamming_numpy, name, size)


def labels_for(rng, count, kind):
    return rng.integers(-1, 4, count) if kind == "single" else rng.random((count, 70)) < 0.02


@pytest.mark.usefixtures("way")
class TestAgainstTheSlowTwins:
    @PROPERTY
    @given(code_sets())
    def test_distances(self, sets):
        queries, database, _ = sets
        expected = [[oracles.hamming(query, code) for code in database] for query in queries]
        distances = hamming.distances(queries, database)
        assert distances.dtype == np.int32
        np.testing.assert_array_equal(distances, np.reshape(expected, (len(queries), len(database))))

    @PROPERTY
    @given(code_sets(), st.integers(1, 45), st.booleans())
    def test_search(self, sets, k, own_ids):
        queries, database, rng = sets
        ids = rng.permutation(10 * len(database))[: len(database)] if own_ids else None
        neighbors = hamming.search(queries, database, k, ids=ids)
        assert (neighbors.ids.dtype, neighbors.distances.dtype) == (np.int64, np.int32)
        assert neighbors.ids.shape == neighbors.distances.shape == (len(queries), k)
        for query, row_ids, row_distances in zip(queries, *neighbors, strict=True):
            expected = oracles.search(query, database, np.arange(len(database)) if ids is None else ids)[:k]
            expected += [PADDING] * (k - len(expected))
            assert list(zip(row_distances.tolist(), row_ids.tolist(), strict=True)) == expected

    @PROPERTY
    @given(code_sets(), st.integers(0, 260), st.booleans())
    def test_range_search(self, sets, radius, own_ids):
        queries, database, rng = sets
        ids = rng.permutation(10 * len(database))[: len(database)] if own_ids else None
        limits, found_ids, found_distances = hamming.range_search(queries, database, radius, ids=ids)
        assert (limits.dtype, found_ids.dtype, found_distances.dtype) == (np.int64, np.int64, np.int32)
        assert limits[0] == 0
        assert limits[-1] == len(found_ids) == len(found_distances)
        for q, query in enumerate(queries):
            rows = slice(limits[q], limits[q + 1])
            ranking = oracles.search(query, database, np.arange(len(database)) if ids is None else ids)
            expected = [neighbor for neighbor in ranking if neighbor[0] <= radius]
            assert list(zip(found_distances[rows].tolist(), found_ids[rows].tolist(), strict=True)) == expected
        counts = hamming.range_counts(queries, database, radius, threads=2)
        assert (counts.dtype, counts.tolist()) == (np.int64, np.diff(limits).tolist())

    @PROPERTY
    @given(code_sets(), st.sampled_from(["single", "several"]))
    def test_histogram(self, sets, kind):
        queries, database, rng = sets
        query_labels, database_labels = labels_for(rng, len(queries), kind), labels_for(rng, len(database), kind)
        answer = hamming.histogram(queries, database, query_labels, database_labels)
        expected = oracles.histogram(queries, database, query_labels, database_labels)
        for counts, expected_counts in zip(answer, expected, strict=True):
            assert counts.dtype == np.int64
            np.testing.assert_array_equal(counts, expected_counts)


@PROPERTY
@given(code_sets(), st.sampled_from(["single", "several"]), st.integers(0, 40))
def test_histograms_of_the_parts_of_a_database_add_up(sets, kind, cut):
    queries, database, rng = sets
    query_labels, database_labels = labels_for(rng, len(queries), kind), labels_for(rng, len(database), kind)
    whole = hamming.histogram(queries, database, query_labels, database_labels)
    parts = [
        hamming.histogram(queries, database[rows], query_labels, database_labels[rows])
        for rows in (slice(None, cut), slice(cut, None))
    ]
    np.testing.assert_array_equal(whole, np.add(*map(np.array, parts)))


@PROPERTY
@given(code_sets(), st.integers(1, 45))
def test_answers_do_not_depend_on_the_order_of_the_database(sets, k):
    queries, database, rng = sets
    ids, labels, query_labels = (
        np.arange(len(database)),
        labels_for(rng, len(database), "single"),
        np.zeros(len(queries), int),
    )
    shuffled = rng.permutation(len(database))
    pairs = [
        (hamming.search(queries, database, k), hamming.search(queries, database[shuffled], k, ids=ids[shuffled])),
        (
            hamming.range_search(queries, database, k),
            hamming.range_search(queries, database[shuffled], k, ids=ids[shuffled]),
        ),
        (
            hamming.histogram(queries, database, query_labels, labels),
            hamming.histogram(queries, database[shuffled], query_labels, labels[shuffled]),
        ),
    ]
    for ours, permuted in pairs:
        for a, b in zip(ours, permuted, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("way", ["compiled", "numpy"], indirect=True)
@pytest.mark.parametrize("bits", [16, 64, 256])
@pytest.mark.parametrize("k", [1, 100, 30_000])
def test_search_over_real_block_sizes_equals_one_lexicographic_sort(way, bits, k):
    rng = np.random.default_rng(bits + k)
    # Sorted by distance to zero, farthest first: every block improves on all before it.
    database = rng.integers(0, 256, (200_000, bits // 8), dtype=np.uint8)
    database = database[np.argsort(-np.bitwise_count(database).sum(axis=1, dtype=np.int64), kind="stable")]
    queries = np.vstack((np.zeros((1, bits // 8), np.uint8), database[:2]))
    ids = rng.permutation(len(database))
    neighbors = hamming.search(queries, database, k, ids=ids)
    for row, query in enumerate(queries):
        distances = np.bitwise_count(query ^ database).sum(axis=1, dtype=np.int64)
        nearest = np.lexsort((ids, distances))[:k]
        np.testing.assert_array_equal(neighbors.ids[row], ids[nearest])
        np.testing.assert_array_equal(neighbors.distances[row], distances[nearest])


@pytest.mark.usefixtures("way")
def test_the_largest_distance_is_counted():
    zeros, ones = np.zeros((1, 32), np.uint8), np.full((1, 32), 255, np.uint8)
    assert hamming.distances(zeros, ones).tolist() == [[256]]
    assert hamming.search(zeros, ones, 1).distances.tolist() == [[256]]
    total, relevant = hamming.histogram(zeros, ones, np.array([3]), np.array([3]))
    assert total[0, 256] == relevant[0, 256] == total.sum() == relevant.sum() == 1
    assert hamming.range_search(zeros, ones, 255).ids.size == 0
    assert hamming.range_search(zeros, ones, 10**12).ids.tolist() == [0]


@pytest.mark.usefixtures("way")
def test_an_empty_database_gives_padding_and_zeros():
    queries, database = np.zeros((2, 8), np.uint8), np.zeros((0, 8), np.uint8)
    neighbors = hamming.search(queries, database, 3)
    assert neighbors.ids.tolist() == [[-1] * 3] * 2
    assert neighbors.distances.tolist() == [[2**31 - 1] * 3] * 2
    assert hamming.range_search(queries, database, 3).limits.tolist() == [0, 0, 0]
    counts = hamming.histogram(queries, database, np.zeros(2, int), np.zeros(0, int))
    assert [count.shape for count in counts] == [(2, 65)] * 2
    assert not np.any(counts)


@pytest.mark.usefixtures("way")
def test_no_queries_give_empty_answers():
    queries, database = np.zeros((0, 8), np.uint8), np.zeros((5, 8), np.uint8)
    neighbors = hamming.search(queries, database, 7, threads=3)
    assert neighbors.ids.shape == neighbors.distances.shape == (0, 7)
    assert hamming.range_search(queries, database, 3, threads=3).limits.tolist() == [0]
    counts = hamming.histogram(queries, database, np.zeros(0, int), np.zeros(5, int), threads=3)
    assert [count.shape for count in counts] == [(0, 65)] * 2


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("num_queries", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 7, 20, 60, 80])
def test_few_queries_share_the_database(num_queries: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heavy ties across the cuts, ids in any order, k beyond a part and beyond all."""
    monkeypatch.setattr(hamming, "_SHARED_BYTES", 10)
    draws = np.random.default_rng(k)
    database = draws.integers(0, 3, (63, 2), np.uint8)
    ids = draws.permutation(1000)[:63]
    alone = hamming.search(database[:num_queries], database, k, ids=ids)
    for threads in (2, 4, 9):
        shared = hamming.search(database[:num_queries], database, k, ids=ids, threads=threads)
        np.testing.assert_array_equal(shared.ids, alone.ids)
        np.testing.assert_array_equal(shared.distances, alone.distances)


def test_threads_share_the_queries():
    rng = np.random.default_rng(0)
    queries, database = rng.integers(0, 4, (7, 3), dtype=np.uint8), rng.integers(0, 4, (90, 3), dtype=np.uint8)
    ids, labels = rng.permutation(90), (rng.integers(-1, 3, 7), rng.integers(-1, 3, 90))
    for call in (
        lambda threads: hamming.search(queries, database, 99, ids=ids, threads=threads),
        lambda threads: hamming.range_search(queries, database, 2, ids=ids, threads=threads),
        lambda threads: hamming.histogram(queries, database, *labels, threads=threads),
    ):
        for threads in (2, 7, 30):
            for ours, alone in zip(call(threads), call(1), strict=True):
                np.testing.assert_array_equal(ours, alone)


@pytest.mark.usefixtures("way")
def test_image_without_a_label_is_relevant_to_nothing():
    codes = np.zeros((2, 1), np.uint8)
    _, relevant = hamming.histogram(codes, codes, np.array([-1, 2]), np.array([-1, 2]))
    assert relevant[:, 0].tolist() == [0, 1]
    _, relevant = hamming.histogram(codes, codes, np.zeros((2, 3), bool), np.ones((2, 3), bool))
    assert not relevant.any()


CODES = np.zeros((3, 2), np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hamming.search(CODES, CODES, 0), "k is 0"),
        (lambda: hamming.search(CODES, CODES, -2), "k is -2"),
        (lambda: hamming.search(CODES, CODES[:, :1], 1), "16 bits .* 8 bits"),
        (lambda: hamming.search(CODES.astype(np.int64), CODES, 1), "queries has dtype int64"),
        (lambda: hamming.search(CODES, CODES[0], 1), r"database has shape \(2,\)"),
        (lambda: hamming.search(CODES, CODES, 1, ids=np.arange(2)), r"ids are int64 \(2,\)"),
        (lambda: hamming.search(CODES, CODES, 1, ids=np.arange(3.0)), "ids are float64"),
        (lambda: hamming.search(CODES, CODES, 1, threads=0), "threads is 0"),
        (lambda: hamming.range_search(CODES, CODES, 1, threads=-1), "threads is -1"),
        (lambda: hamming.histogram(CODES, CODES, np.zeros(3, int), np.zeros(3, int), threads=0), "threads is 0"),
        (lambda: hamming.range_search(CODES, CODES, -1), "radius is -1"),
        (lambda: hamming.range_search(CODES, CODES[:, :1], 1), "16 bits .* 8 bits"),
        (lambda: hamming.distances(CODES, CODES[:, :1]), "16 bits .* 8 bits"),
        (lambda: hamming.histogram(CODES, CODES, np.zeros(3, int), np.zeros((3, 2), bool)), "both int"),
        (lambda: hamming.histogram(CODES, CODES, np.zeros((3, 4), bool), np.zeros((3, 2), bool)), "one C"),
        (lambda: hamming.histogram(CODES, CODES, np.zeros(3, int), np.zeros(2, int)), "3 and 3 codes"),
        (lambda: hamming.histogram(CODES, CODES, np.zeros(3), np.zeros(3)), "float64"),
        (lambda: hamming.histogram(CODES, CODES, np.zeros((3, 2), int), np.zeros((3, 2), int)), r"int64 \(3, 2\)"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
