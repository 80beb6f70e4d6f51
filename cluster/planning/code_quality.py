"""What the lengths of a nested code are worth, from a sample against itself, every query left out of its own neighbors.

Knows nothing of files and indexes. With labels it is mAP@k. Without, it is how many of the k nearest are also among the
k nearest by the longest code: the expectation over all orders of ties, where whatever is as near as the k-th counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cibhash import hamming
from cibhash.binary import as_words, prefix
from cibhash.metrics import from_histogram
from cibhash.types import Codes, Distances, Ids, Labels

MAX_QUERIES = 500
_BLOCK_CELLS = 2**22
"""Distances that are worked on at once."""


@dataclass(frozen=True)
class LengthQuality:
    """One code length over the sample."""

    bits: int
    quality: float
    """mAP@k or agreement."""
    relative: float
    """The same as a share of the best length's."""
    distinct_share: float
    """Distinct codes per code."""
    tie_block: float
    """Median number of codes that share the distance of rank k."""


def length_qualities(
    codes: Codes, labels: Labels | None, lengths: Sequence[int], k: int, seed: int
) -> list[LengthQuality]:
    """The quality of each length.

    Args:
        codes: Packed codes uint8 (N, B/8), at least two.
        labels: int64 (N,) or bool (N, C), or None: there are none.
        lengths: Prefix lengths, at least one, ascending.
        k: Depth, at least 1; of fewer other codes all count.
        seed: Of the queries drawn.
    """
    k = min(k, len(codes) - 1)
    labeled = np.arange(len(codes)) if labels is None else np.flatnonzero(_is_labeled(labels))
    drawn = np.random.default_rng([seed, 1]).choice(labeled, min(MAX_QUERIES, len(labeled)), replace=False)
    queries = np.sort(drawn)
    if labels is None:
        counts = _agreements(codes, queries, lengths, k)
    else:
        counts = {bits: _shared_labels(prefix(codes, bits), labels, queries) for bits in lengths}
    found = {bits: from_histogram(total, relevant, k=k) for bits, (total, relevant) in counts.items()}
    qualities = {
        bits: metrics.precision_at_k if labels is None else metrics.map_at_k for bits, metrics in found.items()
    }
    best = max(qualities.values())
    return [
        LengthQuality(
            bits=bits,
            quality=qualities[bits],
            relative=qualities[bits] / best if best else 1.0,
            distinct_share=num_distinct(prefix(codes, bits)) / len(codes),
            tie_block=found[bits].median_tie_block,
        )
        for bits in lengths
    ]


def num_distinct(codes: Codes) -> int:
    """How many different codes there are among packed codes uint8 (N, B/8)."""
    words = as_words(codes)
    if len(words) == 1:
        return len(np.unique(words[0]))
    order = np.lexsort(words)
    return 1 + int(np.count_nonzero(np.any(words[:, order[1:]] != words[:, order[:-1]], axis=0)))


def _is_labeled(labels: Labels) -> npt.NDArray[np.bool_]:
    return np.asarray(labels >= 0 if labels.ndim == 1 else labels.any(axis=1))


def _shared_labels(codes: Codes, labels: Labels, queries: Ids) -> tuple[Ids, Ids]:
    """Counts per query and distance (Q, B + 1) of the other codes, and of those that share a label with the query."""
    total, relevant = hamming.histogram(codes[queries], codes, labels[queries], labels)
    total[:, 0] -= 1
    relevant[:, 0] -= 1
    return total, relevant


def _agreements(codes: Codes, queries: Ids, lengths: Sequence[int], k: int) -> dict[int, tuple[Ids, Ids]]:
    """The same, relevant being what the longest code has as near as its k-th neighbor."""
    step = max(1, _BLOCK_CELLS // len(codes))
    blocks: dict[int, list[tuple[Ids, Ids]]] = {bits: [] for bits in lengths}
    for start in range(0, len(queries), step):
        rows = queries[start : start + step]
        others = np.ones((len(rows), len(codes)), np.bool_)
        others[np.arange(len(rows)), rows] = False
        nearest = _other_distances(codes, rows, max(lengths), others)
        is_near = nearest <= np.partition(nearest, k - 1, axis=1)[:, k - 1 : k]
        for bits in lengths:
            distances = _other_distances(codes, rows, bits, others)
            blocks[bits].append((_counts(distances, bits), _counts(distances[is_near], bits, is_near)))
    return {bits: tuple(map(np.concatenate, zip(*parts, strict=True))) for bits, parts in blocks.items()}  # type: ignore[misc]


def _other_distances(codes: Codes, rows: Ids, bits: int, others: npt.NDArray[np.bool_]) -> Distances:
    """Distances (Q, N - 1) of the queries at `rows` to all codes but their own."""
    part = prefix(codes, bits)
    every: Distances = hamming.distances(part[rows], part)[others]
    return every.reshape(len(rows), len(codes) - 1)


def _counts(distances: Distances, bits: int, chosen: npt.NDArray[np.bool_] | None = None) -> Ids:
    """Histograms (Q, B + 1) of distances (Q, N), or of those that were chosen, one after the other."""
    if chosen is None:
        chosen = np.ones(distances.shape, np.bool_)
    keys = np.nonzero(chosen)[0] * (bits + 1) + distances.ravel()
    return np.bincount(keys, minlength=len(chosen) * (bits + 1)).reshape(len(chosen), bits + 1)
