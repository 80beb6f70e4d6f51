"""The Ray side of an evaluation: surveys, baselines and scores of (query block x database part), summed as they come.

Knows nothing of metrics. Memory on the driver is the histograms, queries x distances x 2 counters per series, and
little else: unfinished tasks are bounded, and query blocks stay in the object store. A task that is lost with its
worker is run again by Ray and has no side effects.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import ray

from cibhash.baselines import LinearHash
from cibhash.errors import DataError
from cibhash.types import Ids
from cluster.code_tables import codes_of, ids_of, read_part
from cluster.evaluation.baselines import fit_baselines
from cluster.evaluation.code_health import CodeStatistics, code_statistics, merge_statistics
from cluster.evaluation.label_form import LabelForm, LabelSurvey, common_form, merge_surveys, survey_labels
from cluster.evaluation.plan import EvaluationPlan, Table
from cluster.evaluation.scoring import (
    CodedRows,
    Coder,
    Counts,
    Scores,
    Series,
    Similar,
    average_precision,
    merge_similar,
    score,
)
from cluster.in_flight import completed, default_limit, named_call
from cluster.manifests import CodePart
from cluster.telemetry import log, progress

MAX_RESULT_BYTES = 2**25
MAX_TASK_PAIRS = 2**30


@dataclass(frozen=True)
class Surveyed:
    """What the labels of all parts allow."""

    form: LabelForm
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """Complete scores of all queries."""

    counts: Mapping[Series, Counts]
    cosine: npt.NDArray[np.float64] | None
    """Average precision of the float features per query, float64 (Q,)."""
    statistics: CodeStatistics


class _Block(NamedTuple):
    """Some queries of one part."""

    first: int
    """Position of the first among all queries."""
    num_queries: int
    rows: Any
    """Reference to `CodedRows` in the object store."""


class _PartScores(NamedTuple):
    scores: Scores
    statistics: CodeStatistics | None
    """Of the database part, from one query block only."""


def survey_tables(plan: EvaluationPlan) -> Surveyed:
    """Looks at the labels of every part, to bring all to one form.

    Raises:
        DataError: queries or database have no label at all; names the table.
    """
    tables = {"queries": plan.queries, "database": plan.database}
    found: dict[str, list[LabelSurvey]] = {role: [] for role in tables}
    calls = [
        (role, named_call(_survey, f"survey {role} {part.path}", table.uri, part))
        for role, table in tables.items()
        for part in table.parts
    ]
    with progress("evaluate: labels", len(calls), "parts") as line:
        for role, survey in completed(calls, default_limit()):
            found[role].append(survey)
            line.advance()
    notes = []
    for role, table in tables.items():
        labeled = sum(survey.labeled for survey in found[role])
        if not labeled:
            raise DataError(f"{table.uri}: none of the {table.rows} images has a label, and evaluation needs them")
        if labeled < table.rows:
            missing = table.rows - labeled
            notes.append(f"{missing} of {table.rows} images of the {role} have no label: relevant to none.")
    merged = merge_surveys(itertools.chain.from_iterable(found.values()))
    return Surveyed(common_form(merged), tuple(notes))


def read_ids(table: Table) -> Ids:
    """The ids of all rows, int64 (N,), in the order in which queries are scored."""
    calls = [(number, named_call(_ids, f"ids {part.path}", table.uri, part)) for number, part in enumerate(table.parts)]
    found = dict(completed(calls, default_limit()))
    return np.concatenate([found[number] for number in range(len(calls))])


def fit_all(plan: EvaluationPlan) -> dict[Series, LinearHash]:
    """The baselines of the plan, fitted in one task; empty where none are asked for."""
    if plan.fit is None:
        return {}
    log("evaluate: fitting random hyperplanes and PCA-ITQ", table=plan.fit.uri, rows=plan.fit.rows)
    fitted: dict[Series, LinearHash] = ray.get(named_call(_fit, "fit baselines", plan.fit, plan.lengths, plan.seed)())
    return fitted


def score_all(
    plan: EvaluationPlan, form: LabelForm, hashes: Mapping[Series, LinearHash], *, block_rows: int = 0
) -> Scored:
    """Scores all queries against all parts of the database.

    Args:
        plan: What is compared.
        form: Of the labels, for every part.
        hashes: The fitted baselines.
        block_rows: Queries per task at most; 0 chooses by the sizes. The result is the same.
    """
    coder = Coder(plan.lengths, hashes, form, plan.with_cosine, plan.with_asymmetric)
    counts = {series: _zeros(plan.queries.rows, series.num_distances) for series in coder.series}
    ranking = _Ranking(np.zeros(plan.queries.rows), len(plan.database.parts), plan.k)
    statistics: CodeStatistics | None = None
    with progress("evaluate", plan.queries.rows * plan.database.rows, "comparisons") as line:
        calls = _score_calls(plan, ray.put(coder), block_rows or _block_rows(plan, coder))
        for (rows, num_pairs), found in completed(calls, default_limit()):
            for series, partial in found.scores.counts.items():
                counts[series].total[rows] += partial.total
                counts[series].relevant[rows] += partial.relevant
            if found.scores.similar is not None:
                ranking.add(rows, found.scores.similar)
            if found.statistics is not None:
                statistics = merge_statistics(statistics, found.statistics) if statistics else found.statistics
            line.advance(num_pairs)
    assert statistics is not None
    return Scored(counts, ranking.average_precision if plan.with_cosine else None, statistics)


@dataclass
class _Ranking:
    """Merges the most similar rows of each query block over the parts; finished blocks leave only their precision."""

    average_precision: npt.NDArray[np.float64]
    num_parts: int
    k: int
    _open: dict[int, tuple[int, Similar]] = field(default_factory=dict)

    def add(self, rows: slice, similar: Similar) -> None:
        seen, merged = 1, similar
        if rows.start in self._open:
            seen, merged = self._open.pop(rows.start)
            seen, merged = seen + 1, merge_similar(merged, similar, self.k)
        if seen == self.num_parts:
            self.average_precision[rows] = average_precision(merged.relevant)
        else:
            self._open[rows.start] = seen, merged


def _score_calls(
    plan: EvaluationPlan, coder: Any, block_rows: int
) -> Iterator[tuple[tuple[slice, int], Callable[[], Any]]]:
    """One call per (query block, database part), all parts of a block in a row so that few blocks are unfinished."""
    for block in _query_blocks(plan.queries, coder, block_rows):
        rows = slice(block.first, block.first + block.num_queries)
        for part in plan.database.parts:
            name = f"score queries {rows.start}-{rows.stop} x {part.path}"
            arguments = (block.rows, coder, plan.database.uri, part, plan.k, plan.lengths if not block.first else ())
            yield (rows, block.num_queries * part.rows), named_call(_score, name, *arguments)


def _query_blocks(queries: Table, coder: Any, block_rows: int) -> Iterator[_Block]:
    first = 0
    for part in queries.parts:
        starts = range(0, part.rows, block_rows)
        name = f"prepare queries {part.path}"
        references = named_call(_prepare, name, coder, queries.uri, part, block_rows, num_returns=len(starts))()
        for start, reference in zip(starts, references if len(starts) > 1 else [references], strict=True):
            yield _Block(first + start, min(block_rows, part.rows - start), reference)
        first += part.rows


def _block_rows(plan: EvaluationPlan, coder: Coder) -> int:
    """Queries per task, so that neither its answer nor its work grows too large."""
    bytes_per_query = sum(2 * 8 * series.num_distances for series in coder.series)
    if plan.with_cosine:
        bytes_per_query += plan.k * (4 + 8 + 1) + 8 * plan.queries.manifest.features
    largest_part = max(part.rows for part in plan.database.parts)
    return max(1, min(MAX_RESULT_BYTES // bytes_per_query, MAX_TASK_PAIRS // largest_part))


def _zeros(*shape: int) -> Counts:
    return Counts(np.zeros(shape, np.int64), np.zeros(shape, np.int64))


@ray.remote
def _survey(uri: str, part: CodePart) -> LabelSurvey:
    return survey_labels(read_part(uri, part, ["labels"]))


@ray.remote
def _ids(uri: str, part: CodePart) -> Ids:
    return ids_of(read_part(uri, part, ["id"]))


@ray.remote
def _fit(table: Table, lengths: tuple[int, ...], seed: int) -> dict[Series, LinearHash]:
    return fit_baselines(table, lengths, seed)


@ray.remote
def _prepare(coder: Coder, uri: str, part: CodePart, block_rows: int) -> list[CodedRows] | CodedRows:
    table = read_part(uri, part, coder.query_columns)
    blocks = [coder.query_rows(table.slice(start, block_rows)) for start in range(0, table.num_rows, block_rows)]
    return blocks if len(blocks) > 1 else blocks[0]


@ray.remote
def _score(
    queries: CodedRows, coder: Coder, uri: str, part: CodePart, k: int, health_lengths: tuple[int, ...]
) -> _PartScores:
    table = read_part(uri, part, coder.columns)
    statistics = code_statistics(codes_of(table), health_lengths) if health_lengths else None
    return _PartScores(score(queries, coder.rows(table), k), statistics)
