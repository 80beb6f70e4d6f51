"""Retrieval metrics from histograms over Hamming distances: exact, tie-aware, independent of any item order.

Knows nothing of codes, files or plots. Shapes: Q queries, B bits, R ranks. Everything is a function of two counts per
query and distance, the items and the relevant items, which add up over the parts of a database.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cibhash.metric_terms import QueryMetrics, RadiusMetrics, expected_hits, query_terms, share
from cibhash.ties import Counts, Floats, cut_at

_BLOCK_CELLS = 2**17
"""Counts that are worked on at once."""


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
    map_all: float
    """Mean average precision over the whole database (mAP@ALL)."""
    ndcg_at_k: float
    """Normalized discounted cumulative gain; a relevant item gains 1, also one that shares several labels."""
    precision_at_k: float
    """Share of the top k that is relevant."""
    recall_at_k: float
    """Share of the relevant items that is in the top k."""
    precision_by_radius: Floats
    """(B + 1,) share of the items within each inclusive radius that is relevant; 0 for an empty ball."""
    recall_by_radius: Floats
    """(B + 1,) share of the relevant items that is within each radius."""
    map_by_radius: Floats
    """(B + 1,) mean average precision of the items within each radius alone (MAP@H<=r); 0 for an empty ball."""
    empty_ball_share: Floats
    """(B + 1,) share of the queries without any item within each radius."""
    median_tie_block: float
    """Median number of items that share the distance of rank k."""
    per_query: QueryMetrics
    """What the means are of, for intervals over queries, classes and single queries."""
    k: int
    """As asked, which may be above `num_database`."""
    num_queries: int
    num_database: int
    """Items per query; the largest where queries differ."""

    @property
    def average_precision(self) -> Floats:
        """(Q,) the terms of `map_at_k`."""
        return self.per_query.average_precision

    @property
    def ramap(self) -> float:
        """Radius-aware mAP (arXiv 1905.10951): the mean of the precision within a radius over the radii 0 to B.

        As public code computes it, an empty ball counting 0; without the paper's penalty for the buckets that a radius
        probes, which leaves radius 0 alone.
        """
        return float(self.precision_by_radius.mean())


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
    blocks = [query_terms(total_QD[rows], relevant_QD[rows], k) for rows in _query_blocks(*total_QD.shape)]
    found = QueryMetrics(*(np.concatenate(values) for values in zip(*(terms for terms, _ in blocks), strict=True)))
    by_radius = RadiusMetrics(*(np.sum(sums, axis=0) for sums in zip(*(sums for _, sums in blocks), strict=True)))
    num_queries = len(total_QD)
    return RetrievalMetrics(
        map_at_k=float(found.average_precision.mean()),
        map_at_k_min_kr=float(found.average_precision_min_kr.mean()),
        map_at_k_r=float(found.average_precision_r.mean()),
        map_best=float(found.average_precision_best.mean()),
        map_worst=float(found.average_precision_worst.mean()),
        map_all=float(found.average_precision_all.mean()),
        ndcg_at_k=float(found.ndcg.mean()),
        precision_at_k=float(found.precision.mean()),
        recall_at_k=float(found.recall.mean()),
        precision_by_radius=by_radius.precision / num_queries,
        recall_by_radius=by_radius.recall / num_queries,
        map_by_radius=by_radius.average_precision / num_queries,
        empty_ball_share=by_radius.empty_balls / num_queries,
        median_tie_block=float(np.median(found.tie_block)),
        per_query=found,
        k=k,
        num_queries=num_queries,
        num_database=int(total_QD.sum(axis=1).max()),
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
    hits_RQ = np.zeros((len(ranks_R), len(total_QD)))
    for rows in _query_blocks(*total_QD.shape):
        for index, rank in enumerate(ranks_R.tolist()):
            hits_RQ[index, rows] = expected_hits(cut_at(total_QD[rows], relevant_QD[rows], rank))
    depth_RQ = np.minimum(ranks_R[:, None], num_items)
    return PrecisionRecall(share(hits_RQ, depth_RQ).mean(axis=1), share(hits_RQ, num_relevant).mean(axis=1))


def _query_blocks(num_queries: int, num_distances: int) -> Iterator[slice]:
    """Ranges of queries whose counts stay in cache through the many passes over them."""
    step = max(1, _BLOCK_CELLS // num_distances)
    for start in range(0, num_queries, step):
        yield slice(start, min(start + step, num_queries))


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
