"""More codes like those of a sample, as many as are wanted.

Knows nothing of indexes. First come the sample's own codes, in random order. Every further one repeats one of these, or
is one of those that the sample has not seen:

* How often, and how many are unseen, follows from how many codes the sample has once (f1) and twice (f2): a further
  code is unseen with probability f1 / N (Good and Turing), and at least f1² / (2 f2) are unseen (Chao). So distinct
  codes grow as those of a larger sample are expected to.
* An unseen code is made of three: a code of the sample and two draws among it and its ten nearest neighbors; each bit
  is that of one of the three, drawn for itself. So bits agree where neighbors agree, and clusters stay where they are
  and become denser, as in a larger corpus.

Of a sample of clustered codes 15 times enlarged, distances to the 100th neighbor and recall of the kind ivf were those
of a real corpus of that size within 5 %. Chao's number is a lower bound: of 16 bits, distinct codes were a third fewer.
"""

from functools import reduce

import numpy as np
import numpy.typing as npt

from cibhash import hamming
from cibhash.binary import as_words, unpack_bits
from cibhash.types import Codes
from cluster.planning.code_quality import num_distinct

_BLOCK = 2**16
"""Codes that are drawn together."""
_MAX_ORIGINS = 2**15
_NEIGHBORS = 10
_ENDLESS = 2**62
_ATTEMPTS = 4
"""At flipping a bit, one that differs within the sample, of what was to be unseen and is not; codes of more than 64
bits hardly ever are."""

_Noise = npt.NDArray[np.uint64]


class GeneratedCodes:
    """Codes in a fixed order: those of a smaller corpus are the first ones of a larger."""

    def __init__(self, sample: Codes, seed: int) -> None:
        """Takes packed codes uint8 (N, B/8), at least one."""
        self._seed = seed
        self._sample = sample[np.random.default_rng([seed, 2]).permutation(len(sample))]
        kept = min(_NEIGHBORS + 1, len(sample))
        self._near = hamming.search(self._sample[:_MAX_ORIGINS], self._sample, kept).ids
        self._unseen_share, self._num_unseen = unseen(sample)
        words = as_words(sample)
        self._varying = np.flatnonzero(np.ptp(unpack_bits(sample), axis=0))
        self._seen = np.unique(words[0]) if len(words) == 1 and len(self._varying) else words[0, :0]
        self._made = self._sample

    @property
    def bits(self) -> int:
        """Length of the codes."""
        return 8 * int(self._sample.shape[1])

    @property
    def most_distinct(self) -> int:
        """Distinct codes that there can be among however many."""
        return int(min(num_distinct(self._sample) + self._num_unseen, 1 << self.bits))

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
        is_unseen = draws.random(_BLOCK) < self._unseen_share
        made[is_unseen] = self._unseen(draws.integers(0, self._num_unseen, int(is_unseen.sum()), np.uint64))
        return made

    def _unseen(self, numbers: _Noise) -> Codes:
        """The codes of some numbers below that of the unseen codes: equal numbers have equal codes."""
        origin = _below(_noise(numbers, 0), len(self._near))
        made = self._sample[origin]
        for place in (1, 2):
            column = _below(_noise(numbers, place), self._near.shape[1])
            other = self._sample[self._near[origin, column]]
            # Each bit is the second code's in half of all cases, then the third's in about a third of them (5/16).
            streams = [_noise_bytes(numbers, 10 * place + number, made.shape[1]) for number in range(4)]
            mask = streams[0] if place == 1 else streams[0] & (streams[1] | (streams[2] & streams[3]))
            made ^= (made ^ other) & mask
        for attempt in range(_ATTEMPTS if len(self._seen) else 0):
            clashes = np.flatnonzero(np.isin(as_words(made)[0], self._seen))
            bit = self._varying[_below(_noise(numbers[clashes], 50 + attempt), len(self._varying))]
            made[clashes, bit // 8] ^= np.left_shift(1, bit % 8).astype(np.uint8)
        return made


def unseen(codes: Codes) -> tuple[float, int]:
    """The probability that a further code is none of these, and how many such codes there are at least.

    Args:
        codes: Packed codes uint8 (N, B/8), at least one.
    """
    words = as_words(codes)
    order = np.lexsort(words)
    changes = np.flatnonzero(np.any(words[:, order[1:]] != words[:, order[:-1]], axis=0)) + 1
    times = np.diff(np.concatenate(([0], changes, [len(codes)])))
    once, twice = int(np.count_nonzero(times == 1)), int(np.count_nonzero(times == 2))
    if once == len(codes):
        return 1.0, _ENDLESS
    number = once**2 // (2 * twice) if twice else once * (once - 1) // 2
    return (once / len(codes), number) if number else (0.0, 1)


def _noise_bytes(numbers: _Noise, stream: int, width: int) -> Codes:
    """Random bytes (N, width) that follow from the numbers."""
    words = [_noise(numbers, 100 * stream + word + 100) for word in range(-(-width // 8))]
    return np.ascontiguousarray(np.stack(words, axis=1)).view(np.uint8)[:, :width]


def _noise(numbers: _Noise, stream: int) -> _Noise:
    """Random 64 bits that follow from each number, by the finalizer of SplitMix64."""
    values = numbers + np.uint64((stream + 1) * 0x9E3779B97F4A7C15 % 2**64)
    steps = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
    values = reduce(lambda mixed, step: (mixed ^ (mixed >> np.uint64(step[0]))) * np.uint64(step[1]), steps, values)
    return values ^ (values >> np.uint64(31))


def _below(noise: _Noise, limit: int) -> npt.NDArray[np.int64]:
    return (noise % np.uint64(limit)).astype(np.int64)
