"""Decides which queries and database images share a label.

Knows nothing of codes or metrics. Shapes: Q queries, N database images, C classes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cibhash.binary import as_words
from cibhash.types import Labels

Relevance = Callable[[slice, slice], npt.NDArray[np.bool_]]
"""From a range of queries and a range of the database to bool (q, n): whether the pair shares a label."""

NO_LABEL = -1
_GATHERED_LABELS = 2**24


def share_label(query_labels: Labels, database_labels: Labels, num_queries: int, num_database: int) -> Relevance:
    """Checks the labels of both sides and returns the function that compares them by blocks.

    Args:
        query_labels: int (Q,), one label each, -1 for none; or bool (Q, C), several each.
        database_labels: int (N,) or bool (N, C), as for the queries.
        num_queries: Q.
        num_database: N.

    Raises:
        ValueError: the labels of one side are neither kind, the kinds or the numbers of classes differ, or a length
            is not the number of codes.
    """
    labels = checked_labels(query_labels, database_labels, num_queries, num_database)
    return _share_single(*labels) if labels[0].ndim == 1 else _share_any(*labels)


def relevant_at(
    query_labels: Labels, database_labels: Labels, positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether each query shares a label with the images at its own positions of the database.

    Args:
        query_labels: int (Q,) or bool (Q, C), as for `share_label`.
        database_labels: int (N,) or bool (N, C).
        positions: int (Q, K), each from 0 to N - 1.

    Returns:
        bool (Q, K).

    Raises:
        ValueError: as for `share_label`.
    """
    of_queries, of_database = checked_labels(query_labels, database_labels, len(positions), len(database_labels))
    if of_queries.ndim == 1:
        single: npt.NDArray[np.bool_] = of_database[positions] == of_queries[:, None]
        single[of_queries == NO_LABEL] = False
        return single
    shared = np.zeros(positions.shape, dtype=np.bool_)
    step = max(1, _GATHERED_LABELS // max(1, positions.shape[1] * of_queries.shape[1]))
    for start in range(0, len(positions), step):
        rows = slice(start, start + step)
        shared[rows] = (of_database[positions[rows]] & of_queries[rows, None, :]).any(axis=2)
    return shared


def checked_labels(
    query_labels: Labels, database_labels: Labels, num_queries: int, num_database: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The labels of both sides as arrays, int64 (Q,) and (N,) or bool (Q, C) and (N, C).

    Raises:
        ValueError: as for `share_label`.
    """
    of_queries, of_database = _as_labels(query_labels, "query"), _as_labels(database_labels, "database")
    found = f"labels are {of_queries.dtype} {of_queries.shape} and {of_database.dtype} {of_database.shape}"
    if of_queries.shape[1:] != of_database.shape[1:]:
        raise ValueError(f"query and database {found}, expected both int (N,) or both bool (N, C) with one C")
    if (len(of_queries), len(of_database)) != (num_queries, num_database):
        raise ValueError(f"query and database {found}, but there are {num_queries} and {num_database} codes")
    return of_queries, of_database


def _as_labels(labels: Labels, side: str) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.asarray(labels)
    if array.ndim == 1 and np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int64, copy=False)
    if array.ndim == 2 and array.dtype == np.bool_:
        return array
    raise ValueError(f"{side} labels are {array.dtype} {array.shape}, expected int (N,) or bool (N, C)")


def _share_single(query_labels: npt.NDArray[Any], database_labels: npt.NDArray[Any]) -> Relevance:
    without_label = query_labels == NO_LABEL

    def relevant(rows: slice, columns: slice) -> npt.NDArray[np.bool_]:
        equal: npt.NDArray[np.bool_] = np.equal(query_labels[rows, None], database_labels[None, columns])
        equal[without_label[rows]] = False
        return equal

    return relevant


def _share_any(query_labels: npt.NDArray[Any], database_labels: npt.NDArray[Any]) -> Relevance:
    query_masks, database_masks = (as_words(np.packbits(labels, axis=1)) for labels in (query_labels, database_labels))

    def relevant(rows: slice, columns: slice) -> npt.NDArray[np.bool_]:
        masks = zip(query_masks[:, rows], database_masks[:, columns], strict=True)
        shared = np.zeros((query_masks[:, rows].shape[1], database_masks[:, columns].shape[1]), dtype=np.bool_)
        for query_mask, database_mask in masks:
            shared |= (query_mask[:, None] & database_mask[None, :]) != 0
        return shared

    return relevant
