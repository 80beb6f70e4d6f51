"""More codes like those of a sample, as many as are wanted.

Knows nothing of indexes. First come the sample's own codes; every further one is a code of the sample with those bits
flipped by which another code of it, drawn apart, and that code's nearest neighbor differ. So bits flip together as they
do between neighbors, and a further code repeats its origin as often as codes of the sample have an equal one among the
others: how fast distinct codes grow at first is that of the sample.
"""

import numpy as np

from cibhash import hamming
from cibhash.types import Codes

_BLOCK = 2**16
"""Codes that are drawn together."""
_MAX_MASKS = 2048


class GeneratedCodes:
    """Codes in a fixed order: those of a smaller corpus are the first ones of a larger."""

    def __init__(self, sample: Codes, seed: int) -> None:
        """Takes packed codes uint8 (N, B/8), at least two."""
        self._seed = seed
        draws = np.random.default_rng([seed, 2])
        self._sample = sample[draws.permutation(len(sample))]
        self._masks = _masks(self._sample)
        self._made = self._sample

    @property
    def bits(self) -> int:
        """Length of the codes."""
        return 8 * self._sample.shape[1]

    def first(self, count: int) -> Codes:
        """The first codes uint8 (count, B/8), a view of what is kept for the next call."""
        missing = count - len(self._made)
        if missing > 0:
            done = (len(self._made) - len(self._sample)) // _BLOCK
            blocks = [self._block(number) for number in range(done, done + -(-missing // _BLOCK))]
            self._made = np.concatenate([self._made, *blocks])
        return self._made[:count]

    def _block(self, number: int) -> Codes:
        draws = np.random.default_rng([self._seed, 3, number])
        made = self._sample[draws.integers(0, len(self._sample), _BLOCK)]
        made ^= self._masks[draws.integers(0, len(self._masks), _BLOCK)]
        return made


def _masks(codes: Codes) -> Codes:
    """The bits by which codes differ from their nearest neighbor, uint8 (M, B/8)."""
    asked = codes[:_MAX_MASKS]
    found = hamming.search(asked, codes, 2).ids
    own = found[:, 0] == np.arange(len(asked))
    return asked ^ codes[np.where(own, found[:, 1], found[:, 0])]
