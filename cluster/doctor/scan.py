"""Looks at everything in one tar shard: what a Ray task of the doctor job does.

Knows nothing of the other shards. Memory holds one sample and, per image of the shard, its key and 32 bytes of digests;
a shard that is broken gives findings, never an error, and only storage that fails ends the job. Running twice gives
the same.
"""

import bisect
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cibhash.errors import BadImage, NotFound, OversizedImage
from cibhash.image_traits import SUFFIX_FORMATS, ImageTraits, read_traits
from cibhash.images import decode_image
from cibhash.shard_scan import Fragment, Problem, ScannedSample, scan_samples
from cibhash.shards import HashingStream
from cibhash.types import TarShard
from cluster import storage
from cluster.doctor.findings import KINDS, Offender

MIN_SIDE = 16
MAX_RATIO = 4
SIDE_EDGES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Of the histogram of shorter sides: below the first, from each up to the next, and from the last on."""
_MAX_TEXT = 200
Digests = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class ScanTask:
    """One shard to be looked at."""

    dataset: str
    """Name of the dataset within this check."""
    uri: str
    listed: TarShard | None
    """What the manifest says of it."""
    decode: bool
    """Decode every image, or read headers alone."""
    offenders: int
    """Kept per kind of finding."""


@dataclass
class Tally:
    """Counts of findings, and the first offenders of each kind."""

    limit: int
    """Offenders kept per kind."""
    counts: dict[str, int] = field(default_factory=dict)
    offenders: dict[str, list[Offender]] = field(default_factory=dict)

    def add(self, kind: str, offender: Offender, count: int = 1) -> None:
        """Counts a finding; the offender is kept while there is room."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.keep(kind, [offender])

    def keep(self, kind: str, offenders: Iterable[Offender]) -> None:
        """Keeps offenders that were counted already, while there is room."""
        kept = self.offenders.setdefault(kind, [])
        kept.extend(list(offenders)[: self.limit - len(kept)])

    def merge(self, other: "Tally") -> None:
        """Adds the counts of another tally, whose offenders come after those of this one."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            self.keep(kind, other.offenders.get(kind, ()))


@dataclass(frozen=True)
class ShardScan:
    """What one shard holds."""

    samples: int
    """With an image, good or not."""
    refused: int
    """Samples that encode would quarantine; without decoding, those whose layout, label or header says so."""
    bytes: int
    tally: Tally
    labels: dict[int, int]
    """Images per label."""
    unlabeled: int
    first_unlabeled: tuple[Offender, ...]
    formats: dict[str, int]
    sides: tuple[int, ...]
    """Images per bin of `SIDE_EDGES`."""
    image_digests: Digests
    """uint64 (N, 2): the first 16 bytes of each image's SHA-256."""
    key_digests: Digests
    """uint64 (N,): 8 bytes of each key's BLAKE2b."""
    label_digests: Digests
    """uint64 (N,): equal for equal sets of labels; 0: no label."""

    @property
    def num_errors(self) -> int:
        """Findings that are errors."""
        return sum(count for kind, count in self.tally.counts.items() if KINDS[kind].severity == "error")


@dataclass(frozen=True)
class Place:
    """Where a sample of a shard is."""

    key: str
    offset: int
    size: int


def scan_shard(task: ScanTask) -> ShardScan:
    """Looks at one shard.

    Raises:
        StorageError: it cannot be read; a shard that is missing is a finding.
    """
    scan = _Scan(task)
    try:
        with storage.open_stream(task.uri) as stream:
            hashed = HashingStream(stream)
            for entry in scan_samples(hashed):
                scan.look_at(entry)
    except NotFound:
        scan.note("missing_shard", "", "no such file or object")
        return scan.result(0)
    if task.listed is not None:
        scan.compare(task.listed, hashed)
    return scan.result(hashed.num_bytes)


def locate_samples(uri: str, positions: Iterable[int]) -> dict[int, Place]:
    """Where the samples at these positions of a shard are."""
    wanted, found = set(positions), {}
    with storage.open_stream(uri) as stream:
        samples = (entry for entry in scan_samples(HashingStream(stream)) if isinstance(entry, ScannedSample))
        for position, sample in enumerate(samples):
            if position in wanted:
                found[position] = Place(readable(sample.key), sample.offset, len(sample.image))
                if len(found) == len(wanted):
                    break
    return found


def readable(text: str) -> str:
    """A text from a tar as it can be written anywhere: cut to 200 characters, what is no character escaped."""
    whole = text.encode("utf-8", "backslashreplace").decode()
    return whole if len(whole) <= _MAX_TEXT else f"{whole[:_MAX_TEXT]}…"


def image_findings(suffix: str, traits: ImageTraits) -> list[tuple[str, str]]:
    """Kinds and details of what the header of an image tells."""
    sides = f"{traits.width} x {traits.height} pixels"
    short, long = sorted((traits.width, traits.height))
    told = (
        (short < MIN_SIDE, "tiny_image", sides),
        (long > MAX_RATIO * short, "odd_shape", sides),
        (traits.is_animated, "animated_image", traits.format),
        (traits.bit_depth == 16, "sixteen_bit", f"{traits.format}, mode {traits.mode}"),
        (traits.mode == "CMYK", "cmyk", traits.format),
        (traits.mode == "P", "palette", f"{traits.format}, {traits.bit_depth} bits"),
        (traits.is_gray, "grayscale", f"{traits.format}, mode {traits.mode}"),
        (traits.has_alpha, "alpha", f"{traits.format}, mode {traits.mode}"),
        (traits.is_rotated, "exif_rotated", f"orientation {traits.orientation}"),
        (traits.color_profile == "other", "color_profile", traits.format),
        (SUFFIX_FORMATS[suffix] != traits.format, "other_format", f"{traits.format} named .{suffix}"),
    )
    return [(kind, detail) for is_so, kind, detail in told if is_so]


