"""More codes like those of a sample."""

import numpy as np

from cibhash import hamming
from cibhash.types import Codes
from cluster.planning.code_quality import num_distinct
from cluster.planning.generated_codes import GeneratedCodes, unseen
from tests.benchmarks.clustered_codes import make_data


def distances(codes: Codes, k: int) -> float:
    """Mean distance of some codes to their k-th neighbor."""
    return float(hamming.search(codes[:200], codes, k).distances[:, -1].mean())


def test_a_smaller_corpus_is_the_beginning_of_a_larger_one() -> None:
    sample = make_data(64, 2000, 1, 0).database
    grown = GeneratedCodes(sample, 7)
    first = grown.first(1000).copy()
    large = grown.first(200_000)
    assert np.array_equal(large[:1000], first)
    again = GeneratedCodes(sample, 7).first(200_000)
    assert np.array_equal(again, large)
    assert not np.array_equal(GeneratedCodes(sample, 8).first(1000), first)
    assert sorted(map(bytes, large[:2000])) == sorted(map(bytes, sample))


def test_distances_are_like_those_of_a_real_corpus_of_that_size() -> None:
    real = make_data(64, 60_000, 1, 0).database
    made = GeneratedCodes(real[:15_000], 0).first(60_000)
    uniform = np.random.default_rng(0).integers(0, 256, made.shape, np.uint8)
    expected = distances(real, 40)
    assert abs(distances(made, 40) - expected) < 0.7
    assert abs(distances(uniform, 40) - expected) > 1.0


def test_bits_that_never_differ_never_do_and_equal_codes_stay_equal() -> None:
    sample = make_data(64, 1000, 1, 0).database
    sample[:, 3] = 0b1010
    assert set(GeneratedCodes(sample, 0).first(70_000)[:, 3].tolist()) == {0b1010}
    one = np.full((5, 8), 9, np.uint8)
    assert np.all(GeneratedCodes(one, 0).first(100_000) == 9)
    assert GeneratedCodes(one[:1], 0).first(3).tolist() == one[:3].tolist()


def test_distinct_codes_grow_like_those_of_the_corpus() -> None:
    different = make_data(64, 20_000, 1, 0).database
    corpus = different[np.random.default_rng(0).integers(0, len(different), 200_000)]
    made = GeneratedCodes(corpus[:10_000], 0)
    for count in (10_000, 40_000, 200_000):
        assert abs(num_distinct(made.first(count)) / num_distinct(corpus[:count]) - 1) < 0.1
    assert num_distinct(made.first(200_000)) <= made.most_distinct < 22_000


def test_unseen_codes_follow_from_those_seen_once_and_twice() -> None:
    codes = np.array([[1], [1], [2], [2], [2], [3], [3], [4], [5], [6], [7]], np.uint8)
    assert unseen(codes) == (4 / 11, 4**2 // (2 * 2))
    assert unseen(codes[[0, 1, 2, 3]]) == (0.0, 1)
    assert unseen(codes[[0, 2, 5]])[0] == 1.0
    assert unseen(codes[[2, 3, 4, 7, 8, 9]]) == (3 / 6, 3)
