"""Cosine rankings merged over parts, averages over resampled queries, and labels in one form."""

import numpy as np
import pyarrow as pa
import pytest

from cluster.evaluation.label_form import common_form, merge_surveys, survey_labels
from cluster.evaluation.measures import bootstrap_means, log_spaced_ranks
from cluster.evaluation.scoring import CodedRows, average_precision, merge_similar, most_similar
from tests import oracles


def coded(features: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> CodedRows:
    return CodedRows(ids, {}, labels, features / np.linalg.norm(features, axis=1, keepdims=True))


def test_most_similar_of_parts_merge_into_those_of_the_whole_with_ties_by_id() -> None:
    generator = np.random.default_rng(0)
    features = generator.integers(-1, 2, size=(120, 4)).astype(np.float64)
    features[:, 0] += 0.5
    ids, labels = generator.permutation(1000)[:120].astype(np.int64), generator.integers(3, size=120)
    queries = coded(features[:9], ids[:9], labels[:9])
    expected = []
    for query in range(9):
        scores = (queries.features @ coded(features, ids, labels).features.T).astype(np.float32)[query]
        expected.append(ids[np.array(sorted(range(120), key=lambda row: (-scores[row], ids[row])))][:20])
    whole = most_similar(queries, coded(features, ids, labels), 20)
    np.testing.assert_array_equal(whole.ids, expected)
    parts = [
        most_similar(queries, coded(features[rows], ids[rows], labels[rows]), 20)
        for rows in (slice(70, 120), slice(0, 7), slice(7, 70))
    ]
    merged = merge_similar(merge_similar(parts[0], parts[1], 20), parts[2], 20)
    for array, other in zip(whole, merged, strict=True):
        np.testing.assert_array_equal(array, other)
    label_of = dict(zip(ids.tolist(), labels.tolist(), strict=True))
    for query in range(9):
        same = [label_of[int(one)] == labels[query] for one in whole.ids[query]]
        assert whole.relevant[query].tolist() == same


def test_average_precision_equals_the_slow_twin() -> None:
    relevant = np.random.default_rng(1).random((40, 15)) < 0.3
    relevant[0] = False
    expected = [float(oracles.average_precision(row.astype(int).tolist(), 15, "hashing")) for row in relevant]
    np.testing.assert_allclose(average_precision(relevant), expected, atol=1e-15)


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
