"""Reads a tar shard to its end whatever is wrong with it: samples with their problems, and problems without a sample.

Knows nothing of storage and of what to do about a problem. `cibhash.shards.read_samples`, which training and encoding
read with, stops at the first problem; here everything that it would refuse is told, and the rest goes on. Samples are
what it makes of the same members: their key, their image, their labels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from cibhash.shards import (
    IMAGE_SUFFIXES,
    MAX_MEMBER_BYTES,
    RESERVED_SUFFIXES,
    is_read,
    is_usable,
    parse_cls,
    parse_json,
    split_name,
)
from cibhash.tar_members import DamageKind, Readable, TarDamage, TarMember, tar_members

LayoutKind = Literal[
    "irregular_member",
    "oversized_member",
    "ignored_member",
    "no_key",
    "missing_image",
    "several_images",
    "split_sample",
    "duplicate_key",
]
LabelKind = Literal["bad_label", "label_conflict"]
ProblemKind = DamageKind | LayoutKind | LabelKind


class Problem(NamedTuple):
    """One thing that is wrong."""

    kind: ProblemKind
    name: str
    """Key of the sample, or name of the member where there is none; empty: the tar as a whole."""
    detail: str


@dataclass(frozen=True)
class ScannedSample:
    """A sample that has an image."""

    key: str
    suffix: str
    """Of the image, lower case."""
    image: bytes
    offset: int
    """Of the image in the tar."""
    labels: tuple[int, ...]
    """Empty too where they cannot be read, which is a problem then."""
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Fragment:
    """Members of one key without an image, told after all samples; the image may have been elsewhere."""

    key: str
    labels: tuple[int, ...]
    label_trouble: str
    """Why its labels cannot be read; empty: they can, or there are none."""
    problem: Problem
    """`split_sample` where the image was elsewhere in the shard, `missing_image` where it was not."""


@dataclass
class _Group:
    """Adjacent members of one key."""

    key: str
    names: list[str] = field(default_factory=list)
    suffixes: set[str] = field(default_factory=set)
    images: list[tuple[str, bytes, int]] = field(default_factory=list)
    """Suffix, bytes, offset; the bytes of the first alone are kept."""
    labels: dict[str, bytes] = field(default_factory=dict)
    """Content of cls and json."""
    without_data: bool = False
    """A member could not be read, and was told as a problem of its own."""


def scan_samples(stream: Readable) -> Iterator[ScannedSample | Fragment | Problem]:
    """The samples of a tar in order, problems where they are met, and fragments at the end; never raises for a tar.

    Memory holds one sample, whose members have up to `MAX_MEMBER_BYTES` each, and the keys of the shard.

    Args:
        stream: Positioned at the start of the tar; read sequentially, to its end.
    """
    group: _Group | None = None
    seen: dict[str, bool] = {}
    fragments: list[_Loose] = []
    cut: str | None = None
    for entry in tar_members(stream, wanted=_is_wanted):
        if isinstance(entry, TarDamage):
            cut = split_name(entry.name)[0] if entry.kind == "truncated_tar" else None
            yield Problem(entry.kind, entry.name, entry.detail)
            continue
        if entry.is_folder:
            continue
        key, suffix = split_name(entry.name)
        if (problem := _member_problem(entry, key, suffix)) is not None:
            yield problem
        if key is None:
            continue
        if group is None or group.key != key or suffix in group.suffixes:
            if group is not None:
                yield from _closed(group, seen, fragments)
            group = _Group(key)
        _add(group, entry, suffix)
    if group is not None:
        yield from _closed(group, seen, fragments)
    for loose in fragments:
        kind: LayoutKind = "split_sample" if seen[loose.key] else "missing_image"
        if loose.key == cut and kind == "missing_image":
            continue  # the end of the tar cost the image, which was told
        yield Fragment(loose.key, loose.labels, loose.label_trouble, Problem(kind, loose.key, loose.told(kind)))


class _Loose(NamedTuple):
    """A group without an image, until it is known whether its key has one."""

    key: str
    labels: tuple[int, ...]
    names: str
    label_trouble: str

    def told(self, kind: LayoutKind) -> str:
        trouble = f"; {self.label_trouble}" if self.label_trouble else ""
        if kind == "missing_image":
            return f"no image member, only {self.names}{trouble}"
        return f"{self.names} is apart from the key's image{trouble}"


def _is_wanted(name: str, size: int) -> bool:
    key, suffix = split_name(name)
    return size <= MAX_MEMBER_BYTES and is_read(suffix) and is_usable(key)


def _member_problem(member: TarMember, key: str | None, suffix: str) -> Problem | None:
    if not member.is_regular:
        return Problem("irregular_member", member.name, "a link, device or sparse file")
    if key is not None and suffix in RESERVED_SUFFIXES:
        return Problem("irregular_member", member.name, "a suffix that webdataset keeps for itself")
    if not is_read(suffix):
        return Problem("ignored_member", member.name, f"{member.size} bytes")
    if not is_usable(key):
        return Problem("no_key", member.name, "a name without a key, or one that is not UTF-8")
    if member.data is None:
        return Problem("oversized_member", member.name, f"{member.size} bytes, the limit is {MAX_MEMBER_BYTES}")
    return None


def _add(group: _Group, member: TarMember, suffix: str) -> None:
    if len(group.names) < _MAX_NAMES:
        group.names.append(member.name)
    group.suffixes.add(suffix)
    if member.data is None:
        group.without_data = group.without_data or is_read(suffix)
    elif suffix in IMAGE_SUFFIXES:
        group.images.append((suffix, b"" if group.images else member.data, member.offset))
    else:
        group.labels[suffix] = member.data


_MAX_NAMES = 4
"""Members of a sample that a message names."""


def _closed(group: _Group, seen: dict[str, bool], fragments: list[_Loose]) -> Iterator[ScannedSample]:
    """Yields the group as a sample, or puts it among the fragments."""
    key, has_image = group.key, bool(group.images)
    labels, problems = _read_labels(key, group.labels)
    if not has_image:
        seen.setdefault(key, False)
        if not group.without_data:
            trouble = "; ".join(problem.detail for problem in problems)
            dotted = any(split_name(name)[1].rpartition(".")[2] in IMAGE_SUFFIXES for name in group.names)
            hint = " (a dot in the name ends the key)" if dotted else ""
            fragments.append(_Loose(key, labels, ", ".join(map(repr, group.names)) + hint, trouble))
        return
    if len(group.images) > 1:
        suffixes = ", ".join(suffix for suffix, _, _ in group.images)
        problems.append(Problem("several_images", key, f"{len(group.images)} image members ({suffixes})"))
    if seen.get(key):
        problems.append(Problem("duplicate_key", key, "the key comes again, with another image member"))
    seen[key] = True
    suffix, image, offset = group.images[0]
    yield ScannedSample(key, suffix, image, offset, labels, tuple(problems))


def _read_labels(key: str, members: Mapping[str, bytes]) -> tuple[tuple[int, ...], list[Problem]]:
    """Labels as `read_samples` reads them: those of cls, and without one those of json."""
    problems: list[Problem] = []
    found: dict[str, tuple[int, ...] | None] = {}
    for suffix, parse in (("cls", parse_cls), ("json", parse_json)):
        if suffix not in members:
            continue
        try:
            found[suffix] = parse(members[suffix])
        except ValueError as error:
            kind: LabelKind = "label_conflict" if "cls" in members and suffix == "json" else "bad_label"
            problems.append(Problem(kind, key, str(error)))
    by_cls, by_json = found.get("cls"), found.get("json")
    if by_cls is not None and by_json is not None and by_cls != by_json:
        problems.append(Problem("label_conflict", key, f"cls says {by_cls[0]}, json {list(by_json)[:_MAX_NAMES]}"))
    return (by_cls if "cls" in members else by_json) or (), problems
