"""Retrieval metrics from histograms over Hamming distances: exact, tie-aware, independent of any item order.

Knows nothing of codes, files or plots. Shapes: Q queries, B bits, R ranks. Everything is a function of two counts per
query and distance, the items and the relevant items, which add up over the parts of a database.
"""

import operator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cibhash.ties import (
    Counts,
    Cut,
    Floats,
    average_precision_bounds,
    cut_at,
    expected_average_precision,
    expected_precision_sums,
)


@dataclass(frozen=True, eq=False)
class RetrievalMetrics:
    """Metrics of a set of queries; every mean is over all of them, also those without a relevant item, which score 0.

    At k, the top k are the k nearest items, or all items if the database is smaller. Equal distances leave the order
    of items open; values are expectations over all orders unless they say otherwise.
    """

    map_at_k: float
    """Mean average precision at k; the denominator is the relevant items inside the top k ("hashing")."""
    map_at_k_min_kr: float
    """The same with denominator min(k, R), R the relevant items of the database."""
    map_at_k_r: float
    """The same with denominator R."""
    map_best: float
    """Largest `map_at_k` that an order of the ties can give."""
    map_worst: float
    """Least `map_at_k` that an order of the ties can give."""
    precision_at_k: float
    """Share of the top k that is relevant."""
    recall_at_k: float
    """Share of the relevant items that is in the top k."""
    precision_by_radius: Floats
    """(B + 1,) share of the items within each inclusive radius that is relevant; 0 for an empty ball."""
    recall_by_radius: Floats
    """(B + 1,) share of the relevant items that is within each radius."""
    empty_ball_share: Floats
    """(B + 1,) share of the queries without any item within each radius."""
    median_tie_block: float
    """Median number of items that share the distance of rank k."""
    average_precision: Floats
    """(Q,) the terms of `map_at_k`, for intervals over queries."""
    k: int
    """As asked, which may be above `num_database`."""
    num_queries: int
    num_database: int
    """Items per query; the largest where queries differ."""


class PrecisionRecall(NamedTuple):
    """Expected precision and recall at each of some ranks, means over queries, (R,) each."""

    precision: Floats
    recall: Floats


def from_histogram(total: npt.ArrayLike, relevant: npt.ArrayLike, *, k: int) -> RetrievalMetrics:
    """Computes all metrics of the rankings that the histograms describe.

    Average precision with ties is the exact expectation over all orders within equal distances, following
    McSherry & Najork 2008 for the sum and averaging the quotient where the denominator depends on the order.

    Args:
        total: Items per query and distance, int (Q, B + 1), Q at least 1; as from `cibhash.hamming.histogram`.
        relevant: How many of them are relevant, same shape.
        k: Depth of the metrics at k, at least 1; above the database size it means all items.

    Raises:
        ValueError: `k` is below 1, or the counts are not as above.
    """
    total_QD, relevant_QD = _check_counts(total, relevant)
    k = operator.index(k)
    if k <= 0:
        raise ValueError(f"k is {k}, expected at least 1")
    cut = cut_at(total_QD, relevant_QD, k)
    items_within, relevant_within = np.cumsum(total_QD, axis=1), np.cumsum(relevant_QD, axis=1)
    num_items, num_relevant = items_within[:, -1], relevant_within[:, -1]
    depth = np.minimum(k, num_items)

    average_precision = expected_average_precision(cut)
    worst, best = average_precision_bounds(cut)
    _, precision_sum = expected_precision_sums(cut)
    hits = _expected_hits(cut)
    return RetrievalMetrics(
        map_at_k=float(average_precision.mean()),
        map_at_k_min_kr=float(_share(precision_sum, np.minimum(k, num_relevant)).mean()),
        map_at_k_r=float(_share(precision_sum, num_relevant).mean()),
        map_best=float(best.mean()),
        map_worst=float(worst.mean()),
        precision_at_k=float(_share(hits, depth).mean()),
        recall_at_k=float(_share(hits, num_relevant).mean()),
        precision_by_radius=_share(relevant_within, items_within).mean(axis=0),
        recall_by_radius=_share(relevant_within, num_relevant[:, None]).mean(axis=0),
        empty_ball_share=(items_within == 0).mean(axis=0),
        median_tie_block=float(np.median(_tie_block(total_QD, items_within, depth))),
        average_precision=average_precision,
        k=k,
        num_queries=len(total_QD),
        num_database=int(num_items.max()),
    )


