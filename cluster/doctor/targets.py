"""What a person named to be checked, as datasets with their shards.

Knows nothing of what is in a shard. Reads manifests, and lists folders only where there is none.
"""

import re
from dataclasses import dataclass, replace

from cibhash.errors import ConfigError, NotFound
from cibhash.types import TarShard
from cluster import storage
from cluster.datasets import located
from cluster.listing import list_folder
from cluster.manifests import DatasetManifest, load_manifest

MAX_DATASETS = 64
_BARE_SPLIT = "all"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class ShardTarget:
    """One tar to be read."""

    uri: str
    listed: TarShard | None
    """What the manifest says of it; None: there is no manifest."""


@dataclass(frozen=True)
class Target:
    """One dataset to be checked."""

    name: str
    """Unique among those checked: its split, or where splits have equal names its location."""
    uri: str
    split: str
    title: str
    """Name of the dataset in its manifest."""
    has_manifest: bool
    shards: tuple[ShardTarget, ...]


def open_targets(uris: tuple[str, ...]) -> tuple[Target, ...]:
    """The datasets behind these locations, each once, in the order given.

    Raises:
        NotFound: nothing there that could be checked.
        DataError: a manifest that is broken.
        ConfigError: more datasets than can be compared.
    """
    found = [target for uri in dict.fromkeys(map(storage.absolute, uris)) for target in _open(uri)]
    targets = list({target.uri: target for target in found}.values())
    if len(targets) > MAX_DATASETS:
        raise ConfigError(f"{len(targets)} datasets, the limit of one check is {MAX_DATASETS}")
    return tuple(_named(targets))


def _open(uri: str) -> list[Target]:
    if uri.endswith(".tar"):
        if not storage.exists(uri):
            raise NotFound(f"{uri}: no such tar")
        return [_bare(uri, [uri])]
    if storage.exists(storage.join(uri, DatasetManifest.file_name)):
        return [_with_manifest(uri)]
    names = list_folder(uri)
    folders = [storage.join(uri, name.rstrip("/")) for name in names if name.endswith("/")]
    splits = [folder for folder in folders if storage.exists(storage.join(folder, DatasetManifest.file_name))]
    if splits:
        return [_with_manifest(split) for split in splits]
    tars = [storage.join(uri, name) for name in names if name.endswith(".tar")]
    if not tars:
        raise NotFound(f"{uri}: no dataset.json, here or one folder below, and no *.tar")
    return [_bare(uri, tars)]


def _with_manifest(uri: str) -> Target:
    manifest = load_manifest(DatasetManifest, uri)
    shards = tuple(ShardTarget((there := located(uri, shard)).uri, there) for shard in manifest.shards)
    return Target(manifest.split, uri, manifest.split, manifest.name, True, shards)


def _bare(uri: str, tars: list[str]) -> Target:
    name = uri.rsplit("/", 1)[-1].removesuffix(".tar")
    return Target(name, uri, _BARE_SPLIT, name, False, tuple(ShardTarget(tar, None) for tar in tars))


def _named(targets: list[Target]) -> list[Target]:
    """The targets under names that differ: the splits, else the last parts of their locations, else numbers too."""
    names = [_folder_name(target.name) for target in targets]
    if len(set(names)) < len(names):
        names = [_folder_name(target.uri.rsplit("/", 1)[-1]) for target in targets]
    if len(set(names)) < len(names):
        names = [f"{name}-{number}" for number, name in enumerate(names, 1)]
    return [replace(target, name=name) for name, target in zip(names, targets, strict=True)]


def _folder_name(name: str) -> str:
    """The name as it may be that of a folder: a manifest may hold any text."""
    return _UNSAFE.sub("-", name)[:64].strip(".-") or "dataset"
