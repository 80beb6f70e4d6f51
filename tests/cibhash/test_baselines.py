import numpy as np
import pytest

from cibhash import baselines
from cibhash.baselines import fit_itq, fit_pca_sign, fit_random_hyperplanes
from cibhash.binary import unpack_bits
from cibhash.hamming import histogram
from cibhash.metrics import from_histogram


def correlated_features(num_images=300, columns=20, seed=0):
    rng = np.random.default_rng(seed)
    scales = np.linspace(3, 0.3, columns)
    return (rng.standard_normal((num_images, columns)) * scales) @ rng.standard_normal((columns, columns)) + 5


def fits(features, bits):
    return [fit_random_hyperplanes(features, bits, 1), fit_pca_sign(features, bits), fit_itq(features, bits, seed=1)]


def quantization_loss(features, hasher):
    projected = (features - hasher.mean) @ hasher.projection
    return np.square(np.where(projected > 0, 1, -1) - projected).sum()


def test_a_bit_is_the_side_of_its_hyperplane():
    features = correlated_features()
    for hasher in fits(features, 16):
        np.testing.assert_allclose(hasher.mean, [np.mean(column) for column in features.T], rtol=1e-12)
        bits = unpack_bits(hasher.encode(features))
        for n, j in ((0, 0), (5, 9), (299, 15)):
            side = sum((features[n, d] - hasher.mean[d]) * hasher.projection[d, j] for d in range(20))
            assert bits[n, j] == (side > 0)


def test_pca_directions_are_those_of_the_singular_value_decomposition():
    features = correlated_features()
    projection = fit_pca_sign(features, 8).projection
    _, _, right = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    for b in range(8):
        assert abs(projection[:, b] @ right[b]) == pytest.approx(1, abs=1e-9)
        assert projection[np.argmax(np.abs(projection[:, b])), b] > 0


def test_itq_is_a_rotation_of_pca_that_loses_less():
    features = correlated_features()
    # Equal length makes the loss of a rotation comparable with the +1/-1 corners.
    features = features / np.linalg.norm(features, axis=1, keepdims=True) * np.sqrt(16)
    pca, itq = fit_pca_sign(features, 16), fit_itq(features, 16, iterations=50, seed=3)
    rotation = pca.projection.T @ itq.projection
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(16), rtol=0, atol=1e-10)
    np.testing.assert_allclose(pca.projection @ rotation, itq.projection, rtol=0, atol=1e-10)
    losses = [quantization_loss(features, fit_itq(features, 16, iterations=n, seed=3)) for n in (0, 1, 2, 5, 20, 50)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < quantization_loss(features, pca)


def test_clusters_get_close_codes():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 6, 600)
    features = (rng.standard_normal((6, 32)) * 4)[labels] + rng.standard_normal((600, 32))
    for hasher in fits(features, 16):
        codes = hasher.encode(features)
        counts = histogram(codes[:100], codes[100:], labels[:100], labels[100:])
        # Six clusters span five directions: most principal components are noise. Chance is about 0.25.
        assert from_histogram(*counts, k=50).map_at_k > 0.7, hasher.name


def test_blocks_do_not_change_the_codes(monkeypatch):
    features = correlated_features().astype(np.float32)
    whole = [(hasher.encode(features), hasher.projection) for hasher in fits(features, 16)]
    monkeypatch.setattr(baselines, "_BLOCK_ROWS", 37)
    for (codes, projection), hasher in zip(whole, fits(features, 16), strict=True):
        np.testing.assert_allclose(hasher.projection, projection, rtol=0, atol=1e-8)
        np.testing.assert_array_equal(hasher.encode(features), codes)


def test_seeds_decide():
    features = correlated_features()
    for fit in (fit_random_hyperplanes, lambda f, bits, seed: fit_itq(f, bits, iterations=3, seed=seed)):
        first, again, other = (fit(features, 8, seed).projection for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert not np.allclose(first, other)


def test_random_hyperplanes_may_outnumber_the_columns():
    features = correlated_features(columns=4)
    assert fit_random_hyperplanes(features, 64, 0).encode(features[:0]).shape == (0, 8)
    assert fit_random_hyperplanes(features, 64, 0).encode(features).shape == (300, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: fit_pca_sign(x, 24), "24 principal components .* 20 columns"),
        (lambda x: fit_itq(x, 24), "24 principal components .* 20 columns"),
        (lambda x: fit_itq(x, 12), "12 bits"),
        (lambda x: fit_itq(x, 8, iterations=-1), "iterations is -1"),
        (lambda x: fit_random_hyperplanes(x, 0, 0), "0 bits"),
        (lambda x: fit_pca_sign(x[:0], 8), r"\(0, 20\)"),
        (lambda x: fit_pca_sign(x[0], 8), r"\(20,\)"),
        (lambda x: fit_pca_sign(x.astype(int), 8), "int64"),
        (lambda x: fit_pca_sign(np.where(x == x[3, 2], np.nan, x), 8), "nan in column 2"),
        (lambda x: fit_pca_sign(x, 8).encode(x[:, :5]), "5 columns, PCA sign was fit on 20"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(correlated_features())
