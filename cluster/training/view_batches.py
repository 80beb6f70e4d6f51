"""Which part of every step a worker computes, and its batches drawn from cached features.

Knows nothing of the loss and of shards. What a worker gets in a step is its share of the global batch that
`cibhash.sampling` defines.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cibhash.sampling import cached_order, neighbor_partners, steps_per_epoch, view_pairs
from cibhash.types import Ids, ViewBatch


@dataclass(frozen=True)
class Share:
    """Which part of every global batch a worker computes."""

    rank: int
    world_size: int
    num_streams: int
    batch_size: int
    """Of the global batch."""
    seed: int
    drop_last: bool = True
    """Whether images that do not fill a global batch are left out."""

    @property
    def streams(self) -> range:
        """The worker's streams."""
        each = self.num_streams // self.world_size
        return range(self.rank * each, (self.rank + 1) * each)


@dataclass(frozen=True)
class CachedViews:
    """Views drawn among the cached features of every training image."""

    features: npt.NDArray[np.floating[Any]]
    """(V, N, D), float32 or float16."""
    ids: Ids
    """int64 (N,)."""
    neighbors: npt.NDArray[np.int64] | None = None
    """Rows of the K nearest training images, int64 (N, K); -1 stands for the image itself. None: always itself."""
    neighbor_probability: float = 0.5

    def steps(self, share: Share) -> int:
        """Steps per epoch: streams have no part in them, for every image can be had at any time."""
        return steps_per_epoch(len(self.ids), 1, share.batch_size, drop_last=share.drop_last)

    def epochs(self, first: int, last: int, share: Share, first_step: int = 0) -> Iterator[Iterator[ViewBatch]]:
        """The batches of every epoch from `first` to `last` (exclusive), the first one from `first_step` on."""
        for epoch in range(first, last):
            yield self._epoch(epoch, share, first_step if epoch == first else 0)

    def _epoch(self, epoch: int, share: Share, first_step: int) -> Iterator[ViewBatch]:
        """The epoch's steps from `first_step` on, two float32 tensors (N, D) each."""
        num_views, num_samples, _ = self.features.shape
        order = cached_order(num_samples, seed=share.seed, epoch=epoch)
        view_a, view_b = view_pairs(num_samples, num_views, seed=share.seed, epoch=epoch).T
        partner = self._partners(share.seed, epoch)
        for step in range(first_step, self.steps(share)):
            batch = order[step * share.batch_size : (step + 1) * share.batch_size]
            local = len(batch) // share.world_size
            images = batch[share.rank * local : (share.rank + 1) * local]
            a = self.features[view_a[images], images]
            b = self.features[view_b[images], partner[images]]
            yield ViewBatch(torch.from_numpy(a).float(), torch.from_numpy(b).float(), self.ids[images])

    def _partners(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """Row of the image whose view is the second one, int64 (N,)."""
        rows = np.arange(len(self.ids))
        if self.neighbors is None:
            return rows
        columns = neighbor_partners(
            len(rows), self.neighbors.shape[1], self.neighbor_probability, seed=seed, epoch=epoch
        )
        chosen = np.where(columns >= 0, self.neighbors[rows, columns], -1)
        return np.where(chosen >= 0, chosen, rows)
