"""Scores of a checkpoint on a held-out slice, and the choice of the best checkpoint by one of them.

Knows nothing of encoders, of training and of where checkpoints are. Shapes: N images, D features, B bits, K neighbors.
A shorter code of a nested encoder is scored by its prefix: `cibhash.binary.prefix` of codes, the first columns of bits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cibhash.binary import check_codes
from cibhash.hamming import distances, histogram
from cibhash.metrics import from_histogram
from cibhash.objective import nt_xent
from cibhash.relevance import NO_LABEL
from cibhash.straight_through import sign_straight_through
from cibhash.types import Codes, Ids, Labels

Rule = Literal["sep10", "nt_xent", "oracle", "last"]

_QUERY_ROWS = 1024


@dataclass(frozen=True)
class CheckpointScores:
    """Scores of one checkpoint, for one code length or averaged over several; NaN where there is none."""

    sep10: float
    """Of `sep10`; larger is better."""
    nt_xent: float
    """Of `held_out_nt_xent`; smaller is better."""
    oracle: float = math.nan
    """Of `held_out_map`, which sees labels; larger is better."""


def float_neighbors(features: npt.NDArray[np.floating], k: int = 10) -> Ids:
    """The k images nearest to each by the cosine of centered features, exact; equal cosines in the order of index.

    Args:
        features: Float (N, D).
        k: Number of neighbors, 1 to N - 1.

    Returns:
        int64 (N, K), nearest first, without the image itself.

    Raises:
        ValueError: `features` is not finite (N, D), or `k` is out of range.
    """
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise ValueError(f"features are {features.dtype} {features.shape}, expected float (N, D)")
    num_images = len(features)
    if not 1 <= k < num_images:
        raise ValueError(f"k is {k}, expected 1 to {num_images - 1} for {num_images} images")
    if not np.isfinite(features).all():
        raise ValueError(f"features contain {features[~np.isfinite(features)][0]}, expected finite values")
    centered_ND = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    norms_N = np.linalg.norm(centered_ND, axis=1, keepdims=True)
    directions_ND = np.divide(centered_ND, norms_N, out=np.zeros_like(centered_ND), where=norms_N > 0)
    # Equal images must have equal cosines, and two columns of one matrix product may differ in their last bits.
    distinct_MD, row_N = np.unique(directions_ND, axis=0, return_inverse=True)
    neighbors_NK = np.empty((num_images, k), dtype=np.int64)
    for start in range(0, num_images, _QUERY_ROWS):
        queries = np.arange(start, min(start + _QUERY_ROWS, num_images))
        cosines_QN = (directions_ND[queries] @ distinct_MD.T)[:, row_N]
        cosines_QN[queries - start, queries] = -np.inf
        neighbors_NK[queries] = np.argsort(-cosines_QN, axis=1, kind="stable")[:, :k]
    return neighbors_NK


def sep10(codes: Codes, neighbors: Ids) -> float:
    """How far codes set the float neighbors of an image apart from all other images, in standard deviations.

    (mean similarity over pairs of an image and its neighbor - mean over all pairs of different images) / standard
    deviation over all those pairs, where the similarity of two codes is 1 - Hamming / B.

    Args:
        codes: Packed codes, uint8 (N, B/8).
        neighbors: int (N, K), as from `float_neighbors`; with K = 10 this is the score's namesake.

    Returns:
        About 0 for random codes; NaN where all pairs are equally similar, as those of collapsed codes are.

    Raises:
        ValueError: `codes` is not an array of packed codes, or `neighbors` does not fit it.
    """
    check_codes(codes, "codes")
    num_images = len(codes)
    if neighbors.ndim != 2 or len(neighbors) != num_images or neighbors.size == 0:
        raise ValueError(f"neighbors have shape {neighbors.shape}, expected ({num_images}, K) as there are codes")
    if neighbors.min() < 0 or neighbors.max() >= num_images:
        raise ValueError(f"neighbors are {neighbors.min()} to {neighbors.max()}, expected 0 to {num_images - 1}")
    distances_NN = distances(codes, codes)
    num_pairs = num_images * (num_images - 1)
    total, squares = int(distances_NN.sum(dtype=np.int64)), int(np.square(distances_NN).sum(dtype=np.int64))
    # In integers: whether the distances differ at all must not depend on rounding.
    variance = num_pairs * squares - total**2
    if variance == 0:
        return math.nan
    to_neighbors = float(np.take_along_axis(distances_NN, neighbors, axis=1).mean())
    return (total / num_pairs - to_neighbors) / (math.sqrt(variance) / num_pairs)


def held_out_nt_xent(
    view_a: Tensor | npt.NDArray[Any], view_b: Tensor | npt.NDArray[Any], *, temperature: float, batch_size: int
) -> float:
    """NT-Xent of the threshold codes of two views, by blocks: comparable with the training loss of equal batches.

    Args:
        view_a: Bit probabilities, or bits as 0/1 or bool, (N, B), of the first view; N at least 2.
        view_b: The same of the second view, same shape.
        temperature: Of the loss, above 0.
        batch_size: Images per block, at least 2; the global batch of training. Blocks follow the order of rows, and a
            short last one is left out unless it is the only one.

    Returns:
        Mean over the blocks; NaN if a probability is.

    Raises:
        ValueError: a shape, the temperature or the batch size is not as above.
    """
    codes_a, codes_b = (_threshold_codes(torch.as_tensor(view)) for view in (view_a, view_b))
    if codes_a.shape != codes_b.shape or codes_a.ndim != 2 or len(codes_a) < 2:
        raise ValueError(
            f"views have shapes {tuple(codes_a.shape)} and {tuple(codes_b.shape)}, "
            "expected two equal (N, B) with N at least 2"
        )
    if batch_size < 2:
        raise ValueError(f"batch_size is {batch_size}, expected at least 2: one image has no negatives")
    num_blocks = max(len(codes_a) // batch_size, 1)
    blocks = [slice(index * batch_size, (index + 1) * batch_size) for index in range(num_blocks)]
    losses = [nt_xent(codes_a[rows], codes_b[rows], temperature) for rows in blocks]
    return float(torch.stack(losses).mean())


def held_out_map(codes: Codes, labels: Labels, k: int) -> float:
    """Mean average precision at k of every image as a query among the others; an oracle, as it sees labels.

    Tie-aware, with the denominator "hashing", as `RetrievalMetrics.map_at_k`.

    Args:
        codes: Packed codes, uint8 (N, B/8), N at least 2.
        labels: int (N,), one label each, -1 for none; or bool (N, C), several each.
        k: At least 1; above N - 1 it means all other images.

    Raises:
        ValueError: an argument is not as above.
    """
    check_codes(codes, "codes")
    if len(codes) < 2:
        raise ValueError(f"there are {len(codes)} codes, expected at least 2")
    total, relevant = histogram(codes, codes, labels, labels)
    has_label = labels.any(axis=1) if labels.ndim == 2 else labels != NO_LABEL
    # Every image is at distance 0 of itself, and relevant to itself where it has a label.
    total[:, 0] -= 1
    relevant[:, 0] -= has_label
    return from_histogram(total, relevant, k=k).map_at_k


def choose(scores: Sequence[CheckpointScores], rule: Rule) -> int:
    """Index of the best checkpoint by `rule`; the later one of equals, and never one whose score is NaN.

    Args:
        scores: Of the checkpoints, in the order of training, at least one.
        rule: `sep10`, `nt_xent` or `oracle` by that score, `last` without looking at any.

    Raises:
        ValueError: the rule is unknown, there are no checkpoints, or none has the score.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule is {rule!r}, expected one of {', '.join(get_args(Rule))}")
    if not scores:
        raise ValueError("there are no scores to choose from")
    if rule == "last":
        return len(scores) - 1
    sign = -1 if rule == "nt_xent" else 1
    goodness = {index: sign * getattr(score, rule) for index, score in enumerate(scores)}
    candidates = [index for index, value in goodness.items() if not math.isnan(value)]
    if not candidates:
        raise ValueError(f"none of {len(scores)} checkpoints has the score {rule!r}: all are NaN")
    return max(candidates, key=lambda index: (goodness[index], index))


def _threshold_codes(view_NB: Tensor) -> Tensor:
    """Codes +1 where a probability or bit is above 0.5 and -1 elsewhere, detached, in float64; NaN stays NaN."""
    return sign_straight_through(view_NB.detach().double())
