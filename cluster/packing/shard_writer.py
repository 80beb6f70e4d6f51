"""Writes one tar shard of a dataset: what a Ray task of the pack job does.

Knows nothing of configs, splits and manifests, and imports little, since every worker process pays for it.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from cibhash.errors import DataError
from cibhash.shards import MAX_MEMBER_BYTES, SourceImage, write_shard
from cibhash.types import TarShard
from cluster import storage
from cluster.packing.source_items import SourceItem, read_image


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written."""

    folder: str
    """URI of the dataset."""
    name: str
    """File name of the shard, which is its URI in the manifest."""
    first_id: int
    items: tuple[SourceItem, ...]
    """In order."""
    publish: bool
    """False: only find out what the shard would be."""


def write_one(task: ShardTask) -> TarShard:
    """Writes one shard to a temporary file and from there, atomically, to its place; may run twice.

    Raises:
        DataError: an image is larger than a shard may hold.
        StorageError: an image cannot be read, or the shard not be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, task.name)
        shard = write_shard(path, task.name, map(_load, task.items), task.first_id)
        if task.publish:
            storage.put_file(path, storage.join(task.folder, task.name))
    return shard


def _load(item: SourceItem) -> SourceImage:
    image = read_image(item)
    if len(image) > MAX_MEMBER_BYTES:
        raise DataError(f"{item.uri}: {len(image)} bytes, the limit is {MAX_MEMBER_BYTES}")
    return SourceImage(item.key, item.suffix, image, item.labels)
