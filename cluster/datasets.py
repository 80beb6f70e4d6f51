"""Datasets by URI: the manifest with absolute shard URIs, and the samples of a shard.

Knows nothing of how shards are made or what is done with samples.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from cibhash.errors import AlreadyExists, CorruptShard, DataError, ManifestMismatch, NotFound
from cibhash.shards import read_samples
from cibhash.tar_headers import BLOCK
from cibhash.tar_members import foreign_start
from cibhash.types import Sample, TarShard
from cluster import storage
from cluster.listing import stat
from cluster.manifests import DatasetManifest, check_digest, create_manifest, load_manifest

_THREADS = 32
"""Shards looked at a time; each is a request or two."""


def open_dataset(uri: str) -> DatasetManifest:
    """The manifest of the dataset at `uri`, which lists at least one sample.

    Raises:
        NotFound: no dataset, or one that is not finished.
        DataError: a dataset without samples.
    """
    manifest = load_manifest(DatasetManifest, uri)
    if manifest.num_samples == 0:
        raise DataError(f"{uri}: the dataset has no samples ({len(manifest.shards)} shards)")
    return manifest


def located(uri: str, shard: TarShard) -> TarShard:
    """The shard with the URI under which it is read; relative ones lie below the dataset at `uri`."""
    return dataclasses.replace(shard, uri=storage.join(storage.absolute(uri), shard.uri))


def shard_samples(uri: str, shard: TarShard) -> Iterator[Sample]:
    """The samples of one shard of the dataset at `uri`, verified as in `cibhash.shards.read_samples`.

    Raises:
        CorruptShard: the file is missing, or not what the manifest lists.
    """
    shard = located(uri, shard)
    try:
        with storage.open_stream(shard.uri) as stream:
            yield from read_samples(stream, shard)
    except NotFound:
        raise CorruptShard(f"{shard.uri}: missing, but listed by {storage.join(uri, 'dataset.json')}") from None


def verify_shard(uri: str, shard: TarShard) -> None:
    """Reads a shard once and compares its size and digest with the manifest.

    Raises:
        CorruptShard: it is missing or another file; a cut one is told by its size.
    """
    shard = located(uri, shard)
    try:
        digest, size = storage.sha256_of(shard.uri)
        check_digest(shard.uri, shard.bytes, shard.sha256, size, digest)
    except NotFound:
        raise CorruptShard(f"{shard.uri}: missing, but listed by {storage.join(uri, 'dataset.json')}") from None
    except ManifestMismatch as error:
        raise CorruptShard(str(error)) from None


def check_shards(uri: str, shards: Sequence[TarShard]) -> None:
    """Holds size and first block of each shard against the manifest, before anybody begins to work on them.

    Raises:
        CorruptShard: some are missing, cut, or no tars; names the first and what its first bytes show.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        troubles = threads.map(lambda shard: _trouble(located(uri, shard)), shards)
        bad = [(shard, trouble) for shard, trouble in zip(shards, troubles, strict=True) if trouble]
    if bad:
        (first, trouble), others = bad[0], len(bad) - 1
        raise CorruptShard(
            f"{located(uri, first).uri}: {trouble}"
            + (f" (and {others} more of {len(shards)} shards)" if others else "")
        )


def _trouble(shard: TarShard) -> str:
    """Why a shard cannot be what its manifest lists; empty: it may be."""
    try:
        size = stat(shard.uri).bytes
        kind = foreign_start(storage.read_range(shard.uri, 0, min(size, BLOCK)))
    except NotFound:
        return "missing, but its manifest lists it"
    if size != shard.bytes:
        return f"{size} bytes, its manifest says {shard.bytes}" + (f"; {kind}" if kind else ": cut or replaced")
    return f"not a tar: {kind}" if kind else ""


def find_dataset(uri: str) -> DatasetManifest | None:
    """The manifest of the dataset at `uri`, or None where no complete one is."""
    try:
        return load_manifest(DatasetManifest, uri)
    except NotFound:
        return None


def refuse_other(uri: str, found: DatasetManifest | None, manifest: DatasetManifest) -> None:
    """Refuses to put a dataset where another one is.

    Raises:
        AlreadyExists: with both digests.
    """
    if found is not None and found.digest != manifest.digest:
        raise AlreadyExists(
            f"{uri}: holds another dataset, {found.digest[:16]}..., asked for {manifest.digest[:16]}...: "
            "choose another output"
        )


def commit_dataset(uri: str, manifest: DatasetManifest, found: DatasetManifest | None) -> bool:
    """Completes the dataset at `uri` by its manifest; False if the same one was complete already.

    Raises:
        AlreadyExists: another writer completed another dataset meanwhile.
    """
    if found is None:
        try:
            create_manifest(uri, manifest)
            return True
        except AlreadyExists:
            refuse_other(uri, load_manifest(DatasetManifest, uri), manifest)
    return False
