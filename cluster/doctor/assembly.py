"""Puts the scans of all shards together: findings over datasets, labels, and images that several of them share.

Knows nothing of how shards are scanned or results shown. Only a few offenders are named, so keys stay where they are:
the shards that hold repeated images are read once more for the names, by Ray tasks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import ray

from cluster.class_names import class_names
from cluster.doctor.duplicates import EqualRows, Repeats, Rows
from cluster.doctor.findings import KINDS, SEVERITIES, FindingKind, Offender
from cluster.doctor.results import DatasetSummary, DoctorReport, Finding, NamedOffender, Overlap
from cluster.doctor.scan import Place, ShardScan, Tally, locate_samples
from cluster.doctor.targets import Target
from cluster.doctor_config import DoctorConfig
from cluster.in_flight import completed, default_limit, named_call

UNBALANCED = 10
_TRAINING_PAIR = {"train", "database"}


def assemble(config: DoctorConfig, targets: Sequence[Target], scans: Mapping[str, Sequence[ShardScan]]) -> DoctorReport:
    """Everything that was found.

    Args:
        config: How many offenders to name.
        targets: The datasets.
        scans: Of all their shards, by name of the dataset, in shard order.
    """
    rows = _Rows(targets, scans)
    tallies = {target.name: Tally(config.offenders) for target in targets}
    for name, tally in tallies.items():
        for scan in scans[name]:
            tally.merge(scan.tally)
    classes = class_names(target.uri for target in targets)
    summaries = {target.name: _summary(target, scans[target.name]) for target in targets}
    for target in targets:
        tally = tallies[target.name]
        _check_dataset(target, summaries[target.name], tally)
        _check_labels(target, summaries[target.name], scans[target.name], classes, tally)
    overlaps = _compare(targets, rows, tallies, config.offenders)
    return DoctorReport(
        decoded=config.decode,
        datasets=summaries,
        class_names=classes,
        findings={finding.kind: finding for finding in _findings(summaries, tallies, config.offenders)},
        overlaps=tuple(overlaps),
    )


class _Rows:
    """All images as rows: which shard a row is in, and the digests of all."""

    def __init__(self, targets: Sequence[Target], scans: Mapping[str, Sequence[ShardScan]]) -> None:
        self.targets = targets
        in_order = [scan for target in targets for scan in scans[target.name]]
        self.shards = [(target.name, shard.uri) for target in targets for shard in target.shards]
        self.shard_starts = np.cumsum([0, *(len(scan.key_digests) for scan in in_order)])
        counts = [sum(len(scan.key_digests) for scan in scans[target.name]) for target in targets]
        self.dataset_starts: list[int] = np.cumsum([0, *counts]).tolist()
        self.images = np.concatenate([np.empty((0, 2), np.uint64), *(scan.image_digests for scan in in_order)])
        self.keys = np.concatenate([np.empty(0, np.uint64), *(scan.key_digests for scan in in_order)])
        self.labels = np.concatenate([np.empty(0, np.uint64), *(scan.label_digests for scan in in_order)])

    def shard_of(self, rows: Rows) -> Rows:
        """Number of the shard that each row is in."""
        return np.searchsorted(self.shard_starts, rows, side="right") - 1

    def dataset_of(self, rows: Rows) -> Rows:
        """Number of the dataset that each row is in."""
        return np.searchsorted(self.dataset_starts, rows, side="right") - 1


def _summary(target: Target, scans: Sequence[ShardScan]) -> DatasetSummary:
    labels: dict[int, int] = {}
    formats: dict[str, int] = {}
    for scan in scans:
        for label, count in scan.labels.items():
            labels[label] = labels.get(label, 0) + count
        for name, count in scan.formats.items():
            formats[name] = formats.get(name, 0) + count
    sides = np.sum([scan.sides for scan in scans], axis=0).tolist() if scans else []
    return DatasetSummary(
        uri=target.uri,
        split=target.split,
        shards=len(scans),
        samples=sum(scan.samples for scan in scans),
        refused=sum(scan.refused for scan in scans),
        bytes=sum(scan.bytes for scan in scans),
        unlabeled=sum(scan.unlabeled for scan in scans),
        labels={str(label): labels[label] for label in sorted(labels)},
        formats=dict(sorted(formats.items())),
        sides=tuple(sides),
    )


def _check_dataset(target: Target, summary: DatasetSummary, tally: Tally) -> None:
    if not target.has_manifest:
        tally.add("no_manifest", Offender(target.name, "", "", target.uri))
    if not summary.samples:
        tally.add("empty_dataset", Offender(target.name, "", "", target.uri))


def _check_labels(
    target: Target, summary: DatasetSummary, scans: Sequence[ShardScan], classes: Mapping[str, str], tally: Tally
) -> None:
    if not summary.labels:
        return
    if summary.unlabeled:
        tally.counts["partly_labeled"] = summary.unlabeled
        for scan in scans:
            tally.keep("partly_labeled", scan.first_unlabeled)
    if classes:
        for label in sorted(set(classes) - set(summary.labels), key=_by_number):
            tally.add("absent_label", Offender(target.name, "", label, f"{classes[label]!r}: 0 images"))
        for label in [label for label in summary.labels if label not in classes]:
            tally.add("unnamed_label", Offender(target.name, "", label, f"{summary.labels[label]:,} images"))
    few, many = (choose(summary.labels.items(), key=lambda item: item[1]) for choose in (min, max))
    if many[1] >= UNBALANCED * few[1]:
        detail = f"label {many[0]}: {many[1]:,} images, label {few[0]}: {few[1]:,}"
        tally.add("unbalanced_labels", Offender(target.name, "", "", detail))


def _by_number(label: str) -> tuple[int, str]:
    return (int(label) if label.isdecimal() else 2**63, label)


@dataclass(frozen=True)
class _Repeated:
    """Rows of one dataset that are a finding, to be named."""

    kind: str
    dataset: int
    repeats: Repeats
    about: str


def _compare(targets: Sequence[Target], rows: _Rows, tallies: Mapping[str, Tally], limit: int) -> list[Overlap]:
    """Adds what is found by comparing all images; gives what datasets share."""
    images = EqualRows(rows.images, rows.dataset_starts)
    keys = EqualRows(rows.keys, rows.dataset_starts).within()
    elsewhere = rows.shard_of(keys.rows) != rows.shard_of(keys.firsts)
    repeated = [
        *_by_dataset("duplicate_image", images.within(), rows, "equals"),
        *_by_dataset("duplicate_conflict", images.in_conflict(rows.labels), rows, "other labels than"),
        *_by_dataset(
            "duplicate_key_across_shards",
            Repeats(keys.rows[elsewhere], keys.firsts[elsewhere]),
            rows,
            "first in",
        ),
    ]
    overlaps = []
    sizes = np.diff(rows.dataset_starts).tolist()
    for shared in images.across():
        first, second = targets[shared.first], targets[shared.second]
        is_training = {first.split, second.split} == _TRAINING_PAIR
        smaller = (sizes[shared.first], shared.first) < (sizes[shared.second], shared.second)
        if first.split == "train" if is_training else smaller:
            kind = "shared_training_image" if is_training else "split_leak"
            repeated.append(_Repeated(kind, shared.first, shared.repeats, "also in"))
            count = len(shared.repeats.rows)
            share = count / sizes[shared.first]
            overlaps.append(Overlap(dataset=first.name, other=second.name, images=count, share=share))
    places = _locate(repeated, rows, limit)
    for one in repeated:
        tally = tallies[targets[one.dataset].name]
        tally.counts[one.kind] = tally.counts.get(one.kind, 0) + len(one.repeats.rows)
        tally.keep(one.kind, _named(one, rows, places, limit))
    return overlaps


def _by_dataset(kind: str, repeats: Repeats, rows: _Rows, about: str) -> Iterator[_Repeated]:
    dataset = rows.dataset_of(repeats.rows)
    for number in np.unique(dataset).tolist():
        mine = dataset == number
        yield _Repeated(kind, number, Repeats(repeats.rows[mine], repeats.firsts[mine]), about)


def _locate(repeated: Sequence[_Repeated], rows: _Rows, limit: int) -> dict[int, Place]:
    """Names and places of the first rows of each finding, and of what they repeat."""
    wanted = [part[:limit] for one in repeated for part in (one.repeats.rows, one.repeats.firsts)]
    needed = np.unique(np.concatenate([np.empty(0, np.int64), *wanted]))
    numbers = rows.shard_of(needed)
    remote = ray.remote(num_cpus=1)(locate_samples)
    calls = []
    for number in np.unique(numbers).tolist():
        uri, positions = rows.shards[number][1], needed[numbers == number] - rows.shard_starts[number]
        calls.append((number, named_call(remote, f"doctor names {uri}", uri, positions.tolist())))
    places: dict[int, Place] = {}
    for number, found in completed(calls, default_limit()):
        places |= {int(rows.shard_starts[number]) + position: place for position, place in found.items()}
    return places


def _named(one: _Repeated, rows: _Rows, places: Mapping[int, Place], limit: int) -> Iterator[Offender]:
    for row, first in zip(one.repeats.rows[:limit].tolist(), one.repeats.firsts[:limit].tolist(), strict=True):
        place, other = places[row], places[first]
        dataset, shard = rows.shards[int(rows.shard_of(np.asarray(row)))]
        there = rows.shards[int(rows.shard_of(np.asarray(first)))][1]
        yield Offender(dataset, shard, place.key, f"{one.about} {other.key} ({there})", place.offset, place.size)


def _findings(summaries: Mapping[str, DatasetSummary], tallies: Mapping[str, Tally], limit: int) -> Iterator[Finding]:
    whole = {
        "shards": sum(one.shards for one in summaries.values()),
        "samples": sum(one.samples for one in summaries.values()),
        "labels": sum(len(one.labels) for one in summaries.values()),
        "datasets": len(summaries),
    }
    for kind in sorted(KINDS.values(), key=lambda kind: SEVERITIES.index(kind.severity)):
        counts = {name: tally.counts[kind.name] for name, tally in tallies.items() if tally.counts.get(kind.name)}
        if counts:
            together = Tally(limit)
            for tally in tallies.values():
                together.keep(kind.name, tally.offenders.get(kind.name, ()))
            yield _finding(kind, counts, whole.get(kind.unit, whole["samples"]), together.offenders[kind.name])


def _finding(kind: FindingKind, counts: Mapping[str, int], whole: int, offenders: Sequence[Offender]) -> Finding:
    count = sum(counts.values())
    return Finding(
        kind=kind.name,
        severity=kind.severity,
        unit=kind.unit,
        meaning=kind.meaning,
        consequence=kind.consequence,
        count=count,
        share=min(1.0, count / whole) if whole else 1.0,
        by_dataset=dict(counts),
        offenders=tuple(NamedOffender(**asdict(offender)) for offender in offenders),
    )
