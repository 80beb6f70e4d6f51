import itertools
import math

import numpy as np
import pytest
import torch

from cibhash.binary import pack_bits, prefix
from cibhash.selection import CheckpointScores, choose, float_neighbors, held_out_map, held_out_nt_xent, sep10
from tests import oracles

NAN = math.nan


def random_codes(seed, num_images, bits):
    return pack_bits(np.random.default_rng(seed).random((num_images, bits)) < 0.5)


def slow_neighbors(features, k):
    """Exact products of the centered rows, compared as fractions of their norms, in sorted order."""
    columns = list(zip(*features, strict=True))
    mean = [math.fsum(column) / len(features) for column in columns]
    centered = [[value - m for value, m in zip(row, mean, strict=True)] for row in features]

    def cosine(x, y):
        norms = math.sqrt(math.fsum(v * v for v in x)) * math.sqrt(math.fsum(v * v for v in y))
        return math.fsum(v * w for v, w in zip(x, y, strict=True)) / norms if norms else 0.0

    return [
        sorted((j for j in range(len(features)) if j != i), key=lambda j: (-cosine(x, centered[j]), j))[:k]
        for i, x in enumerate(centered)
    ]


@pytest.mark.parametrize(("num_images", "num_features", "k"), [(2, 3, 1), (7, 4, 6), (60, 5, 10)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neighbors_equal_a_sort_by_cosine(num_images, num_features, k, dtype):
    features = (3 + np.random.default_rng(k).standard_normal((num_images, num_features))).astype(dtype)
    neighbors = float_neighbors(features, k)
    assert neighbors.dtype == np.int64
    assert neighbors.tolist() == slow_neighbors(features.astype(float).tolist(), k)


@pytest.mark.parametrize("num_groups", [41, 401])
def test_equal_images_come_by_index_also_beyond_a_block(num_groups):
    """Of the columns of a matrix product the last few are summed in another order, so equal ones may differ there."""
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.arange(5 * num_groups) % num_groups)
    neighbors = float_neighbors(rng.standard_normal((num_groups, 64))[groups], 8)
    for image, row in enumerate(neighbors):
        same = np.flatnonzero(groups == groups[image])
        assert row[:4].tolist() == same[same != image].tolist()
        assert row[4:].tolist() == np.flatnonzero(groups == groups[row[4]])[:4].tolist()


def test_neighbors_of_features_without_direction():
    """The mean itself has no direction and equal features have none at all: cosine 0, order of index."""
    assert float_neighbors(np.full((4, 3), 7.0), 2).tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]
    cross = np.array([[1.0, 0], [0, 1.0], [-1.0, 0], [0, -1.0], [0, 0]])
    assert float_neighbors(cross, 4).tolist() == [[1, 3, 4, 2], [0, 2, 4, 3], [1, 3, 4, 0], [0, 2, 4, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("features", "k", "message"),
    [
        (np.zeros((5, 2)), 5, "k is 5, expected 1 to 4"),
        (np.zeros((5, 2)), 0, "k is 0"),
        (np.zeros(5), 1, r"float64 \(5,\)"),
        (np.zeros((5, 2), dtype=int), 1, r"int64 \(5, 2\)"),
        (np.array([[1.0], [np.inf], [0.0]]), 1, "contain inf"),
    ],
)
def test_wrong_features_are_named(features, k, message):
    with pytest.raises(ValueError, match=message):
        float_neighbors(features, k)


def slow_sep10(codes, neighbors):
    bits = 8 * codes.shape[1]
    similarity = {
        (i, j): 1 - oracles.hamming(codes[i], codes[j]) / bits for i, j in itertools.permutations(range(len(codes)), 2)
    }
    mean = math.fsum(similarity.values()) / len(similarity)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in similarity.values()) / len(similarity))
    near = [similarity[i, j] for i, row in enumerate(neighbors.tolist()) for j in row]
    return (math.fsum(near) / len(near) - mean) / std


@pytest.mark.parametrize(("num_images", "bits", "k"), [(4, 8, 1), (12, 16, 10), (30, 64, 10), (25, 128, 3)])
def test_sep10_equals_its_definition_in_loops(num_images, bits, k):
    rng = np.random.default_rng(bits)
    codes, neighbors = random_codes(k, num_images, bits), float_neighbors(rng.standard_normal((num_images, 4)), k)
    assert sep10(codes, neighbors) == pytest.approx(slow_sep10(codes, neighbors), abs=1e-12)


