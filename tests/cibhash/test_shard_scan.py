"""The tolerant scan: nothing that reading refuses goes untold, and what is good is what reading gives."""

import io
import tarfile
from collections.abc import Sequence

import numpy as np
import pytest

from cibhash.errors import CorruptShard
from cibhash.shard_scan import Fragment, ScannedSample, scan_samples
from cibhash.shards import MAX_MEMBER_BYTES, read_samples
from tests.datasets import listed_shard, tar_bytes

Members = Sequence[tuple[str, bytes] | tarfile.TarInfo]


def scan(data: bytes) -> tuple[list[ScannedSample], list[tuple[str, str]]]:
    """Samples, and (kind, name) of every problem in the order told."""
    samples, told = [], []
    for entry in scan_samples(io.BytesIO(data)):
        if isinstance(entry, ScannedSample):
            samples.append(entry)
            told += [(problem.kind, problem.name) for problem in entry.problems]
        else:
            problem = entry.problem if isinstance(entry, Fragment) else entry
            assert problem.detail
            told.append((problem.kind, problem.name))
    return samples, told


def scan_members(members: Members) -> tuple[list[ScannedSample], list[tuple[str, str]]]:
    return scan(tar_bytes(members))


def named(*names: str) -> Members:
    return [(name, b"7" if name.endswith(".cls") else name.encode()) for name in names]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a.png", "a.cls", "b.jpg"], []),
        (["a.png", "b.png", "a.jpg"], [("duplicate_key", "a")]),
        (["a.png", "a.png"], [("duplicate_key", "a")]),
        (["a.png", "b.png", "a.cls"], [("split_sample", "a")]),
        (["a.cls", "b.png", "a.png"], [("split_sample", "a")]),
        (["a.png", "a.jpg"], [("several_images", "a")]),
        (["a.png", "lonely.cls"], [("missing_image", "lonely")]),
        (["v.1.png", "a.png"], [("missing_image", "v"), ("ignored_member", "v.1.png")]),
        (["a.png", ".png"], [("no_key", ".png")]),
        (["a.png", "a.txt", "README"], [("ignored_member", "a.txt"), ("ignored_member", "README")]),
    ],
)
def test_layouts(names: list[str], told: list[tuple[str, str]]) -> None:
    assert sorted(scan_members(named(*names))[1]) == sorted(told)


def test_fragments_carry_what_the_image_lacks() -> None:
    entries = list(scan_samples(io.BytesIO(tar_bytes(named("a.cls", "b.png", "a.png", "c.cls")))))
    assert [entry.key for entry in entries if isinstance(entry, ScannedSample)] == ["b", "a"]
    apart, lost = entries[-2:]
    assert isinstance(apart, Fragment)
    assert isinstance(lost, Fragment)
    assert (apart.key, apart.labels, apart.problem.kind) == ("a", (7,), "split_sample")
    assert (lost.key, lost.problem.kind) == ("c", "missing_image")
    assert "a dot in the name" in scan_samples_detail("v.1.png")
    assert "a dot" not in scan_samples_detail("v.cls")


def scan_samples_detail(name: str) -> str:
    *_, last = scan_samples(io.BytesIO(tar_bytes(named(name))))
    assert isinstance(last, Fragment)
    return last.problem.detail


@pytest.mark.parametrize(
    ("members", "labels", "told"),
    [
        ([("a.cls", b"cat")], (), [("bad_label", "a")]),
        ([("a.cls", b"-1")], (), [("bad_label", "a")]),
        ([("a.json", b'{"labels": [1, "x"]}')], (), [("bad_label", "a")]),
        ([("a.json", b"{")], (), [("bad_label", "a")]),
        ([("a.json", b"[" * 500_000)], (), [("bad_label", "a")]),
        ([("a.cls", b"3"), ("a.json", b'{"labels": [3]}')], (3,), []),
        ([("a.cls", b"3"), ("a.json", b'{"caption": "x"}')], (3,), []),
        ([("a.cls", b"3"), ("a.json", b'{"labels": [4, 3]}')], (3,), [("label_conflict", "a")]),
        ([("a.cls", b"3"), ("a.json", b"{")], (3,), [("label_conflict", "a")]),
        ([("a.json", b'{"labels": [4, 3]}')], (4, 3), []),
    ],
)
def test_labels(members: Members, labels: tuple[int, ...], told: list[tuple[str, str]]) -> None:
    (sample,), found = scan_members([("a.png", b"x"), *members])
    assert (sample.labels, found) == (labels, told)


