"""The report of an evaluation: one HTML page that needs no other file, no network and no script.

Knows nothing of how the numbers came about. Every text from outside, keys and addresses included, is escaped.
"""

from collections.abc import Sequence

from cluster.evaluation.examples import Example
from cluster.evaluation.results import Evaluation
from cluster.evaluation.sections.code_health import code_health
from cluster.evaluation.sections.details import classes, curves, details
from cluster.evaluation.sections.examples import examples_section
from cluster.evaluation.sections.headline import differences, head, headline
from cluster.evaluation.sections.provenance import Origin, provenance
from cluster.evaluation.sections.published import published
from cluster.reports.page import report_page


def report_html(evaluation: Evaluation, examples: Sequence[Example], origin: Origin) -> str:
    """The page.

    Args:
        evaluation: The numbers.
        examples: Query images with neighbors; their originals are read here, and those that cannot be are named.
        origin: Of the evaluation.
    """
    sections = (
        head(evaluation),
        headline(evaluation),
        differences(evaluation),
        published(evaluation),
        curves(evaluation),
        details(evaluation),
        classes(evaluation),
        code_health(evaluation),
        examples_section(evaluation, examples),
        provenance(evaluation, origin),
    )
    return report_page(f"{evaluation.title} – retrieval evaluation", sections)
