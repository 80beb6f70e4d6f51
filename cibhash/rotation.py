"""Features turned to their principal components and brought to one length, and the layer that does it in an encoder.

Knows nothing of images or of how features were made. Nothing is whitened: the components keep their variances. Shapes:
N images, D features, K principal components.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating]

_BLOCK_ROWS = 8192


@dataclass(frozen=True, eq=False)
class Rotation:
    """Subtracts a mean, projects on orthonormal directions, and multiplies by one number."""

    mean: Floats
    """(D,) subtracted from the features."""
    components: Floats
    """(D, K), orthonormal columns by falling variance, the largest entry of each positive."""
    scale: float

    def apply(self, features: Features) -> npt.NDArray[np.float32]:
        """Rotated features, float32 (N, K), summed in float64.

        Args:
            features: Float (N, D).

        Raises:
            ValueError: `features` is not (N, D) with the D of this rotation.
        """
        rotated_NK = np.empty((len(features), self.components.shape[1]), dtype=np.float32)
        rows = 0
        for block_ND in _blocks(features):
            _check_columns(block_ND, len(self.mean))
            rotated_NK[rows : rows + len(block_ND)] = self.scale * ((block_ND - self.mean) @ self.components)
            rows += len(block_ND)
        return rotated_NK


class FixedRotation(nn.Module):
    """A rotation of features (N, D) to (N, K) that does not learn; zeros until a state or a rotation fills it."""

    mean: Tensor
    weight: Tensor

    def __init__(self, num_features: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("weight", torch.zeros(num_features, dims))

    @classmethod
    def of(cls, rotation: Rotation) -> "FixedRotation":
        """The layer that does what `rotation` does, in float32."""
        layer = cls(*rotation.components.shape)
        layer.mean.copy_(torch.from_numpy(rotation.mean))
        layer.weight.copy_(torch.from_numpy(rotation.scale * rotation.components))
        return layer

    def forward(self, features_ND: Tensor) -> Tensor:
        """Rotated features, float (N, K)."""
        return (features_ND - self.mean) @ self.weight


def fit_rotation(features: Features | Iterable[Features], dims: int, *, norm: float = 20.0) -> Rotation:
    """Fits the first principal components, scaled so that rotated training features have the mean length `norm`.

    Args:
        features: Float (N, D), or blocks of rows of it. Blocks are gone through twice, so they must not be an iterator;
            how the rows are cut into blocks changes the result by rounding alone.
        dims: K, at most the smaller of D and N.
        norm: Mean L2 norm of the rotated features, above 0.

    Raises:
        ValueError: `features` is an iterator, not finite, not (N, D) throughout or without variance; `dims` is not from
            1 to min(D, N); `norm` is not a positive number.
    """
    if iter(features) is features:
        raise ValueError("features are an iterator, expected an array or blocks that can be gone through twice")
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(f"norm is {norm}, expected a positive number")
    count, mean_D, scatter_DD = _moments(features)
    if not 1 <= dims <= min(len(mean_D), count):
        raise ValueError(f"{dims} principal components were asked of {count} features with {len(mean_D)} columns")
    _, vectors_DD = np.linalg.eigh(scatter_DD)
    components_DK = vectors_DD[:, : -dims - 1 : -1]
    largest_K = np.take_along_axis(components_DK, np.argmax(np.abs(components_DK), axis=0)[None, :], axis=0)
    components_DK = np.ascontiguousarray(components_DK * np.sign(largest_K))
    lengths = sum(np.linalg.norm((block_ND - mean_D) @ components_DK, axis=1).sum() for block_ND in _blocks(features))
    mean_length = float(lengths) / count
    # Constant features in float32 leave rounding errors of the mean, which must not be blown up to `norm`.
    if mean_length <= np.finfo(np.float32).eps * np.linalg.norm(mean_D):
        raise ValueError(f"features do not vary: their distance from the mean is {mean_length:g} on average")
    return Rotation(mean_D, components_DK, norm / mean_length)


def _moments(features: Features | Iterable[Features]) -> tuple[int, Floats, Floats]:
    """Number of rows, their mean (D,), and the scatter around it (D, D), in one pass.

    Source: Chan, Golub & LeVeque 1983, pairwise updating; subtracting the mean's square at the end would cancel digits.
    """
    count, mean_D, scatter_DD = 0, np.zeros(0), np.zeros((0, 0))
    for block_ND in _blocks(features):
        if not count:
            mean_D, scatter_DD = np.zeros(block_ND.shape[1]), np.zeros((block_ND.shape[1],) * 2)
        _check_columns(block_ND, len(mean_D))
        if not np.isfinite(block_ND).all():
            row, column = np.argwhere(~np.isfinite(block_ND))[0]
            raise ValueError(
                f"features have {block_ND[row, column]} in row {count + row}, column {column}, expected finite ones"
            )
        block_mean_D = block_ND.mean(axis=0)
        centered_ND = block_ND - block_mean_D
        total, shift_D = count + len(block_ND), block_mean_D - mean_D
        scatter_DD += centered_ND.T @ centered_ND
        scatter_DD += np.outer(shift_D, shift_D) * (count * len(block_ND) / total)
        mean_D += shift_D * (len(block_ND) / total)
        count = total
    if not count:
        raise ValueError("features have no rows, expected at least one")
    return count, mean_D, scatter_DD


def _blocks(features: Features | Iterable[Features]) -> Iterator[Floats]:
    """Yields rows in float64, a block at a time: a copy of all of them could take more memory than the features."""
    for block_ND in [features] if isinstance(features, np.ndarray) else features:
        if block_ND.ndim != 2 or not np.issubdtype(block_ND.dtype, np.floating):
            raise ValueError(f"features are {block_ND.dtype} {block_ND.shape}, expected float (N, D)")
        for start in range(0, len(block_ND), _BLOCK_ROWS):
            yield block_ND[start : start + _BLOCK_ROWS].astype(np.float64)


def _check_columns(block_ND: Floats, columns: int) -> None:
    if block_ND.shape[1] != columns:
        raise ValueError(f"features have {block_ND.shape[1]} columns, expected {columns}")
