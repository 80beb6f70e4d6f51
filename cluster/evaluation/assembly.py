"""Puts together what an evaluation found: numbers, tables that took part, notes.

Knows nothing of Ray and of how results are shown.
"""

from collections.abc import Sequence

from cibhash.errors import CIBHashError
from cluster import storage
from cluster.class_names import class_names
from cluster.evaluation.baselines import num_fit_rows, pca_lengths
from cluster.evaluation.bootstrap import RESAMPLES
from cluster.evaluation.classes import MAX_CLASSES, QueryClasses
from cluster.evaluation.comparison import Comparison
from cluster.evaluation.health import bit_health, health
from cluster.evaluation.measures import ComparedMargins, Measured
from cluster.evaluation.methods import OURS
from cluster.evaluation.plan import EvaluationPlan, Table
from cluster.evaluation.results import ComparedEncoder, Evaluation, IndexRecall, NamedProtocol, QueryTable, TableRecord
from cluster.evaluation.scoring import Series
from cluster.evaluation.tasks import Scored
from cluster.evaluation.verdicts import verdict
from cluster.evaluation_config import EvaluateConfig
from cluster.manifests import DatasetManifest, ListedFile, load_manifest
from cluster.runtime import versions


def assemble(
    config: EvaluateConfig,
    plan: EvaluationPlan,
    comparisons: Sequence[Comparison],
    scored: Scored,
    measured: Measured,
    classes: QueryClasses,
    query_table: ListedFile,
    notes: Sequence[str],
    protocol: NamedProtocol | None,
    recall: IndexRecall | None,
) -> Evaluation:
    """The content of `metrics.json`.

    Args:
        config: What was asked for.
        plan: What was compared.
        comparisons: Other encoders.
        scored: Of the main tables.
        measured: All numbers.
        classes: Of the queries.
        query_table: The file of every query's metrics.
        notes: Of what was looked at before scoring.
        protocol: That the evaluation names.
        recall: Of the index that it names.
    """
    beats_itq, sentence = verdict(measured.margins, over_hyperplanes=measured.over_hyperplanes)
    rows = plan.queries.rows * len(measured.series)
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
        classes=classes.records(_names(plan)),
        query_table=QueryTable(**query_table.model_dump(), rows=rows),
        series=measured.series,
        float_cosine=measured.float_cosine,
        health=health(scored.statistics, plan.lengths),
        bit_health=bit_health(scored.statistics, max(plan.lengths)),
        margins=measured.margins,
        beats_itq=beats_itq,
        verdict=sentence,
        compared=tuple(_compared_encoder(one, measured.compared[one.name]) for one in comparisons),
        index_recall=recall,
        notes=(*notes, *([recall.sentence] if recall else []), *_measured_notes(plan, measured, classes)),
        versions=versions(),
        protocol=protocol,
    )


def baseline_notes(plan: EvaluationPlan) -> list[str]:
    """What baselines could not do, or not with all rows."""
    if plan.fit is None:
        return []
    notes = []
    reached = pca_lengths(plan.fit, plan.lengths)
    if missing := [str(bits) for bits in plan.lengths if bits not in reached]:
        found = f"{plan.fit.manifest.features} features of {plan.fit.rows} images"
        notes.append(f"No PCA-ITQ, no PCA-sign at {', '.join(missing)} bits: {found} do not have as many directions.")
    if (count := num_fit_rows(plan.fit)) < plan.fit.rows:
        notes.append(f"The baselines were fitted on a seeded sample of {count:,} of {plan.fit.rows:,} images.")
    return notes


def _measured_notes(plan: EvaluationPlan, measured: Measured, classes: QueryClasses) -> list[str]:
    notes = []
    found = measured.per_query[Series(OURS, max(plan.lengths))].num_relevant
    if without := int((found == 0).sum()):
        notes.append(
            f"{without:,} of {plan.queries.rows:,} queries have no relevant image in the database: they score 0."
        )
    if not len(classes.labels):
        notes.append(f"The queries have more than {MAX_CLASSES:,} labels: results are not told apart by class.")
    return notes


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


def _table_records(plan: EvaluationPlan) -> tuple[TableRecord, ...]:
    records = []
    for role, table in plan.tables.items():
        dataset = _dataset(table)
        known = dataset is not None and dataset.digest == table.manifest.dataset_digest
        records.append(
            TableRecord(
                role=role,
                digest=table.manifest.digest,
                dataset_digest=table.manifest.dataset_digest,
                dataset=dataset.name if dataset and known else "",
                split=dataset.split if dataset and known else "",
                rows=table.rows,
            )
        )
    return tuple(records)


def _default_title(database: Table) -> str:
    """The name of the database's dataset, or of its folder where the dataset is no longer there."""
    dataset = _dataset(database)
    return dataset.name if dataset else database.manifest.dataset_uri.rstrip("/").rsplit("/", 1)[-1]


def _dataset(table: Table) -> DatasetManifest | None:
    """The manifest that is now where the coded dataset was, None without any."""
    try:
        return load_manifest(DatasetManifest, table.manifest.dataset_uri)
    except CIBHashError:
        return None


def _names(plan: EvaluationPlan) -> dict[str, str]:
    try:
        return class_names(storage.absolute(table.manifest.dataset_uri) for table in (plan.queries, plan.database))
    except CIBHashError:
        return {}  # names are for people: without them numbers are shown
