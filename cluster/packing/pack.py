"""Packs a source into tar shards with a manifest, one dataset per split, by parallel Ray tasks.

Knows nothing of where images come from (`cluster.packing.sources`). The samples of a split are shuffled by the
SHA-256 of (seed, key), so every shard is a random draw of the split, and the same source and settings give the same
bytes. Images are stored as they are. A shard is written by one task, which may run twice; `dataset.json` comes last,
so a failed or interrupted run leaves no dataset, and a rerun writes its shards anew. A complete dataset is never
rewritten: the new shards are only hashed, and must be the same.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass

from cibhash.types import TarShard
from cluster import storage
from cluster.datasets import commit_dataset, find_dataset, refuse_other
from cluster.manifests import DatasetManifest
from cluster.packing.shard_plan import by_count, by_size, image_sizes
from cluster.packing.shard_writer import ShardTask, WrittenShard, write_one
from cluster.packing.source_items import Source, SourceItem, seeded_rank
from cluster.packing.sources import check_missing, open_source
from cluster.packing.split_identity import SplitManifest, SplitPart, differing, identify
from cluster.packing_config import PackConfig
from cluster.runtime import ray_session
from cluster.telemetry import ProgressLine, log, progress

CLASSES_FILE = "classes.json"
"""Names of the labels, beside the splits; for people, no job reads it."""
MISSING_FILE = "missing.txt"
"""Images that were left out since they are missing or no images, one per line; for people."""


@dataclass(frozen=True)
class PackedSplit:
    """One dataset that the pack job made, or found to be there already."""

    uri: str
    samples: int
    shards: int
    digest: str


@dataclass(frozen=True)
class SplitSummary:
    """Which split was packed; the content of `split.json`."""

    name: str
    seed: int | None
    sha256: str
    """Of all parts; results compare only where it is the same."""
    published: bool | None
    """Whether it is the published split of this name; None: no checksum of one is known."""
    parts: dict[str, SplitPart]


@dataclass(frozen=True)
class PackResult:
    """What the pack job did."""

    output: str
    datasets: dict[str, PackedSplit]
    """By split."""
    samples: int
    """Over all splits; an image of two splits counts twice."""
    left_out: int
    """Images that the shares of `splits` leave to no split."""
    classes: tuple[str, ...]
    """Names of the labels 0, 1, ...; empty where the source has none."""
    split: SplitSummary
    missing: int
    """Images that were left out since they are missing or no images."""
    warnings: tuple[str, ...]
    """What a person must know of the source and the split."""


def pack(config: PackConfig) -> PackResult:
    """Packs the source into one dataset per split at `OUTPUT/<split>`.

    Raises:
        AlreadyExists: a split holds another dataset already; names both digests.
        ConfigError, DataError, StorageError: as `cluster.packing.sources.open_source`, or an image that cannot be read.
    """
    output = storage.absolute(config.output)
    source = open_source(config)
    splits: dict[str, list[SourceItem]] = {}
    for item in source.items:
        splits.setdefault(item.split, []).append(item)
    if source.left_out:
        log(f"pack: {source.left_out:,} images belong to no split", splits=config.splits)
    plans = {
        name: list(_plan(storage.join(output, name), items, config, source)) for name, items in sorted(splits.items())
    }
    if config.dry_run:
        split = _identify(source, config.seed, source.items)
        counts = {name: (len(items), len(plans[name])) for name, items in sorted(splits.items())}
        datasets = {name: PackedSplit(storage.join(output, name), *count, "") for name, count in counts.items()}
        missing = list(source.missing)
    else:
        split, datasets, missing = _write_splits(config, output, source, plans)
    warnings = (*source.warnings, *_split_warnings(source, split))
    for warning in warnings:
        log(f"pack: WARNING: {warning}")
    return PackResult(
        output=output,
        datasets=datasets,
        samples=sum(dataset.samples for dataset in datasets.values()),
        left_out=source.left_out,
        classes=source.classes,
        split=_summary(source, split),
        missing=len(missing),
        warnings=warnings,
    )


def _plan(folder: str, items: list[SourceItem], config: PackConfig, source: Source) -> Iterator[ShardTask]:
    """The tasks that write a split."""
    ordered = sorted(items, key=lambda item: seeded_rank(config.seed, "order", item.key))
    if config.shard_bytes:
        chunks = by_size(ordered, image_sizes(ordered), config.shard_bytes)
    else:
        chunks = by_count(ordered, config.shard_samples)
    for number, chunk in enumerate(chunks):
        yield ShardTask(folder, f"shard-{number:06d}.tar", chunk, publish=True, may_miss=source.may_miss)


def _write_splits(
    config: PackConfig, output: str, source: Source, plans: dict[str, list[ShardTask]]
) -> tuple[SplitManifest, dict[str, PackedSplit], list[str]]:
    """Writes all shards, then the manifests; also returns what was left out."""
    found = {name: find_dataset(storage.join(output, name)) for name in plans}
    tasks = [dataclasses.replace(task, publish=found[name] is None) for name, plan in plans.items() for task in plan]
    with ray_session(config.ray), progress("pack", sum(len(task.items) for task in tasks), "images") as line:
        written = _run_tasks(tasks, line)
    dead = {key: uri for shard in written.values() for key, uri in shard.left_out}
    missing = [*source.missing, *dead.values()]
    kept = tuple(item for item in source.items if item.key not in dead)
    check_missing(missing, kept, config)
    manifests = {
        name: DatasetManifest(
            name=source.name,
            split=name,
            shards=tuple(_numbered(written[task.folder, task.name].shard for task in plan)),
        )
        for name, plan in plans.items()
    }
    split = _identify(source, config.seed, kept)
    for name, manifest in manifests.items():
        refuse_other(storage.join(output, name), found[name], manifest)
    if source.classes:
        names = json.dumps(dict(enumerate(source.classes)), indent=1, ensure_ascii=False)
        storage.write_bytes(storage.join(output, CLASSES_FILE), f"{names}\n".encode())
    if missing:
        log(f"pack: {len(missing):,} images are missing or no images", first=missing[0], listed=MISSING_FILE)
        lines = "".join(f"{name}\n" for name in missing)
        storage.write_bytes(storage.join(output, MISSING_FILE), lines.encode(errors="surrogateescape"))
    storage.write_bytes(storage.join(output, SplitManifest.file_name), split.to_json())
    for name, manifest in manifests.items():
        if not commit_dataset(storage.join(output, name), manifest, found[name]):
            log("pack: already complete", dataset=storage.join(output, name))
    return (
        split,
        {
            name: PackedSplit(storage.join(output, name), manifest.num_samples, len(manifest.shards), manifest.digest)
            for name, manifest in manifests.items()
        },
        missing,
    )


def _run_tasks(tasks: list[ShardTask], line: ProgressLine) -> dict[tuple[str, str], WrittenShard]:
    """Runs all tasks, a limited number at a time: each worker takes seconds to start, and items wait in memory."""
    import ray

    from cluster.in_flight import completed, default_limit, named_call

    remote = ray.remote(num_cpus=1)(write_one)
    calls = ((task, named_call(remote, f"pack {task.folder}/{task.name}", task)) for task in tasks)
    written: dict[tuple[str, str], WrittenShard] = {}
    for task, shard in completed(calls, default_limit()):
        written[task.folder, task.name] = shard
        line.advance(len(task.items))
    return written


def _numbered(shards: Iterator[TarShard]) -> Iterator[TarShard]:
    """The shards with their ids, which count up over all of them."""
    first_id = 0
    for shard in shards:
        yield dataclasses.replace(shard, first_id=first_id)
        first_id += shard.count


def _identify(source: Source, seed: int, items: tuple[SourceItem, ...]) -> SplitManifest:
    return identify(source.split_name, seed if source.seeded else None, items)


def _split_warnings(source: Source, split: SplitManifest) -> tuple[str, ...]:
    others = differing(split, source.published)
    if not others:
        return ()
    return (
        f"not the published split {split.name}: {', '.join(others)} hold other images or labels "
        f"({', '.join(f'{part.count} {name}' for name, part in split.parts.items())})",
    )


def _summary(source: Source, split: SplitManifest) -> SplitSummary:
    published = not differing(split, source.published) if source.published else None
    return SplitSummary(split.name, split.seed, split.sha256, published, split.parts)
