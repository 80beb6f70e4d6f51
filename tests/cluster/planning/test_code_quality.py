"""Quality of the lengths of a nested code, against counting by hand."""

import numpy as np
import pytest

from cibhash.binary import prefix
from cibhash.types import Labels
from cluster.planning.code_quality import length_qualities, num_distinct
from tests.benchmarks.clustered_codes import make_data

K = 10


def by_hand(codes: np.ndarray, relevant: np.ndarray, orders: int = 400) -> tuple[float, float]:
    """mAP@K and precision@K of codes against themselves without each query, ties in random order."""
    draws = np.random.default_rng(0)
    bits = np.unpackbits(codes, axis=1).astype(int)
    distance = np.abs(bits[:, None] - bits[None]).sum(axis=2)
    found = []
    for query in range(len(codes)):
        others = np.delete(np.arange(len(codes)), query)
        for _ in range(orders):
            shuffled = draws.permutation(others)
            nearest = shuffled[np.argsort(distance[query, shuffled], kind="stable")][:K]
            hits = relevant[query, nearest]
            precision = np.cumsum(hits) / np.arange(1, K + 1)
            found.append(((precision * hits).sum() / max(hits.sum(), 1), hits.mean()))
    means = np.mean(found, axis=0)
    return float(means[0]), float(means[1])


@pytest.mark.parametrize("several", [False, True])
def test_with_labels_it_is_map_without_the_query_itself(several: bool) -> None:
    codes = make_data(32, 60, 1, 0).database
    draws = np.random.default_rng(1)
    labels: Labels = draws.random((60, 4)) < 0.3 if several else draws.integers(0, 4, 60)
    labels[0] = True if several else 0
    if several:
        labels[:, 3] |= ~labels.any(axis=1)
        relevant = (labels[:, None] & labels[None]).any(axis=2)
    else:
        relevant = labels[:, None] == labels[None]
    found = length_qualities(codes, labels, (8, 32), K, 0)
    for one in found:
        assert one.quality == pytest.approx(by_hand(prefix(codes, one.bits), relevant)[0], abs=0.01)
    best = max(one.quality for one in found)
    assert [one.relative for one in found] == [one.quality / best for one in found]


def test_images_without_a_label_are_no_queries() -> None:
    codes = make_data(32, 200, 1, 0).database
    labels = np.where(np.arange(200) < 100, np.arange(200) % 5, -1)
    (alone,) = length_qualities(codes, labels, (32,), K, 0)
    assert alone.relative == 1.0
    assert 0.0 < alone.quality < 1.0


def test_without_labels_it_is_agreement_with_the_longest_code() -> None:
    codes = make_data(32, 60, 1, 0).database
    bits = np.unpackbits(codes, axis=1).astype(int)
    distance = np.abs(bits[:, None] - bits[None]).sum(axis=2)
    np.fill_diagonal(distance, 99)
    relevant = distance <= np.sort(distance, axis=1)[:, K - 1 : K]
    short, longest = length_qualities(codes, None, (8, 32), K, 0)
    assert longest.quality == longest.relative == 1.0
    assert short.quality == pytest.approx(by_hand(prefix(codes, 8), relevant)[1], abs=0.01)


def test_distinct_codes_and_ties_are_counted() -> None:
    codes = np.repeat(np.arange(50, dtype=np.uint8)[:, None], 4, axis=0)
    codes = np.concatenate([codes, codes], axis=1)
    (one,) = length_qualities(codes, None, (16,), 3, 0)
    assert one.distinct_share == 0.25
    assert one.tie_block == 3.0  # the other three of the same code
    wide = np.random.default_rng(0).integers(0, 2, (500, 17), np.uint8)
    assert num_distinct(wide) == len(set(map(bytes, wide)))
