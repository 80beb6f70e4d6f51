"""Health of a whole code table from one pass over its parts: balance and redundancy of bits, tie blocks, collisions.

Knows nothing of Ray and files. Statistics of parts merge in any order to the same result, in bounded memory.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cibhash.binary import prefix, unpack_bits
from cibhash.types import Codes, Ids, Labels
from cluster.evaluation.collisions import SAMPLE_IMAGES, CollisionSample, collision_sample, merge_collision_samples
from cluster.evaluation.tie_blocks import SKETCH_CODES, TieBlocks, merge_tie_blocks, tie_blocks

_ROWS = 2**16
"""Few enough for float32 counts to be exact."""


@dataclass(frozen=True)
class CodeStatistics:
    """What one part, or several merged, says of its codes."""

    count: int
    both: npt.NDArray[np.int64]
    """int64 (B, B): codes in which both bits are 1; the diagonal counts the ones of each bit."""
    ties: dict[int, TieBlocks]
    """By code length."""
    labeled: dict[int, CollisionSample]
    """By code length."""

    @property
    def ones(self) -> npt.NDArray[np.int64]:
        """int64 (B,): codes in which the bit is 1."""
        return np.diagonal(self.both)


def code_statistics(
    codes: Codes,
    labels: Labels,
    ids: Ids,
    lengths: tuple[int, ...],
    *,
    sketch_codes: int = SKETCH_CODES,
    sample_images: int = SAMPLE_IMAGES,
) -> CodeStatistics:
    """Counts of one part.

    Args:
        codes: Packed codes, uint8 (N, B/8).
        labels: int (N,), -1 for none, or bool (N, C).
        ids: int64 (N,).
        lengths: Prefix lengths whose tie blocks and collisions are counted.
        sketch_codes: Distinct codes kept per length.
        sample_images: Labeled images kept per length.
    """
    bits = 8 * codes.shape[1]
    both = np.zeros((bits, bits), np.int64)
    for start in range(0, len(codes), _ROWS):
        ones_NB = unpack_bits(codes[start : start + _ROWS]).astype(np.float32)
        both += (ones_NB.T @ ones_NB).astype(np.int64)
    prefixes = {length: prefix(codes, length) for length in lengths}
    return CodeStatistics(
        count=len(codes),
        both=both,
        ties={length: tie_blocks(part, limit=sketch_codes) for length, part in prefixes.items()},
        labeled={length: collision_sample(part, labels, ids, limit=sample_images) for length, part in prefixes.items()},
    )


def merge_statistics(first: CodeStatistics, second: CodeStatistics) -> CodeStatistics:
    """Statistics of both parts together."""
    return CodeStatistics(
        count=first.count + second.count,
        both=first.both + second.both,
        ties={bits: merge_tie_blocks(one, second.ties[bits]) for bits, one in first.ties.items()},
        labeled={bits: merge_collision_samples(one, second.labeled[bits]) for bits, one in first.labeled.items()},
    )
