"""Averages over resampled queries, ranks of curves, and labels in one form."""

import numpy as np
import pyarrow as pa
import pytest

from cluster.evaluation.bootstrap import bootstrap_means
from cluster.evaluation.label_form import common_form, merge_surveys, survey_labels
from cluster.evaluation.measures import log_spaced_ranks


def test_bootstrap_is_seeded_paired_and_of_the_right_width() -> None:
    values = np.random.default_rng(2).normal(0.5, 0.2, size=(1, 400))
    means = bootstrap_means(np.concatenate([values, values + 0.25]), seed=4)
    np.testing.assert_array_equal(means, bootstrap_means(np.concatenate([values, values + 0.25]), seed=4))
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 0.25)
    assert means[:, 0].mean() == pytest.approx(values.mean(), abs=0.002)
    assert means[:, 0].std() == pytest.approx(values.std() / 20, rel=0.1)


def test_ranks_reach_from_the_first_to_the_last() -> None:
    ranks = log_spaced_ranks(59_000)
    assert (ranks[0], ranks[-1]) == (1, 59_000)
    assert list(ranks) == sorted(set(ranks))
    assert 25 <= len(ranks) <= 30
    assert log_spaced_ranks(1) == (1,)


def labels_table(*rows: list[int]) -> pa.Table:
    return pa.table({"labels": pa.array(list(rows), pa.list_(pa.int32()))})


def test_labels_take_one_integer_while_no_image_has_two() -> None:
    parts = [labels_table([4], []), labels_table([4], [9])]
    survey = merge_surveys(survey_labels(part) for part in parts)
    assert (survey.labeled, survey.most, survey.vocabulary.tolist()) == (3, 1, [4, 9])
    assert [common_form(survey).arrays(part).tolist() for part in parts] == [[4, -1], [4, 9]]


@pytest.mark.parametrize("first", [[7], [7, 7]])
def test_labels_take_a_column_each_in_every_part_once_an_image_has_two(first: list[int]) -> None:
    parts = [labels_table([4], [], [5]), labels_table(first), labels_table([9, 4])]
    form = common_form(merge_surveys(survey_labels(part) for part in parts))
    arrays = [form.arrays(part) for part in parts]
    assert all(array.dtype == np.bool_ and array.shape[1] == 4 for array in arrays)
    assert [[np.flatnonzero(row).tolist() for row in array] for array in arrays] == [[[0], [], [1]], [[2]], [[0, 3]]]


def test_a_label_twice_in_one_image_is_one_column() -> None:
    parts = [labels_table([3, 3]), labels_table([3], [])]
    form = common_form(merge_surveys(survey_labels(part) for part in parts))
    assert [form.arrays(part).tolist() for part in parts] == [[[True]], [[True], [False]]]
