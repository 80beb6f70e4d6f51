"""Average precision at k when equal distances leave the order open: its expectation and bounds in closed form.

Knows nothing of codes, only of counts. Shapes: Q queries, one group of tied items per distance d = 0..B. Each query
walks its groups in the order of distance; the group that begins inside the top k and ends beyond it straddles k.
Every function here is elementwise over queries. Derivations: docstrings; all are checked against enumeration.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_TABLE_SIZE = 256
_HARMONIC = np.concatenate(([0.0], np.cumsum(1.0 / np.arange(1, _TABLE_SIZE + 1))))
_CHUNK_CELLS = 2**19


@dataclass(frozen=True)
class Cut:
    """Rankings cut at k, as counts per query; what is inside the top k is the whole groups and part of one more."""

    items: Counts
    """(Q, B + 1) items of each group within the top k: all of a whole group, none of a later one."""
    group_items: Counts
    """(Q, B + 1) items of each group."""
    group_relevant: Counts
    """(Q, B + 1) relevant items of each group."""
    items_before: Counts
    """(Q, B + 1) items of all nearer groups."""
    relevant_before: Counts
    """(Q, B + 1) relevant items of all nearer groups."""
    whole_items: Counts
    """(Q,) items of the whole groups."""
    whole_relevant: Counts
    """(Q,) relevant items of the whole groups."""
    straddling_items: Counts
    """(Q,) size of the straddling group, 0 without one."""
    straddling_relevant: Counts
    """(Q,) relevant items of the straddling group, 0 without one."""
    room: Counts
    """(Q,) items of the straddling group that are within the top k."""


def cut_at(total: Counts, relevant: Counts, k: int) -> Cut:
    """Cuts the rankings that histograms (Q, B + 1) describe after k items, or at their end if they are shorter."""
    items_before = np.cumsum(total, axis=1) - total
    items = np.clip(k - items_before, 0, total)
    whole = items == total
    whole_items = np.sum(total * whole, axis=1)
    column = np.argmax(~whole, axis=1)[:, None]
    straddling = (items > 0) & ~whole
    return Cut(
        items=items,
        group_items=total,
        group_relevant=relevant,
        items_before=items_before,
        relevant_before=np.cumsum(relevant, axis=1) - relevant,
        whole_items=whole_items,
        whole_relevant=np.sum(relevant * whole, axis=1),
        straddling_items=np.take_along_axis(total * straddling, column, axis=1)[:, 0],
        straddling_relevant=np.take_along_axis(relevant * straddling, column, axis=1)[:, 0],
        room=np.sum(items, axis=1) - whole_items,
    )


def harmonic_difference(start: npt.ArrayLike, count: npt.ArrayLike) -> Floats:
    """H(start + count) - H(start), the sum of 1/(start + t) for t = 1..count, to full relative precision.

    A table below 256, the asymptotic series beyond, subtracted term by term before rounding can hurt.
    """
    start, stop = np.asarray(start, dtype=np.float64), np.add(start, count, dtype=np.float64)
    table_stop, table_start = (np.minimum(end, _TABLE_SIZE).astype(np.int64) for end in (stop, start))
    low, high = np.maximum(start, _TABLE_SIZE), np.maximum(stop, _TABLE_SIZE)
    u, v = 1 / low, 1 / high
    step = (high - low) * u * v
    series = step * (-1 / 2 + (u + v) / 12 - (u + v) * (u * u + v * v) / 120)
    difference: Floats = _HARMONIC[table_stop] - _HARMONIC[table_start] + np.log1p((high - low) * u) + series
    return difference


def precision_sums_by_group(cut: Cut) -> Floats:
    """Expected sum of the precisions at the relevant ranks of each group, within the top k, (Q, B + 1).

    A group of n items, r relevant, after s items, c relevant gives, from its first m items,
    (r/n) * sum over t = 1..m of [c + 1 + (t - 1)(r - 1)/(n - 1)] / (s + t).
    """
    n, r, m = cut.group_items, cut.group_relevant, cut.items
    s, c = cut.items_before, cut.relevant_before
    first = harmonic_difference(s, m)
    later = m - (s + 1) * first
    sums: Floats = r / np.maximum(n, 1) * ((c + 1) * first + (r - 1) / np.maximum(n - 1, 1) * later)
    return sums


def expected_precision_sums(cut: Cut) -> tuple[Floats, Floats]:
    """Expected sums of the precisions at the relevant ranks, (Q,): of the whole groups alone, and of the top k."""
    sums = precision_sums_by_group(cut)
    return np.sum(sums * (cut.items == cut.group_items), axis=1), np.sum(sums, axis=1)


def expected_average_precision(cut: Cut) -> Floats:
    """Expectation over all orders of ties of AP@k divided by the relevant items inside the top k (0 if none), (Q,).

    The number j of relevant items among the m of the straddling group inside the top k is hypergeometric, and the
    denominator depends on it: the quotient is averaged, not the numerator.
    """
    whole_sum, _ = expected_precision_sums(cut)
    result = np.divide(whole_sum, cut.whole_relevant, out=np.zeros_like(whole_sum), where=cut.whole_relevant > 0)
    queries = np.flatnonzero(cut.room > 0)
    widths = _window(cut.straddling_items[queries], cut.straddling_relevant[queries], cut.room[queries])
    chunk = max(1, _CHUNK_CELLS // int(widths.max(initial=1)))
    for start in range(0, len(queries), chunk):
        rows = queries[start : start + chunk]
        result[rows] = _straddling_expectation(cut, whole_sum, rows, int(widths[start : start + chunk].max()))
    return result


def average_precision_bounds(cut: Cut) -> tuple[Floats, Floats]:
    """Least and largest AP@k over all orders of ties, divided by the relevant items inside the top k (0 if none).

    Within a group, relevant-last is worst and relevant-first is best. How many relevant items of the straddling group
    enter the top k is a choice too: the best is at one end of the range, the worst may lie inside it.
    """
    n, r, s, c = cut.group_items, cut.group_relevant, cut.items_before, cut.relevant_before
    whole = cut.items == n
    worst_sum = np.sum(_run_of_hits(s + n - r, c, r) * whole, axis=1)
    best_sum = np.sum(_run_of_hits(s, c, r) * whole, axis=1)

    s, c, m = cut.whole_items, cut.whole_relevant, cut.room
    fewest = np.maximum(0, m - (cut.straddling_items - cut.straddling_relevant))
    most = np.minimum(cut.straddling_relevant, m)

    def quotient(whole_sum: Floats, hits: Counts, start: Counts) -> Floats:
        hits_in_top = c + hits
        result = np.zeros_like(whole_sum)
        np.divide(whole_sum + _run_of_hits(start, c, hits), hits_in_top, out=result, where=hits_in_top > 0)
        return result

    # With relevant-first, hit j + 1 has precision (c + j + 1)/(s + j + 1), which grows with j: once a hit raises the
    # average, so does every later one. The average falls, then rises.
    best = np.maximum(quotient(best_sum, fewest, s), quotient(best_sum, most, s))
    # With relevant-last, hit j + 1 adds gain(j) to the sum, and gain grows with j: gain(j)(c + j) - sum(j) never
    # falls, and the average stops falling where it reaches zero.
    low, high = fewest.copy(), most.copy()
    while np.any(low < high):
        hits = (low + high) // 2
        last = s + m - hits
        gain = c / np.maximum(last, 1) + harmonic_difference(np.maximum(last - 1, 0), hits + 1)
        stops = gain * (c + hits) >= worst_sum + _run_of_hits(last, c, hits)
        open_ = low < high
        high = np.where(open_ & stops, hits, high)
        low = np.where(open_ & ~stops, hits + 1, low)
    return quotient(worst_sum, low, s + m - low), best


def _run_of_hits(start: Counts, relevant_before: Counts, hits: Counts) -> Floats:
    """Sum of the precisions of `hits` relevant items in a row, at the ranks `start + 1` and on."""
    result: Floats = hits + (relevant_before - start) * harmonic_difference(start, hits)
    return result


def _window(n: Counts, r: Counts, m: Counts) -> Counts:
    """How far from its mode the hypergeometric distribution is summed; by Bernstein's bound the rest is below 1e-30."""
    share = r / np.maximum(n, 1)
    reach = np.ceil(12 * np.sqrt(m * share * (1 - share)) + 60).astype(np.int64)
    widths: Counts = np.minimum(reach, np.minimum(r, m)) + 1
    return widths


