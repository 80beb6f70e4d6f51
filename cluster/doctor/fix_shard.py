"""Writes the good samples of one shard to a new one: what a Ray task of `doctor --fix` does.

Knows nothing of manifests and ids. Image bytes and suffixes stay; what happens to the rest:

* labels that lie apart from their image are put beside it, unless several images have the key or the labels differ;
* a key that comes again: the very same sample is left out, another one gets the key `KEY~2`, `KEY~3`, ...;
* of several images of one key the first is kept;
* an image that cannot be decoded, a sample whose label cannot be read, and members without an image are left out;
* a key that a tar header cannot hold is rewritten as `cluster.packing.source_items` does.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from cibhash.errors import BadImage, NotFound, OversizedImage
from cibhash.images import decode_image
from cibhash.shard_scan import Fragment, Problem, ScannedSample, scan_samples
from cibhash.shards import MAX_KEY_BYTES, HashingStream, SourceImage, write_shard
from cibhash.types import TarShard
from cluster import storage
from cluster.doctor.scan import readable
from cluster.packing.source_items import fitting_key

_TOLD_ONLY = ("label_conflict", "no_end_marker", "ignored_member", "after_end")
"""Problems that cost a copy nothing."""


@dataclass(frozen=True)
class FixTask:
    """One shard to be copied."""

    uri: str
    folder: str
    """URI of the copy."""
    name: str
    """File name of the new shard, which is its URI in the manifest."""
    regroup: bool
    """Members lie apart: the shard is read once more, to know where labels belong before images are written."""
    publish: bool
    """False: only find out what the shard would be."""


@dataclass(frozen=True)
class FixedShard:
    """A copied shard."""

    uri: str
    """Of the original."""
    shard: TarShard | None
    """Its ids count from 0; None: nothing could be kept."""
    samples_in: int
    """Samples with an image that the original holds."""
    left_out: bytes
    """JSON lines: shard, key, kind, reason, and for a sample under another key `renamed_to`."""
    num_left_out: int
    num_renamed: int


def fix_shard(task: FixTask) -> FixedShard:
    """Copies one shard; may run twice.

    Raises:
        StorageError: it cannot be read, or the copy not be written.
    """
    copy = _Copy(task.uri)
    try:
        if task.regroup:
            copy.gather_labels()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, task.name)
            shard: TarShard | None = write_shard(path, task.name, copy.good_samples(), 0)
            if not copy.written:
                shard = None
            elif task.publish:
                storage.put_file(path, storage.join(task.folder, task.name))
    except NotFound:
        shard = None
        copy.leave_out("", "missing_shard", "no such file or object")
    return FixedShard(task.uri, shard, copy.samples_in, bytes(copy.lines), copy.num_left_out, copy.num_renamed)


@dataclass
class _Apart:
    """Labels of a key that lie apart from its image."""

    labels: set[tuple[int, ...]] = field(default_factory=set)
    trouble: str = ""
    """Why they cannot be read."""


class _Copy:
    """What became of the samples of one shard."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._apart: dict[str, _Apart] = {}
        self._images_of: dict[str, int] = {}
        self.written: dict[str, bytes] = {}
        """Digest of each sample by its key in the copy."""
        self.lines = bytearray()
        self.samples_in = self.num_left_out = self.num_renamed = 0

    def gather_labels(self) -> None:
        """Reads the shard for labels that lie apart from their image."""
        for entry in self._entries():
            if isinstance(entry, ScannedSample):
                self._images_of[entry.key] = self._images_of.get(entry.key, 0) + 1
            elif isinstance(entry, Fragment) and entry.problem.kind == "split_sample":
                apart = self._apart.setdefault(entry.key, _Apart())
                apart.trouble = apart.trouble or entry.label_trouble
                if entry.labels:
                    apart.labels.add(entry.labels)

    def good_samples(self) -> Iterator[SourceImage]:
        """Reads the shard and gives what is good, in order."""
        for entry in self._entries():
            if isinstance(entry, ScannedSample):
                self.samples_in += 1
                if (good := self._judged(entry)) is not None:
                    yield good
            elif isinstance(entry, Fragment):
                if entry.problem.kind != "split_sample" or self._images_of.get(entry.key, 0) > 1:
                    self._leave_out_problem(entry.problem)
            elif entry.kind not in _TOLD_ONLY:
                self._leave_out_problem(entry)

    def leave_out(self, key: str, kind: str, reason: str) -> None:
        """Lists something that is not in the copy."""
        self.num_left_out += 1
        self._write_line(key=readable(key), kind=kind, reason=readable(reason))

    def _judged(self, sample: ScannedSample) -> SourceImage | None:
        """The sample as it goes into the copy; None: it is left out."""
        for problem in sample.problems:
            if problem.kind == "bad_label":
                self._leave_out_problem(problem)
                return None
        try:
            decode_image(sample.image)
        except BadImage as error:
            kind = "oversized_image" if isinstance(error, OversizedImage) else "undecodable"
            self.leave_out(sample.key, kind, str(error))
            return None
        labeled = self._with_labels(sample)
        return None if labeled is None else self._with_own_key(labeled)

    def _with_labels(self, sample: ScannedSample) -> ScannedSample | None:
        """The sample with the labels that lie apart from it, where it is clear which."""
        apart = self._apart.get(sample.key)
        if apart is None or self._images_of[sample.key] > 1:
            return sample
        found = apart.labels | ({sample.labels} if sample.labels else set())
        if apart.trouble or len(found) > 1:
            reason = apart.trouble or f"labels {' and '.join(map(str, sorted(found)))} lie in different places"
            self.leave_out(sample.key, "bad_label" if apart.trouble else "split_sample", reason)
            return None
        return replace(sample, labels=next(iter(found), ()))

    def _with_own_key(self, sample: ScannedSample) -> SourceImage | None:
        """The sample under a key that no other sample of the copy has; None: it is there already."""
        digest = hashlib.sha256(f"{sample.labels}\0".encode() + sample.image).digest()
        key, number = _writable(sample.key), 1
        while key in self.written:
            if self.written[key] == digest:
                self.leave_out(sample.key, "duplicate_key", f"the very same sample is there as {key!r}")
                return None
            number += 1
            key = _writable(f"{sample.key}~{number}")
        self.written[key] = digest
        for problem in sample.problems:
            if problem.kind == "several_images":
                self.leave_out(sample.key, problem.kind, f"{problem.detail}: the first is kept")
        if key != sample.key:
            self.num_renamed += 1
            kind = "duplicate_key" if number > 1 else "unwritable_key"
            self._write_line(key=readable(sample.key), kind=kind, reason="kept under another key", renamed_to=key)
        return SourceImage(key, sample.suffix, sample.image, sample.labels)

    def _leave_out_problem(self, problem: Problem) -> None:
        self.leave_out(problem.name, problem.kind, problem.detail)

    def _write_line(self, **fields: str) -> None:
        line = {"shard": self._uri, **fields}
        self.lines += json.dumps(line, ensure_ascii=False).encode() + b"\n"

    def _entries(self) -> Iterator[ScannedSample | Fragment | Problem]:
        with storage.open_stream(self._uri) as stream:
            yield from scan_samples(HashingStream(stream))


def _writable(key: str) -> str:
    """The key, rewritten only where a tar header could not hold it."""
    return key if "\0" not in key and len(key.encode()) <= MAX_KEY_BYTES else fitting_key(key)
