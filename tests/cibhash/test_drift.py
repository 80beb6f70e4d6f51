import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cibhash import drift, metrics
from cibhash.types import Codes, Labels
from tests import oracles


def random_codes(rng: np.random.Generator, count: int, pool: int) -> Codes:
    """Of 16 bits, drawn from few, so that distances are tied."""
    return rng.integers(0, 256, (pool, 2), dtype=np.uint8)[rng.integers(0, pool, count)]


def bits_of(codes: Codes) -> np.ndarray:
    return np.unpackbits(codes, axis=1, bitorder="little")


def test_flips_are_counted_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "_ROWS", 7)
    rng = np.random.default_rng(0)
    old, new = random_codes(rng, 40, 9), random_codes(rng, 40, 9)
    found = drift.code_change(old, new)
    differs = bits_of(old) != bits_of(new)
    np.testing.assert_allclose(found.flip_rates, differs.mean(axis=0))
    np.testing.assert_allclose(found.flipped, np.bincount(differs.sum(axis=1), minlength=17) / 40)
    assert found.mean_flipped == pytest.approx(differs.sum(axis=1).mean())
    assert found.unchanged == pytest.approx((~differs.any(axis=1)).mean())
    same = drift.code_change(old, old)
    assert (same.mean_flipped, same.unchanged) == (0.0, 1.0)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 999), count=st.integers(2, 30), pool=st.integers(1, 12), data=st.data())
def test_neighbors_leave_the_query_out(seed: int, count: int, pool: int, data: st.DataObject) -> None:
    """Also where so many codes are equal, or the database is another encoder's, that a query is not among its own."""
    rng = np.random.default_rng(seed)
    old, new = random_codes(rng, count, pool), random_codes(rng, count, pool)
    k = data.draw(st.integers(1, count - 1))
    rows = np.arange(data.draw(st.integers(1, count)))
    found = drift.neighbors_of_some(new[rows], old, rows, k)
    for row in rows.tolist():
        others = [i for i in range(count) if i != row]
        expected = oracles.search(new[row], old[others], others)[:k]
        assert found[row].tolist() == [i for _, i in expected]


def test_overlap() -> None:
    first, second = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 9, 1], [7, 8, 9]])
    assert drift.overlap(first, second).tolist() == [2 / 3, 0.0]
    assert drift.overlap(first, first[:, ::-1]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("several", [False, True])
def test_average_precision_of_others_is_that_of_a_database_without_the_query(several: bool) -> None:
    rng = np.random.default_rng(3)
    count, k = 40, 12
    old, new = random_codes(rng, count, 12), random_codes(rng, count, 12)
    labels: Labels = rng.random((count, 4)) < 0.3 if several else rng.integers(-1, 4, count)
    rows = np.arange(15)
    for queries in (old, new):
        found = drift.average_precision(queries[rows], old, rows, labels, k)
        for row in rows.tolist():
            others = np.arange(count) != row
            total, relevant = np.zeros(17, np.int64), np.zeros(17, np.int64)
            for one in np.flatnonzero(others):
                distance = int((bits_of(queries[[row]]) != bits_of(old[[one]])).sum())
                shared = (labels[row] & labels[one]).any() if several else labels[row] == labels[one] >= 0
                total[distance] += 1
                relevant[distance] += bool(shared)
            expected = metrics.from_histogram(total[None], relevant[None], k=k).map_at_k
            assert found[row] == pytest.approx(expected)


def test_shapes_are_checked() -> None:
    codes = np.zeros((3, 2), np.uint8)
    with pytest.raises(ValueError, match="expected equal shapes"):
        drift.code_change(codes, codes[:2])
    with pytest.raises(ValueError, match="expected equal shapes"):
        drift.code_change(codes[:0], codes[:0])
