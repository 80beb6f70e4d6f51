"""Decoded batches of one tar shard, made by the encoder's own threads or by a CPU worker elsewhere.

Knows nothing of the model. What cannot be decoded is handed on with its reason.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from cibhash.errors import BadImage
from cibhash.images import decode_sample
from cibhash.types import Sample, TarShard
from cibhash.views import Pixels, eval_view
from cluster.datasets import shard_samples
from cluster.runtime import root_cause

_BATCHES_AHEAD = 2


class Row(NamedTuple):
    """What a part keeps of a sample: all but the image itself, so that a shard's images need not fit into memory."""

    id: int
    key: str
    labels: tuple[int, ...]
    offset: int
    size: int


class DecodedBatch(NamedTuple):
    """Consecutive samples of a shard."""

    rows: list[Row]
    views: Pixels
    """uint8 (N, 3, S, S): row i is the view of `rows[i]`."""
    refused: list[tuple[Row, str]]
    """Those that cannot be decoded, with the reason."""


def decoded_batches(
    dataset_uri: str, shard: TarShard, size: int, batch_size: int, num_threads: int
) -> Iterator[DecodedBatch]:
    """Reads and decodes a shard, the next batch while the last one is used.

    Args:
        dataset_uri: Base of the shard's URI.
        shard: What the manifest says of it.
        size: Side of the views in pixels.
        batch_size: Samples per batch; the last one is smaller.
        num_threads: Images decoded at a time.

    Raises:
        CorruptShard: the shard is not what the manifest says; known only at its end.
    """
    with ThreadPoolExecutor(num_threads) as decoders, ThreadPoolExecutor(1) as reader:
        batches = _batches(dataset_uri, shard, size, batch_size, decoders)
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


def remotely_decoded(dataset_uri: str, shard: TarShard, size: int, batch_size: int) -> Iterator[DecodedBatch]:
    """The same batches from a Ray task on any CPU of the cluster, which works a few batches ahead."""
    import ray

    task: Any = ray.remote(decoded_batches).options(
        num_cpus=1,
        num_returns="streaming",
        name=f"decode {shard.uri}",
        _generator_backpressure_num_objects=_BATCHES_AHEAD,
    )
    try:
        for reference in task.remote(dataset_uri, shard, size, batch_size, 1):
            yield ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise root_cause(error) from None


def _batches(
    dataset_uri: str, shard: TarShard, size: int, batch_size: int, decoders: ThreadPoolExecutor
) -> Iterator[DecodedBatch]:
    stream = shard_samples(dataset_uri, shard)
    while chunk := list(itertools.islice(stream, batch_size)):
        rows, views, refused = [], [], []
        for sample, view in zip(chunk, decoders.map(lambda s: _decode(s, size), chunk), strict=True):
            row = Row(sample.id, sample.key, sample.labels, sample.offset, len(sample.image))
            if isinstance(view, str):
                refused.append((row, view))
            else:
                rows.append(row)
                views.append(view)
        yield DecodedBatch(rows, np.stack(views) if views else np.empty((0, 3, size, size), np.uint8), refused)


def _decode(sample: Sample, size: int) -> Pixels | str:
    try:
        return eval_view(decode_sample(sample), size)
    except BadImage as error:
        return str(error)
