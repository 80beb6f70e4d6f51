"""Fitting baselines on the features of a code table."""

from pathlib import Path

import numpy as np
import pytest

from cibhash.baselines import fit_itq, fit_random_hyperplanes
from cluster.code_versions import open_codes
from cluster.evaluation.baselines import fit_baselines, fit_features, num_fit_rows, pca_lengths
from cluster.evaluation.plan import Table
from cluster.evaluation.scoring import Series
from tests.tables import make_code_table

FEATURES = np.random.default_rng(1).standard_normal((90, 24)).astype(np.float32)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    uri = make_code_table(tmp_path / "codes", np.zeros((90, 4), np.uint8), features=FEATURES, rows_per_part=40)
    return Table(uri, open_codes(uri))


def test_all_rows_are_used_when_they_fit(table: Table) -> None:
    np.testing.assert_array_equal(fit_features(table, seed=0), FEATURES)


def test_above_the_limit_rows_are_a_seeded_sample_in_order(table: Table) -> None:
    sample = fit_features(table, seed=5, limit=24 * 30)
    assert sample.shape == (num_fit_rows(table, 24 * 30), 24) == (30, 24)
    positions = [int(np.flatnonzero((row == FEATURES).all(axis=1))[0]) for row in sample]
    assert positions == sorted(set(positions))
    np.testing.assert_array_equal(sample, fit_features(table, seed=5, limit=24 * 30))
    assert not np.array_equal(sample, fit_features(table, seed=6, limit=24 * 30))


def test_baselines_equal_a_direct_fit(table: Table) -> None:
    fitted = fit_baselines(table, (8, 16), seed=2)
    assert set(fitted) == {Series(name, bits) for name in ("itq", "random_hyperplanes") for bits in (8, 16)}
    for bits in (8, 16):
        direct = fit_itq(FEATURES, bits, seed=2).encode(FEATURES)
        np.testing.assert_array_equal(fitted[Series("itq", bits)].encode(FEATURES), direct)
        direct = fit_random_hyperplanes(FEATURES, bits, 2).encode(FEATURES)
        np.testing.assert_array_equal(fitted[Series("random_hyperplanes", bits)].encode(FEATURES), direct)


def test_itq_has_no_more_bits_than_the_features_have_directions(table: Table) -> None:
    assert pca_lengths(table, (8, 24, 32)) == (8, 24)
    assert set(fit_baselines(table, (32,), seed=0)) == {Series("random_hyperplanes", 32)}
