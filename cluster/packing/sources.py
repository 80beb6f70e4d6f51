"""What a person has, as a list of items to pack: class folders, a list file, or a named benchmark.

Knows nothing of tar shards. Nothing but names and labels is read here; an item tells where the bytes of its image lie.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from cibhash.errors import ConfigError, DataError, NotFound
from cibhash.shards import IMAGE_SUFFIXES
from cluster import storage
from cluster.packing.source_cifar10 import cifar10
from cluster.packing.source_digits import digits
from cluster.packing.source_files import LIST_SUFFIXES, image_folder, image_list
from cluster.packing.source_items import Source, SourceItem, seeded_rank
from cluster.packing.source_mscoco import mscoco
from cluster.packing.source_nuswide import nuswide
from cluster.packing_config import PackConfig

BENCHMARKS: dict[str, Callable[[PackConfig], Source]] = {
    "digits": digits,
    "cifar10": cifar10,
    "nuswide": nuswide,
    "mscoco": mscoco,
}
_ONLY_FOR = {
    "data": ("cifar10", "nuswide", "mscoco"),
    "protocol": ("cifar10", "nuswide", "mscoco"),
    "lists": ("nuswide", "mscoco"),
    "download": ("cifar10",),
}
"""Fields that mean nothing to other sources."""
ONE_SPLIT = "all"
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def open_source(config: PackConfig) -> Source:
    """Lists what `config.source` holds, every item with its split.

    Raises:
        NotFound: no such folder or list.
        ConfigError: a source that cannot be listed, or splits asked of one that has its own.
        DataError: an empty source, a file that is no image, or a key that comes twice.
    """
    lister = _lister(config.source)
    for name, benchmarks in _ONLY_FOR.items():
        if getattr(config, name) and config.source not in benchmarks:
            raise ConfigError(f"{name} {getattr(config, name)!r} is for {', '.join(benchmarks)}, not {config.source}")
    source = lister(config)
    check_missing(source.missing, source.items, config)
    if not source.items:
        raise DataError(f"{config.source}: no images found ({', '.join(IMAGE_SUFFIXES)})")
    if config.splits:
        own = next((item for item in source.items if item.split), None)
        if own is not None:
            raise ConfigError(f"splits {config.splits!r}: {config.source} has its own splits ({own.split!r})")
        dealt = tuple(assign_splits(source.items, config.splits, config.seed))
        left_out = len(source.items) - len(dealt)
        source = replace(source, items=dealt, left_out=left_out, split_name=config.splits, seeded=True)
    else:
        whole = not any(item.split for item in source.items)
        items = tuple(replace(item, split=ONE_SPLIT) for item in source.items) if whole else source.items
        name = source.split_name or (ONE_SPLIT if whole else f"{source.name}/own")
        source = replace(source, items=items, split_name=name)
    _check_items(source.items)
    return replace(source, name=config.name or source.name)


def assign_splits(items: Iterable[SourceItem], shares: str, seed: int) -> Iterator[SourceItem]:
    """Deals items to splits by the order of SHA-256 of (seed, key): same seed and keys, same splits.

    Args:
        items: In any order.
        shares: `query=0.1,database=0.9`; what is left of 1 belongs to no split.
        seed: Another seed deals otherwise.

    Raises:
        ConfigError: shares that cannot be read, exceed 1 together, or leave a split empty.
    """
    ordered = sorted(items, key=lambda item: seeded_rank(seed, "split", item.key))
    total, start = 0.0, 0
    for name, share in _parse_shares(shares):
        total += share
        end = round(total * len(ordered))
        if end == start:
            raise ConfigError(f"splits {shares!r}: {name} is empty, {len(ordered)} images are too few")
        yield from (replace(item, split=name) for item in ordered[start:end])
        start = end


def check_missing(missing: Sequence[str], present: Iterable[SourceItem], config: PackConfig) -> None:
    """Refuses a source of which too many images are missing.

    Raises:
        DataError: naming the count, the limit and the first of them.
    """
    images = len({item.key for item in present}) + len(missing)
    if len(missing) > config.max_missing * images:
        raise DataError(
            f"{config.source}: {len(missing):,} of {images:,} images are missing or no images, the limit is "
            f"{config.max_missing:.2%} (--max-missing); first: {missing[0]}"
        )


def _lister(source: str) -> Callable[[PackConfig], Source]:
    if source in BENCHMARKS:
        if os.path.exists(source):
            raise ConfigError(f"{source} is a benchmark and a file or folder here: write ./{source} for the latter")
        return BENCHMARKS[source]
    if source.lower().endswith(LIST_SUFFIXES):
        return image_list
    if storage.is_s3(source):
        raise ConfigError(f"{source}: a folder on S3 is packed from a list of its images ({', '.join(LIST_SUFFIXES)})")
    if not os.path.exists(source):
        raise NotFound(f"{source}: no such folder or list, and not one of {', '.join(BENCHMARKS)}")
    if not os.path.isdir(source):
        raise ConfigError(f"{source}: expected a folder or a list ({', '.join(LIST_SUFFIXES)})")
    return image_folder


def _parse_shares(shares: str) -> list[tuple[str, float]]:
    parsed: list[tuple[str, float]] = []
    for part in shares.split(","):
        name, separator, value = part.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = 0.0
        if not separator or not 0 < share <= 1:
            raise ConfigError(f"splits {shares!r}: {part!r}, expected NAME=SHARE with a share above 0 and up to 1")
        parsed.append((name.strip(), share))
    names = [name for name, _ in parsed]
    if len(set(names)) < len(names):
        raise ConfigError(f"splits {shares!r}: a split is named twice")
    if sum(share for _, share in parsed) > 1 + 1e-9:
        raise ConfigError(f"splits {shares!r}: shares add up to {sum(share for _, share in parsed):g}, above 1")
    return parsed


def _check_items(items: Iterable[SourceItem]) -> None:
    """Refuses repeated keys and unusable split names."""
    seen: dict[str, SourceItem] = {}
    taken: set[tuple[str, str]] = set()
    for item in items:
        if not _SPLIT_NAME.fullmatch(item.split):
            raise DataError(f"{item.uri}: split {item.split!r}, expected letters, digits, - and _ (up to 64)")
        first = seen.setdefault(item.key, item)
        here = (item.uri, item.offset)
        if (item.split, item.key) in taken or (first.uri, first.offset) != here:
            raise DataError(f"key {item.key!r} comes twice: {first.uri} and {item.uri} (split {item.split!r})")
        taken.add((item.split, item.key))