def test_links_and_large_members_are_told_once() -> None:
    link, huge = tarfile.TarInfo("link.png"), tarfile.TarInfo("huge.png")
    link.type, link.linkname = tarfile.LNKTYPE, "a.png"
    huge.size = MAX_MEMBER_BYTES + 1
    data = tar_bytes([("a.png", b"x"), link])[:1536] + huge.tobuf() + b"x" * 4096
    samples, told = scan(data)
    assert [sample.key for sample in samples] == ["a"]
    assert told == [("irregular_member", "link.png"), ("truncated_tar", "huge.png")]


def test_names_that_are_no_text_stay_without_a_sample() -> None:
    data = tar_bytes([("aXb.png", b"x"), ("good.png", b"y")], tarfile.GNU_FORMAT)
    broken = data.replace(b"aXb.png", b"a\xffb.png", 1)
    header = bytearray(broken[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    samples, told = scan(bytes(header) + broken[512:])
    assert [sample.key for sample in samples] == ["good"]
    assert told == [("no_key", "a\udcffb.png")]


def _tars() -> list[bytes]:
    generator = np.random.default_rng(3)
    names = ["a.png", "a.cls", "b.jpg", "b.json", "c.webp", "c.cls", "d.png", "a.jpg", "d.txt", "dir/e.png", ".png"]
    tars = []
    for _ in range(400):
        chosen = [names[i] for i in sorted(generator.choice(len(names), generator.integers(1, 8), replace=False))]
        if generator.random() < 0.3:
            generator.shuffle(chosen)
        contents = {"cls": [b"1", b"x", b"-3"], "json": [b'{"labels": [2]}', b"{", b'{"labels": 2}']}
        members = [(n, contents.get(n.rpartition(".")[2], [n.encode()] * 3)[generator.integers(3)]) for n in chosen]
        data = bytearray(tar_bytes(members))
        match generator.integers(4):
            case 0:
                del data[generator.integers(len(data)) :]
            case 1:
                data[generator.integers(len(data) // 2)] ^= 1 << generator.integers(8)
        tars.append(bytes(data))
    return tars


def test_a_scan_without_an_error_is_a_shard_that_can_be_read() -> None:
    """And gives the same samples; so reading never stops at what the scan did not tell."""
    harmless = {"label_conflict", "ignored_member", "no_end_marker"}
    clean = 0
    for data in _tars():
        samples, told = scan(data)
        problems = {kind for kind, _ in told} - harmless
        shard = listed_shard(data, len(samples))
        if problems:
            continue
        clean += 1
        read = list(read_samples(io.BytesIO(data), shard))
        assert [(s.key, s.image, s.labels, s.offset) for s in read] == [
            (s.key, s.image, s.labels, s.offset) for s in samples
        ]
    assert 30 < clean < 200


def test_whatever_reading_refuses_in_an_undamaged_tar_is_told() -> None:
    refused = 0
    for data in _tars():
        count = sum(isinstance(entry, ScannedSample) for entry in scan_samples(io.BytesIO(data)))
        try:
            list(read_samples(io.BytesIO(data), listed_shard(data, count)))
        except CorruptShard:
            refused += 1
            assert any(not isinstance(e, ScannedSample) or e.problems for e in scan_samples(io.BytesIO(data)))
    assert refused > 100


def test_of_many_images_of_a_key_the_bytes_of_one_are_kept() -> None:
    members = [(f"a.{suffix}", bytes([number]) * 1000) for number, suffix in enumerate(("png", "jpg", "webp"))]
    (sample,), told = scan_members(members)
    assert (sample.suffix, sample.image) == ("png", bytes(1000))
    assert told == [("several_images", "a")]