def _straddling_expectation(cut: Cut, whole_sum: Floats, rows: Counts, width: int) -> Floats:
    """Average of (A + G(m, j)) / (c + j) over the hypergeometric j, for the queries `rows`.

    G(m, j) = (j/m) [(c + 1) H1 + (j - 1)/(m - 1) H2]. The weights go outward from the mode by their ratios.
    """
    n, r, m, s, c = (
        counts[rows, None].astype(np.float64)
        for counts in (
            cut.straddling_items,
            cut.straddling_relevant,
            cut.room,
            cut.whole_items,
            cut.whole_relevant,
        )
    )
    first = harmonic_difference(s, m)
    single = (c + 1) * first / m
    pair = (m - (s + 1) * first) / (m * np.maximum(m - 1, 1))
    base = whole_sum[rows, None]

    def value(j: Floats) -> Floats:
        hits = c + j
        return np.divide(base + j * (single + (j - 1) * pair), hits, out=np.zeros_like(j), where=hits > 0)

    mode = np.floor((m + 1) * (r + 1) / (n + 2))
    mode = np.clip(mode, np.maximum(0, m - (n - r)), np.minimum(r, m))
    steps = np.arange(width, dtype=np.float64)
    up, down = mode + steps, mode - steps
    weights_up = np.cumprod((r - up) * (m - up) / ((up + 1) * (n - r - m + up + 1)), axis=1)
    weights_down = np.cumprod(down * (n - r - m + down) / ((r - down + 1) * (m - down + 1)), axis=1)
    weighted = value(mode)[:, 0] + np.sum(weights_up * value(up + 1) + weights_down * value(down - 1), axis=1)
    result: Floats = weighted / (1 + np.sum(weights_up + weights_down, axis=1))
    return result
