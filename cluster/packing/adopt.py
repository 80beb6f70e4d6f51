"""The adopt job: tar shards that are there already become a dataset, by one parallel scan and without copying them.

Knows nothing of how one shard is scanned, nor of how the shards were made. The unit of commitment is the shard: a
scanned one leaves a record below the output, a rerun scans only what has none or has changed since, and the records
are removed once `dataset.json` is there. A shard that breaks the layout ends the job, naming it.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cibhash.errors import AlreadyExists, DataError, StorageError
from cibhash.shards import HashingStream, unlisted_samples
from cibhash.types import TarShard
from cluster import storage
from cluster.datasets import commit_dataset, find_dataset
from cluster.listing import stat
from cluster.manifests import DatasetManifest
from cluster.packing.adopted_shard import ScanRecord, ScanTask, key_digest, record_uri, scan_one
from cluster.packing.duplicate_keys import Repeated, combined, key_ranges, repeated_keys
from cluster.packing.shard_listing import list_shards
from cluster.packing_config import AdoptConfig
from cluster.runtime import ray_session
from cluster.telemetry import log, progress

RECORDS = ".adopt"
"""Folder of the records, below the output."""
_THREADS = 32


@dataclass(frozen=True)
class AdoptResult:
    """What the adopt job did."""

    output: str
    """URI of the dataset."""
    name: str
    split: str
    digest: str
    """Empty where nothing was read."""
    samples: int
    labeled: int | None
    """Samples with labels; None where the shards were not read this time."""
    unusable: int | None
    """Samples that encode will quarantine: no single image, or a label that is none; None as `labeled`."""
    shards: int
    bytes: int
    shards_reused: int
    """Shards that an earlier run had scanned."""
    ignored: dict[str, int]
    """Other files beside the shards, by suffix."""


def adopt(config: AdoptConfig) -> AdoptResult:
    """Writes the manifest of the dataset that the shards make, ids counting up in the order of their URIs.

    Raises:
        AlreadyExists: the output holds another dataset.
        NotFound: there are no such shards.
        CorruptShard: a shard that training could not read.
        DataError: no shards, no samples, or a key in two shards.
    """
    output = storage.absolute(config.output)
    listing = list_shards(config.tar_shards)
    name = config.name or output.rpartition("/")[2]
    planned = AdoptResult(output, name, config.split, "", 0, None, None, len(listing.uris), 0, 0, listing.ignored)
    for suffix, count in listing.ignored.items():
        log(f"adopt: {count:,} other files left alone", suffix=suffix or "none")
    found = find_dataset(output)
    if found is not None:
        _refuse_unlike(output, found, name, config.split, listing.uris)
        log("adopt: already complete", dataset=output)
        return _result(planned, found, None, reused=len(found.shards))
    if config.dry_run:
        return planned
    records_uri = storage.join(output, RECORDS)
    with ray_session(config.ray):
        records, reused = _scan(listing.uris, records_uri, with_keys=not config.allow_duplicate_keys)
        if not config.allow_duplicate_keys:
            _refuse_repeated(config.tar_shards, records)
    manifest = _manifest(output, name, config.split, records)
    if not manifest.num_samples:
        raise DataError(f"{config.tar_shards}: {len(records)} shards without any sample")
    commit_dataset(output, manifest, None)
    _remove_records(records_uri, records)
    if troubled := [record for record in records if record.unusable]:
        count, first = sum(record.unusable for record in troubled), troubled[0]
        log(f"adopt: {count:,} samples that encode will quarantine", first=f"{first.uri} key {first.first_unusable}")
    return _result(planned, manifest, records, reused=reused)


def _scan(uris: Sequence[str], records_uri: str, *, with_keys: bool) -> tuple[list[ScanRecord], int]:
    """The records of all shards, in order, and how many were there before."""
    import ray

    from cluster.in_flight import completed, default_limit, named_call

    remote = ray.remote(num_cpus=1)(scan_one)
    tasks = {uri: ScanTask(uri, records_uri, with_keys) for uri in uris}
    calls = ((uri, named_call(remote, f"adopt {uri}", task)) for uri, task in tasks.items())
    records: dict[str, ScanRecord] = {}
    reused = samples = 0
    with progress("adopt", len(uris), "shards") as line:
        for uri, scanned in completed(calls, default_limit()):
            records[uri] = scanned.record
            reused += scanned.reused
            samples += scanned.record.count
            line.advance(1, f"{samples:,} images")
    return [records[uri] for uri in uris], reused


def _refuse_repeated(tar_shards: str, records: list[ScanRecord]) -> None:
    """Looks for keys that come in more than one shard.

    Raises:
        DataError: naming the first of them, both shards, and how many there are.
    """
    import ray

    from cluster.in_flight import completed, default_limit, named_call

    remote, everything = ray.remote(num_cpus=1)(repeated_keys), ray.put(records)
    ranges = key_ranges(sum(record.count for record in records))
    calls = (
        (start, named_call(remote, f"adopt keys {start}-{stop}", everything, start, stop)) for start, stop in ranges
    )
    found: list[Repeated] = [repeated for _, repeated in completed(calls, default_limit())]
    repeated = combined(found)
    if repeated.count:
        first, second = records[repeated.first_shard].uri, records[repeated.second_shard].uri
        key = _key_of(first, repeated.digest)
        raise DataError(
            f"{tar_shards}: {repeated.count:,} keys come again in another shard; first: {key!r} in {first} and "
            f"{second} (--allow-duplicate-keys accepts them)"
        )


def _key_of(uri: str, digest: bytes) -> str:
    with storage.open_stream(uri) as stream:
        keys = (sample.key for sample in unlisted_samples(HashingStream(stream), uri))
        return next((key for key in keys if key_digest(key) == digest), "")


def _manifest(output: str, name: str, split: str, records: list[ScanRecord]) -> DatasetManifest:
    shards: list[TarShard] = []
    first_id = 0
    for record in records:
        uri = record.uri.removeprefix(f"{output}/")
        shards.append(TarShard(uri, record.bytes, record.sha256, record.count, first_id))
        first_id += record.count
    return DatasetManifest(name=name, split=split, shards=tuple(shards))


def _refuse_unlike(output: str, found: DatasetManifest, name: str, split: str, uris: Sequence[str]) -> None:
    """Accepts a manifest of the same shards in the same sizes; what is in them is checked wherever they are read.

    Raises:
        AlreadyExists: naming what differs.
    """
    if (found.name, found.split) != (name, split):
        differs = f"{found.name} ({found.split}), asked for {name} ({split})"
    else:
        listed = {storage.join(output, shard.uri): shard.bytes for shard in found.shards}
        with ThreadPoolExecutor(_THREADS) as threads:
            there = dict(zip(uris, threads.map(lambda uri: stat(uri).bytes, uris), strict=True))
        if listed == there:
            return
        first = min(uri for uri in listed.keys() | there.keys() if listed.get(uri) != there.get(uri))
        differs = f"{first} has {there.get(first, 'no')} bytes, listed {listed.get(first, 'not')}"
    raise AlreadyExists(f"{output}: holds another dataset: {differs}: choose another output")


def _remove_records(records_uri: str, records: Sequence[ScanRecord]) -> None:
    """Removes the records of a finished run; what cannot be removed stays, and nobody reads it."""
    files = [uri for record in records for uri in (record.keys_uri, record_uri(records_uri, record.uri)) if uri]

    def remove(uri: str) -> None:
        with contextlib.suppress(StorageError):
            storage.remove(uri)

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(remove, files))


def _result(
    planned: AdoptResult, manifest: DatasetManifest, records: Sequence[ScanRecord] | None, *, reused: int
) -> AdoptResult:
    return dataclasses.replace(
        planned,
        digest=manifest.digest,
        samples=manifest.num_samples,
        labeled=None if records is None else sum(record.labeled for record in records),
        unusable=None if records is None else sum(record.unusable for record in records),
        bytes=sum(shard.bytes for shard in manifest.shards),
        shards_reused=reused,
    )
