"""The reproduce job: rows of the paper's tables from data and weights to numbers beside the published ones.

Knows nothing of recipes: what each row's say is given. Rows run one after the other in one Ray session; one that fails
does not stop the others. The tables are written again after every row, so an interrupted job leaves what it had.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cibhash.errors import CIBHashError
from cluster import storage
from cluster.evaluation.command import command_line
from cluster.failures import described
from cluster.reproduction.at_hand import find_data, find_weights
from cluster.reproduction.lines import TableSection, table_sections
from cluster.reproduction.measured import measure_baselines, measure_runs
from cluster.reproduction.outcomes import Outcome
from cluster.reproduction.page import page_html
from cluster.reproduction.paper_table import PaperTable, Row, select_rows
from cluster.reproduction.runs import Run, execute, find_record, plan_runs
from cluster.reproduction.text_tables import listing, markdown, terminal
from cluster.reproduction_config import ReproduceConfig
from cluster.runtime import ray_session, root_cause, versions
from cluster.telemetry import log, show
from cluster.training_config import TrainConfig

MARKDOWN, PAGE, NUMBERS = "table.md", "table.html", "table.json"
_TITLE = "CIBHash: the published tables and ours"


@dataclass(frozen=True)
class RowResult:
    """A row in the job's result."""

    name: str
    status: str
    """`complete`, `incomplete`, `failed` or `not at hand`."""
    reason: str
    map_at_k: dict[str, float]
    """By code length, mean over the seeds."""
    intervals: dict[str, tuple[float, float]]
    """Bootstrap 95 % over queries."""
    seeds: tuple[int, ...]
    published: dict[str, float]
    evidence: str
    differences: dict[str, float]
    """To the published numbers; empty where they are not comparable."""
    as_expected: bool | None
    """Whether every length is within the row's band; None where none is judged."""
    reports: tuple[str, ...]


@dataclass(frozen=True)
class ReproduceResult:
    """What the reproduce job found and wrote."""

    table_uri: str
    page_uri: str
    rows: tuple[RowResult, ...]
    counts: dict[str, int]
    """Rows by status."""
    runs_kept: int
    """That an earlier job had completed."""
    runs_done: int
    runs_failed: int
    problem: str
    """Why the job fails although the tables are written, with the error's class; empty: it does not."""


@dataclass(frozen=True)
class _Plan:
    """A row, and what is to be run of it."""

    outcome: Outcome
    runs: tuple[Run, ...]


def reproduce(config: ReproduceConfig, table: PaperTable, recipes: Mapping[str, TrainConfig]) -> ReproduceResult:
    """Runs the rows that can run, keeps what is complete, and writes `table.md`, `table.html` and `table.json`.

    With `dry_run` the rows are only listed, with what is missing.

    Args:
        config: What is asked for.
        table: The rows, and what was published.
        recipes: By name of the row, what its recipes say.

    Raises:
        ConfigError: no such row, or settings that do not go together.
    """
    plans = [_plan(config, table, row, recipes[row.name]) for row in select_rows(table, config.rows)]
    kept = {run.output for plan in plans for run in plan.runs if find_record(run)}
    outcomes = [_measured(plan, kept) for plan in plans]
    if config.dry_run:
        show(listing(outcomes))
        return _result(config, outcomes, len(kept), 0)
    todo = [(number, run) for number, plan in enumerate(plans) for run in plan.runs if run.output not in kept]
    _announce(plans, kept, todo)
    done = 0
    if todo:
        with ray_session(config.ray):
            for number, plan in enumerate(plans):
                left = [run for run in plan.runs if run.output not in kept]
                failures = [failure for run in left if (failure := _attempt(run))]
                if left:
                    done += len(left) - len(failures)
                    complete = {run.output for run in plan.runs if find_record(run)}
                    outcomes[number] = replace(_measured(plan, complete), failures=tuple(failures))
                    _write(config, table, outcomes)
    show(terminal(_write(config, table, outcomes)))
    return replace(_result(config, outcomes, len(kept), done), problem=_problem(outcomes))


def _plan(config: ReproduceConfig, table: PaperTable, row: Row, recipe: TrainConfig) -> _Plan:
    protocol = table.protocols[row.protocol]
    outcome = Outcome(row, protocol, table.published_of(row))
    data = find_data(config.data, row.protocol, protocol, row.splits)
    weights = find_weights(config.weights, recipe.backbone, offline=config.offline)
    if missing := tuple(reason for reason in (data.reason, weights.reason) if reason):
        return _Plan(replace(outcome, missing=missing), ())
    deviations = list(data.deviations)
    if config.epochs:
        deviations.append(f"trained for {config.epochs} epochs only")
    try:
        runs = plan_runs(config, row, protocol, recipe, data, weights.weights)
    except CIBHashError as error:
        return _Plan(replace(outcome, missing=(str(error),)), ())
    if not runs:
        return _Plan(replace(outcome, missing=("it has none of the lengths asked for",)), ())
    return _Plan(replace(outcome, deviations=tuple(deviations), split=data.split, runs_planned=len(runs)), runs)


