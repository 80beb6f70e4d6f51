"""From pairs of distinct codes to pairs and groups of images, and how splits overlap, by arrays alone.

Knows nothing of Ray and files. Rows are images in the order of (split, id), so the smallest row of a group is the
smallest id of its first-named split. Shapes: N images, D distinct codes, T splits, R = radius + 1 distances.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cibhash.components import Components
from cibhash.distinct_codes import DistinctCodes
from cibhash.near_groups import PairSummary
from cibhash.near_pairs import NearPairs
from cibhash.types import Ids


class Duplicates(NamedTuple):
    """What was found about the images."""

    representative: Ids
    """int64 (N,): the smallest row of each image's group, its own where it is in none."""
    pairs: NearPairs
    """Pairs of rows, in the order of (distance, first, second); of large groups the closest."""
    counts: npt.NDArray[np.int64]
    """int64 (R, T, T): all pairs by distance and splits, the first-named one first."""
    overlaps: npt.NDArray[np.int64]
    """int64 (R, T, T): images of a split by the distance to the nearest other image of a split."""


def images_of_codes(distinct: DistinctCodes, splits: Ids, num_splits: int) -> npt.NDArray[np.int64]:
    """How many images of each split have each distinct code, int64 (D, T)."""
    num_codes = len(distinct.starts) - 1
    code = np.repeat(np.arange(num_codes), np.diff(distinct.starts))
    cells = np.bincount(code * num_splits + splits[distinct.order], minlength=num_codes * num_splits)
    return cells.reshape(num_codes, num_splits).astype(np.int64)


def duplicates_of(
    distinct: DistinctCodes, images: npt.NDArray[np.int64], summary: PairSummary, limit: int
) -> Duplicates:
    """Pairs and groups of images out of those of their codes.

    Args:
        distinct: The images by their code.
        images: As `images_of_codes` gives them.
        summary: Of all pairs of distinct codes.
        limit: Pairs of a group that are listed.
    """
    num_codes = len(images)
    components = Components(num_codes)
    components.join(*summary.links)
    group = components.smallest
    smallest_row = np.full(num_codes, len(distinct.order), np.int64)
    np.minimum.at(smallest_row, group, distinct.order[distinct.starts[:-1]])
    representative = np.empty(len(distinct.order), np.int64)
    representative[distinct.order] = np.repeat(smallest_row[group], np.diff(distinct.starts))
    pairs = _listed(distinct, group, summary.closest, limit)
    return Duplicates(representative, pairs, _counts(images, summary), _overlaps(images, summary))


def duplicates_from_pairs(pairs: NearPairs, splits: Ids, num_splits: int, radius: int) -> Duplicates:
    """What follows from these pairs of images alone."""
    components = Components(len(splits))
    components.join(pairs.first, pairs.second)
    counts = np.zeros((radius + 1, num_splits, num_splits), np.int64)
    np.add.at(counts, (pairs.distances, splits[pairs.first], splits[pairs.second]), 1)
    ends = np.concatenate((pairs.first, pairs.second)), np.concatenate((pairs.second, pairs.first))
    nearest = np.full((len(splits), num_splits), radius + 1, np.int64)
    np.minimum.at(nearest, (ends[0], splits[ends[1]]), np.concatenate((pairs.distances, pairs.distances)))
    overlaps = np.zeros((radius + 1, num_splits, num_splits), np.int64)
    rows, others = np.nonzero(nearest <= radius)
    np.add.at(overlaps, (nearest[rows, others], splits[rows], others), 1)
    return Duplicates(components.smallest, pairs, counts, overlaps)


def _counts(images: npt.NDArray[np.int64], summary: PairSummary) -> npt.NDArray[np.int64]:
    """All pairs of images: those of different codes, and at distance 0 those of one code; the smaller split first."""
    counts = summary.counts.copy()
    ordered = images.T @ images
    counts[0] += np.triu(ordered, 1)
    counts[0] += np.diag((np.diag(ordered) - images.sum(axis=0)) // 2)
    merged: npt.NDArray[np.int64] = np.triu(counts) + np.tril(counts, -1).transpose(0, 2, 1)
    return merged


def _overlaps(images: npt.NDArray[np.int64], summary: PairSummary) -> npt.NDArray[np.int64]:
    num_distances, num_splits = summary.counts.shape[:2]
    nearest = np.full(images.shape, num_distances, np.int64)
    nearest[summary.nearest.codes, summary.nearest.splits] = summary.nearest.distances
    overlaps = np.zeros((num_distances + 1, num_splits, num_splits), np.int64)
    for split in range(num_splits):
        for other in range(num_splits):
            distance = np.where(images[:, other] > (split == other), 0, nearest[:, other])
            np.add.at(overlaps[:, split, other], distance, images[:, split])
    return overlaps[:num_distances]


def _listed(distinct: DistinctCodes, group: Ids, closest: NearPairs, limit: int) -> NearPairs:
    """Pairs of images, of each group the `limit` closest; which of equally close ones, their codes' order decides."""
    sizes = np.diff(distinct.starts)
    equal = np.flatnonzero(sizes > 1)
    first, second = np.concatenate((equal, closest.first)), np.concatenate((equal, closest.second))
    distances = np.concatenate((np.zeros(len(equal), np.int32), closest.distances))
    order = np.lexsort((second, first, distances, group[first]))
    first, second, distances = first[order], second[order], distances[order]
    several = np.where(first == second, sizes[first] * (sizes[first] - 1) // 2, sizes[first] * sizes[second])
    several = np.minimum(several, limit)
    kept = np.clip(limit - _before_in_group(group[first], several), 0, several)
    of = np.repeat(np.arange(len(first)), kept)
    number = np.arange(len(of)) - np.repeat(np.cumsum(kept) - kept, kept)
    low, high = _number_to_places(number, first[of] == second[of], sizes[second[of]])
    rows = distinct.order[distinct.starts[first[of]] + low], distinct.order[distinct.starts[second[of]] + high]
    found = NearPairs(np.minimum(*rows), np.maximum(*rows), distances[of])
    return found.take(np.lexsort((found.second, found.first, found.distances)))


def _before_in_group(group: Ids, counts: Ids) -> Ids:
    """Sum of the counts before each entry of its group; groups lie together."""
    before = np.cumsum(counts) - counts
    starts = np.flatnonzero(np.append(True, group[1:] != group[:-1])[: len(group)])
    result: Ids = before - np.repeat(before[starts], np.diff(starts, append=len(group)))
    return result


def _number_to_places(number: Ids, is_equal: npt.NDArray[np.bool_], size: Ids) -> tuple[Ids, Ids]:
    """The number-th pair between two codes, or within one: (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    high = ((1 + np.sqrt(1 + 8 * number.astype(np.float64))) / 2).astype(np.int64)
    high -= high * (high - 1) // 2 > number
    low = number - high * (high - 1) // 2
    return np.where(is_equal, low, number // size), np.where(is_equal, high, number % size)
