"""The evaluate job: exact retrieval metrics of one code table against another, beside baselines and other encoders.

Knows nothing of how tables are made. Per query and distance two integers are counted, over blocks of queries
and parts of the database in any split; every metric is a closed form of their sums, so no split, retry or number of
workers changes a number. Nothing is written before all numbers are there, and `report.html` is written last.
"""

import hashlib
from dataclasses import dataclass

from cluster import storage
from cluster.evaluation.assembly import assemble, baseline_notes
from cluster.evaluation.classes import query_classes
from cluster.evaluation.command import command_line
from cluster.evaluation.comparison import plan_comparisons, score_comparisons, side_by_side
from cluster.evaluation.examples import find_examples
from cluster.evaluation.exclusions import find_exclusions
from cluster.evaluation.index_recall import measure_recall, open_measured_index
from cluster.evaluation.measures import measure
from cluster.evaluation.methods import ASYMMETRIC, BASELINE_NAMES, OURS, asymmetric_name
from cluster.evaluation.plan import EvaluationPlan, plan_evaluation
from cluster.evaluation.protocol import named_protocol
from cluster.evaluation.query_table import QUERIES_FILE, queries_parquet
from cluster.evaluation.report import report_html
from cluster.evaluation.result_tables import markdown
from cluster.evaluation.results import Evaluation, NamedProtocol
from cluster.evaluation.scoring import Series
from cluster.evaluation.sections.provenance import Origin
from cluster.evaluation.surveys import survey_tables
from cluster.evaluation.table_columns import read_columns
from cluster.evaluation.tasks import fit_all, score_all
from cluster.evaluation_config import EvaluateConfig
from cluster.manifests import ListedFile
from cluster.runtime import ray_session
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
    protocol: NamedProtocol | None = None
    """With the numbers published under it."""


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Evaluates, writes `metrics.json`, `queries.parquet`, `metrics.md`, `report.html`, and sums up.

    With `dry_run` only the tables' manifests are read and checked; the result has no numbers.

    Raises:
        ManifestMismatch: the tables or the index come from different encoders or have codes of different lengths, a
            compared encoder's tables are not of the same images, or a part is not what its manifest lists.
        ConfigError: a length is longer than the stored codes, baselines are asked of tables without features, a
            compared encoder has none of the lengths, or the protocol is unknown or of another k.
        DataError: queries or database have no rows or no labels, or the list of pairs to exclude has unknown ids.
    """
    plan = plan_evaluation(config)
    comparisons = plan_comparisons(config, plan)
    protocol, index = named_protocol(config, plan), open_measured_index(config.index, plan)
    output = storage.absolute(config.output)
    if config.dry_run:
        return _result(output, config.name, plan, None)
    with ray_session(config.ray):
        surveyed = survey_tables(plan)
        exclusions = find_exclusions(config, plan)
        queries = read_columns(plan.queries, ["id", "key", "labels"])
        compared = score_comparisons(comparisons, plan, surveyed.form, exclusions)
        scored = score_all(plan, surveyed.form, fit_all(plan), exclusions)
        classes = query_classes(queries)
        measured = measure(
            side_by_side(scored.counts, compared.counts),
            scored.cosine,
            k=plan.k,
            seed=plan.seed,
            stored_order={**scored.stored_order, **compared.stored_order},
            agreement=scored.agreement,
            classes=classes,
        )
        recall = measure_recall(index, plan) if index is not None else None
        longest = measured.per_query[Series(OURS, max(plan.lengths))]
        examples = find_examples(
            plan, longest, classes.first_label(plan.queries.rows), max(plan.lengths), config.example_queries, exclusions
        )
    every_query = queries_parquet(queries, measured.per_query)
    notes = (
        *plan.notes,
        *surveyed.notes,
        *exclusions.notes,
        *baseline_notes(plan),
        *(note for one in comparisons for note in one.notes),
    )
    listed = ListedFile(path=QUERIES_FILE, bytes=len(every_query), sha256=hashlib.sha256(every_query).hexdigest())
    evaluation = assemble(config, plan, comparisons, scored, measured, classes, listed, notes, protocol, recall)
    origin = Origin(command_line(config), _uris(plan), {one.name: _uris(one.plan) for one in comparisons})
    _write(output, evaluation, every_query, report_html(evaluation, examples, origin))
    for _, sentence in evaluation.verdicts:
        log(f"evaluate: {sentence}")
    return _result(output, config.name, plan, evaluation)


def _write(output: str, evaluation: Evaluation, every_query: bytes, page: str) -> None:
    storage.write_bytes(storage.join(output, QUERIES_FILE), every_query)
    storage.write_bytes(storage.join(output, "metrics.json"), evaluation.to_json())
    storage.write_bytes(storage.join(output, "metrics.md"), markdown(evaluation).encode())
    storage.write_bytes(storage.join(output, "report.html"), page.encode())


def _uris(plan: EvaluationPlan) -> dict[str, str]:
    """Where the tables, by role, and their encoder lie."""
    tables: dict[str, str] = {role: table.uri for role, table in plan.tables.items()}
    return tables | {"encoder": plan.database.manifest.encoder_uri}


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
        protocol=evaluation.protocol if evaluation is not None else None,
    )
