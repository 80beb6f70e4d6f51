"""Collisions between labels: how often two images with equal codes share no label, in bounded memory.

Knows nothing of files. Images without a label take no part. Up to `SAMPLE_IMAGES` labeled images all pairs count;
beyond, the images with the smallest (hash of the code, hash of the id): all images of a random choice of codes, so that
pairs of equal codes stay together. Samples of parts merge to that of the whole.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cibhash.relevance import NO_LABEL, share_label
from cibhash.types import Codes, Ids, Labels
from cluster.evaluation.tie_blocks import hash_values, mix

SAMPLE_IMAGES = 2**16
_PAIR_CELLS = 2**22


class Collisions(NamedTuple):
    """Pairs of images with equal codes."""

    pairs: int
    apart: int
    """Of them, pairs that share no label."""

    @property
    def share(self) -> float:
        """`apart` over `pairs`; 0 without any."""
        return self.apart / self.pairs if self.pairs else 0.0


@dataclass(frozen=True)
class CollisionSample:
    """Labeled images, ordered by code and id; at most `limit`."""

    codes: npt.NDArray[np.uint64]
    """Hash values of the codes."""
    order: npt.NDArray[np.uint64]
    """Hash values of the ids."""
    labels: Labels
    count: int
    """Labeled images, also those that are not kept."""
    limit: int

    @property
    def is_sampled(self) -> bool:
        """Whether some images are not kept."""
        return self.count > len(self.codes)


def collision_sample(codes: Codes, labels: Labels, ids: Ids, *, limit: int = SAMPLE_IMAGES) -> CollisionSample:
    """Of one part: packed codes uint8 (N, B/8), labels int (N,) or bool (N, C), ids int64 (N,)."""
    labeled = labels != NO_LABEL if labels.ndim == 1 else labels.any(axis=1)
    hashes = hash_values(codes[labeled]), mix(ids[labeled].astype(np.uint64))
    return _smallest(*hashes, labels[labeled], int(labeled.sum()), limit)


def merge_collision_samples(first: CollisionSample, second: CollisionSample) -> CollisionSample:
    """Of both parts together."""
    both = first, second
    return _smallest(
        np.concatenate([one.codes for one in both]),
        np.concatenate([one.order for one in both]),
        np.concatenate([one.labels for one in both]),
        first.count + second.count,
        first.limit,
    )


def collisions(sample: CollisionSample) -> Collisions:
    """Counts the pairs of the sample; of a sampled one, the last code may be incomplete and is left out."""
    limits = np.flatnonzero(np.diff(sample.codes)) + 1
    groups = np.split(np.arange(len(sample.codes)), limits)
    if sample.is_sampled and len(groups) > 1:
        groups = groups[:-1]
    pairs = apart = 0
    for rows in groups:
        if len(rows) > 1:
            found = _apart(sample.labels[rows])
            pairs, apart = pairs + len(rows) * (len(rows) - 1) // 2, apart + found
    return Collisions(pairs, apart)


def _apart(labels: Labels) -> int:
    """Pairs of the images that share no label."""
    every: npt.NDArray[Any] = labels
    sets, images = np.unique(every, axis=0, return_counts=True)
    shared, step = share_label(sets, sets, len(sets), len(sets)), max(1, _PAIR_CELLS // len(sets))
    ordered = 0
    for start in range(0, len(sets), step):
        rows = slice(start, min(start + step, len(sets)))
        ordered += int(images[rows] @ (~shared(rows, slice(0, len(sets))) @ images))
    return ordered // 2


def _smallest(
    codes: npt.NDArray[np.uint64], order: npt.NDArray[np.uint64], labels: Labels, count: int, limit: int
) -> CollisionSample:
    kept = np.lexsort((order, codes))[:limit]
    return CollisionSample(codes[kept], order[kept], labels[kept], count, limit)
