"""Discounted cumulative gain when equal distances leave the order open: its expectation in closed form.

Knows nothing of codes, only of counts. Gains are binary: 1 for a relevant item, whatever number of labels it shares.
Rank i is discounted by 1 / log2(i + 1) (Järvelin & Kekäläinen 2002). Shapes: Q queries, one group of tied items per
distance d = 0..B.
"""

import numpy as np
import numpy.typing as npt

from cibhash.ties import Counts, Cut, Floats

_TABLE_SIZE = 2**16
_SUMS = np.concatenate(([0.0], np.cumsum(1 / np.log2(np.arange(2, _TABLE_SIZE + 2)))))
_SERIES_TERMS = 160
_EULER = 0.57721566490153286


def discount_sum(ranks: npt.ArrayLike) -> Floats:
    """Sum of 1 / log2(i + 1) over the ranks i = 1..n, for each n at least 0.

    A table up to 65,536; beyond, the Euler-Maclaurin formula with the logarithmic integral, to about 1e-12.
    """
    counts = np.asarray(ranks, dtype=np.int64)
    sums: Floats = np.array(_SUMS[np.minimum(counts, _TABLE_SIZE)])
    beyond = counts > _TABLE_SIZE
    if beyond.any():
        sums[beyond] += _tail(counts[beyond].astype(np.float64)) - _tail(np.array([float(_TABLE_SIZE)]))
    return sums


def expected_dcg(cut: Cut) -> Floats:
    """Expected discounted cumulative gain of the top k, (Q,): a group's gain is averaged over its ranks.

    A group of n items, r relevant, after s items gives, from its first m items, (r/n) (D(s + m) - D(s)).
    """
    discounts = discount_sum(cut.items_before + cut.items) - discount_sum(cut.items_before)
    share = cut.group_relevant / np.maximum(cut.group_items, 1)
    gains: Floats = np.sum(share * discounts, axis=1)
    return gains


def expected_ndcg(cut: Cut, num_relevant: Counts, k: int) -> Floats:
    """Expected gain over that of a ranking with all relevant items first, (Q,); 0 for a query without any.

    Args:
        cut: Rankings cut at k.
        num_relevant: Relevant items of the database, (Q,).
        k: Where they are cut.
    """
    ideal = discount_sum(np.minimum(num_relevant, k))
    return np.divide(expected_dcg(cut), ideal, out=np.zeros(len(ideal)), where=ideal > 0)


def _tail(n: Floats) -> Floats:
    """The integral of f(u) = ln 2 / ln(u + 1), its value over 2 and its derivative over 12, at n."""
    logarithm = np.log1p(n)
    derivative = -np.log(2) / ((n + 1) * logarithm**2)
    tail: Floats = np.log(2) * (_exponential_integral(logarithm) + 0.5 / logarithm) + derivative / 12
    return tail


def _exponential_integral(y: Floats) -> Floats:
    """Ei(y), 0 < y < 50, by its power series, whose terms are all positive."""
    term, total = np.ones_like(y), np.zeros_like(y)
    for n in range(1, _SERIES_TERMS + 1):
        term = term * y / n
        total += term / n
    result: Floats = _EULER + np.log(y) + total
    return result
