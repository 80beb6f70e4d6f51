"""Asymmetric distance: the query keeps its logits, the database its bits; exact search and histograms in numpy.

Knows nothing of encoders, indexes and files. Shapes: Q queries, N database codes, B bits, K neighbors. With logits l of
a query and bits b of an image, sum_j l_j (2 b_j - 1) ranks like the sum of |l_j| over the bits in which they differ: a
Hamming distance whose bits weigh |l_j|. Weights are integers with a bounded sum, so that distances are exact, have ties
like Hamming distances, and are counted in histograms that add up over the parts of a database.
"""

import operator
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cibhash.binary import check_code_length, unpack_bits
from cibhash.hamming import check_pair, id_order
from cibhash.relevance import share_label
from cibhash.types import PADDING_DISTANCE, PADDING_ID, Codes, Distances, Ids, Labels, Neighbors

Weights = npt.NDArray[np.int32]
"""int32 (Q, B), at least 0; the sum over the bits of a query, its largest distance, is at most `LEVELS`."""

LEVELS = 1023
"""Largest distance; a histogram has one column more, and twice as many columns must fit int16."""
MAX_BITS = (LEVELS + 1) // 2
"""Longest code: with more bits, weights that are all equal would round to 0."""

_QUERY_ROWS = 64
_DATABASE_ROWS = 2**13
"""A block of distances between these stays in cache between the matrix product and the count."""


def query_weights(logits: npt.NDArray[np.floating], bits: int) -> Weights:
    """What each of the first `bits` bits adds to the distance of an image that differs in it.

    w_j = round(|l_j| (LEVELS - K/2) / sum_i |l_i|) over the K bits, halves to even. Rounding adds at most 1/2 per bit,
    so the sum never exceeds `LEVELS`. Rankings are within a query, which leaves the scale free.

    Args:
        logits: Of the queries, finite, float (Q, B).
        bits: K, a positive multiple of 8, at most B and `MAX_BITS`.

    Returns:
        int32 (Q, K); a query whose logits are all 0 weighs its bits equally.

    Raises:
        ValueError: `logits` are not as above, or `bits` is not a possible prefix of them.
    """
    if logits.ndim != 2 or not np.issubdtype(logits.dtype, np.floating):
        raise ValueError(f"logits are {logits.dtype} {logits.shape}, expected floats of shape (Q, B)")
    check_code_length(bits)
    if bits > min(logits.shape[1], MAX_BITS):
        raise ValueError(f"{bits} bits were asked of {logits.shape[1]} logits; weights are for at most {MAX_BITS} bits")
    sizes_QK = np.abs(np.ascontiguousarray(logits[:, :bits], dtype=np.float64))
    if not np.isfinite(sizes_QK).all():
        raise ValueError(f"logits of query {np.argwhere(~np.isfinite(sizes_QK))[0, 0]} are not finite")
    largest_Q1 = sizes_QK.max(axis=1, keepdims=True)
    shares_QK = np.divide(sizes_QK, largest_Q1, out=np.ones_like(sizes_QK), where=largest_Q1 > 0)
    shares_QK /= shares_QK.sum(axis=1, keepdims=True)
    weights: Weights = np.rint(shares_QK * (LEVELS - bits / 2)).astype(np.int32)
    return weights


def distances(weights: Weights, query_codes: Codes, database_codes: Codes) -> Distances:
    """All asymmetric distances: per pair, the query's weights summed over the bits in which the codes differ.

    Args:
        weights: Of the queries, int (Q, B), as from `query_weights`.
        query_codes: Packed codes, uint8 (Q, B/8).
        database_codes: Packed codes, uint8 (N, B/8).

    Returns:
        int32 (Q, N), 0 to `LEVELS`.

    Raises:
        ValueError: an argument is not a packed code array, widths differ, or `weights` are not as above.
    """
    _check(weights, query_codes, database_codes)
    result = np.empty((len(query_codes), len(database_codes)), dtype=np.int32)
    for rows, columns, block in _blocks(weights, query_codes, database_codes):
        result[rows, columns] = block
    return result


