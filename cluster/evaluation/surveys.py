"""The Ray side of label surveys: one look at the labels of every part, before anything is scored.

Knows nothing of codes.
"""

import itertools
from dataclasses import dataclass

import ray

from cibhash.errors import DataError
from cluster.code_tables import read_part
from cluster.evaluation.label_form import LabelForm, LabelSurvey, common_form, merge_surveys, survey_labels
from cluster.evaluation.plan import EvaluationPlan
from cluster.evaluation.table_columns import part_calls
from cluster.in_flight import completed, default_limit
from cluster.manifests import CodePart
from cluster.telemetry import progress


@dataclass(frozen=True)
class Surveyed:
    """What the labels of all parts allow."""

    form: LabelForm
    notes: tuple[str, ...]


def survey_tables(plan: EvaluationPlan) -> Surveyed:
    """Looks at the labels of every part, to bring all to one form.

    Raises:
        DataError: queries or database have no label at all; names the table.
    """
    tables = {"queries": plan.queries, "database": plan.database}
    found: dict[str, list[LabelSurvey]] = {role: [] for role in tables}
    calls = [(role, call) for role, table in tables.items() for _, call in part_calls(table, _survey, f"survey {role}")]
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


@ray.remote
def _survey(uri: str, part: CodePart) -> LabelSurvey:
    return survey_labels(read_part(uri, part, ["labels"]))
