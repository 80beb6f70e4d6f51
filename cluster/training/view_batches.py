"""Pairs of views for one worker: fresh from tar shards, or drawn from cached features.

Knows nothing of the loss. What a worker gets in a step is its streams' share of the global batch that
`cibhash.sampling` defines.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cibhash.errors import BadImage, DataError
from cibhash.images import decode_image
from cibhash.sampling import cached_order, epoch_spans, shuffled, steps_per_epoch, view_pairs
from cibhash.specs import ViewSpec
from cibhash.types import Sample, TarShard
from cibhash.views import Pixels, random_view, view_generator
from cluster.datasets import shard_samples

_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Share:
    """Which part of every global batch a worker computes."""

    rank: int
    world_size: int
    num_streams: int
    batch_size: int
    """Of the global batch."""
    seed: int

    @property
    def streams(self) -> range:
        """The worker's streams."""
        each = self.num_streams // self.world_size
        return range(self.rank * each, (self.rank + 1) * each)


@dataclass(frozen=True)
class FreshViews:
    """Fresh views of every epoch: decode and augmentation in threads, ahead of the training step."""

    dataset_uri: str
    shards: Sequence[TarShard]
    spec: ViewSpec
    size: int
    threads: ThreadPoolExecutor

    def pairs(self, epoch: int, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        """Two uint8 tensors (N, 3, H, W) per step."""
        per_stream = share.batch_size // share.num_streams
        steps = steps_per_epoch(sum(s.count for s in self.shards), share.num_streams, share.batch_size)
        streams = [
            shuffled(self._stream(epoch, share, number), seed=share.seed, epoch=epoch, stream=number)
            for number in share.streams
        ]
        waiting: deque[list[Future[tuple[Pixels, Pixels]]]] = deque()
        for _ in range(steps):
            samples = [s for stream in streams for s in itertools.islice(stream, per_stream)]
            waiting.append([self.threads.submit(self._views, s, epoch, share.seed) for s in samples])
            if len(waiting) > _BATCHES_AHEAD:
                yield _stack(waiting.popleft())
        while waiting:
            yield _stack(waiting.popleft())

    def _stream(self, epoch: int, share: Share, number: int) -> Iterator[Sample]:
        counts = [shard.count for shard in self.shards]
        for span in epoch_spans(counts, share.num_streams, number, seed=share.seed, epoch=epoch):
            samples = shard_samples(self.dataset_uri, self.shards[span.shard])
            yield from itertools.islice(samples, span.start, span.stop)

    def _views(self, sample: Sample, epoch: int, seed: int) -> tuple[Pixels, Pixels]:
        try:
            image = decode_image(sample.image)
        except BadImage as error:
            raise DataError(f"{self.dataset_uri}: key {sample.key!r}: {error}") from None
        a, b = (
            random_view(image, self.spec, self.size, view_generator(seed, epoch, sample.id, view)) for view in (0, 1)
        )
        return a, b


@dataclass(frozen=True)
class CachedViews:
    """Views drawn among the cached features of every image."""

    features: npt.NDArray[np.float32]
    """(V, N, D)."""

    def pairs(self, epoch: int, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        """Two float tensors (N, D) per step."""
        num_views, num_samples, _ = self.features.shape
        order = cached_order(num_samples, seed=share.seed, epoch=epoch)
        chosen = view_pairs(num_samples, num_views, seed=share.seed, epoch=epoch)
        local = share.batch_size // share.world_size
        for step in range(steps_per_epoch(num_samples, share.num_streams, share.batch_size)):
            start = step * share.batch_size + share.rank * local
            images = order[start : start + local]
            a, b = (torch.from_numpy(self.features[chosen[images, view], images]) for view in (0, 1))
            yield a, b


def _stack(futures: list[Future[tuple[Pixels, Pixels]]]) -> tuple[Tensor, Tensor]:
    views = [future.result() for future in futures]
    a, b = (torch.from_numpy(np.stack([pair[side] for pair in views])) for side in (0, 1))
    return a, b