def search(weights: Weights, query_codes: Codes, database_codes: Codes, k: int, *, ids: Ids | None = None) -> Neighbors:
    """The k nearest codes of every query by asymmetric distance, exact, in the order of (distance, id).

    Args:
        weights: Of the queries, int (Q, B), as from `query_weights`.
        query_codes: Packed codes, uint8 (Q, B/8).
        database_codes: Packed codes, uint8 (N, B/8).
        k: Number of neighbors, at least 1; beyond N the columns are padding.
        ids: Id of each database code, int64 (N,), in any order; 0 to N - 1 if absent.

    Returns:
        Ids and distances, (Q, k), padded with (-1, 2147483647).

    Raises:
        ValueError: `k` is below 1, `ids` do not fit, or as for `distances`.
    """
    _check(weights, query_codes, database_codes)
    k = operator.index(k)
    if k <= 0:
        raise ValueError(f"k is {k}, expected at least 1")
    num_queries, num_database = len(query_codes), len(database_codes)
    order, sorted_ids = id_order(ids, num_database)
    kept = min(k, num_database)
    nearest = np.full((num_queries, kept), np.iinfo(np.int64).max)
    for rows, columns, block in _blocks(weights, query_codes, database_codes, order):
        keys = block * np.int64(num_database)  # (distance, row) as one number, rows being in the order of ids
        keys += np.arange(columns.start, columns.stop)
        candidates = np.concatenate((nearest[rows], keys), axis=1)
        nearest[rows] = np.partition(candidates, kept - 1, axis=1)[:, :kept]
    nearest.sort(axis=1)
    result = Neighbors(
        np.full((num_queries, k), PADDING_ID, dtype=np.int64),
        np.full((num_queries, k), PADDING_DISTANCE, dtype=np.int32),
    )
    if kept:
        result.distances[:, :kept], positions = np.divmod(nearest, num_database)
        result.ids[:, :kept] = sorted_ids[positions]
    return result


def histogram(
    weights: Weights, query_codes: Codes, database_codes: Codes, query_labels: Labels, database_labels: Labels
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Counts, per query and asymmetric distance, the database codes there and how many of them are relevant.

    As `cibhash.hamming.histogram`: two images are relevant when they share a label, counts of the parts of a database
    add up to those of the whole, and `cibhash.metrics` takes them.

    Args:
        weights: Of the queries, int (Q, B), as from `query_weights`.
        query_codes: Packed codes, uint8 (Q, B/8).
        database_codes: Packed codes, uint8 (N, B/8).
        query_labels: int (Q,), one label each, -1 for none; or bool (Q, C), several each.
        database_labels: int (N,) or bool (N, C), as for the queries.

    Returns:
        `(total, relevant)`, int64 (Q, LEVELS + 1) each; column d is distance d.

    Raises:
        ValueError: the labels are not as above, or as for `distances`.
    """
    _check(weights, query_codes, database_codes)
    relevant_pairs = share_label(query_labels, database_labels, len(query_codes), len(database_codes))
    num_distances = LEVELS + 1
    counts = np.zeros((len(query_codes), 2 * num_distances), dtype=np.int64)
    for rows, columns, block in _blocks(weights, query_codes, database_codes):
        block += relevant_pairs(rows, columns) * np.int16(num_distances)
        for row, keys in enumerate(block, rows.start):
            counts[row] += np.bincount(keys, minlength=2 * num_distances)
    relevant = counts[:, num_distances:].copy()
    return counts[:, :num_distances] + relevant, relevant


def _blocks(
    weights: Weights, query_codes: Codes, database_codes: Codes, order: Ids | None = None
) -> Iterator[tuple[slice, slice, npt.NDArray[np.int16]]]:
    """Yields query ranges, ranges of the ordered database, and the distances (q, n) between them.

    With bits a of a query and b of an image, sum_j w_j [a_j != b_j] = sum_j w_j a_j + sum_j w_j (1 - 2 a_j) b_j. All
    partial sums are integers of at most `LEVELS`, so float32 is exact in whatever order the product adds them.
    """
    weights_QB, bits_QB = weights.astype(np.float32), unpack_bits(query_codes)
    constant_Q1 = np.sum(weights_QB * bits_QB, axis=1, keepdims=True)
    signed_QB = np.where(bits_QB == 1, -weights_QB, weights_QB)
    for start in range(0, len(database_codes), _DATABASE_ROWS):
        columns = slice(start, min(start + _DATABASE_ROWS, len(database_codes)))
        bits_NB = unpack_bits(database_codes[columns if order is None else order[columns]]).astype(np.float32)
        for first in range(0, len(query_codes), _QUERY_ROWS):
            rows = slice(first, min(first + _QUERY_ROWS, len(query_codes)))
            block = signed_QB[rows] @ bits_NB.T
            block += constant_Q1[rows]
            yield rows, columns, block.astype(np.int16)


def _check(weights: Weights, query_codes: Codes, database_codes: Codes) -> None:
    check_pair(query_codes, database_codes)
    if weights.shape != (len(query_codes), 8 * query_codes.shape[1]) or not np.issubdtype(weights.dtype, np.integer):
        raise ValueError(
            f"weights are {weights.dtype} {weights.shape}, expected integers of shape "
            f"({len(query_codes)}, {8 * query_codes.shape[1]})"
        )
    if weights.min(initial=0) < 0:
        raise ValueError(f"weights contain {weights.min()}, expected at least 0")
    if (largest := weights.sum(axis=1, dtype=np.int64).max(initial=0)) > LEVELS:
        raise ValueError(f"the weights of a query add up to {largest}, expected at most {LEVELS}")
