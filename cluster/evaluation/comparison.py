"""Other encoders' codes of the same images, scored by the same tasks as the main tables and put beside them.

Knows nothing of how results are shown. Series are compared query by query, so both encoders must have coded the same
images: the same datasets, and of them the same rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cibhash.errors import ConfigError, ManifestMismatch
from cibhash.types import Ids
from cluster.code_tables import ids_of
from cluster.evaluation.exclusions import Exclusions
from cluster.evaluation.label_form import LabelForm
from cluster.evaluation.methods import ASYMMETRIC, OURS
from cluster.evaluation.plan import EvaluationPlan, Table, open_table
from cluster.evaluation.scoring import Counts, Series
from cluster.evaluation.table_columns import read_columns
from cluster.evaluation.tasks import score_all
from cluster.evaluation_config import ComparedTables, EvaluateConfig
from cluster.manifests import read_verified, same_encoder
from cluster.telemetry import log

_IDS_NAMED = 3


@dataclass(frozen=True)
class Comparison:
    """Another encoder that is shown beside the main one."""

    name: str
    plan: EvaluationPlan
    """Of its tables alone, at the lengths that both encoders have."""
    notes: tuple[str, ...]


def plan_comparisons(config: EvaluateConfig, plan: EvaluationPlan) -> tuple[Comparison, ...]:
    """Opens the tables of the encoders to compare with and checks them against the main ones.

    Raises:
        NotFound: a table is missing or not complete.
        ManifestMismatch: queries and database come from different encoders, or are not of the main tables' images.
        ConfigError: the encoder has none of the lengths.
    """
    return tuple(_plan(tables, plan) for tables in config.compared_tables)


@dataclass(frozen=True)
class ComparedScores:
    """What compared encoders scored, rows in the order of the main queries."""

    counts: Mapping[Series, Counts]
    stored_order: Mapping[Series, npt.NDArray[np.float64]]


def score_comparisons(
    comparisons: Sequence[Comparison], plan: EvaluationPlan, form: LabelForm, exclusions: Exclusions
) -> ComparedScores:
    """Scores every compared encoder's queries against its database.

    Args:
        comparisons: Of `plan_comparisons`.
        plan: Of the main tables.
        form: Of the labels.
        exclusions: Pairs that do not count.

    Raises:
        ManifestMismatch: the queries have other ids than the main ones; found before anything is scored.
    """
    if not comparisons:
        return ComparedScores({}, {})
    ids = ids_of(read_columns(plan.queries, ["id"]))
    others = [ids_of(read_columns(one.plan.queries, ["id"])) for one in comparisons]
    orders = [_query_order(ids, *pair, plan) for pair in zip(others, comparisons, strict=True)]
    counts, stored_order = {}, {}
    for comparison, order in zip(comparisons, orders, strict=True):
        log(f"evaluate: comparing with {comparison.name}")
        scored = score_all(comparison.plan, form, {}, exclusions)
        for series, found in scored.counts.items():
            counts[series._replace(encoder=comparison.name)] = Counts(found.total[order], found.relevant[order])
        for series, precision in scored.stored_order.items():
            stored_order[series._replace(encoder=comparison.name)] = precision[order]
    return ComparedScores(counts, stored_order)


def side_by_side(main: Mapping[Series, Counts], compared: Mapping[Series, Counts]) -> dict[Series, Counts]:
    """All series in the order of tables and plots: the main codes, the compared ones, the baselines."""
    ours = {series: counts for series, counts in main.items() if series.method in (OURS, ASYMMETRIC)}
    return {**ours, **compared, **main}


def match_rows(ids: Ids, others: Ids) -> npt.NDArray[np.int64] | None:
    """Where each of `ids`, all different, is among `others`, int64 (N,); None if these are not the same ids."""
    order, other_order = np.argsort(ids, kind="stable"), np.argsort(others, kind="stable")
    if not np.array_equal(ids[order], others[other_order]):
        return None
    places = np.empty(len(ids), np.int64)
    places[order] = other_order
    return places


def _plan(compared: ComparedTables, main: EvaluationPlan) -> Comparison:
    queries, database = open_table(compared.queries), open_table(compared.database)
    same_encoder(*((table.uri, table.manifest.encoder_digest) for table in (queries, database)))
    _check_images(compared.name, queries, main.queries)
    _check_images(compared.name, database, main.database)
    trained = database.manifest.prefixes
    lengths = tuple(bits for bits in main.lengths if bits in trained)
    if not lengths:
        raise ConfigError(
            f"compare {compared.name}: {database.uri} has codes of {_listed(trained)} bits, none of the lengths "
            f"evaluated: {_listed(main.lengths)}"
        )
    notes = []
    if missing := [bits for bits in main.lengths if bits not in trained]:
        notes.append(f"{compared.name} was not trained for {_listed(missing)} bits and is not shown there.")
    if more := [bits for bits in trained if bits not in main.lengths]:
        notes.append(f"{compared.name} was trained for {_listed(more)} bits too, which are not evaluated here.")
    plan = replace(
        main,
        queries=queries,
        database=database,
        fit=None,
        lengths=lengths,
        with_cosine=False,
        with_asymmetric=queries.manifest.logits,
        notes=(),
    )
    return Comparison(compared.name, plan, tuple(notes))


def _check_images(name: str, other: Table, main: Table) -> None:
    """Refuses a table of other images, as far as the manifests and the quarantine tables tell."""
    digest, expected = other.manifest.dataset_digest, main.manifest.dataset_digest
    if digest != expected:
        raise ManifestMismatch(
            f"compare {name}: {other.uri} has codes of dataset {digest[:16]}..., but {main.uri} of {expected[:16]}..."
        )
    quarantined, expected_ids = _quarantined_ids(other), _quarantined_ids(main)
    if not np.array_equal(quarantined, expected_ids) or _extent(other) != _extent(main):
        raise ManifestMismatch(
            f"compare {name}: {other.uri} has {_account(other, quarantined)}, but {main.uri} has "
            f"{_account(main, expected_ids)}: both encoders must have coded the same images"
        )


def _quarantined_ids(table: Table) -> Ids:
    """The ids of the images that were refused, ascending."""
    if not table.manifest.quarantined:
        return np.empty(0, np.int64)
    content = read_verified(table.uri, table.manifest.quarantine)
    refused = pq.read_table(pa.BufferReader(content), columns=["id"])
    return np.sort(np.asarray(refused["id"].to_numpy(), np.int64))


def _extent(table: Table) -> tuple[int, int, int]:
    """Rows, least and largest id."""
    least = min((part.min_id for part in table.parts), default=0)
    return table.rows, least, max((part.max_id for part in table.parts), default=0)


def _account(table: Table, quarantined: Ids) -> str:
    rows, least, largest = _extent(table)
    named = f" (ids {_listed(quarantined[:_IDS_NAMED])}{', ...' * (len(quarantined) > _IDS_NAMED)})"
    return f"{rows} images (ids {least} to {largest}), {len(quarantined)} quarantined{named * bool(len(quarantined))}"


def _query_order(ids: Ids, others: Ids, comparison: Comparison, main: EvaluationPlan) -> npt.NDArray[np.int64] | slice:
    """Where the rows of the main queries are in the other table; a slice where that needs no copy."""
    if np.array_equal(ids, others):
        return slice(None)
    places = match_rows(ids, others)
    if places is None:
        raise ManifestMismatch(
            f"compare {comparison.name}: {len(np.setdiff1d(ids, others))} of {len(ids)} ids of {main.queries.uri} are "
            f"not in {comparison.plan.queries.uri}"
        )
    return places


def _listed(numbers: Sequence[int] | Ids) -> str:
    return ", ".join(str(number) for number in numbers)
