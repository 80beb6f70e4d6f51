"""Scores one block of queries against one part of the database: distance histograms, and rankings where asked for.

Knows nothing of Ray and files beyond the rows it is given. Whatever the blocks and parts, their scores add up or merge
to the same. Shapes: Q queries of the block, N rows of the part, B bits, D features, P excluded pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cibhash import asymmetric
from cibhash.baselines import LinearHash
from cibhash.binary import prefix, unpack_bits
from cibhash.hamming import histogram
from cibhash.relevance import relevant_at
from cibhash.types import Codes, Ids, Labels
from cluster.code_tables import codes_of, features_of, ids_of, logits_of
from cluster.evaluation.exclusions import NO_EXCLUSIONS, Exclusions, pairs_in
from cluster.evaluation.label_form import LabelForm
from cluster.evaluation.methods import ASYMMETRIC, OURS, asymmetric_name
from cluster.evaluation.rankings import Pairs, Ranked, most_similar, nearest_codes


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
    excluded: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    """Of queries: pairs that do not count, int64 (P, 2), the query by position, the database image by id."""


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
    exclusions: Exclusions = NO_EXCLUSIONS

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
        rows = replace(rows, excluded=self.exclusions.of_queries(rows.ids))
        if not self.with_logits:
            return rows
        logits = logits_of(table)
        weights = {Series(ASYMMETRIC, bits): asymmetric.query_weights(logits, bits) for bits in self.lengths}
        return replace(rows, weights=weights)

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
    nearest: Mapping[Series, Ranked]
    """The k nearest codes in the order of (distance, id), of the Hamming series; empty where not asked for."""
    similar: Ranked | None
    """The k rows with the most similar features, where there are features."""


def score(queries: CodedRows, database: CodedRows, k: int, *, stored_order: bool = False) -> Scores:
    """Histograms of every series, without the excluded pairs, and the rankings that are asked for."""
    excluded = pairs_in(queries.excluded, database.ids)
    labels = queries.labels, database.labels
    counts = {
        series: Counts(*histogram(codes, database.codes[series], *labels)) for series, codes in queries.codes.items()
    }
    for series, weights in queries.weights.items():
        ours = Series(OURS, series.bits)
        pair = queries.codes[ours], database.codes[ours]
        counts[series] = Counts(*asymmetric.histogram(weights, *pair, *labels))
    if len(excluded.queries):
        _take_out(counts, queries, database, excluded)
    nearest = {}
    if stored_order:
        for series, codes in queries.codes.items():
            nearest[series] = nearest_codes(codes, database.codes[series], labels, database.ids, k, excluded)
    similar = None
    if queries.features is not None and database.features is not None:
        similar = most_similar(queries.features, database.features, labels, database.ids, k, excluded)
    return Scores(counts, nearest, similar)


def _take_out(counts: Mapping[Series, Counts], queries: CodedRows, database: CodedRows, excluded: Pairs) -> None:
    """Subtracts the excluded pairs from the histograms, each at its own distance."""
    rows = excluded.queries
    relevant = relevant_at(queries.labels[rows], database.labels, excluded.rows[:, None])[:, 0]
    for series, (total, relevant_total) in counts.items():
        codes = Series(OURS, series.bits) if series.method == ASYMMETRIC else series
        differs = queries.codes[codes][rows] ^ database.codes[codes][excluded.rows]
        if series in queries.weights:
            distances = (queries.weights[series][rows] * unpack_bits(differs)).sum(axis=1)
        else:
            distances = np.bitwise_count(differs).sum(axis=1, dtype=np.int64)
        np.subtract.at(total, (rows, distances), 1)
        np.subtract.at(relevant_total, (rows[relevant], distances[relevant]), 1)


def _unit_length(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = features.astype(np.float64)
    unit: npt.NDArray[np.float64] = wide / np.maximum(
        np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny
    )
    return unit
