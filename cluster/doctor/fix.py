"""Writes cleaned copies of datasets: good samples alone, by one Ray task per shard.

Knows nothing of what else is wrong with the originals, which are only read. One shard gives one shard, in the same
order, so equal originals give equal copies; ids are counted anew. A task may run twice, `dataset.json` comes last, and
a copy that is complete already is only compared, as in `cluster.packing.pack`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cibhash.errors import ConfigError, DataError, NotFound
from cluster import storage
from cluster.class_names import classes_uris
from cluster.datasets import commit_dataset, find_dataset, refuse_other
from cluster.doctor.fix_shard import FixedShard, FixTask, fix_shard
from cluster.doctor.scan import ShardScan
from cluster.doctor.targets import Target
from cluster.in_flight import completed, default_limit, named_call
from cluster.manifests import DatasetManifest
from cluster.packing.pack import CLASSES_FILE
from cluster.telemetry import log, progress

LEFT_OUT_FILE = "left_out.jsonl"
"""Beside the manifest of a copy: a line for everything that is not in it, or under another key."""


@dataclass(frozen=True)
class FixedDataset:
    """A cleaned copy."""

    uri: str
    samples: int
    shards: int
    digest: str
    left_out: int
    """Samples, and members and fragments that belong to none."""
    renamed: int
    """Samples under another key."""


def copy_folders(uri: str, targets: Sequence[Target]) -> dict[str, str]:
    """Where the copy of each dataset goes: `uri` itself for one, `URI/<name>` for several.

    Raises:
        ConfigError: a shard that is checked lies there.
    """
    uri = storage.absolute(uri)
    folders = {target.name: uri if len(targets) == 1 else storage.join(uri, target.name) for target in targets}
    taken = {_real_folder(shard.uri.rpartition("/")[0]) for target in targets for shard in target.shards}
    for folder in folders.values():
        if _real_folder(folder) in taken:
            raise ConfigError(f"fix {folder}: shards that are to be checked lie there: choose another folder")
    return folders


def _real_folder(uri: str) -> str:
    return uri if storage.is_s3(uri) else os.path.realpath(uri)


def write_cleaned(
    uri: str, targets: Sequence[Target], scans: Mapping[str, Sequence[ShardScan]]
) -> dict[str, FixedDataset]:
    """Writes a cleaned copy of every dataset, to the folders of `copy_folders`.

    Args:
        uri: Where to.
        targets: The datasets.
        scans: Of all their shards, which tell where members must be looked for.

    Raises:
        DataError: nothing of a dataset can be kept, or a shard is no longer what was checked.
        AlreadyExists: another dataset is there.
    """
    import ray

    folders = copy_folders(uri, targets)
    found = {name: find_dataset(folder) for name, folder in folders.items()}
    remote = ray.remote(num_cpus=1)(fix_shard)
    calls, counts = [], {}
    for target in targets:
        for number, (shard, scan) in enumerate(zip(target.shards, scans[target.name], strict=True)):
            regroup = "split_sample" in scan.tally.counts
            name = f"shard-{number:06d}.tar"
            task = FixTask(shard.uri, folders[target.name], name, regroup, found[target.name] is None)
            calls.append(((target.name, number), named_call(remote, f"doctor copies {shard.uri}", task)))
            counts[target.name, number] = scan.samples
    fixed: dict[tuple[str, int], FixedShard] = {}
    with progress("doctor: copy", len(calls), "shards") as line:
        for place, result in completed(calls, default_limit()):
            if result.samples_in != counts[place]:
                raise DataError(
                    f"{result.uri}: {result.samples_in} samples, {counts[place]} when it was checked: it has changed"
                )
            fixed[place] = result
            line.advance(1)
    copies = {target.name: [fixed[target.name, number] for number in range(len(target.shards))] for target in targets}
    manifests = {target.name: _manifest(target, copies[target.name]) for target in targets}
    for name, manifest in manifests.items():
        refuse_other(folders[name], found[name], manifest)
    _copy_classes(targets, storage.absolute(uri))
    for name, manifest in manifests.items():
        lines = b"".join(shard.left_out for shard in copies[name])
        storage.write_bytes(storage.join(folders[name], LEFT_OUT_FILE), lines)
        if not commit_dataset(folders[name], manifest, found[name]):
            log("doctor: already complete", dataset=folders[name])
    return {name: _summary(folders[name], manifests[name], copies[name]) for name in folders}


def _manifest(target: Target, copies: Sequence[FixedShard]) -> DatasetManifest:
    """The manifest of a copy; shards without a good sample are not in it.

    Raises:
        DataError: none has one.
    """
    shards, first_id = [], 0
    for copy in copies:
        if copy.shard is not None:
            shards.append(replace(copy.shard, first_id=first_id))
            first_id += copy.shard.count
    if not shards:
        raise DataError(f"{target.uri}: no good sample in {len(copies)} shards: there is nothing to copy")
    return DatasetManifest(name=target.title, split=target.split, shards=tuple(shards))


def _copy_classes(targets: Sequence[Target], uri: str) -> None:
    """Puts the first names of labels beside the copies, if there are any."""
    for source in classes_uris(target.uri for target in targets):
        try:
            content = storage.read_bytes(source)
        except NotFound:
            continue
        storage.write_bytes(storage.join(uri, CLASSES_FILE), content)
        return


def _summary(uri: str, manifest: DatasetManifest, copies: Sequence[FixedShard]) -> FixedDataset:
    return FixedDataset(
        uri=uri,
        samples=manifest.num_samples,
        shards=len(manifest.shards),
        digest=manifest.digest,
        left_out=sum(copy.num_left_out for copy in copies),
        renamed=sum(copy.num_renamed for copy in copies),
    )
