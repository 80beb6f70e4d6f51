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
_HELD_OUT_SHARDS = 8
_ORDER, _BUFFER, _PAIRS, _HELD_OUT, _PARTNERS = 1, 2, 3, 4, 5


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


def steps_per_epoch(num_samples: int, num_streams: int, batch_size: int, *, drop_last: bool = True) -> int:
    """Steps that every worker takes.

    Args:
        num_samples: Training images.
        num_streams: Streams they are dealt to.
        batch_size: Images of a global batch.
        drop_last: What does not fill a global batch is left for the next epoch's order; else it is a batch of its own.

    Raises:
        ConfigError: the images do not fill one batch.
    """
    shortest, longest = num_samples // num_streams, -(-num_samples // num_streams)
    each = batch_size // num_streams
    if shortest < each:
        raise ConfigError(
            f"batch_size {batch_size} in {num_streams} stream(s), but there are only {num_samples} images"
        )
    return shortest // each if drop_last else -(-longest // each)


def held_out_positions(counts: Sequence[int], count: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Positions in the dataset of the images that are kept from training, ascending, int64 (count,).

    They come from a few shards, so that few must be read to look at them.

    Args:
        counts: Images per shard.
        count: How many, at most all.
        seed: Of the choice.
    """
    generator, ends = _generator(seed, _HELD_OUT), np.cumsum(counts)
    chosen: list[npt.NDArray[np.int64]] = []
    for number, shard in enumerate(generator.permutation(len(counts))):
        if number >= _HELD_OUT_SHARDS and sum(map(len, chosen)) >= count:
            break
        chosen.append(np.arange(ends[shard] - counts[shard], ends[shard]))
    return np.sort(generator.permutation(np.concatenate(chosen))[:count])


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


def neighbor_partners(
    num_samples: int, num_neighbors: int, probability: float, *, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """Which of its neighbors gives every image its second view in one epoch.

    Args:
        num_samples: N.
        num_neighbors: K, columns of the neighbor graph, at least 1; all are drawn alike.
        probability: That the second view comes from a neighbor, in [0, 1].
        seed: Of the run.
        epoch: Number of the epoch.

    Returns:
        Columns of the graph, int64 (N,); -1: the second view is the image's own.

    Raises:
        ValueError: `num_neighbors` is below 1, or `probability` outside [0, 1].
    """
    if num_neighbors < 1:
        raise ValueError(f"num_neighbors is {num_neighbors}, expected at least 1")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}, expected 0 to 1")
    generator = _generator(seed, epoch, _PARTNERS)
    columns = generator.integers(num_neighbors, size=num_samples)
    return np.where(generator.random(num_samples) < probability, columns, -1)


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(list(key))
