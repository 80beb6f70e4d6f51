"""Writes one tar shard of a dataset: what a Ray task of the pack job does.

Knows nothing of configs, splits and manifests, and imports little, since every worker process pays for it.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cibhash.errors import DataError, NotFound
from cibhash.shards import MAX_MEMBER_BYTES, SourceImage, write_shard
from cibhash.types import TarShard
from cluster import storage
from cluster.packing.source_items import SourceItem, read_image

_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF")


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written."""

    folder: str
    """URI of the dataset."""
    name: str
    """File name of the shard, which is its URI in the manifest."""
    items: tuple[SourceItem, ...]
    """In order."""
    publish: bool
    """False: only find out what the shard would be."""
    may_miss: bool = False
    """Leave out what is missing or no image, as dead links are; otherwise the first missing one is an error."""


@dataclass(frozen=True)
class WrittenShard:
    """One shard that was written."""

    shard: TarShard
    """Its ids count from 0: how many images the shards before it kept is not known here."""
    left_out: tuple[tuple[str, str], ...]
    """Key and URI of the images that `may_miss` left out."""


def write_one(task: ShardTask) -> WrittenShard:
    """Writes one shard to a temporary file and from there, atomically, to its place; may run twice.

    Raises:
        DataError: an image is larger than a shard may hold.
        StorageError: an image cannot be read, or the shard not be written.
    """
    left_out: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, task.name)
        shard = write_shard(path, task.name, _load(task, left_out), 0)
        if task.publish:
            storage.put_file(path, storage.join(task.folder, task.name))
    return WrittenShard(shard, tuple(left_out))


def _load(task: ShardTask, left_out: list[tuple[str, str]]) -> Iterator[SourceImage]:
    for item in task.items:
        try:
            image = read_image(item)
        except NotFound:
            if not task.may_miss:
                raise
            image = b""
        if task.may_miss and not image.startswith(_IMAGE_STARTS):
            left_out.append((item.key, item.uri))
            continue
        if len(image) > MAX_MEMBER_BYTES:
            raise DataError(f"{item.uri}: {len(image)} bytes, the limit is {MAX_MEMBER_BYTES}")
        yield SourceImage(item.key, item.suffix, image, item.labels)
