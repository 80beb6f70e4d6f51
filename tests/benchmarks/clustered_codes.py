"""Packed codes for benchmarks of search, distributed somewhat like those of pictures.

Knows nothing of what searches them.
"""

from typing import NamedTuple

import numpy as np

from cibhash.types import Codes

_CENTERS, _UNIFORM = 1000, 0.2


class Data(NamedTuple):
    """Packed codes."""

    queries: Codes
    database: Codes


def make_data(bits: int, count: int, num_queries: int, seed: int) -> Data:
    """Codes around centers, 15.6 % of their bits flipped, but for a fifth that lie anywhere; queries alike."""
    draws = np.random.default_rng([seed, bits])
    width = bits // 8
    centers = draws.integers(0, 256, (_CENTERS, width), np.uint8)
    made = centers[draws.integers(0, _CENTERS, count + num_queries)]
    for first in range(0, len(made), 2**18):
        part = made[first : first + 2**18]
        noise = [draws.integers(0, 256, part.shape, np.uint8) for _ in range(5)]
        part ^= noise[0] & noise[1] & (noise[2] | (noise[3] & noise[4]))  # 1/4 of 5/8
        anywhere = draws.random(len(part)) < _UNIFORM
        part[anywhere] = noise[0][anywhere]
    return Data(made[count:].copy(), made[:count])


def large_part(number: int, count: int, bits: int) -> Codes:
    """Part of a database of any size, made fast: half anywhere, half around centers that all parts share."""
    width, draws = bits // 8, np.random.default_rng([7, number])
    centers = np.random.default_rng([7, bits]).integers(0, 256, (_CENTERS, width), np.uint8)
    part = np.frombuffer(draws.bytes(count * width), np.uint8).reshape(count, width).copy()
    near = part[: count // 2]
    for _ in range(2):
        near &= np.frombuffer(draws.bytes(near.size), np.uint8).reshape(near.shape)
    near ^= centers[draws.integers(0, _CENTERS, len(near))]
    return part
