"""Which images meet in which global batch: a function of seed, epoch and the dataset's counts alone.

Knows nothing of workers' processes and of how images are read. Every epoch the shards are put in a new order and
their concatenation is dealt to `num_streams` streams of nearly equal length; a global batch takes the same number of
images from each. A worker reads whole streams, so with the same `num_streams` the global batches are the same for any
number of workers that divides it, and every worker takes the same number of steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cibhash.errors import ConfigError

T = TypeVar("T")
SHUFFLE_BUFFER = 4096
_ORDER, _BUFFER, _PAIRS = 1, 2, 3


@dataclass(frozen=True)
class Span:
    """Samples `start` to `stop` (exclusive, positions within the shard) of one shard."""

    shard: int
    start: int
    stop: int


def epoch_spans(counts: Sequence[int], num_streams: int, stream: int, *, seed: int, epoch: int) -> list[Span]:
    """The spans that one stream reads in one epoch, in order."""
    total = sum(counts)
    first, last = total * stream // num_streams, total * (stream + 1) // num_streams
    spans, position = [], 0
    for shard in _generator(seed, epoch, _ORDER).permutation(len(counts)):
        start, stop = max(first - position, 0), min(last - position, counts[shard])
        if start < stop:
            spans.append(Span(int(shard), int(start), int(stop)))
        position += counts[shard]
    return spans


def steps_per_epoch(num_samples: int, num_streams: int, batch_size: int) -> int:
    """Steps that every worker takes; what does not fill a global batch is left for the next epoch's order.

    Raises:
        ConfigError: the images do not fill one batch.
    """
    steps = (num_samples // num_streams) // (batch_size // num_streams)
    if steps == 0:
        raise ConfigError(
            f"batch_size {batch_size} in {num_streams} stream(s), but there are only {num_samples} images"
        )
    return steps


def shuffled(items: Iterator[T], *, seed: int, epoch: int, stream: int, size: int = SHUFFLE_BUFFER) -> Iterator[T]:
    """Passes items through a shuffle buffer whose draws depend on seed, epoch and stream alone."""
    generator = _generator(seed, epoch, _BUFFER, stream)
    buffer: list[T] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        slot = int(generator.integers(size))
        buffer[slot], item = item, buffer[slot]
        yield item
    for slot in generator.permutation(len(buffer)):
        yield buffer[slot]


def cached_order(num_samples: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """A permutation of all images for one epoch over cached views."""
    return _generator(seed, epoch, _ORDER).permutation(num_samples)


def view_pairs(num_samples: int, num_views: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Two different views of every image for one epoch, int64 (N, 2)."""
    draws = _generator(seed, epoch, _PAIRS).random((num_samples, num_views))
    return np.argsort(draws, axis=1)[:, :2]


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(list(key))
