"""Scores one block of queries against one part of the database: distance histograms, and most similar features.

Knows nothing of Ray and files beyond the rows it is given. Whatever the blocks and parts, their scores add up or merge
to the same. Shapes: Q queries of the block, N rows of the part, B bits, D features, K ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cibhash import asymmetric
from cibhash.baselines import LinearHash
from cibhash.binary import prefix
from cibhash.hamming import histogram
from cibhash.relevance import share_label
from cibhash.types import Codes, Ids, Labels
from cluster.code_tables import codes_of, features_of, ids_of, logits_of
from cluster.evaluation.label_form import LabelForm
from cluster.evaluation.methods import ASYMMETRIC, OURS, asymmetric_name

_SIMILARITY_CELLS = 2**22


class Series(NamedTuple):
    """What gets one number: a method at a code length."""

    method: str
    bits: int
    encoder: str = ""
    """Name of the compared encoder whose codes these are; empty: the main one."""

    @property
    def key(self) -> str:
        """What results call the method: its own key, or the compared encoder's name."""
        if not self.encoder:
            return self.method
        return asymmetric_name(self.encoder) if self.method == ASYMMETRIC else self.encoder

    @property
    def num_distances(self) -> int:
        """Distances that occur, 0 included: columns of a histogram."""
        return (asymmetric.LEVELS if self.method == ASYMMETRIC else self.bits) + 1


class Counts(NamedTuple):
    """Histograms per query and distance, int64 (Q, `Series.num_distances`) each."""

    total: npt.NDArray[np.int64]
    relevant: npt.NDArray[np.int64]


class Similar(NamedTuple):
    """Rows of the database with the most similar features per query, ordered by (-similarity, id), (Q, <= K) each."""

    similarities: npt.NDArray[np.float32]
    ids: Ids
    relevant: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CodedRows:
    """Some rows of a table as every series needs them."""

    ids: Ids
    codes: Mapping[Series, Codes]
    """Of every series but the asymmetric ones, which take ours."""
    labels: Labels
    features: npt.NDArray[np.float64] | None
    """Of length 1 each, (N, D); None where the upper bound is not asked for."""
    weights: Mapping[Series, asymmetric.Weights] = field(default_factory=dict)
    """Of queries with logits, by asymmetric series."""


@dataclass(frozen=True)
class Coder:
    """Turns rows of a code table into codes of all series and labels in the common form."""

    lengths: tuple[int, ...]
    hashes: Mapping[Series, LinearHash]
    """Baselines, coded from the column `features`."""
    form: LabelForm
    with_features: bool
    with_logits: bool = False
    """The queries have logits."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read of the database."""
        return ("id", "code", "labels", *(("features",) if self.hashes or self.with_features else ()))

    @property
    def query_columns(self) -> tuple[str, ...]:
        """Columns that are read of the queries."""
        return (*self.columns, *(("logits",) if self.with_logits else ()))

    @property
    def series(self) -> tuple[Series, ...]:
        """All series, ours first."""
        ours = (OURS, ASYMMETRIC) if self.with_logits else (OURS,)
        return (*(Series(method, bits) for method in ours for bits in self.lengths), *self.hashes)

    def query_rows(self, table: pa.Table) -> CodedRows:
        """The rows of a part of the queries, which has at least `query_columns`."""
        rows = self.rows(table)
        if not self.with_logits:
            return rows
        logits = logits_of(table)
        return replace(
            rows,
            weights={Series(ASYMMETRIC, bits): asymmetric.query_weights(logits, bits) for bits in self.lengths},
        )

    def rows(self, table: pa.Table) -> CodedRows:
        """The rows of a part, which has at least `columns`."""
        full = codes_of(table)
        codes = {Series(OURS, bits): prefix(full, bits) for bits in self.lengths}
        features = features_of(table) if "features" in self.columns else None
        if features is not None:
            codes |= {series: linear.encode(features) for series, linear in self.hashes.items()}
        unit = _unit_length(features) if features is not None and self.with_features else None
        return CodedRows(ids_of(table), codes, self.form.arrays(table), unit)


@dataclass(frozen=True)
class Scores:
    """What one block of queries found in one part."""

    counts: Mapping[Series, Counts]
    similar: Similar | None


def score(queries: CodedRows, database: CodedRows, k: int) -> Scores:
    """Histograms of every series, and the k most similar rows where features are there."""
    counts = {
        series: Counts(*histogram(codes, database.codes[series], queries.labels, database.labels))
        for series, codes in queries.codes.items()
    }
    for series, weights in queries.weights.items():
        codes = Series(OURS, series.bits)
        pair = queries.codes[codes], database.codes[codes]
        counts[series] = Counts(*asymmetric.histogram(weights, *pair, queries.labels, database.labels))
    return Scores(counts, None if queries.features is None else most_similar(queries, database, k))


def most_similar(queries: CodedRows, database: CodedRows, k: int) -> Similar:
    """The k rows of the part with the highest cosine similarity to each query.

    Products are summed in float64 and compared in float32, so that the order does not follow from how the linear
    algebra library cuts its blocks; equal similarities are ordered by id.
    """
    assert queries.features is not None
    assert database.features is not None
    num_queries, num_rows = len(queries.ids), len(database.ids)
    relevant = share_label(queries.labels, database.labels, num_queries, num_rows)
    step = max(1, _SIMILARITY_CELLS // max(1, num_rows))
    blocks = []
    for start in range(0, num_queries, step):
        rows = slice(start, min(start + step, num_queries))
        similarities = (queries.features[rows] @ database.features.T).astype(np.float32)
        order = np.stack([_nearest(row, database.ids, k) for row in similarities])
        found = np.take_along_axis(relevant(rows, slice(0, num_rows)), order, axis=1)
        blocks.append(Similar(np.take_along_axis(similarities, order, axis=1), database.ids[order], found))
    return _concatenate(blocks, axis=0)


def merge_similar(first: Similar, second: Similar, k: int) -> Similar:
    """The k most similar of both parts, in the same order as if they were one."""
    joined = _concatenate([first, second], axis=1)
    order = np.lexsort((joined.ids, -joined.similarities), axis=1)[:, :k]
    return Similar(
        np.take_along_axis(joined.similarities, order, axis=1),
        np.take_along_axis(joined.ids, order, axis=1),
        np.take_along_axis(joined.relevant, order, axis=1),
    )


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


def _concatenate(blocks: Sequence[Similar], axis: int) -> Similar:
    return Similar(
        np.concatenate([block.similarities for block in blocks], axis),
        np.concatenate([block.ids for block in blocks], axis),
        np.concatenate([block.relevant for block in blocks], axis),
    )


def _nearest(similarities: npt.NDArray[np.float32], ids: Ids, k: int) -> npt.NDArray[np.int64]:
    """Positions of the k largest, in the order of (-similarity, id)."""
    kept = min(k, len(similarities))
    candidates = np.arange(len(similarities))
    if kept < len(similarities):
        cut = len(similarities) - kept
        candidates = np.flatnonzero(similarities >= np.partition(similarities, cut)[cut])
    return candidates[np.lexsort((ids[candidates], -similarities[candidates]))][:kept]


def _unit_length(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = features.astype(np.float64)
    unit: npt.NDArray[np.float64] = wide / np.maximum(
        np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny
    )
    return unit
