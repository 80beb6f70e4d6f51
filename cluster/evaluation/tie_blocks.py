"""Tie blocks: how many images share each code, from mergeable statistics in bounded memory.

Knows nothing of files. Codes stand for themselves by a hash value; of each code length the smallest values are kept,
each with its number of images. A value that is kept of several parts together was kept of each, so the numbers are
exact: of all codes up to `SKETCH_CODES` distinct ones, beyond of a random sample of that many.
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from cibhash.types import Codes

SKETCH_CODES = 2**20


@dataclass(frozen=True)
class TieBlocks:
    """Distinct codes of some images and how often each occurs."""

    values: npt.NDArray[np.uint64]
    """The smallest hash values, ascending, at most `limit`."""
    images: npt.NDArray[np.int64]
    """Images with each."""
    count: int
    """Images over all codes, also those that are not kept."""
    limit: int

    @property
    def is_sampled(self) -> bool:
        """Whether there may be more codes than are kept."""
        return len(self.values) >= self.limit

    @property
    def num_distinct(self) -> int:
        """Distinct codes: exact below the limit, else estimated from the largest hash value kept."""
        if not self.is_sampled:
            return len(self.values)
        return min(self.count, round((len(self.values) - 1) / (float(self.values[-1]) / 2.0**64)))

    @property
    def largest(self) -> int:
        """Images that share the most frequent code, of those kept."""
        return int(self.images.max(initial=0))

    def share_by_size(self) -> tuple[float, ...]:
        """Shares of the images whose code stands for 1, 2 to 3, 4 to 7, ... images; they add up to 1."""
        sizes = np.bincount(np.log2(self.images).astype(np.int64), weights=self.images)
        return tuple((sizes / self.images.sum()).tolist())


def tie_blocks(codes: Codes, *, limit: int = SKETCH_CODES) -> TieBlocks:
    """Of the packed codes uint8 (N, B/8) of one part."""
    values, images = np.unique(hash_values(codes), return_counts=True)
    return TieBlocks(values[:limit], images[:limit].astype(np.int64), len(codes), limit)


def merge_tie_blocks(first: TieBlocks, second: TieBlocks) -> TieBlocks:
    """Of both parts together."""
    values, places = np.unique(np.concatenate([first.values, second.values]), return_inverse=True)
    images = np.bincount(places, weights=np.concatenate([first.images, second.images])).astype(np.int64)
    limit = first.limit
    return TieBlocks(values[:limit], images[:limit], first.count + second.count, limit)


def hash_values(codes: Codes) -> npt.NDArray[np.uint64]:
    """One well-mixed uint64 per code, (N,); for codes up to 64 bits no two are equal."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8)))
    words = np.ascontiguousarray(padded).view("<u8").T
    return reduce(lambda mixed, word: mix(mixed ^ word), words, np.zeros(len(codes), np.uint64))


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64: a bijection of the 64-bit integers."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
