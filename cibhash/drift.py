"""What changes when another encoder makes the codes of the same images: bits that flip, neighbors that stay, mAP.

Knows nothing of files and encoders. Shapes: N images, B bits, Q queries, which are some of the images; no query counts
as its own neighbor.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cibhash import hamming, metrics
from cibhash.binary import check_codes, unpack_bits
from cibhash.relevance import NO_LABEL
from cibhash.types import Codes, Ids, Labels

Floats = npt.NDArray[np.float64]
_ROWS = 2**16


@dataclass(frozen=True, eq=False)
class CodeChange:
    """Two codes of the same images, bit by bit."""

    flip_rates: Floats
    """(B,) share of the images in whose codes the bit differs; 1/2 for codes that know nothing of each other."""
    flipped: Floats
    """(B + 1,) share of the images whose codes differ in so many bits."""

    @property
    def mean_flipped(self) -> float:
        """Bits in which the two codes of an image differ, on average."""
        return float(self.flip_rates.sum())

    @property
    def unchanged(self) -> float:
        """Share of the images whose code is the same."""
        return float(self.flipped[0])


def code_change(old: Codes, new: Codes) -> CodeChange:
    """Counts the bits that differ.

    Args:
        old: Packed codes, uint8 (N, B/8), N at least 1.
        new: Of the same images in the same order.

    Raises:
        ValueError: the shapes differ, or there is no image.
    """
    _check_pair(old, new)
    num_bits, count = 8 * old.shape[1], len(old)
    flips, flipped = np.zeros(num_bits, np.int64), np.zeros(num_bits + 1, np.int64)
    for start in range(0, count, _ROWS):
        differs = unpack_bits(old[start : start + _ROWS] ^ new[start : start + _ROWS])
        flips += differs.sum(axis=0, dtype=np.int64)
        flipped += np.bincount(differs.sum(axis=1, dtype=np.int64), minlength=num_bits + 1)
    return CodeChange(flips / count, flipped / count)


def neighbors_of_some(queries: Codes, database: Codes, rows: Ids, k: int, threads: int = 1) -> Ids:
    """The positions of the k nearest images of some images, themselves left out, in the order (distance, position).

    Args:
        queries: Codes of the queries, uint8 (Q, B/8).
        database: Codes of all images, uint8 (N, B/8).
        rows: Where the queries stand in the database, int64 (Q,).
        k: At most N - 1.
        threads: Of the search.

    Returns:
        int64 (Q, k).
    """
    found = hamming.search(queries, database, k + 1, threads=threads).ids
    others = found != rows[:, None]
    others[others.all(axis=1), -1] = False  # a query that is not even among its own nearest: the last one goes
    near: Ids = found[others].reshape(len(rows), k)
    return near


def overlap(first: Ids, second: Ids) -> Floats:
    """Share of the neighbors that two searches have in common, per query; int (Q, k) each, float64 (Q,)."""
    both = np.sort(np.concatenate([first, second], axis=1), axis=1)
    return np.asarray((both[:, 1:] == both[:, :-1]).sum(axis=1) / first.shape[1], np.float64)


def average_precision(queries: Codes, database: Codes, rows: Ids, labels: Labels, k: int, threads: int = 1) -> Floats:
    """Tie-aware average precision at k of some images among the others, float64 (Q,).

    Args:
        queries: Codes of the queries, uint8 (Q, B/8).
        database: Codes of all images, uint8 (N, B/8), perhaps by another encoder.
        rows: Where the queries stand in the database, int64 (Q,).
        labels: Of all images, int (N,) or bool (N, C).
        k: Depth; the denominator is the relevant items in the top k.
        threads: Of the histograms.
    """
    total, relevant = hamming.histogram(queries, database, labels[rows], labels, threads=threads)
    own = unpack_bits(queries ^ database[rows]).sum(axis=1, dtype=np.int64)
    labeled = labels[rows].any(axis=1) if labels.ndim == 2 else labels[rows] != NO_LABEL
    every = np.arange(len(rows))
    total[every, own] -= 1
    relevant[every, own] -= labeled
    return metrics.from_histogram(total, relevant, k=k).average_precision


def _check_pair(old: Codes, new: Codes) -> None:
    check_codes(old, "old codes")
    check_codes(new, "new codes")
    if old.shape != new.shape or not len(old):
        raise ValueError(f"old codes are {old.shape}, new ones {new.shape}: expected equal shapes, and an image")
