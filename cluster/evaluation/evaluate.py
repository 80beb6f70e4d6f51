"""The evaluate job: exact retrieval metrics of one code table against another, beside baselines and other encoders.

Knows nothing of how tables are made. Per query and distance two integers are counted, over blocks of queries
and parts of the database in any split; every metric is a closed form of their sums, so no split, retry or number of
workers changes a number. Nothing is written before all numbers are there, and `report.html` is written last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cibhash.errors import CIBHashError
from cluster import storage
from cluster.config import EvaluateConfig
from cluster.evaluation.baselines import itq_lengths, num_fit_rows
from cluster.evaluation.comparison import Comparison, plan_comparisons, score_comparisons, side_by_side
from cluster.evaluation.examples import Example, find_examples
from cluster.evaluation.measures import RESAMPLES, ComparedMargins, Measured, health, measure, verdict
from cluster.evaluation.methods import ASYMMETRIC, BASELINE_NAMES, OURS, asymmetric_name
from cluster.evaluation.plan import EvaluationPlan, Table, plan_evaluation
from cluster.evaluation.report import Locations, report_html
from cluster.evaluation.result_tables import markdown
from cluster.evaluation.results import ComparedEncoder, Evaluation, TableRecord
from cluster.evaluation.scoring import Series
from cluster.evaluation.tasks import Scored, fit_all, score_all, survey_tables
from cluster.manifests import DatasetManifest, load_manifest
from cluster.runtime import ray_session, versions
from cluster.telemetry import log


@dataclass(frozen=True)
class EvaluateResult:
    """What the evaluate job found and wrote."""

    report_uri: str
    metrics_uri: str
    name: str
    """What the encoder is called."""
    map_at_k: dict[str, float]
    """By code length, as in {"16": 0.62}."""
    map_at_k_asymmetric: dict[str, float]
    """The same with the logits of the queries; empty where they have none."""
    intervals: dict[str, tuple[float, float]]
    """Bootstrap 95 % interval of `map_at_k` over queries."""
    baselines: dict[str, dict[str, float]]
    """By baseline, then by code length."""
    compared: dict[str, dict[str, float]]
    """By compared encoder (with the logits of its queries: "NAME, asymmetric"), then by code length."""
    float_cosine: float | None
    """mAP@k of cosine similarity on the float features."""
    k: int
    queries: int
    database: int
    encoder_digest: str
    beats_itq: bool | None
    verdict: str
    compared_verdicts: dict[str, str]
    """By compared encoder how it stands to ITQ; empty without baselines."""


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Evaluates, writes `metrics.json`, `metrics.md` and `report.html` below `config.output`, and sums up.

    With `dry_run` only the tables' manifests are read and checked; the result has no numbers.

    Raises:
        ManifestMismatch: the tables come from different encoders, a compared encoder's tables are not of the same
            images, or a part is not what its manifest lists.
        ConfigError: a length is longer than the stored codes, baselines are asked of tables without features, or a
            compared encoder has none of the lengths.
        DataError: queries or database have no labels.
    """
    plan = plan_evaluation(config)
    comparisons = plan_comparisons(config, plan)
    output = storage.absolute(config.output)
    if config.dry_run:
        return _result(output, config.name, plan, None)
    with ray_session(config.ray):
        surveyed = survey_tables(plan)
        compared = score_comparisons(comparisons, plan, surveyed.form)
        scored = score_all(plan, surveyed.form, fit_all(plan))
        notes = (
            *plan.notes,
            *surveyed.notes,
            *_baseline_notes(plan),
            *(note for one in comparisons for note in one.notes),
        )
        counts = side_by_side(scored.counts, compared)
        measured, precision = measure(counts, scored.cosine, k=plan.k, seed=plan.seed)
        evaluation = _evaluation(config, plan, comparisons, scored, measured, notes)
        longest = Series(OURS, max(plan.lengths))
        examples = find_examples(plan, precision[longest], longest.bits, config.example_queries)
    _write(output, plan, comparisons, evaluation, examples)
    for _, sentence in evaluation.verdicts:
        log(f"evaluate: {sentence}")
    return _result(output, config.name, plan, evaluation)


def _evaluation(
    config: EvaluateConfig,
    plan: EvaluationPlan,
    comparisons: Sequence[Comparison],
    scored: Scored,
    measured: Measured,
    notes: tuple[str, ...],
) -> Evaluation:
    beats_itq, sentence = verdict(measured.margins, over_hyperplanes=measured.over_hyperplanes)
    return Evaluation(
        title=config.title or _default_title(plan.database),
        k=plan.k,
        k_asked=plan.k_asked,
        queries=plan.queries.rows,
        database=plan.database.rows,
        name=config.name,
        encoder_digest=plan.database.manifest.encoder_digest,
        tables=_table_records(plan),
        seed=plan.seed,
        bootstrap_resamples=RESAMPLES,
        series=measured.series,
        float_cosine=measured.float_cosine,
        health=health(scored.statistics, plan.lengths),
        margins=measured.margins,
        beats_itq=beats_itq,
        verdict=sentence,
        compared=tuple(_compared_encoder(one, measured.compared[one.name]) for one in comparisons),
        notes=notes,
        versions=versions(),
    )