def test_sep10_of_two_opposite_groups():
    """Half of the images have code 0, half its inverse, and each image's neighbors are of its half.

    Of 2m images a share s = (m - 1) / (2m - 1) of the others is at similarity 1, the rest at 0:
    (1 - s) / sqrt(s - s^2).
    """
    m = 12
    codes = np.repeat(np.array([[0, 0], [255, 255]], dtype=np.uint8), m, axis=0)
    half = np.arange(m)
    inside = np.array([[j for j in half if j != i][:10] for i in half])
    share = (m - 1) / (2 * m - 1)
    expected = (1 - share) / math.sqrt(share - share**2)
    assert sep10(codes, np.concatenate((inside, inside + m))) == pytest.approx(expected, abs=1e-12)
    # All others are neighbors: nothing sets them apart.
    everyone = np.array([[j for j in range(2 * m) if j != i] for i in range(2 * m)])
    assert sep10(codes, everyone) == pytest.approx(0, abs=1e-12)


def test_sep10_is_about_zero_for_random_codes_and_more_for_codes_of_the_features():
    features = np.random.default_rng(0).standard_normal((400, 16))
    neighbors = float_neighbors(features)
    assert neighbors.shape == (400, 10)
    assert sep10(random_codes(1, 400, 32), neighbors) == pytest.approx(0, abs=0.05)
    directions = np.random.default_rng(2).standard_normal((16, 32))
    codes = pack_bits(features @ directions > 0)
    assert sep10(codes, neighbors) > 1
    assert sep10(prefix(codes, 8), neighbors) > 0.5


def test_sep10_of_equal_codes_is_undefined():
    neighbors = float_neighbors(np.random.default_rng(0).standard_normal((30, 4)))
    assert math.isnan(sep10(np.full((30, 4), 17, dtype=np.uint8), neighbors))


@pytest.mark.parametrize(
    ("neighbors", "message"),
    [
        (np.zeros((4, 2), dtype=int), r"shape \(4, 2\), expected \(5, K\)"),
        (np.zeros(5, dtype=int), r"shape \(5,\)"),
        (np.zeros((5, 0), dtype=int), r"shape \(5, 0\)"),
        (np.full((5, 2), -1), "-1 to -1, expected 0 to 4"),
        (np.full((5, 2), 5), "5 to 5, expected 0 to 4"),
    ],
)
def test_wrong_neighbors_are_named(neighbors, message):
    with pytest.raises(ValueError, match=message):
        sep10(random_codes(0, 5, 8), neighbors)


def two_views(seed, num_images, bits):
    generator = torch.Generator().manual_seed(seed)
    p_a = torch.rand(num_images, bits, generator=generator)
    return p_a, (p_a + 0.3 * torch.randn(num_images, bits, generator=generator)).clamp(0, 1)


def slow_held_out(view_a, view_b, temperature, batches):
    losses = []
    for rows in batches:
        codes = [
            torch.tensor([[1.0 if value > 0.5 else -1.0 for value in view[i].tolist()] for i in rows]).double()
            for view in (view_a, view_b)
        ]
        losses.append(oracles.nt_xent(*codes, temperature).item())
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize(
    ("num_images", "batch_size", "batches"),
    [
        (12, 4, [range(4), range(4, 8), range(8, 12)]),
        (14, 4, [range(4), range(4, 8), range(8, 12)]),
        (7, 4, [range(4)]),
        (3, 4, [range(3)]),
        (4, 4, [range(4)]),
    ],
)
def test_held_out_nt_xent_is_the_mean_over_full_batches(num_images, batch_size, batches):
    p_a, p_b = two_views(num_images, num_images, 16)
    expected = slow_held_out(p_a, p_b, 0.3, batches)
    assert held_out_nt_xent(p_a, p_b, temperature=0.3, batch_size=batch_size) == pytest.approx(expected, abs=1e-12)


def test_held_out_nt_xent_takes_probabilities_and_bits_alike():
    p_a, p_b = two_views(0, 20, 24)
    settings = {"temperature": 0.2, "batch_size": 8}
    expected = held_out_nt_xent(p_a.requires_grad_(), p_b, **settings)
    bits_a, bits_b = p_a > 0.5, p_b > 0.5
    assert held_out_nt_xent(bits_a, bits_b, **settings) == expected
    assert held_out_nt_xent(bits_a.numpy(), bits_b.numpy().astype(np.uint8), **settings) == expected
    assert held_out_nt_xent(bits_a.float(), p_b.numpy().astype(np.float64), **settings) == expected


