import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cibhash import collapse
from cibhash.code_health import CodeHealth, code_health
from cibhash.collapse import Thresholds, collapse_signals
from cibhash.objective import cibhash_loss

LENGTHS = (8, 16, 32, 64, 128)
DEFAULT = Thresholds()


def signals_of(bits, **settings):
    return collapse_signals(code_health(bits, bits), DEFAULT, **settings)


def batch_signals(bits, thresholds, **settings):
    """As the training loop asks: from how often every bit has its rarer value."""
    share = bits.double().mean(0)
    minority = float(torch.minimum(share, 1 - share).mean()) if len(bits) else 0.0
    return collapse.batch_signals(minority, len(bits), thresholds, **settings)


def biased_bits(rng, num_images, bits):
    """Codes as of an untrained head on uncentered features: the common part of the features biases every bit."""
    common = np.sqrt(0.6) * rng.standard_normal(bits)
    return common + np.sqrt(0.4) * rng.standard_normal((num_images, bits)) > 0


@pytest.mark.parametrize("bits", LENGTHS)
@pytest.mark.parametrize("num_images", [200, 1000])
def test_healthy_and_untrained_codes_raise_no_alarm(bits, num_images):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        balanced, biased = rng.random((num_images, bits)) < 0.5, biased_bits(rng, num_images, bits)
        for codes in (balanced, biased):
            assert signals_of(codes) == ()
            assert batch_signals(torch.from_numpy(codes[:128]), DEFAULT) == ()
        assert code_health(biased, biased).balance_deviation > 0.15


@pytest.mark.parametrize("bits", LENGTHS)
def test_clustered_codes_raise_no_alarm(bits):
    """Ten classes of 100 images, whose codes differ from their class's in one bit of ten."""
    rng = np.random.default_rng(bits)
    classes = rng.permuted(np.arange(10)[:, None] % 2 == np.zeros(bits), axis=0)
    assert signals_of(np.repeat(classes, 100, axis=0) ^ (rng.random((1000, bits)) < 0.1)) == ()


@pytest.mark.parametrize("bits", LENGTHS)
@pytest.mark.parametrize("num_images", [16, 200, 1000])
def test_equal_codes_raise_every_alarm_that_their_number_allows(bits, num_images):
    codes = np.tile(np.random.default_rng(bits).random(bits) < 0.5, (num_images, 1))
    possible = min(num_images, 2**bits)
    signals = signals_of(codes)
    assert signals[0] == "bit entropy 0.000 is below 0.1"
    assert signals[1] == f"{bits} of {bits} bits are dead, above the share 0.5"
    assert signals[-1] == "largest tie block 1.000 is above 0.5"
    if num_images > 50:
        expected = f"unique codes {1 / possible:.3f} (1 of {possible:,} possible) are below 0.02"
        assert signals[2] == expected
    assert len(batch_signals(torch.from_numpy(codes), DEFAULT)) == 1


def test_repeated_bits_raise_an_alarm_though_each_is_balanced():
    rng = np.random.default_rng(0)
    bits = np.tile(rng.random((1000, 1)) < 0.5, (1, 32)) ^ (rng.random((1000, 32)) < 0.01)
    assert code_health(bits, bits).bit_entropy > 0.99
    assert [re.sub(r"[\d.]+", "#", signal) for signal in signals_of(bits)] == [
        "mean mutual information of bits # is above #"
    ]


def test_one_live_bit_of_eight_raises_an_alarm():
    """A collapse seen in training: the others are saturated, so that no gradient revives them."""
    bits = np.zeros((1000, 8), dtype=bool)
    bits[:270, 3] = True
    assert signals_of(bits) == (
        "7 of 8 bits are dead, above the share 0.5",
        "unique codes 0.008 (2 of 256 possible) are below 0.02",
        "largest tie block 0.730 is above 0.5",
    )


HEALTHY = CodeHealth(
    num_images=1000,
    bits=16,
    balance_deviation=0.1,
    least_balanced_bit=0,
    least_balanced_share=0.8,
    bit_entropy=0.9,
    mean_mutual_information=0.05,
    max_mutual_information=1.0,
    num_dead_bits=0,
    unique_ratio=0.4,
    largest_tie_block=0.02,
    alignment=0.8,
    alignment_gap=0.2,
)


@pytest.mark.parametrize(
    ("at_limit", "beyond", "signal"),
    [
        ({"bit_entropy": 0.1}, {"bit_entropy": 0.03}, "bit entropy 0.030 is below 0.1"),
        ({"num_dead_bits": 8}, {"num_dead_bits": 12}, "12 of 16 bits are dead, above the share 0.5"),
        (
            {"unique_ratio": 0.02},
            {"unique_ratio": 0.002},
            "unique codes 0.002 (2 of 1,000 possible) are below 0.02",
        ),
        ({"largest_tie_block": 0.5}, {"largest_tie_block": 0.75}, "largest tie block 0.750 is above 0.5"),
        (
            {"mean_mutual_information": 0.5},
            {"mean_mutual_information": 0.625},
            "mean mutual information of bits 0.625 is above 0.5",
        ),
    ],
)
def test_each_alarm_names_its_value_and_its_limit(at_limit, beyond, signal):
    assert collapse_signals(HEALTHY, DEFAULT) == ()
    assert collapse_signals(replace(HEALTHY, **at_limit), DEFAULT) == ()
    assert collapse_signals(replace(HEALTHY, **beyond), DEFAULT) == (signal,)