def _compared_encoder(comparison: Comparison, margins: ComparedMargins) -> ComparedEncoder:
    beats_itq, sentence = verdict(margins.over_itq, comparison.name, over_hyperplanes=margins.over_hyperplanes)
    return ComparedEncoder(
        name=comparison.name,
        encoder_digest=comparison.plan.database.manifest.encoder_digest,
        tables=_table_records(comparison.plan),
        margins=margins.behind,
        margins_over_itq=margins.over_itq,
        beats_itq=beats_itq,
        verdict=sentence,
    )


def _write(
    output: str,
    plan: EvaluationPlan,
    comparisons: Sequence[Comparison],
    evaluation: Evaluation,
    examples: tuple[Example, ...],
) -> None:
    uris = {one.name: _uris(one.plan) for one in comparisons}
    page = report_html(evaluation, examples, Locations(_uris(plan), uris))
    storage.write_bytes(storage.join(output, "metrics.json"), evaluation.to_json())
    storage.write_bytes(storage.join(output, "metrics.md"), markdown(evaluation).encode())
    storage.write_bytes(storage.join(output, "report.html"), page.encode())


def _result(output: str, name: str, plan: EvaluationPlan, evaluation: Evaluation | None) -> EvaluateResult:
    series = evaluation.series if evaluation is not None else ()
    others = evaluation.compared if evaluation is not None else ()
    values: dict[str, dict[str, float]] = {}
    for one in series:
        values.setdefault(one.method, {})[str(one.bits)] = one.map_at_k
    compared = [name for other in others for name in (other.name, asymmetric_name(other.name)) if name in values]
    upper = evaluation.float_cosine if evaluation is not None else None
    return EvaluateResult(
        report_uri=storage.join(output, "report.html"),
        metrics_uri=storage.join(output, "metrics.json"),
        name=name,
        map_at_k=values.get(OURS, {}),
        map_at_k_asymmetric=values.get(ASYMMETRIC, {}),
        intervals={str(one.bits): (one.interval.low, one.interval.high) for one in series if one.method == OURS},
        baselines={method: values[method] for method in BASELINE_NAMES if method in values},
        compared={name: values[name] for name in compared},
        float_cosine=upper.map_at_k if upper is not None else None,
        k=plan.k,
        queries=plan.queries.rows,
        database=plan.database.rows,
        encoder_digest=plan.database.manifest.encoder_digest,
        beats_itq=evaluation.beats_itq if evaluation is not None else None,
        verdict=evaluation.verdict if evaluation is not None else "",
        compared_verdicts={other.name: other.verdict for other in others if other.verdict},
    )


def _default_title(database: Table) -> str:
    """The name of the database's dataset, or of its folder where the dataset is no longer there."""
    uri = database.manifest.dataset_uri
    try:
        return load_manifest(DatasetManifest, uri).name
    except CIBHashError:
        return uri.rstrip("/").rsplit("/", 1)[-1]


def _table_records(plan: EvaluationPlan) -> tuple[TableRecord, ...]:
    return tuple(
        TableRecord(
            role=role, digest=table.manifest.digest, dataset_digest=table.manifest.dataset_digest, rows=table.rows
        )
        for role, table in plan.tables.items()
    )


def _uris(plan: EvaluationPlan) -> dict[str, str]:
    """Where the tables, by role, and their encoder lie."""
    tables: dict[str, str] = {role: table.uri for role, table in plan.tables.items()}
    return tables | {"encoder": plan.database.manifest.encoder_uri}


def _baseline_notes(plan: EvaluationPlan) -> list[str]:
    if plan.fit is None:
        return []
    notes = []
    reached = itq_lengths(plan.fit, plan.lengths)
    if missing := [str(bits) for bits in plan.lengths if bits not in reached]:
        found = f"{plan.fit.manifest.features} features of {plan.fit.rows} images"
        notes.append(f"No PCA-ITQ at {', '.join(missing)} bits: {found} do not have as many directions.")
    if (count := num_fit_rows(plan.fit)) < plan.fit.rows:
        notes.append(f"The baselines were fitted on a seeded sample of {count:,} of {plan.fit.rows:,} images.")
    return notes
