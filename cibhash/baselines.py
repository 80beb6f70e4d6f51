"""Linear hashes without training by gradient, which a learned encoder has to beat: random hyperplanes, PCA, ITQ.

Knows nothing of images or of how features were made. Shapes: N images, D features, B bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cibhash.binary import check_code_length, pack_bits
from cibhash.types import Codes

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating]

_BLOCK_ROWS = 8192


@dataclass(frozen=True, eq=False)
class LinearHash:
    """A hash that centers features, projects them, and takes the sign of each projection."""

    name: str
    mean: Floats
    """(D,) subtracted from the features."""
    projection: Floats
    """(D, B), one column per bit."""

    def encode(self, features: Features) -> Codes:
        """Packs one bit per projection, 1 where it is above 0.

        Args:
            features: Float (N, D).

        Returns:
            Packed codes, uint8 (N, B/8).

        Raises:
            ValueError: `features` is not (N, D) with the D of this hash.
        """
        _check_features(features)
        if features.shape[1] != len(self.mean):
            raise ValueError(f"features have {features.shape[1]} columns, {self.name} was fit on {len(self.mean)}")
        codes = np.empty((len(features), self.projection.shape[1] // 8), dtype=np.uint8)
        for rows, centered_ND in _centered_blocks(features, self.mean):
            codes[rows] = pack_bits(centered_ND @ self.projection > 0)
        return codes


def fit_random_hyperplanes(features: Features, bits: int, seed: int) -> LinearHash:
    """Draws hyperplanes of Gaussian direction through the mean of the features.

    Source: Charikar 2002, locality-sensitive hashing for the angle.

    Args:
        features: Float (N, D), N at least 1; only their mean is used.
        bits: B, a positive multiple of 8.
        seed: Of the directions.

    Raises:
        ValueError: `features` is not finite (N, D) with rows, or `bits` is not a positive multiple of 8.
    """
    _check_fit(features, bits)
    projection_DB = np.random.default_rng(seed).standard_normal((features.shape[1], bits))
    return LinearHash("random hyperplanes", _mean(features), projection_DB)


def fit_pca_sign(features: Features, bits: int) -> LinearHash:
    """Takes the directions of largest variance.

    Args:
        features: Float (N, D), N at least 1.
        bits: B, a positive multiple of 8, at most D.

    Raises:
        ValueError: `features` is not finite (N, D) with rows, or `bits` is not a positive multiple of 8 up to D.
    """
    mean_D, components_DB = _principal_components(features, bits)
    return LinearHash("PCA sign", mean_D, components_DB)


def fit_itq(features: Features, bits: int, *, iterations: int = 50, seed: int = 0) -> LinearHash:
    """Rotates the principal components so that their signs lose least: iterative quantization.

    Source: Gong & Lazebnik 2011, PCA-ITQ: alternates the codes of a rotation, and the rotation closest to the codes.

    Args:
        features: Float (N, D), N at least 1.
        bits: B, a positive multiple of 8, at most D.
        iterations: Alternations; 0 leaves the random rotation of the start.
        seed: Of the random rotation.

    Raises:
        ValueError: as for `fit_pca_sign`, or `iterations` is below 0.
    """
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}, expected at least 0")
    mean_D, components_DB = _principal_components(features, bits)
    blocks = [centered_ND @ components_DB for _, centered_ND in _centered_blocks(features, mean_D)]
    projected_NB = np.concatenate(blocks)
    rotation_BB, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))
    for _ in range(iterations):
        codes_NB = np.where(projected_NB @ rotation_BB > 0, 1.0, -1.0)
        left_BB, _, right_BB = np.linalg.svd(projected_NB.T @ codes_NB)
        rotation_BB = left_BB @ right_BB
    return LinearHash("ITQ", mean_D, components_DB @ rotation_BB)


def _principal_components(features: Features, bits: int) -> tuple[Floats, Floats]:
    """The mean (D,) and the `bits` directions of largest variance (D, B), each with its largest entry positive."""
    _check_fit(features, bits)
    if bits > features.shape[1]:
        raise ValueError(f"{bits} principal components were asked of features with {features.shape[1]} columns")
    mean_D = _mean(features)
    scatter_DD = np.zeros((features.shape[1], features.shape[1]))
    for _, centered_ND in _centered_blocks(features, mean_D):
        scatter_DD += centered_ND.T @ centered_ND
    _, vectors_DD = np.linalg.eigh(scatter_DD)
    components_DB = vectors_DD[:, : -bits - 1 : -1]
    largest_B = np.take_along_axis(components_DB, np.argmax(np.abs(components_DB), axis=0)[None, :], axis=0)
    return mean_D, np.ascontiguousarray(components_DB * np.sign(largest_B))


def _mean(features: Features) -> Floats:
    mean_D: Floats = features.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean_D).all():
        column = int(np.flatnonzero(~np.isfinite(mean_D))[0])
        raise ValueError(f"features have the mean {mean_D[column]} in column {column}, expected finite features")
    return mean_D


def _centered_blocks(features: Features, mean_D: Floats) -> Iterator[tuple[slice, Floats]]:
    """Yields rows in float64, a block at a time: a copy of all of them could take more memory than the features."""
    for start in range(0, len(features), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        yield rows, features[rows].astype(np.float64) - mean_D


def _check_fit(features: Features, bits: int) -> None:
    _check_features(features)
    if len(features) == 0:
        raise ValueError(f"features have shape {features.shape}, expected at least one row")
    check_code_length(bits)


def _check_features(features: Features) -> None:
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise ValueError(f"features are {features.dtype} {features.shape}, expected float (N, D)")