def test_held_out_nt_xent_of_collapsed_codes_is_that_of_guessing():
    constant = torch.full((16, 8), 0.9)
    loss = held_out_nt_xent(constant, constant, temperature=0.3, batch_size=8)
    assert loss == pytest.approx(math.log(15), abs=1e-12)
    constant[3, 2] = NAN
    assert math.isnan(held_out_nt_xent(constant, constant, temperature=0.3, batch_size=8))


@pytest.mark.parametrize(
    ("shapes", "settings", "message"),
    [
        (((4, 8), (5, 8)), {}, r"\(4, 8\) and \(5, 8\)"),
        (((1, 8), (1, 8)), {}, "N at least 2"),
        (((8,), (8,)), {}, r"\(8,\)"),
        (((4, 8), (4, 8)), {"batch_size": 1}, "batch_size is 1"),
        (((4, 8), (4, 8)), {"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_wrong_views_are_named(shapes, settings, message):
    with pytest.raises(ValueError, match=message):
        held_out_nt_xent(*(torch.rand(shape) for shape in shapes), **{"temperature": 0.3, "batch_size": 4, **settings})


def slow_held_out_map(codes, labels, k):
    """Every image against a database without it, mean over all orders of ties."""
    values = []
    for i in range(len(codes)):
        total, relevant = [0] * (8 * codes.shape[1] + 1), [0] * (8 * codes.shape[1] + 1)
        for j in range(len(codes)):
            if j != i:
                distance = oracles.hamming(codes[i], codes[j])
                total[distance] += 1
                relevant[distance] += oracles.is_relevant(labels[i], labels[j])
        values.append(float(oracles.enumerate_average_precision(total, relevant, k, "hashing")[0]))
    return math.fsum(values) / len(values)


@pytest.mark.parametrize("k", [1, 4, 100])
@pytest.mark.parametrize("kind", ["single", "several"])
def test_held_out_map_equals_enumeration_without_the_query(k, kind):
    rng = np.random.default_rng(k)
    codes = random_codes(k, 10, 8)
    codes[3:5] = codes[:2]
    labels = rng.integers(-1, 3, 10) if kind == "single" else rng.random((10, 4)) < 0.3
    assert (labels == -1).any() if kind == "single" else (~labels.any(axis=1)).any()
    assert held_out_map(codes, labels, k) == pytest.approx(slow_held_out_map(codes, labels, k), abs=1e-12)


def test_held_out_map_of_codes_that_are_the_labels():
    labels = np.arange(40) % 4
    codes = labels.astype(np.uint8)[:, None]
    assert held_out_map(codes, labels, 9) == 1
    # Every image alone in its class: only the query itself would be relevant.
    assert held_out_map(codes, np.arange(40), 9) == 0


def test_held_out_map_needs_another_image():
    with pytest.raises(ValueError, match="1 codes, expected at least 2"):
        held_out_map(random_codes(0, 1, 8), np.zeros(1, dtype=np.int64), 5)


SCORES = [
    CheckpointScores(sep10=NAN, nt_xent=3.0, oracle=0.4),
    CheckpointScores(sep10=1.5, nt_xent=NAN, oracle=0.6),
    CheckpointScores(sep10=1.2, nt_xent=2.5, oracle=0.5),
    CheckpointScores(sep10=1.5, nt_xent=2.5, oracle=0.3),
    CheckpointScores(sep10=0.9, nt_xent=2.9, oracle=0.6),
    CheckpointScores(sep10=NAN, nt_xent=NAN, oracle=NAN),
]


@pytest.mark.parametrize(("rule", "best"), [("sep10", 3), ("nt_xent", 3), ("oracle", 4), ("last", 5)])
def test_the_best_checkpoint_is_chosen_the_later_of_equals_and_never_nan(rule, best):
    assert choose(SCORES, rule) == best


@pytest.mark.parametrize("order", itertools.permutations((0.3, 0.7, NAN)))
def test_nan_does_not_win_at_any_place(order):
    by_sep10 = choose([CheckpointScores(sep10=value, nt_xent=0.0) for value in order], "sep10")
    by_loss = choose([CheckpointScores(sep10=0.0, nt_xent=value) for value in order], "nt_xent")
    assert (order[by_sep10], order[by_loss]) == (0.7, 0.3)


def test_a_choice_without_scores_is_refused():
    unlabeled = [CheckpointScores(sep10=1.0, nt_xent=2.0)] * 3
    with pytest.raises(ValueError, match="none of 3 checkpoints has the score 'oracle'"):
        choose(unlabeled, "oracle")
    with pytest.raises(ValueError, match="no scores"):
        choose([], "last")
    with pytest.raises(ValueError, match="rule is 'best', expected one of sep10, nt_xent, oracle, last"):
        choose(unlabeled, "best")
