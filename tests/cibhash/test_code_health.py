import math
from collections import Counter

import numpy as np
import pytest
import torch

from cibhash.code_health import CodeHealth, code_health


def random_bits(seed, num_images, bits, share=0.5):
    return np.random.default_rng(seed).random((num_images, bits)) < share


def slow_entropy(outcomes):
    """Entropy of the empirical distribution, in bits."""
    counts = Counter(outcomes)
    return -math.fsum(n / len(outcomes) * math.log2(n / len(outcomes)) for n in counts.values())


def slow_mutual_information(xs, ys):
    """From the definition: the mean of log p(x, y) / (p(x) p(y)) over the sample."""
    joint, first, second = Counter(zip(xs, ys, strict=True)), Counter(xs), Counter(ys)
    n = len(xs)
    return math.fsum(c / n * math.log2(c * n / (first[x] * second[y])) for (x, y), c in joint.items())


def slow_code_health(bits_a, bits_b):
    a, b = ([[int(bit) for bit in row] for row in view] for view in (bits_a, bits_b))
    num_images, bits = len(a), len(a[0])
    columns = [[row[j] for row in a] for j in range(bits)]
    shares = [sum(column) / num_images for column in columns]
    imbalances = [abs(2 * sum(column) - num_images) for column in columns]
    information = [slow_mutual_information(columns[i], columns[j]) for j in range(bits) for i in range(j)]
    codes = Counter(tuple(row) for row in a)

    def agreement(x, y):
        return sum(p == q for p, q in zip(x, y, strict=True)) / bits

    own = [agreement(x, y) for x, y in zip(a, b, strict=True)]
    others = [agreement(a[i], b[j]) for i in range(num_images) for j in range(num_images) if i != j]
    return CodeHealth(
        num_images=num_images,
        bits=bits,
        balance_deviation=math.fsum(abs(share - 0.5) for share in shares) / bits,
        least_balanced_bit=imbalances.index(max(imbalances)),
        least_balanced_share=shares[imbalances.index(max(imbalances))],
        bit_entropy=math.fsum(slow_entropy(column) for column in columns) / bits,
        mean_mutual_information=math.fsum(information) / len(information),
        max_mutual_information=max(information),
        num_dead_bits=sum(len(set(column)) == 1 for column in columns),
        unique_ratio=len(codes) / num_images,
        largest_tie_block=max(codes.values()) / num_images,
        alignment=math.fsum(own) / len(own),
        alignment_gap=math.fsum(own) / len(own) - math.fsum(others) / len(others),
    )


def assert_equal_health(ours, expected):
    for name, value in vars(expected).items():
        if isinstance(value, int):
            assert getattr(ours, name) == value, name
        else:
            assert getattr(ours, name) == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize(
    ("num_images", "bits", "share"), [(2, 8, 0.5), (3, 16, 0.3), (10, 8, 0.5), (40, 8, 0.9), (37, 24, 0.05)]
)
def test_every_statistic_equals_its_definition_in_loops(num_images, bits, share):
    for seed in range(4):
        a = random_bits(seed, num_images, bits, share)
        b = a ^ random_bits(seed + 100, num_images, bits, 0.1)
        assert_equal_health(code_health(a, b), slow_code_health(a, b))


def test_bits_may_be_an_array_or_a_tensor():
    a, b = random_bits(0, 20, 16), random_bits(1, 20, 16)
    expected = code_health(a, b)
    assert code_health(torch.from_numpy(a), torch.from_numpy(b)) == expected
    assert code_health(a.astype(np.uint8), torch.from_numpy(b).float()) == expected


def test_all_codes_of_eight_bits_once():
    """Every bit balanced and every two bits independent, exactly."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    health = code_health(bits, bits)
    assert health == CodeHealth(
        num_images=256,
        bits=8,
        balance_deviation=0.0,
        least_balanced_bit=0,
        least_balanced_share=0.5,
        bit_entropy=1.0,
        mean_mutual_information=0.0,
        max_mutual_information=0.0,
        num_dead_bits=0,
        unique_ratio=1.0,
        largest_tie_block=1 / 256,
        alignment=1.0,
        # Two different codes of the 256 differ in 4 * 256 / 255 bits on average.
        alignment_gap=pytest.approx(128 / 255, abs=1e-15),
    )


def test_constant_codes():
    bits = np.tile(random_bits(0, 1, 16), (50, 1))
    health = code_health(bits, bits)
    assert health.balance_deviation == 0.5
    assert health.least_balanced_share == float(bits[0, 0])
    assert health.bit_entropy == 0
    assert health.mean_mutual_information == health.max_mutual_information == 0
    assert health.num_dead_bits == 16
    assert health.unique_ratio == 1 / 50
    assert health.largest_tie_block == 1
    assert (health.alignment, health.alignment_gap) == (1, 0)


def test_a_repeated_and_an_inverted_bit_share_one_bit_of_information():
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    for last in (bits[:, 2], 1 - bits[:, 2]):
        repeated = np.column_stack((bits[:, :7], last))
        health = code_health(repeated, repeated)
        assert health.max_mutual_information == 1
        assert health.mean_mutual_information == pytest.approx(1 / 28, abs=1e-15)
        assert health.unique_ratio == 0.5
        assert health.largest_tie_block == 2 / 256
    same = np.tile(bits[:, :1], (1, 16))
    assert code_health(same, same).mean_mutual_information == 1


def test_independent_bits_have_the_information_of_chance():
    """The plug-in estimate of zero has mean 1 / (2 N ln 2) to first order."""
    bits = random_bits(3, 2000, 64)
    assert code_health(bits, bits).mean_mutual_information == pytest.approx(0.5 / (2000 * math.log(2)), rel=0.1)


def test_the_least_balanced_bit_is_the_first_of_equals():
    bits = np.zeros((10, 8), dtype=bool)
    for column, num_ones in enumerate((5, 4, 7, 3, 6, 7, 5, 5)):
        bits[:num_ones, column] = True
    health = code_health(bits, bits)
    assert (health.least_balanced_bit, health.least_balanced_share) == (2, 0.7)
    assert health.balance_deviation == pytest.approx((0.1 + 0.2 + 0.2 + 0.1 + 0.2) / 8)


def test_alignment_of_independent_and_of_opposite_views():
    a, b = random_bits(4, 1000, 64), random_bits(5, 1000, 64)
    health = code_health(a, b)
    assert health.alignment == pytest.approx(0.5, abs=0.01)
    assert health.alignment_gap == pytest.approx(0, abs=0.01)
    opposite = code_health(a, ~a)
    assert opposite.alignment == 0
    assert opposite.alignment_gap == pytest.approx(-0.5, abs=0.01)


@pytest.mark.parametrize(
    ("shape_a", "shape_b", "message"),
    [
        ((10, 8), (9, 8), r"\(10, 8\) and \(9, 8\)"),
        ((10, 8), (10, 16), r"\(10, 8\) and \(10, 16\)"),
        ((1, 8), (1, 8), "N at least 2"),
        ((0, 8), (0, 8), "N at least 2"),
        ((10, 12), (10, 12), "12 bits"),
        ((10,), (10,), r"shape \(10,\)"),
    ],
)
def test_wrong_shapes_are_named(shape_a, shape_b, message):
    with pytest.raises(ValueError, match=message):
        code_health(np.zeros(shape_a, dtype=bool), np.zeros(shape_b, dtype=bool))


def test_values_other_than_bits_are_refused():
    with pytest.raises(ValueError, match="expected only 0 and 1"):
        code_health(np.full((4, 8), 0.3), np.zeros((4, 8)))
