"""Scans one tar shard that no manifest describes yet: what a Ray task of the adopt job does.

Knows nothing of the other shards. A shard that is done leaves a record, and a file with the digests of its keys, so
that a rerun need not read it again; both say nothing about a shard that has changed since. Scanning never writes to a
shard.
"""

import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import BinaryIO, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from cibhash.errors import CorruptShard, NotFound
from cibhash.shards import HashingStream, unlisted_samples
from cluster import storage
from cluster.listing import Stat, stat

KEY_DIGEST_BYTES = 16
_END_MARK = bytes(1024)


@dataclass(frozen=True)
class ScanTask:
    """One shard to be scanned."""

    uri: str
    records_uri: str
    """Folder of the records."""
    with_keys: bool
    """Whether the digests of its keys are wanted."""


class ScanRecord(BaseModel):
    """What is known of a scanned shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    uri: str
    bytes: int
    version: str
    """As storage told it before the scan."""
    sha256: str
    count: int
    labeled: int
    """Samples with labels."""
    unusable: int
    """Samples without an image, without a single one, or with a label that is none."""
    first_unusable: str
    """Key of the first of them, and why; empty: there is none."""
    keys_uri: str
    """File of the ascending digests of its keys, KEY_DIGEST_BYTES each; empty where none were wanted."""
    key_starts: tuple[int, ...]
    """257 numbers: digests whose first byte is b are those from the b-th to the next; empty as `keys_uri`."""


@dataclass(frozen=True)
class Scanned:
    """A record, and whether it was there before."""

    record: ScanRecord
    reused: bool


def record_uri(records_uri: str, uri: str) -> str:
    """Where the record of a shard lies."""
    return storage.join(records_uri, f"{hashlib.sha256(uri.encode()).hexdigest()[:32]}.json")


def key_digest(key: str) -> bytes:
    """What stands for a key where keys of many shards are compared."""
    return hashlib.blake2b(key.encode(), digest_size=KEY_DIGEST_BYTES).digest()


def scan_one(task: ScanTask) -> Scanned:
    """Reads a shard as training will, unless its record is there; may run twice.

    Raises:
        NotFound: there is no such shard.
        CorruptShard: it is not a whole tar, or its samples break the layout.
    """
    known = stat(task.uri)
    record = _read_record(task, known)
    if record is not None:
        return Scanned(record, reused=True)
    digests: list[bytes] = []
    labeled = unusable = 0
    first_unusable = ""
    with storage.open_stream(task.uri) as opened:
        tail = _Tail(opened)
        stream = HashingStream(cast(BinaryIO, tail))
        for sample in unlisted_samples(stream, task.uri):
            digests.append(key_digest(sample.key))
            labeled += bool(sample.labels)
            unusable += bool(sample.trouble)
            if sample.trouble and not first_unusable:
                first_unusable = f"{sample.key!r}: {sample.trouble}"
    if stream.num_bytes != known.bytes:
        raise CorruptShard(f"{task.uri}: {stream.num_bytes} bytes read of {known.bytes}: it changes while it is read")
    if tail.last != _END_MARK:
        raise CorruptShard(f"{task.uri}: no end mark of a tar: cut off, or still being written")
    target = record_uri(task.records_uri, task.uri)
    record = ScanRecord(
        uri=task.uri,
        bytes=known.bytes,
        version=known.version,
        sha256=stream.hexdigest(),
        count=len(digests),
        labeled=labeled,
        unusable=unusable,
        first_unusable=first_unusable,
        keys_uri=target.removesuffix(".json") + ".keys" if task.with_keys else "",
        key_starts=_starts(digests) if task.with_keys else (),
    )
    if task.with_keys:
        storage.write_bytes(record.keys_uri, b"".join(sorted(digests)))
    storage.write_bytes(target, record.model_dump_json().encode())
    return Scanned(record, reused=False)


class _Tail:
    """Passes reads through and keeps the last bytes: a tar that was cut between members is told by its end only."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        chunk = self._stream.read(size)
        self.last = (self.last + chunk[-len(_END_MARK) :])[-len(_END_MARK) :]
        return chunk


def _read_record(task: ScanTask, known: Stat) -> ScanRecord | None:
    """The record of the shard as it is now, with its keys where they are wanted."""
    try:
        record = ScanRecord.model_validate_json(storage.read_bytes(record_uri(task.records_uri, task.uri)))
        if (record.uri, record.bytes, record.version) != (task.uri, known.bytes, known.version):
            return None
        if not task.with_keys:
            return record
        whole = record.keys_uri and stat(record.keys_uri).bytes == record.count * KEY_DIGEST_BYTES
        return record if whole else None
    except (NotFound, ValidationError):
        return None


def _starts(digests: list[bytes]) -> tuple[int, ...]:
    counts = Counter(digest[0] for digest in digests)
    return tuple(itertools.accumulate((counts[byte] for byte in range(256)), initial=0))
