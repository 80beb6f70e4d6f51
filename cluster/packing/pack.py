"""Packs a source into tar shards with a manifest, one dataset per split, by parallel Ray tasks.

Knows nothing of where images come from (`cluster.packing.sources`). The samples of a split are shuffled by the
SHA-256 of (seed, key), so every shard is a random draw of the split, and the same source and settings give the same
bytes. Images are stored as they are. A shard is written by one task, which may run twice; `dataset.json` comes last,
so a failed or interrupted run leaves no dataset, and a rerun writes its shards anew. A complete dataset is never
rewritten: the new shards are only hashed, and must be the same.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cibhash.types import TarShard
from cluster import storage
from cluster.config import PackConfig
from cluster.datasets import commit_dataset, find_dataset, refuse_other
from cluster.manifests import DatasetManifest
from cluster.packing.shard_writer import ShardTask, write_one
from cluster.packing.source_items import Source, SourceItem, seeded_rank
from cluster.packing.sources import open_source
from cluster.runtime import ray_session
from cluster.telemetry import ProgressLine, log, progress

CLASSES_FILE = "classes.json"
"""Names of the labels, beside the splits; for people, no job reads it."""


@dataclass(frozen=True)
class PackedSplit:
    """One dataset that the pack job made, or found to be there already."""

    uri: str
    samples: int
    shards: int
    digest: str


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
    if config.dry_run:
        datasets = {
            name: PackedSplit(storage.join(output, name), len(items), -(-len(items) // config.samples_per_shard), "")
            for name, items in sorted(splits.items())
        }
    else:
        datasets = _write_splits(config, output, source, splits)
    total = sum(dataset.samples for dataset in datasets.values())
    return PackResult(output, datasets, total, source.left_out, source.classes)


def _write_splits(
    config: PackConfig, output: str, source: Source, splits: dict[str, list[SourceItem]]
) -> dict[str, PackedSplit]:
    found = {name: find_dataset(storage.join(output, name)) for name in splits}
    plans = {
        name: list(_plan(storage.join(output, name), items, config, publish=found[name] is None))
        for name, items in sorted(splits.items())
    }
    tasks = [task for plan in plans.values() for task in plan]
    with ray_session(config.ray), progress("pack", sum(map(len, splits.values())), "images") as line:
        written = _run_tasks(tasks, line)
    manifests = {
        name: DatasetManifest(
            name=source.name, split=name, shards=tuple(written[task.folder, task.name] for task in plan)
        )
        for name, plan in plans.items()
    }
    for name, manifest in manifests.items():
        refuse_other(storage.join(output, name), found[name], manifest)
    if source.classes:
        names = json.dumps(dict(enumerate(source.classes)), indent=1, ensure_ascii=False)
        storage.write_bytes(storage.join(output, CLASSES_FILE), f"{names}\n".encode())
    for name, manifest in manifests.items():
        if not commit_dataset(storage.join(output, name), manifest, found[name]):
            log("pack: already complete", dataset=storage.join(output, name))
    return {
        name: PackedSplit(storage.join(output, name), manifest.num_samples, len(manifest.shards), manifest.digest)
        for name, manifest in manifests.items()
    }


def _plan(folder: str, items: list[SourceItem], config: PackConfig, *, publish: bool) -> Iterator[ShardTask]:
    ordered = sorted(items, key=lambda item: seeded_rank(config.seed, "order", item.key))
    for number, start in enumerate(range(0, len(ordered), config.samples_per_shard)):
        chunk = tuple(ordered[start : start + config.samples_per_shard])
        yield ShardTask(folder, f"shard-{number:06d}.tar", start, chunk, publish)


def _run_tasks(tasks: list[ShardTask], line: ProgressLine) -> dict[tuple[str, str], TarShard]:
    """Runs all tasks, a limited number at a time: each worker takes seconds to start, and items wait in memory."""
    import ray

    remote = ray.remote(num_cpus=1)(write_one)
    cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    several_machines = len(ray.nodes()) > 1  # type: ignore[no-untyped-call]
    window = 2 * cpus if several_machines else min(cpus, os.cpu_count() or 1)
    running: dict[Any, ShardTask] = {}
    written: dict[tuple[str, str], TarShard] = {}
    waiting = list(reversed(tasks))
    while waiting or running:
        while waiting and len(running) < window:
            task = waiting.pop()
            running[remote.options(name=f"pack {task.folder}/{task.name}").remote(task)] = task
        done, _ = ray.wait(list(running), num_returns=1)
        task = running.pop(done[0])
        written[task.folder, task.name] = ray.get(done[0])
        line.advance(len(task.items))
    return written
