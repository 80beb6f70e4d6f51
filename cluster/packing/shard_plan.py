"""Which images go into which tar shard: so many per shard, or as many as fit a size.

Knows nothing of writing shards. A size is computed before anything is written, from the sizes of the images.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from cibhash.shards import label_members
from cluster.listing import stat
from cluster.packing.source_items import SourceItem, planes_png

_BLOCK = 512
_RECORD = 20 * _BLOCK
"""A tar is filled up to a multiple of it."""
_END = 2 * _BLOCK
_THREADS = 32


def by_count(items: Sequence[SourceItem], samples: int) -> Iterator[tuple[SourceItem, ...]]:
    """Shards of `samples` images each, but for the last."""
    for start in range(0, len(items), samples):
        yield tuple(items[start : start + samples])


def by_size(items: Sequence[SourceItem], sizes: Iterable[int], limit: int) -> Iterator[tuple[SourceItem, ...]]:
    """Shards of at most `limit` bytes each, tar headers included; a larger image has one to itself.

    Args:
        items: In order.
        sizes: Bytes of each image.
        limit: In bytes.
    """
    room = limit // _RECORD * _RECORD - _END
    shard: list[SourceItem] = []
    filled = 0
    for item, size in zip(items, sizes, strict=True):
        needed = _member_bytes(size) + sum(_member_bytes(len(data)) for data in label_members(item.labels).values())
        if shard and filled + needed > room:
            yield tuple(shard)
            shard, filled = [], 0
        shard.append(item)
        filled += needed
    if shard:
        yield tuple(shard)


def image_sizes(items: Sequence[SourceItem]) -> Iterator[int]:
    """Bytes of each image as it will be stored; files are asked for theirs, many at a time.

    Raises:
        NotFound: there is no such file.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(_image_size, items)


def _image_size(item: SourceItem) -> int:
    if item.planes:
        return _planes_size(item.planes)
    if item.data:
        return len(item.data)
    return stat(item.uri).bytes if item.size < 0 else item.size


@functools.cache
def _planes_size(side: int) -> int:
    """Pixels are stored uncompressed, so all images of a size have the same number of bytes."""
    return len(planes_png(bytes(3 * side * side), side))


def _member_bytes(size: int) -> int:
    return _BLOCK + -(-size // _BLOCK) * _BLOCK
