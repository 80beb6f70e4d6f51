"""Distinct codes and bit balance, merged over parts."""

from functools import reduce

import numpy as np
import pytest

from cluster.evaluation.code_health import code_statistics, merge_statistics, num_distinct


@pytest.mark.parametrize("num_bytes", [2, 8, 16])
def test_distinct_codes_are_exact_below_the_limit_in_any_split(num_bytes: int) -> None:
    generator = np.random.default_rng(num_bytes)
    codes = generator.integers(256, size=(5000, num_bytes), dtype=np.uint8)
    codes[1000:3000] = codes[:2000]
    lengths = (16, 8 * num_bytes)
    parts = [code_statistics(part, lengths) for part in np.array_split(codes, 7)]
    merged = reduce(merge_statistics, generator.permutation(np.array(parts, dtype=object)).tolist())
    for bits in lengths:
        assert num_distinct(merged, bits) == len(np.unique(codes[:, : bits // 8], axis=0))
    bits_set = np.unpackbits(codes, axis=1, bitorder="little").sum(axis=0)
    np.testing.assert_array_equal(merged.ones, bits_set)
    assert merged.count == 5000


def test_distinct_codes_are_estimated_above_the_limit() -> None:
    numbers = np.arange(200_000, dtype="<u8")
    codes = np.concatenate([numbers, numbers]).view(np.uint8).reshape(-1, 8)
    halves = [code_statistics(half, (64,), limit=4096) for half in np.array_split(codes, 2)]
    merged = merge_statistics(*halves)
    assert len(merged.smallest[64]) == 4096
    assert num_distinct(merged, 64) == pytest.approx(200_000, rel=0.05)
    assert num_distinct(merged, 64) == num_distinct(code_statistics(codes, (64,), limit=4096), 64)
