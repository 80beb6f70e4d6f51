"""Bits, tie blocks and collisions of a code table, merged over parts."""

import itertools
import math
from collections import Counter
from functools import reduce

import numpy as np
import pytest

from cibhash.code_health import mutual_information
from cluster.evaluation.code_health import code_statistics, merge_statistics
from cluster.evaluation.collisions import collision_sample, collisions, merge_collision_samples
from cluster.evaluation.health import bit_health, health, size_names
from cluster.evaluation.tie_blocks import tie_blocks
from tests import oracles


def codes_with_repeats(num_bytes: int, count: int = 5000) -> np.ndarray:
    codes = np.random.default_rng(num_bytes).integers(256, size=(count, num_bytes), dtype=np.uint8)
    codes[count // 5 : 3 * count // 5] = codes[: 2 * count // 5]
    return codes


@pytest.mark.parametrize("num_bytes", [2, 8, 16])
def test_counts_are_exact_below_the_limit_in_any_split(num_bytes: int) -> None:
    generator, codes = np.random.default_rng(num_bytes), codes_with_repeats(num_bytes)
    labels, ids, lengths = generator.integers(3, size=len(codes)), np.arange(len(codes)), (16, 8 * num_bytes)
    rows = np.array_split(np.arange(len(codes)), 7)
    parts = [code_statistics(codes[one], labels[one], ids[one], lengths) for one in rows]
    merged = reduce(merge_statistics, generator.permutation(np.array(parts, dtype=object)).tolist())
    for bits in lengths:
        sizes = Counter(code.tobytes() for code in codes[:, : bits // 8])
        ties = merged.ties[bits]
        assert ties.num_distinct == len(sizes)
        assert sorted(ties.images.tolist()) == sorted(sizes.values())
        assert ties.largest == max(sizes.values())
        shares = Counter(int(math.log2(size)) for size in sizes.values() for _ in range(size))
        expected = [shares[place] / len(codes) for place in range(max(shares) + 1)]
        assert ties.share_by_size() == pytest.approx(expected)
        assert not ties.is_sampled
    bits_set = np.unpackbits(codes, axis=1, bitorder="little").astype(int)
    np.testing.assert_array_equal(merged.both, bits_set.T @ bits_set)
    np.testing.assert_array_equal(merged.ones, bits_set.sum(axis=0))
    assert merged.count == 5000


def test_mutual_information_equals_the_definition() -> None:
    bits = np.random.default_rng(1).random((60, 8)) < [0.5, 0.5, 0.3, 0.9, 0.5, 0, 1, 0.5]
    bits[:, 1] = ~bits[:, 0]
    found = mutual_information(bits.T.astype(int) @ bits.astype(int), 60)
    for first, second in np.ndindex(8, 8):
        joint = Counter(zip(bits[:, first].tolist(), bits[:, second].tolist(), strict=True))
        ones = [Counter(bits[:, bit].tolist()) for bit in (first, second)]
        expected = sum(
            count / 60 * math.log2(count * 60 / (ones[0][a] * ones[1][b])) for (a, b), count in joint.items()
        )
        assert found[first, second] == pytest.approx(expected, abs=1e-12)


def test_distinct_codes_and_tie_blocks_are_estimated_above_the_limit() -> None:
    numbers = np.arange(200_000, dtype="<u8")
    codes = np.concatenate([numbers, numbers, numbers[:50_000]]).view(np.uint8).reshape(-1, 8)
    labels, ids = np.zeros(len(codes), np.int64), np.arange(len(codes))
    parts = [
        code_statistics(codes[rows], labels[rows], ids[rows], (64,), sketch_codes=4096)
        for rows in np.array_split(np.arange(len(codes)), 3)
    ]
    merged = reduce(merge_statistics, parts).ties[64]
    assert len(merged.values) == 4096
    assert merged.is_sampled
    assert merged.num_distinct == pytest.approx(200_000, rel=0.05)
    whole = tie_blocks(codes, limit=4096)
    assert merged.num_distinct == whole.num_distinct
    np.testing.assert_array_equal(merged.images, whole.images)
    assert merged.share_by_size() == pytest.approx([0, 1])


def labels_of(count: int, *, several: bool) -> np.ndarray:
    generator = np.random.default_rng(3)
    return generator.random((count, 3)) < 0.4 if several else generator.integers(-1, 3, size=count)


@pytest.mark.parametrize("several", [False, True])
def test_collisions_equal_a_loop_over_all_pairs_in_any_split(several: bool) -> None:
    codes = np.random.default_rng(4).integers(12, size=(150, 1), dtype=np.uint8)
    labels, ids = labels_of(150, several=several), np.random.default_rng(5).permutation(150)
    pairs = apart = 0
    for first, second in itertools.combinations(range(150), 2):
        labeled = all(oracles.is_relevant(labels[one], labels[one]) for one in (first, second))
        if codes[first] == codes[second] and labeled:
            pairs += 1
            apart += not oracles.is_relevant(labels[first], labels[second])
    parts = [collision_sample(codes[one], labels[one], ids[one]) for one in np.array_split(np.arange(150), 4)]
    found = collisions(reduce(merge_collision_samples, parts[::-1]))
    assert (found.pairs, found.apart) == (pairs, apart)
    assert found.share == apart / pairs
    assert collisions(collision_sample(codes[:1], labels[:1], ids[:1])).share == 0


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("num_codes", [1, 250])
def test_collisions_of_a_sample_are_those_of_whole_codes_and_the_same_in_any_split(
    several: bool, num_codes: int
) -> None:
    count = 20_000
    codes = np.random.default_rng(6).integers(num_codes, size=(count, 1)).astype(np.uint8)
    labels, ids = labels_of(count, several=several), np.random.default_rng(7).permutation(count)
    exact = collisions(collision_sample(codes, labels, ids))
    whole = collision_sample(codes, labels, ids, limit=2000)
    parts = [collision_sample(codes[one], labels[one], ids[one], limit=2000) for one in np.array_split(ids, 3)]
    merged = reduce(merge_collision_samples, parts)
    assert whole.is_sampled
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(value, getattr(merged, name))
    found = collisions(merged)
    assert 1000 < found.pairs < exact.pairs / 4
    assert found.share == pytest.approx(exact.share, abs=0.02)


def test_results_of_health_say_what_the_codes_are() -> None:
    """Four images: two share a code and differ in label, one bit is constant, one repeats another."""
    bits = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=bool)
    codes = np.packbits(np.pad(bits, ((0, 0), (0, 5))), axis=1, bitorder="little")
    statistics = code_statistics(codes, np.array([0, 1, 0, 0]), np.arange(4), (8,))
    (found,) = health(statistics, (8,))
    assert (found.distinct_share, found.shared_code_share, found.largest_tie_block) == (0.75, 0.5, 2)
    assert found.tie_blocks_by_size == (0.5, 0.5)
    assert (found.collision_pairs, found.collision_share) == (1, 1)
    assert found.constant_bits == 5
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert found.mean_entropy == pytest.approx(3 * entropy / 8)
    assert found.max_mutual_information == pytest.approx(entropy)
    every = bit_health(statistics, 8)
    assert every.ones == (0.75, 0.75, 0.25, 0, 0, 0, 0, 0)
    assert len(every.mutual_information) == 28
    assert every.mutual_information[0] == pytest.approx(entropy, abs=1e-6)
    assert every.mutual_information[-1] == 0
    assert size_names(4) == ["1", "2–3", "4–7", "8–15"]
