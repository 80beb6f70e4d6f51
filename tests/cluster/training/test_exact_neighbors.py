"""Exact nearest vectors: whatever FAISS proposes, the answer is that of comparing all numbers as integers."""

import itertools

import faiss
import numpy as np
import pytest

from cibhash.errors import ConfigError
from cluster.training.exact_neighbors import Nearest, centered, merge, nearest, unit_length


def _close_vectors(num_vectors: int, columns: int, spread: float, seed: int = 0) -> np.ndarray:
    """Vectors around one another at angles of about `spread`, every seventh a copy of the one before."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal(columns) + spread * rng.standard_normal((num_vectors, columns))
    vectors[6::7] = vectors[5::7][: len(vectors[6::7])]
    return unit_length(vectors)


def _slow_nearest(queries: np.ndarray, database: np.ndarray, own: list[int], k: int) -> list[list[tuple[int, int]]]:
    """Inner products of whole multiples of 2^-24, in Python's integers of any size."""
    whole_queries, whole_database = ((2**24 * rows.astype(np.float64)).tolist() for rows in (queries, database))
    assert all(value.is_integer() for row in whole_queries + whole_database for value in row)
    answers = []
    for query, place in zip(whole_queries, own, strict=True):
        products = [sum(int(x) * int(y) for x, y in zip(query, row, strict=True)) for row in whole_database]
        order = sorted((-product, row) for row, product in enumerate(products) if row != place)
        answers.append([(row, -product) for product, row in order[:k]])
    return answers


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-5, 0.0])
@pytest.mark.parametrize("k", [1, 5])
def test_what_float32_cannot_tell_apart_is_ordered(spread: float, k: int) -> None:
    vectors = _close_vectors(90, 48, spread)
    found = nearest(vectors, vectors, np.arange(90), k)
    assert found.rows.dtype == np.int64
    for query, answer in enumerate(_slow_nearest(vectors, vectors, list(range(90)), k)):
        assert found.rows[query].tolist() == [row for row, _ in answer]
        assert [2**48 * value for value in found.similarities[query].tolist()] == [product for _, product in answer]


def test_faiss_alone_would_not_do() -> None:
    """Evidence that the cases above need more than the candidates: FAISS leaves out some of the nearest."""
    vectors = _close_vectors(90, 48, 1e-5)
    index = faiss.IndexFlatIP(48)
    index.add(vectors)
    _, proposed = index.search(vectors, 14)
    slow = _slow_nearest(vectors, vectors, list(range(90)), 5)
    assert any({row for row, _ in answer} - set(proposed[query].tolist()) for query, answer in enumerate(slow))


@pytest.mark.parametrize("spread", [1.0, 1e-5])
def test_parts_of_queries_and_database_merge_to_the_whole(spread: float) -> None:
    vectors, own = _close_vectors(120, 32, spread), np.arange(120)
    whole = nearest(vectors, vectors, own, 4)
    for query_cuts, database_cuts in itertools.product(
        [(0, 120), (0, 1, 50, 120)], [(0, 2, 119, 120), (0, 40, 80, 120)]
    ):
        for start, stop in itertools.pairwise(query_cuts):
            merged: Nearest | None = None
            for first, last in reversed(list(itertools.pairwise(database_cuts))):
                part = nearest(vectors[start:stop], vectors[first:last], own[start:stop], 4, first_row=first)
                assert part.rows.shape == (stop - start, min(4, last - first))
                merged = merge(merged, part, 4) if merged else part
            assert merged is not None
            np.testing.assert_array_equal(merged.rows, whole.rows[start:stop])
            np.testing.assert_array_equal(merged.similarities, whole.similarities[start:stop])


def test_unit_vectors_lie_on_the_grid_and_zero_stays() -> None:
    vectors = np.random.default_rng(1).standard_normal((50, 33)) * np.logspace(-3, 3, 50)[:, None]
    vectors[7] = 0
    units = unit_length(vectors)
    assert units.dtype == np.float32
    assert not units[7].any()
    assert (units.astype(np.float64) * 2**24 % 1 == 0).all()
    for row, unit in zip(np.delete(vectors, 7, axis=0), np.delete(units, 7, axis=0), strict=True):
        np.testing.assert_allclose(unit, row / sum(x * x for x in row) ** 0.5, rtol=0, atol=2**-24)


def test_centering_makes_unit_vectors_of_the_differences() -> None:
    units = unit_length(np.random.default_rng(1).standard_normal((20, 5)) + 3)
    mean = units.mean(axis=0, dtype=np.float64)
    for unit, found in zip(units, centered(units, mean), strict=True):
        difference = [float(x) - float(m) for x, m in zip(unit, mean, strict=True)]
        np.testing.assert_allclose(
            found, np.array(difference) / sum(x * x for x in difference) ** 0.5, rtol=0, atol=1e-7
        )
    assert not centered(np.repeat(units[:1], 3, axis=0), units[0].astype(np.float64)).any()


@pytest.mark.skipif(faiss.get_num_gpus() > 0, reason="FAISS sees a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    vectors = _close_vectors(5, 8, 1.0)
    with pytest.raises(ConfigError, match="FAISS sees no GPU"):
        nearest(vectors, vectors, np.arange(5), 2, use_gpu=True)


@pytest.mark.gpu
@pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="FAISS sees no GPU")
@pytest.mark.parametrize("spread", [1.0, 1e-5])
def test_a_gpu_gives_the_same(spread: float) -> None:
    vectors, own = _close_vectors(500, 64, spread), np.arange(500)
    expected, found = nearest(vectors, vectors, own, 5), nearest(vectors, vectors, own, 5, use_gpu=True)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.similarities, expected.similarities)