class _Scan:
    """What has been seen of a shard so far."""

    def __init__(self, task: ScanTask) -> None:
        self._task = task
        self._tally = Tally(task.offenders)
        self._samples = self._imageless = self._refused = self._unlabeled = 0
        self._first_unlabeled: list[Offender] = []
        self._labels: dict[int, int] = {}
        self._formats: dict[str, int] = {}
        self._sides = [0] * (len(SIDE_EDGES) + 1)
        self._image_digests, self._key_digests, self._label_digests = bytearray(), bytearray(), bytearray()

    def note(self, kind: str, name: str, detail: str, sample: ScannedSample | None = None) -> None:
        """Counts one finding."""
        self._tally.add(kind, self._offender(name, detail, sample))

    def look_at(self, entry: ScannedSample | Fragment | Problem) -> None:
        """Takes what the scan of the tar gives."""
        if isinstance(entry, ScannedSample):
            self._look_at_sample(entry)
        else:
            problem = entry.problem if isinstance(entry, Fragment) else entry
            if problem.kind == "missing_image":
                self._imageless += 1
                self._refused += 1
            self.note(problem.kind, problem.name, problem.detail)

    def compare(self, listed: TarShard, found: HashingStream) -> None:
        """Holds the shard against its manifest."""
        if found.num_bytes != listed.bytes:
            self.note("altered_shard", "", f"{found.num_bytes} bytes, its manifest says {listed.bytes}")
        elif found.hexdigest() != listed.sha256:
            self.note(
                "altered_shard", "", f"sha256 {found.hexdigest()[:16]}..., its manifest says {listed.sha256[:16]}..."
            )
        if (count := self._samples + self._imageless) != listed.count:
            self.note("wrong_count", "", f"{count} samples, its manifest says {listed.count}")

    def result(self, num_bytes: int) -> ShardScan:
        """Everything seen."""
        return ShardScan(
            samples=self._samples,
            refused=self._refused,
            bytes=num_bytes,
            tally=self._tally,
            labels=self._labels,
            unlabeled=self._unlabeled,
            first_unlabeled=tuple(self._first_unlabeled),
            formats=self._formats,
            sides=tuple(self._sides),
            image_digests=np.frombuffer(self._image_digests, "<u8").reshape(-1, 2),
            key_digests=np.frombuffer(self._key_digests, "<u8"),
            label_digests=np.frombuffer(self._label_digests, "<u8"),
        )

    def _look_at_sample(self, sample: ScannedSample) -> None:
        self._samples += 1
        for problem in sample.problems:
            self.note(problem.kind, problem.name, problem.detail, sample)
        self._image_digests += hashlib.sha256(sample.image).digest()[:16]
        self._key_digests += _short_digest(sample.key.encode("utf-8", "surrogatepass"))
        self._label_digests += _label_digest(sample.labels)
        for label in set(sample.labels):
            self._labels[label] = self._labels.get(label, 0) + 1
        if not sample.labels:
            self._unlabeled += 1
            if len(self._first_unlabeled) < self._task.offenders:
                self._first_unlabeled.append(self._offender(sample.key, "", sample))
        is_refused = any(problem.kind in ("bad_label", "several_images") for problem in sample.problems)
        try:
            self._look_at_image(sample)
        except BadImage as error:
            is_refused = True
            kind = "oversized_image" if isinstance(error, OversizedImage) else "undecodable"
            self.note(kind, sample.key, str(error), sample)
        self._refused += is_refused

    def _look_at_image(self, sample: ScannedSample) -> None:
        """Header first, then pixels.

        Raises:
            BadImage: what the decoder would raise.
        """
        traits = read_traits(sample.image)
        self._formats[traits.format] = self._formats.get(traits.format, 0) + 1
        self._sides[bisect.bisect_right(SIDE_EDGES, min(traits.width, traits.height))] += 1
        for kind, detail in image_findings(sample.suffix, traits):
            self.note(kind, sample.key, detail, sample)
        if self._task.decode:
            extrema = decode_image(sample.image).getextrema()
            if all(low == high for low, high in extrema):  # type: ignore[misc]
                self.note("blank_image", sample.key, f"color {tuple(low for low, _ in extrema)}", sample)  # type: ignore[misc]

    def _offender(self, name: str, detail: str, sample: ScannedSample | None) -> Offender:
        where = (-1, 0) if sample is None else (sample.offset, len(sample.image))
        return Offender(self._task.dataset, self._task.uri, readable(name), readable(detail), *where)


def _short_digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()


def _label_digest(labels: tuple[int, ...]) -> bytes:
    return _short_digest(str(sorted(set(labels))).encode()) if labels else bytes(8)