def precision_recall_by_rank(total: npt.ArrayLike, relevant: npt.ArrayLike, ranks: npt.ArrayLike) -> PrecisionRecall:
    """Expected precision and recall of the top items, for each of the given ranks, over all orders of ties.

    Args:
        total: Items per query and distance, int (Q, B + 1), Q at least 1.
        relevant: How many of them are relevant, same shape.
        ranks: int (R,), each at least 1; above the database size a rank means all items.

    Returns:
        Means over queries; a query without a relevant item counts with 0.

    Raises:
        ValueError: a rank is below 1, or the counts are not as above.
    """
    total_QD, relevant_QD = _check_counts(total, relevant)
    ranks_R = np.asarray(ranks)
    if ranks_R.ndim != 1 or not np.issubdtype(ranks_R.dtype, np.integer):
        raise ValueError(f"ranks are {ranks_R.dtype} {ranks_R.shape}, expected integers of shape (R,)")
    if ranks_R.min(initial=1) < 1:
        raise ValueError(f"ranks contain {ranks_R.min()}, expected at least 1")
    num_items, num_relevant = total_QD.sum(axis=1), relevant_QD.sum(axis=1)
    precision, recall = np.zeros(len(ranks_R)), np.zeros(len(ranks_R))
    for index, rank in enumerate(ranks_R.tolist()):
        hits = _expected_hits(cut_at(total_QD, relevant_QD, rank))
        precision[index] = _share(hits, np.minimum(rank, num_items)).mean()
        recall[index] = _share(hits, num_relevant).mean()
    return PrecisionRecall(precision, recall)


def _expected_hits(cut: Cut) -> Floats:
    """Expected relevant items in the top k: those of the whole groups and their share of the straddling one, (Q,)."""
    return cut.whole_relevant + cut.room * _share(cut.straddling_relevant, cut.straddling_items)


def _tie_block(total_QD: Counts, items_within_QD: Counts, depth_Q: Counts) -> Counts:
    column = np.argmax(items_within_QD >= depth_Q[:, None], axis=1)[:, None]
    sizes: Counts = np.take_along_axis(total_QD, column, axis=1)[:, 0]
    return sizes


def _share(part: npt.NDArray[np.int64 | np.float64], whole: Counts) -> Floats:
    """Quotient, 0 where the denominator is 0."""
    whole = np.broadcast_to(whole, part.shape)
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


def _check_counts(total: npt.ArrayLike, relevant: npt.ArrayLike) -> tuple[Counts, Counts]:
    counts = np.asarray(total), np.asarray(relevant)
    found = f"total is {counts[0].dtype} {counts[0].shape}, relevant is {counts[1].dtype} {counts[1].shape}"
    if any(not np.issubdtype(count.dtype, np.integer) for count in counts):
        raise ValueError(f"{found}: expected integers")
    if counts[0].shape != counts[1].shape or counts[0].ndim != 2 or counts[0].size == 0:
        raise ValueError(f"{found}: expected two equal (Q, B + 1) with at least one query")
    total_QD, relevant_QD = (count.astype(np.int64, copy=False) for count in counts)
    wrong = (relevant_QD < 0) | (relevant_QD > total_QD)
    if wrong.any():
        query, distance = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"query {query} has {relevant_QD[query, distance]} relevant of {total_QD[query, distance]} items "
            f"at distance {distance}, expected between 0 and all"
        )
    return total_QD, relevant_QD