def test_the_limit_of_unique_codes_follows_what_is_possible():
    for bits, num_images, fewest in (
        (8, 1000, 6),
        (8, 100, 2),
        (16, 1000, 20),
        (16, 10**6, 1311),
        (128, 10**6, 20_000),
    ):
        for distinct, is_raised in ((fewest - 1, True), (fewest, False)):
            health = replace(HEALTHY, bits=bits, num_images=num_images, unique_ratio=distinct / num_images)
            assert bool(collapse_signals(health, DEFAULT)) == is_raised, (bits, num_images, distinct)


def test_nothing_is_said_of_few_codes_and_of_the_first_steps():
    constant = np.zeros((16, 8), dtype=bool)
    assert signals_of(constant[:15]) == batch_signals(torch.from_numpy(constant[:15]), DEFAULT) == ()
    for step, is_raised in ((0, False), (99, False), (100, True), (5000, True)):
        assert bool(signals_of(constant, step=step)) == is_raised
        assert bool(batch_signals(torch.from_numpy(constant), DEFAULT, step=step)) == is_raised


def slow_minority(bits):
    num_codes, length = len(bits), len(bits[0])
    ones = [sum(int(row[j]) for row in bits) for j in range(length)]
    return sum(min(n, num_codes - n) for n in ones) / (num_codes * length)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.bfloat16])
def test_the_batch_alarm_is_the_share_of_bits_off_the_majority(dtype):
    rng = np.random.default_rng(0)
    majority = rng.random(16) < 0.5
    for share in (0.0, 0.004, 0.008, 0.012, 0.03, 0.3):
        bits = majority ^ (rng.random((400, 16)) < share)
        minority = slow_minority(bits.tolist())
        signals = batch_signals(torch.from_numpy(bits).to(dtype), DEFAULT)
        expected = f"codes of a batch differ in {minority:.4f} of their bits from the most frequent value, below 0.01"
        assert signals == ((expected,) if minority < 0.01 else ())


@pytest.mark.parametrize("bits", LENGTHS)
def test_a_drift_to_constant_bits_is_noticed(bits):
    """Every step another share of the bits' values is stuck at the value of a fixed code."""
    rng = np.random.default_rng(bits)
    constant, codes = rng.random(bits) < 0.5, rng.random((1000, bits)) < 0.5
    first = {}
    for step in range(101):
        drifted = np.where(np.random.default_rng(7).random(codes.shape) < step / 100, constant, codes)
        if signals_of(drifted):
            first.setdefault("slice", step)
        if batch_signals(torch.from_numpy(drifted[:128]), DEFAULT):
            first.setdefault("batch", step)
    assert 80 < first["slice"] <= 98
    assert 95 < first["batch"] <= 100


def clustered_features(seed, num_images):
    """Two noisy views (2, N, D) of points around ten centers, off the origin as features after a ReLU are."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(10, 32, generator=generator)
    images = 0.5 + centers[torch.arange(num_images) % 10] + 0.5 * torch.randn(num_images, 32, generator=generator)
    return images + 0.3 * torch.randn(2, num_images, 32, generator=generator)


def contrast(p_a, p_b):
    return cibhash_loss(p_a, p_b).total


def attract(p_a, p_b):
    """Views alone, without negatives: its best codes are constant."""
    return -(p_a * p_b + (1 - p_a) * (1 - p_b)).log().mean()


def train(loss, bits, num_steps, thresholds):
    """Steps of gradient descent; per step the batch's alarms, and those of a held-out slice."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, bits))
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    held_out = clustered_features(1, 200)
    alarms = []
    for step in range(num_steps):
        probabilities = torch.sigmoid(head(clustered_features(2 + step, 64).flatten(0, 1)))
        p_a, p_b = probabilities.chunk(2)
        in_batch = batch_signals(probabilities > 0.5, thresholds, step=step)
        optimizer.zero_grad()
        loss(p_a, p_b).backward()
        optimizer.step()
        with torch.no_grad():
            bits_a, bits_b = (head(view) > 0 for view in held_out)
        alarms.append((in_batch, collapse_signals(code_health(bits_a, bits_b), thresholds, step=step)))
    return alarms


@pytest.mark.parametrize("bits", [8, 16, 64])
def test_training_raises_no_alarm_at_any_step_and_a_collapse_does_within_few(bits):
    without_warmup = replace(DEFAULT, warmup_steps=0)
    assert all(alarm == ((), ()) for alarm in train(contrast, bits, 60, without_warmup))
    collapse = train(attract, bits, 130, DEFAULT)
    assert all(alarm == ((), ()) for alarm in collapse[: DEFAULT.warmup_steps])
    assert all(in_batch and in_slice for in_batch, in_slice in collapse[DEFAULT.warmup_steps :])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_bit_entropy": -0.1}, "min_bit_entropy is -0.1, expected 0 to 1"),
        ({"max_dead_share": 1.5}, "max_dead_share is 1.5, expected 0 to 1"),
        ({"max_tie_block": float("nan")}, "max_tie_block is nan"),
        ({"min_images": -1}, "min_images is -1, expected at least 0"),
        ({"warmup_steps": -5}, "warmup_steps is -5"),
    ],
)
def test_impossible_limits_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Thresholds(**settings)
