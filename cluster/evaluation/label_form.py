"""Brings the labels of many parts of several tables to one form, from a small survey of each.

Knows nothing of Ray. The form is one integer per image where no image of any table has two labels, else one column
per label that occurs anywhere; it must not depend on which part is looked at.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cibhash.types import Ids, Labels
from cluster.code_tables import label_arrays, label_lists


@dataclass(frozen=True)
class LabelSurvey:
    """What must be known of some rows' labels to choose the form."""

    labeled: int
    """Images with at least one label."""
    most: int
    """Most labels of one image."""
    vocabulary: Ids
    """Labels that occur, ascending."""


@dataclass(frozen=True)
class LabelForm:
    """The common form: `vocabulary` is None for one label each, else the label of every column."""

    vocabulary: Ids | None

    def arrays(self, table: pa.Table) -> Labels:
        """The labels of a part, int64 (N,) with -1 for none, or bool (N, C)."""
        if self.vocabulary is None:
            return label_arrays(label_lists(table))[0]
        # An extra image that has every label, twice, forces the form with several labels and all columns.
        every = np.array([0, 2 * len(self.vocabulary)], np.int64), np.tile(self.vocabulary, 2)
        return label_arrays(label_lists(table), every)[0]


def survey_labels(table: pa.Table) -> LabelSurvey:
    """The survey of one part."""
    limits, values = label_lists(table)
    counts = np.diff(limits)
    return LabelSurvey(int(np.count_nonzero(counts)), int(counts.max(initial=0)), np.unique(values))


def merge_surveys(surveys: Iterable[LabelSurvey]) -> LabelSurvey:
    """The survey of several parts together."""
    labeled, most, vocabulary = 0, 0, np.empty(0, np.int64)
    for survey in surveys:
        labeled, most = labeled + survey.labeled, max(most, survey.most)
        vocabulary = np.union1d(vocabulary, survey.vocabulary)
    return LabelSurvey(labeled, most, vocabulary)


def common_form(survey: LabelSurvey) -> LabelForm:
    """The form that fits all rows of the survey."""
    return LabelForm(survey.vocabulary if survey.most > 1 else None)
