"""What each query contributes to the metrics of all: closed forms of its counts of items and relevant items.

Knows nothing of codes and of how queries are averaged. Shapes: Q queries, B bits. Equal distances leave the order of
items open; values are expectations over all orders unless they say otherwise.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cibhash.discounts import expected_ndcg
from cibhash.ties import (
    Counts,
    Cut,
    Floats,
    average_precision_bounds,
    cut_at,
    expected_average_precision,
    expected_precision_sums,
    precision_sums_by_group,
)


class QueryMetrics(NamedTuple):
    """Metrics of each query, float64 (Q,) each; a query without a relevant item scores 0."""

    average_precision: Floats
    """At k; the denominator is the relevant items inside the top k ("hashing")."""
    average_precision_min_kr: Floats
    """The same with denominator min(k, R), R the relevant items of the database."""
    average_precision_r: Floats
    """The same with denominator R."""
    average_precision_best: Floats
    """Largest `average_precision` that an order of the ties can give."""
    average_precision_worst: Floats
    """Least `average_precision` that an order of the ties can give."""
    average_precision_all: Floats
    """Over the whole database, where all denominators are R."""
    ndcg: Floats
    """Discounted cumulative gain of the top k over that of the best ranking; a relevant item gains 1."""
    precision: Floats
    """Share of the top k that is relevant."""
    recall: Floats
    """Share of the relevant items that is in the top k."""
    tie_block: Floats
    """Items that share the distance of rank k."""
    num_relevant: Floats
    """Relevant items of the database."""


class RadiusMetrics(NamedTuple):
    """Means or sums over queries per inclusive radius, float64 (B + 1,) each; an empty ball counts as 0."""

    precision: Floats
    """Share of the items within the radius that is relevant."""
    recall: Floats
    """Share of the relevant items that is within the radius."""
    average_precision: Floats
    """Of the items within the radius alone; the denominator is the relevant ones among them."""
    empty_balls: Floats
    """Queries without any item within the radius."""


def query_terms(total_QD: Counts, relevant_QD: Counts, k: int) -> tuple[QueryMetrics, RadiusMetrics]:
    """The metrics of some queries, and the sums over them by radius.

    Args:
        total_QD: Items per query and distance, int64 (Q, B + 1).
        relevant_QD: How many of them are relevant, same shape.
        k: Depth of the metrics at k, at least 1; above the database size it means all items.
    """
    cut = cut_at(total_QD, relevant_QD, k)
    items_within, relevant_within = np.cumsum(total_QD, axis=1), np.cumsum(relevant_QD, axis=1)
    num_items, num_relevant = items_within[:, -1], relevant_within[:, -1]
    depth = np.minimum(k, num_items)
    worst, best = average_precision_bounds(cut)
    _, precision_sum = expected_precision_sums(cut)
    whole = cut if k >= num_items.max() else cut_at(total_QD, relevant_QD, int(num_items.max()))
    precision_within = share(np.cumsum(precision_sums_by_group(whole), axis=1), relevant_within)
    hits = expected_hits(cut)
    per_query = QueryMetrics(
        average_precision=expected_average_precision(cut),
        average_precision_min_kr=share(precision_sum, np.minimum(k, num_relevant)),
        average_precision_r=share(precision_sum, num_relevant),
        average_precision_best=best,
        average_precision_worst=worst,
        average_precision_all=precision_within[:, -1],
        ndcg=expected_ndcg(cut, num_relevant, k),
        precision=share(hits, depth),
        recall=share(hits, num_relevant),
        tie_block=_tie_block(total_QD, items_within, depth).astype(np.float64),
        num_relevant=num_relevant.astype(np.float64),
    )
    by_radius = RadiusMetrics(
        precision=share(relevant_within, items_within).sum(axis=0),
        recall=share(relevant_within, num_relevant[:, None]).sum(axis=0),
        average_precision=precision_within.sum(axis=0),
        empty_balls=(items_within == 0).sum(axis=0, dtype=np.float64),
    )
    return per_query, by_radius


def expected_hits(cut: Cut) -> Floats:
    """Expected relevant items in the top k: those of the whole groups and their share of the straddling one, (Q,)."""
    return cut.whole_relevant + cut.room * share(cut.straddling_relevant, cut.straddling_items)


def share(part: npt.NDArray[np.int64 | np.float64], whole: Counts) -> Floats:
    """Quotient, 0 where the denominator is 0."""
    whole = np.broadcast_to(whole, part.shape)
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


def _tie_block(total_QD: Counts, items_within_QD: Counts, depth_Q: Counts) -> Counts:
    column = np.argmax(items_within_QD >= depth_Q[:, None], axis=1)[:, None]
    sizes: Counts = np.take_along_axis(total_QD, column, axis=1)[:, 0]
    return sizes
