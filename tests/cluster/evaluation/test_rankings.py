"""The best rows per query, by cosine and in stored order, merged over parts and without excluded pairs."""

from functools import reduce

import numpy as np
import pytest

from cibhash.relevance import relevant_at
from cluster.evaluation.rankings import (
    OpenRankings,
    Pairs,
    Ranked,
    average_precision,
    merge_ranked,
    most_similar,
    nearest_codes,
)
from tests import oracles

ROWS, QUERIES, K = 120, 9, 20
PARTS = (slice(70, 120), slice(0, 7), slice(7, 70))


class Case:
    """Tied features and codes, shuffled ids, and pairs of which some are excluded."""

    def __init__(self, *, several: bool = False) -> None:
        generator = np.random.default_rng(0)
        features = generator.integers(-1, 2, size=(ROWS, 4)).astype(np.float64)
        features[:, 0] += 0.5
        self.features = features / np.linalg.norm(features, axis=1, keepdims=True)
        self.codes = generator.integers(256, size=(ROWS, 1), dtype=np.uint8)
        self.ids = generator.permutation(1000)[:ROWS].astype(np.int64)
        self.labels = generator.random((ROWS, 4)) < 0.3 if several else generator.integers(-1, 3, size=ROWS)
        self.excluded = {(query, query) for query in range(0, QUERIES, 2)} | {(0, row) for row in range(40, 80)}

    def ranked(self, kind: str, rows: slice) -> Ranked:
        pairs = [(query, row - rows.start) for query, row in self.excluded if rows.start <= row < rows.stop]
        excluded = Pairs(*(np.array(sorted(pairs), np.int64).reshape(-1, 2).T))
        data = self.features if kind == "cosine" else self.codes
        function = most_similar if kind == "cosine" else nearest_codes
        labels = self.labels[:QUERIES], self.labels[rows]
        return function(data[:QUERIES], data[rows], labels, self.ids[rows], K, excluded)

    def expected(self, kind: str, query: int) -> list[int]:
        """Rows in order."""
        if kind == "cosine":
            scores = -(self.features[:QUERIES] @ self.features.T).astype(np.float32)[query]
        else:
            scores = np.array([oracles.hamming(*np.unpackbits(pair, axis=1)) for pair in self._pairs(query)])
        left = [row for row in range(ROWS) if (query, row) not in self.excluded]
        return sorted(left, key=lambda row: (scores[row], self.ids[row]))[:K]

    def _pairs(self, query: int) -> list[np.ndarray]:
        return [np.stack([self.codes[query], code]) for code in self.codes]


@pytest.mark.parametrize("kind", ["cosine", "hamming"])
@pytest.mark.parametrize("several", [False, True])
def test_best_rows_of_parts_merge_into_those_of_the_whole_with_ties_by_id(kind: str, several: bool) -> None:
    case = Case(several=several)
    whole = case.ranked(kind, slice(0, ROWS))
    merged = reduce(lambda one, other: merge_ranked(one, other, K), [case.ranked(kind, rows) for rows in PARTS])
    for array, other in zip(whole, merged, strict=True):
        np.testing.assert_array_equal(array, other)
    for query in range(QUERIES):
        rows = case.expected(kind, query)
        assert whole.ids[query].tolist() == case.ids[rows].tolist()
        relevant = [oracles.is_relevant(case.labels[query], case.labels[row]) for row in rows]
        assert whole.relevant[query].tolist() == relevant


def test_rankings_stay_open_until_every_part_was_seen() -> None:
    case = Case()
    rankings = OpenRankings(np.full(QUERIES, -1.0), len(PARTS), K)
    for number, rows in enumerate(PARTS):
        assert (rankings.average_precision == -1).all(), number
        rankings.add(slice(0, QUERIES), case.ranked("hamming", rows))
    whole = average_precision(case.ranked("hamming", slice(0, ROWS)).relevant)
    np.testing.assert_array_equal(rankings.average_precision, whole)


def test_a_part_with_nothing_but_excluded_rows_gives_nothing() -> None:
    codes, labels, ids = np.zeros((2, 1), np.uint8), np.zeros(2, np.int64), np.array([5, 6])
    pairs = Pairs(np.array([0, 0]), np.array([0, 1]))
    found = nearest_codes(codes[:1], codes, (labels[:1], labels), ids, 3, pairs)
    assert not found.relevant.any()
    better = Ranked(np.array([[-9.0]], np.float32), np.array([[4]]), np.array([[True]]))
    merged = merge_ranked(found, better, 1)
    assert (merged.ids.tolist(), merged.relevant.tolist()) == ([[4]], [[True]])


def test_average_precision_equals_the_slow_twin() -> None:
    relevant = np.random.default_rng(1).random((40, 15)) < 0.3
    relevant[0] = False
    expected = [float(oracles.average_precision(row.astype(int).tolist(), 15, "hashing")) for row in relevant]
    np.testing.assert_allclose(average_precision(relevant), expected, atol=1e-15)


@pytest.mark.parametrize("several", [False, True])
def test_relevance_at_positions_equals_that_of_all_pairs(monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
    monkeypatch.setattr("cibhash.relevance._GATHERED_LABELS", 50)
    case = Case(several=several)
    positions = np.random.default_rng(2).integers(ROWS, size=(QUERIES, 6))
    found = relevant_at(case.labels[:QUERIES], case.labels, positions)
    for query, row in np.ndindex(positions.shape):
        assert found[query, row] == oracles.is_relevant(case.labels[query], case.labels[positions[query, row]])