def _announce(plans: Sequence[_Plan], kept: set[str], todo: Sequence[Any]) -> None:
    for plan in plans:
        if plan.outcome.missing:
            log(f"reproduce: not run: {plan.outcome.row.name}: {'; '.join(plan.outcome.missing)}")
    log("reproduce: runs", to_do=len(todo), kept=len(kept))


def _attempt(run: Run) -> str:
    """Runs it; what goes wrong, as a line that says where."""
    log(f"reproduce: {run.label}", output=run.output)
    try:
        execute(run)
    except Exception as error:
        failure = _described(root_cause(error), run.label)
        log(f"reproduce: FAILED: {failure}")
        return failure
    return ""


def _described(cause: BaseException, label: str) -> str:
    """As `described`, with the run's label before the message."""
    if isinstance(cause, CIBHashError):
        name, _, message = described(cause).partition(" ")
        return f"{name} {label}: {message}"
    return f"CIBHashError {label}: {type(cause).__name__}: {' '.join(str(cause).split())[:300]}"


def _problem(outcomes: Sequence[Outcome]) -> str:
    if failures := [failure for one in outcomes for failure in one.failures]:
        name, _, message = failures[0].partition(" ")
        more = f" (and {len(failures) - 1} more of the runs)" if len(failures) > 1 else ""
        return f"{name} {message}{more}"
    if all(one.missing for one in outcomes):
        first = outcomes[0]
        return f"ConfigError none of the {len(outcomes)} rows can run: {first.row.name}: {'; '.join(first.missing)}"
    return ""


def _measured(plan: _Plan, complete: set[str]) -> Outcome:
    runs = [run for run in plan.runs if run.output in complete]
    return replace(
        plan.outcome,
        runs_complete=len(runs),
        measured=measure_runs(runs),
        baselines=measure_baselines(runs),
        reports=tuple(storage.join(run.report, "report.html") for run in runs),
    )


def _write(config: ReproduceConfig, table: PaperTable, outcomes: Sequence[Outcome]) -> tuple[TableSection, ...]:
    """Writes the tables, and returns them."""
    sections = table_sections(table, outcomes)
    counts = Counter(one.status for one in outcomes)
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
    lead = f"{len(outcomes)} row{'s' * (len(outcomes) > 1)}: {statuses}."
    origin = {
        "command": command_line(config, "reproduce"),
        **{f"split of {one.row.protocol}": one.split for one in outcomes if one.split},
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    output = storage.absolute(config.output)
    numbers = {"rows": [vars(_row_result(one)) for one in outcomes], **origin}
    contents: dict[str, Callable[[], str]] = {
        NUMBERS: lambda: json.dumps(numbers, indent=1, ensure_ascii=False) + "\n",
        MARKDOWN: lambda: markdown(_TITLE, sections),
        PAGE: lambda: page_html(_TITLE, lead, sections, origin),
    }
    for name, content in contents.items():
        storage.write_bytes(storage.join(output, name), content().encode())
    return sections


def _row_result(one: Outcome) -> RowResult:
    gains = {bits: one.gain(bits) for bits in one.measured}
    judged = [within for bits in one.measured if (within := one.in_band(bits)) is not None]
    return RowResult(
        name=one.row.name,
        status=one.status,
        reason="; ".join(one.missing) or "; ".join(one.failures) or "; ".join(one.deviations),
        map_at_k={str(bits): found.value for bits, found in one.measured.items()},
        intervals={str(bits): (found.interval.low, found.interval.high) for bits, found in one.measured.items()},
        seeds=tuple(sorted({seed for found in one.measured.values() for seed in found.seeds})),
        published={str(bits): value for bits, value in one.published.map.items()} if one.published else {},
        evidence=one.published.evidence if one.published else "",
        differences={str(bits): gain for bits, gain in gains.items() if gain is not None},
        as_expected=all(judged) if judged else None,
        reports=one.reports,
    )


def _result(config: ReproduceConfig, outcomes: Sequence[Outcome], kept: int, done: int) -> ReproduceResult:
    output = storage.absolute(config.output) if config.output else ""
    return ReproduceResult(
        table_uri=storage.join(output, MARKDOWN) if output else "",
        page_uri=storage.join(output, PAGE) if output else "",
        rows=tuple(_row_result(one) for one in outcomes),
        counts=dict(Counter(one.status for one in outcomes)),
        runs_kept=kept,
        runs_done=done,
        runs_failed=sum(len(one.failures) for one in outcomes),
        problem="",
    )
