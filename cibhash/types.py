"""Types that cross module boundaries: samples, codes, neighbors, losses.

Knows nothing of storage, Ray or FAISS. Array shapes: N images, B bits, Q queries, K neighbors.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Codes = npt.NDArray[np.uint8]
"""Packed codes, uint8 (N, B/8), bit j at byte j//8, bit j%8."""
Ids = npt.NDArray[np.int64]
Distances = npt.NDArray[np.int32]
Labels = npt.NDArray[np.int64] | npt.NDArray[np.bool_]
"""Either int (N,), one label each, or bool (N, C), several each."""

PADDING_ID = -1
PADDING_DISTANCE = 2**31 - 1


@dataclass(frozen=True)
class TarShard:
    """One tar file of a dataset, as its manifest records it."""

    uri: str
    bytes: int
    """Size of the tar file."""
    sha256: str
    count: int
    """Number of samples."""
    first_id: int
    """Id of the first sample; the following ones count up."""


class Sample(NamedTuple):
    """One image of a tar shard, still compressed."""

    id: int
    key: str
    image: bytes
    labels: tuple[int, ...]
    offset: int
    """Byte offset of the image inside its tar; its length is `len(image)`."""
    trouble: str = ""
    """Why the sample cannot be used: no image, no single one, or a label that is none. Empty: it can."""


class Neighbors(NamedTuple):
    """Nearest codes per query, ordered by (distance, id), padded with (-1, 2147483647)."""

    ids: Ids
    """int64 (Q, K)."""
    distances: Distances
    """int32 (Q, K)."""


class RangeNeighbors(NamedTuple):
    """All codes within a radius per query: rows `limits[q]:limits[q + 1]`, ordered by (distance, id)."""

    limits: Ids
    """int64 (Q + 1,)."""
    ids: Ids
    """int64 (total,)."""
    distances: Distances
    """int32 (total,)."""


class ViewBatch(NamedTuple):
    """Two views of the images of one step, as one worker sees them."""

    view_a: "Tensor"
    """(N, ...): uint8 images (N, 3, H, W), or float features (N, D)."""
    view_b: "Tensor"
    """Row i is of the same image as row i of `view_a`."""
    ids: Ids
    """int64 (N,): the images' ids, for messages."""


class LossTerms(NamedTuple):
    """The CIBHash loss and its two parts, scalars: `total = contrastive + beta * kl`."""

    total: "Tensor"
    contrastive: "Tensor"
    kl: "Tensor"
