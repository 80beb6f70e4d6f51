"""Fresh views of every epoch: processes read tar shards, decode and augment, ahead of the training step.

Knows nothing of the loss. The streams of a worker are dealt to its processes, so every shard is read once, and the
order of images in a batch does not depend on how many processes there are.
"""

import dataclasses
import itertools
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cibhash.errors import CIBHashError
from cibhash.sampling import epoch_spans, shuffled, steps_per_epoch
from cibhash.specs import ViewSpec
from cibhash.types import Ids, Sample, TarShard, ViewBatch
from cluster.datasets import shard_samples
from cluster.failures import described, raise_failure
from cluster.training.view_batches import Share
from cluster.training.view_making import Views, decoded, make_views

_PARTS_AHEAD = 2


@dataclass(frozen=True)
class FreshViews:
    """Two new views of every training image per epoch."""

    dataset_uri: str
    shards: Sequence[TarShard]
    spec: ViewSpec
    size: int
    held_out: frozenset[int] = frozenset()
    """Ids that are not trained on."""
    loaders: int = 0
    """Processes that make views; 0: the caller's own."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def counts(self) -> list[int]:
        """Training images per shard."""
        held_out = np.array(sorted(self.held_out), np.int64)
        return [
            shard.count - int(np.sum((held_out >= shard.first_id) & (held_out < shard.first_id + shard.count)))
            for shard in self.shards
        ]

    def steps(self, share: Share) -> int:
        """Steps per epoch."""
        return steps_per_epoch(sum(self.counts), share.num_streams, share.batch_size, drop_last=share.drop_last)

    def epochs(self, first: int, last: int, share: Share, first_step: int = 0) -> Iterator[Iterator[ViewBatch]]:
        """The batches of every epoch from `first` to `last` (exclusive), the first one from `first_step` on.

        The processes work ahead over the end of an epoch; every iterator must be used up before the next is taken.

        Raises:
            DataError: an image cannot be decoded; names its key.
            CorruptShard: a shard is not what the manifest lists.
        """
        steps, parts = self.steps(share), max(1, min(self.loaders, len(share.streams)))
        loader: Any = DataLoader(
            _Parts(self, share, first, last, first_step),
            batch_size=None,
            num_workers=parts if self.loaders else 0,
            prefetch_factor=_PARTS_AHEAD if self.loaders else None,
            multiprocessing_context=_fork_server() if self.loaders else None,
            pin_memory=self.device.type == "cuda",
        )
        stream = iter(loader)
        for epoch in range(first, last):
            start = first_step if epoch == first else 0
            yield (self._batch([next(stream) for _ in range(parts)]) for _ in range(start, steps))

    def _batch(self, parts: list["_Part"]) -> ViewBatch:
        for part in parts:
            raise_failure(part.failure)
        parts = [part for part in parts if part.views]
        a, b = (
            torch.cat([views.on(self.device) for views in side]) for side in zip(*(p.views for p in parts), strict=True)
        )
        return ViewBatch(a, b, np.concatenate([part.ids for part in parts]))


def _fork_server() -> Any:
    """Where processes come from: a server that has the imports and none of this process's threads and locks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class _Part(NamedTuple):
    """What one process contributes to a step: the images of some of the worker's streams."""

    views: tuple[Views, ...]
    ids: Ids
    failure: str = ""
    """What went wrong instead, as `cluster.failures` has it."""


class _Parts(IterableDataset[_Part]):
    """The parts of all steps that one process makes, in order."""

    def __init__(self, source: FreshViews, share: Share, first: int, last: int, first_step: int) -> None:
        self.source = dataclasses.replace(source, device=torch.device("cpu"))
        self.share, self.first, self.last, self.first_step = share, first, last, first_step

    def __iter__(self) -> Iterator[_Part]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:
            cv2.setNumThreads(1)
        streams = np.array_split(np.array(self.share.streams), count)[number].tolist()
        try:
            for epoch in range(self.first, self.last):
                yield from self._epoch(epoch, streams, self.first_step if epoch == self.first else 0)
        except CIBHashError as error:
            # The loader would rebuild the error from a whole traceback as its message.
            yield _Part((), np.zeros(0, np.int64), described(error))

    def _epoch(self, epoch: int, streams: list[int], first_step: int) -> Iterator[_Part]:
        each = self.share.batch_size // self.share.num_streams
        orders = [
            shuffled(self._stream(epoch, number), seed=self.share.seed, epoch=epoch, stream=number)
            for number in streams
        ]
        for order in orders:
            for _ in itertools.islice(order, first_step * each):
                pass
        for _ in range(first_step, self.source.steps(self.share)):
            yield self._part([sample for order in orders for sample in itertools.islice(order, each)], epoch)

    def _stream(self, epoch: int, number: int) -> Iterator[Sample]:
        source, share = self.source, self.share
        for span in epoch_spans(source.counts, share.num_streams, number, seed=share.seed, epoch=epoch):
            samples = shard_samples(source.dataset_uri, source.shards[span.shard])
            trained = (sample for sample in samples if sample.id not in source.held_out)
            yield from itertools.islice(trained, span.start, span.stop)

    def _part(self, samples: list[Sample], epoch: int) -> _Part:
        if not samples:  # of a last batch that has images of other streams only
            return _Part((), np.zeros(0, np.int64))
        source, seed = self.source, self.share.seed
        images = [decoded(source.dataset_uri, sample) for sample in samples]
        ids = [sample.id for sample in samples]
        a, b = (make_views(images, ids, source.spec, source.size, seed=seed, epoch=epoch, view=v) for v in (0, 1))
        return _Part((a, b), np.array(ids, np.int64))
