"""The best rows per query of a part of the database, and merged over parts: what no histogram tells.

Knows nothing of Ray. Whatever the parts, their best rows merge to those of the whole, in the order of (-score, id).
Shapes: Q queries of a block, N rows of a part, K ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cibhash.hamming import search
from cibhash.relevance import relevant_at, share_label
from cibhash.types import Codes, Ids, Labels

RANK_BYTES = 4 + 8 + 1
"""Of one query and rank in `Ranked`."""
_SIMILARITY_CELLS = 2**22


class Ranked(NamedTuple):
    """Rows of the database with the highest scores per query, ordered by (-score, id), (Q, <= K) each.

    Rows with score -inf take no part: they come last and are not relevant.
    """

    scores: npt.NDArray[np.float32]
    """Cosine similarity, or minus the Hamming distance."""
    ids: Ids
    relevant: npt.NDArray[np.bool_]


class Pairs(NamedTuple):
    """Some pairs of a query and a row of the part, by position, int64 (P,) each."""

    queries: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


def most_similar(
    queries: npt.NDArray[np.float64],
    database: npt.NDArray[np.float64],
    labels: tuple[Labels, Labels],
    ids: Ids,
    k: int,
    excluded: Pairs,
) -> Ranked:
    """The k rows with the highest cosine similarity to each query.

    Products are summed in float64 and compared in float32, so that the order does not follow from how the linear
    algebra library cuts its blocks; equal similarities are ordered by id.

    Args:
        queries: Features of length 1, (Q, D).
        database: Features of length 1, (N, D).
        labels: Of the queries and of the database.
        ids: Of the database, (N,).
        k: Ranks, at least 1.
        excluded: Pairs that take no part.
    """
    num_queries, num_rows = len(queries), len(ids)
    relevant = share_label(*labels, num_queries, num_rows)
    step = max(1, _SIMILARITY_CELLS // max(1, num_rows))
    blocks = []
    for start in range(0, num_queries, step):
        rows = slice(start, min(start + step, num_queries))
        scores = (queries[rows] @ database.T).astype(np.float32)
        inside = (excluded.queries >= rows.start) & (excluded.queries < rows.stop)
        scores[excluded.queries[inside] - start, excluded.rows[inside]] = -np.inf
        order = np.stack([_nearest(row, ids, k) for row in scores])
        found = np.take_along_axis(relevant(rows, slice(0, num_rows)), order, axis=1)
        best = np.take_along_axis(scores, order, axis=1)
        blocks.append(Ranked(best, ids[order], found & (best > -np.inf)))
    return _concatenate(blocks, axis=0)


def nearest_codes(
    queries: Codes, database: Codes, labels: tuple[Labels, Labels], ids: Ids, k: int, excluded: Pairs
) -> Ranked:
    """The k rows with the least Hamming distance to each query, equal distances in the order of ids.

    Args:
        queries: Packed codes, uint8 (Q, B/8).
        database: Packed codes, uint8 (N, B/8).
        labels: Of the queries and of the database.
        ids: Of the database, (N,).
        k: Ranks, at least 1.
        excluded: Pairs that take no part.
    """
    order = np.argsort(ids, kind="stable")
    more = int(np.bincount(excluded.queries).max()) if len(excluded.queries) else 0
    found = search(queries, database[order], min(k + more, len(ids)))
    relevant = relevant_at(labels[0], labels[1][order], found.ids)
    ranked = Ranked(-found.distances.astype(np.float32), ids[order][found.ids], relevant)
    for query, row in zip(excluded.queries.tolist(), ids[excluded.rows].tolist(), strict=True):
        gone = ranked.ids[query] == row
        ranked.scores[query, gone], ranked.relevant[query, gone] = -np.inf, False
    return _best(ranked, k) if more else ranked


def merge_ranked(first: Ranked, second: Ranked, k: int) -> Ranked:
    """The k best of both parts, in the same order as if they were one."""
    return _best(_concatenate([first, second], axis=1), k)


def average_precision(relevant: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Average precision of rankings without ties, hashing denominator: relevant items among the ranks shown.

    Args:
        relevant: bool (Q, K), rank 1 first.

    Returns:
        float64 (Q,); 0 where nothing relevant is shown.
    """
    hits = np.cumsum(relevant, axis=1)
    precision = hits / np.arange(1, relevant.shape[1] + 1)
    total: npt.NDArray[np.float64] = (precision * relevant).sum(axis=1) / np.maximum(hits[:, -1], 1)
    return total


@dataclass
class OpenRankings:
    """Merges the best rows of each query block over the parts; finished blocks leave only their average precision."""

    average_precision: npt.NDArray[np.float64]
    num_parts: int
    k: int
    _open: dict[int, tuple[int, Ranked]] = field(default_factory=dict)

    def add(self, rows: slice, ranked: Ranked) -> None:
        """Takes what the queries `rows` found in one more part, in any order of parts."""
        seen, merged = 1, ranked
        if rows.start in self._open:
            seen, merged = self._open.pop(rows.start)
            seen, merged = seen + 1, merge_ranked(merged, ranked, self.k)
        if seen == self.num_parts:
            self.average_precision[rows] = average_precision(merged.relevant)
        else:
            self._open[rows.start] = seen, merged


def _best(ranked: Ranked, k: int) -> Ranked:
    order = np.lexsort((ranked.ids, -ranked.scores), axis=1)[:, :k]
    return Ranked(
        np.take_along_axis(ranked.scores, order, axis=1),
        np.take_along_axis(ranked.ids, order, axis=1),
        np.take_along_axis(ranked.relevant, order, axis=1),
    )


def _concatenate(blocks: Sequence[Ranked], axis: int) -> Ranked:
    return Ranked(
        np.concatenate([block.scores for block in blocks], axis),
        np.concatenate([block.ids for block in blocks], axis),
        np.concatenate([block.relevant for block in blocks], axis),
    )


def _nearest(scores: npt.NDArray[np.float32], ids: Ids, k: int) -> npt.NDArray[np.int64]:
    """Positions of the k highest, in the order of (-score, id)."""
    kept = min(k, len(scores))
    candidates = np.arange(len(scores))
    if kept < len(scores):
        cut = len(scores) - kept
        candidates = np.flatnonzero(scores >= np.partition(scores, cut)[cut])
    return candidates[np.lexsort((ids[candidates], -scores[candidates]))][:kept]
