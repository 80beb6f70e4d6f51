"""The Ray side of an evaluation: baselines and scores of (query block x database part), summed as they come.

Knows nothing of metrics. Memory on the driver is the histograms, queries x distances x 2 counters per series, and
little else: unfinished tasks are bounded, and query blocks stay in the object store. A task that is lost with its
worker is run again by Ray and has no side effects.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import ray

from cibhash.baselines import LinearHash
from cluster.code_tables import codes_of, read_part
from cluster.evaluation.baselines import fit_baselines
from cluster.evaluation.code_health import CodeStatistics, code_statistics, merge_statistics
from cluster.evaluation.exclusions import NO_EXCLUSIONS, Exclusions
from cluster.evaluation.label_form import LabelForm
from cluster.evaluation.methods import ASYMMETRIC
from cluster.evaluation.plan import EvaluationPlan, Table
from cluster.evaluation.rankings import RANK_BYTES, OpenRankings, agreement
from cluster.evaluation.scoring import CodedRows, Coder, Counts, Scores, Series, score
from cluster.in_flight import completed, default_limit, named_call
from cluster.manifests import CodePart
from cluster.telemetry import log, progress

MAX_RESULT_BYTES = 2**25
TASK_PAIRS = 2**27, 2**33
"""Comparisons of a task: enough that reading its part is little beside them, and not so many that it lasts."""
TASKS_AT_LEAST = 32
"""Where there are enough comparisons, so that the CPUs end at about the same time."""


@dataclass(frozen=True)
class Scored:
    """Complete scores of all queries."""

    counts: Mapping[Series, Counts]
    agreement: Mapping[Series, float]
    """Share of the most similar by float features that are among the nearest codes; empty without either."""
    stored_order: Mapping[Series, npt.NDArray[np.float64]]
    """Average precision per query with equal distances in the order of ids, float64 (Q,); empty if not asked for."""
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


def fit_all(plan: EvaluationPlan) -> dict[Series, LinearHash]:
    """The baselines of the plan, fitted in one task; empty where none are asked for."""
    if plan.fit is None:
        return {}
    log("evaluate: fitting random hyperplanes, PCA-sign and PCA-ITQ", table=plan.fit.uri, rows=plan.fit.rows)
    fitted: dict[Series, LinearHash] = ray.get(named_call(_fit, "fit baselines", plan.fit, plan.lengths, plan.seed)())
    return fitted


def score_all(
    plan: EvaluationPlan,
    form: LabelForm,
    hashes: Mapping[Series, LinearHash],
    exclusions: Exclusions = NO_EXCLUSIONS,
    *,
    block_rows: int = 0,
) -> Scored:
    """Scores all queries against all parts of the database.

    Args:
        plan: What is compared.
        form: Of the labels, for every part.
        hashes: The fitted baselines.
        exclusions: Pairs that do not count.
        block_rows: Queries per task at most; 0 chooses by the sizes. The result is the same.
    """
    coder = Coder(plan.lengths, hashes, form, plan.with_cosine, plan.with_asymmetric, exclusions)
    counts = {series: _zeros(plan.queries.rows, series.num_distances) for series in coder.series}
    cosine = _open_rankings(plan)
    ordered = {series: _open_rankings(plan) for series in coder.series if series.method != ASYMMETRIC}
    statistics: CodeStatistics | None = None
    with progress("evaluate", plan.queries.rows * plan.database.rows, "comparisons") as line:
        calls = _score_calls(plan, ray.put(coder), block_rows or _block_rows(plan, coder))
        for (rows, num_pairs), found in completed(calls, default_limit()):
            for series, partial in found.scores.counts.items():
                counts[series].total[rows] += partial.total
                counts[series].relevant[rows] += partial.relevant
            for series, ranked in found.scores.nearest.items():
                ordered[series].add(rows, ranked)
            if found.scores.similar is not None:
                cosine.add(rows, found.scores.similar)
            if found.statistics is not None:
                statistics = merge_statistics(statistics, found.statistics) if statistics else found.statistics
            line.advance(num_pairs)
    assert statistics is not None
    return Scored(
        counts=counts,
        stored_order={series: one.average_precision for series, one in ordered.items()} if plan.stored_order else {},
        cosine=cosine.average_precision if plan.with_cosine else None,
        agreement={
            series: agreement(one, cosine) for series, one in ordered.items() if plan.stored_order and plan.with_cosine
        },
        statistics=statistics,
    )


def _open_rankings(plan: EvaluationPlan) -> OpenRankings:
    return OpenRankings(np.zeros(plan.queries.rows), len(plan.database.parts), plan.k)


def _score_calls(
    plan: EvaluationPlan, coder: Any, block_rows: int
) -> Iterator[tuple[tuple[slice, int], Callable[[], Any]]]:
    """One call per (query block, database part), all parts of a block in a row so that few blocks are unfinished."""
    for block in _query_blocks(plan.queries, coder, block_rows):
        rows = slice(block.first, block.first + block.num_queries)
        for part in plan.database.parts:
            name = f"score queries {rows.start}-{rows.stop} x {part.path}"
            lengths = plan.lengths if not block.first else ()
            arguments = (block.rows, coder, plan.database.uri, part, plan.k, plan.stored_order, lengths)
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
    num_rankings = plan.with_cosine + plan.stored_order * sum(one.method != ASYMMETRIC for one in coder.series)
    bytes_per_query += num_rankings * plan.k * RANK_BYTES + plan.with_cosine * 8 * plan.queries.manifest.features
    largest_part = max(part.rows for part in plan.database.parts)
    least, most = TASK_PAIRS
    pairs = min(most, max(least, plan.queries.rows * plan.database.rows // TASKS_AT_LEAST))
    return max(1, min(MAX_RESULT_BYTES // bytes_per_query, pairs // largest_part))


def _zeros(*shape: int) -> Counts:
    return Counts(np.zeros(shape, np.int64), np.zeros(shape, np.int64))


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
    queries: CodedRows,
    coder: Coder,
    uri: str,
    part: CodePart,
    k: int,
    stored_order: bool,
    health_lengths: tuple[int, ...],
) -> _PartScores:
    table = read_part(uri, part, coder.columns)
    rows = coder.rows(table)
    statistics = code_statistics(codes_of(table), rows.labels, rows.ids, health_lengths) if health_lengths else None
    return _PartScores(score(queries, rows, k, stored_order=stored_order), statistics)
