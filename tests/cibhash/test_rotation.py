"""The rotation: principal components by another road, one length for all, and a layer that does the same."""

import math

import numpy as np
import pytest
import torch

from cibhash import rotation
from cibhash.rotation import FixedRotation, fit_rotation


def _features(num_images: int = 300, columns: int = 20, seed: int = 0) -> np.ndarray:
    """Correlated, of falling variance, and far from 0 in comparison."""
    rng = np.random.default_rng(seed)
    scales = np.linspace(3, 0.3, columns)
    return (rng.standard_normal((num_images, columns)) * scales) @ rng.standard_normal((columns, columns)) + 50


def _slow_rotation(features: np.ndarray, dims: int, norm: float) -> np.ndarray:
    """Singular vectors of the centered features, made one number at a time, then all divided by the mean length."""
    mean = [math.fsum(column) / len(features) for column in features.T.tolist()]
    centered = features - mean
    _, _, right = np.linalg.svd(centered, full_matrices=False)
    rotated = []
    for row in centered:
        values = []
        for direction in right[:dims]:
            largest = max(direction, key=abs)
            values.append(math.fsum(x * y for x, y in zip(row, direction, strict=True)) * math.copysign(1, largest))
        rotated.append(values)
    lengths = [math.sqrt(math.fsum(x * x for x in values)) for values in rotated]
    return np.array(rotated) * norm / (math.fsum(lengths) / len(lengths))


@pytest.mark.parametrize(("dims", "norm"), [(1, 20.0), (7, 20.0), (20, 3.5)])
def test_rotated_features_are_those_of_the_singular_value_decomposition(dims: int, norm: float) -> None:
    features = _features()
    found = fit_rotation(features, dims, norm=norm)
    np.testing.assert_allclose(found.apply(features), _slow_rotation(features, dims, norm), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.components.T @ found.components, np.eye(dims), rtol=0, atol=1e-10)
    for column in found.components.T:
        assert max(column, key=abs) > 0


def test_fewer_images_than_columns() -> None:
    features = _features(num_images=6)
    found = fit_rotation(features, 5)
    np.testing.assert_allclose(found.apply(features), _slow_rotation(features, 5, 20.0), rtol=1e-5, atol=1e-4)


def test_the_norm_is_that_of_the_training_features_and_nothing_is_whitened() -> None:
    features = _features().astype(np.float32)
    rotated = fit_rotation(features, 8).apply(features).astype(np.float64)
    assert np.linalg.norm(rotated, axis=1).mean() == pytest.approx(20, rel=1e-6)
    variances = rotated.var(axis=0)
    assert (np.diff(variances) < 0).all()
    expected = np.linalg.svd(features.astype(np.float64) - features.mean(axis=0, dtype=np.float64))[1][:8] ** 2
    np.testing.assert_allclose(variances / variances[0], expected / expected[0], rtol=1e-5)


@pytest.mark.parametrize("cuts", [(), (1,), (150,), (0, 13, 14, 200, 300)], ids=str)
def test_blocks_do_not_change_the_rotation(cuts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    features = _features().astype(np.float32)
    whole = fit_rotation(features, 10)
    monkeypatch.setattr(rotation, "_BLOCK_ROWS", 37)
    found = fit_rotation(np.split(features, list(cuts)), 10)
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(found.components, whole.components, rtol=0, atol=1e-9)
    assert found.scale == pytest.approx(whole.scale, rel=1e-12)
    np.testing.assert_allclose(found.apply(features), whole.apply(features), rtol=1e-5, atol=1e-5)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    features = _features()
    near, far = fit_rotation(features, 10), fit_rotation([features[:100] + 1e6, features[100:] + 1e6], 10)
    np.testing.assert_allclose(far.components, near.components, rtol=0, atol=1e-7)


def test_the_layer_rotates_alike_and_travels_in_its_state() -> None:
    features = _features().astype(np.float32)
    fitted = fit_rotation(features, 6)
    layer = FixedRotation.of(fitted)
    rotated = layer(torch.from_numpy(features))
    np.testing.assert_allclose(rotated.numpy(), fitted.apply(features), rtol=0, atol=1e-4)
    assert not list(layer.parameters())

    other = FixedRotation(20, 6)
    assert not other(torch.from_numpy(features)).any()
    state = layer.state_dict()
    assert {name: (tuple(value.shape), value.dtype) for name, value in state.items()} == {
        "mean": ((20,), torch.float32),
        "weight": ((20, 6), torch.float32),
    }
    other.load_state_dict(state)
    assert torch.equal(other(torch.from_numpy(features)), rotated)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: fit_rotation(x, 21), "21 principal components .* 300 features with 20 columns"),
        (lambda x: fit_rotation(x[:4], 5), "5 principal components .* 4 features with 20 columns"),
        (lambda x: fit_rotation(x, 0), "0 principal components"),
        (lambda x: fit_rotation(x, 3, norm=0.0), r"norm is 0\.0"),
        (lambda x: fit_rotation(x, 3, norm=math.inf), "norm is inf"),
        (lambda x: fit_rotation(x[:0], 3), "no rows"),
        (lambda x: fit_rotation([], 3), "no rows"),
        (lambda x: fit_rotation(x[0], 3), r"\(20,\)"),
        (lambda x: fit_rotation(x.astype(int), 3), "int64"),
        (lambda x: fit_rotation(iter([x]), 3), "iterator"),
        (lambda x: fit_rotation([x, x[:, :7]], 3), "7 columns, expected 20"),
        (lambda x: fit_rotation([x[:100], np.where(x == x[3, 2], np.nan, x)], 3), "nan in row 103, column 2"),
        (lambda x: fit_rotation(np.where(x == x[0, 1], -np.inf, x), 3), "-inf in row 0, column 1"),
        (lambda x: fit_rotation(np.full((50, 4), 0.1, np.float32), 3), "do not vary"),
        (lambda x: fit_rotation(x, 3).apply(x[:, :5]), "5 columns, expected 20"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(_features())
