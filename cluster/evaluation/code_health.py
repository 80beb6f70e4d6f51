"""Health of a whole code table from one pass over its parts: distinct codes and the balance of every bit.

Knows nothing of Ray and files. Statistics of parts merge in any order to the same result, in bounded memory: distinct
codes are counted from the smallest hash values, exactly up to `SKETCH_CODES` and to about 0.1 % beyond.
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from cibhash.binary import prefix, unpack_bits
from cibhash.types import Codes

SKETCH_CODES = 2**20
_ROWS = 2**16


@dataclass(frozen=True)
class CodeStatistics:
    """What one part, or several merged, says of its codes."""

    count: int
    ones: npt.NDArray[np.int64]
    """int64 (B,): codes in which the bit is 1."""
    smallest: dict[int, npt.NDArray[np.uint64]]
    """By code length: the smallest distinct hash values, ascending, at most `limit`."""
    limit: int


def code_statistics(codes: Codes, lengths: tuple[int, ...], *, limit: int = SKETCH_CODES) -> CodeStatistics:
    """Counts of one part.

    Args:
        codes: Packed codes, uint8 (N, B/8).
        lengths: Prefix lengths whose distinct codes are counted.
        limit: Hash values kept per length.
    """
    ones = np.zeros(8 * codes.shape[1], np.int64)
    for start in range(0, len(codes), _ROWS):
        ones += unpack_bits(codes[start : start + _ROWS]).sum(axis=0, dtype=np.int64)
    smallest = {bits: np.unique(_hash_values(prefix(codes, bits)))[:limit] for bits in lengths}
    return CodeStatistics(len(codes), ones, smallest, limit)


def merge_statistics(first: CodeStatistics, second: CodeStatistics) -> CodeStatistics:
    """Statistics of both parts together."""
    smallest = {
        bits: np.union1d(values, second.smallest[bits])[: first.limit] for bits, values in first.smallest.items()
    }
    return CodeStatistics(first.count + second.count, first.ones + second.ones, smallest, first.limit)


def num_distinct(statistics: CodeStatistics, bits: int) -> int:
    """Number of distinct codes: exact below the limit, else estimated from the largest hash value kept."""
    values = statistics.smallest[bits]
    if len(values) < statistics.limit:
        return len(values)
    return min(statistics.count, round((len(values) - 1) / (float(values[-1]) / 2.0**64)))


def _hash_values(codes: Codes) -> npt.NDArray[np.uint64]:
    """One well-mixed uint64 per code; for codes up to 64 bits no two are equal."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8)))
    words = np.ascontiguousarray(padded).view("<u8").T
    return reduce(lambda mixed, word: _mix(mixed ^ word), words, np.zeros(len(codes), np.uint64))


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64: a bijection of the 64-bit integers."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
