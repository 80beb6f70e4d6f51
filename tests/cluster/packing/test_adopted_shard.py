"""Scanning one shard: what a manifest needs, a record that is believed only while the shard is the same."""

import hashlib
import os
from pathlib import Path

import pytest

from cibhash.errors import CorruptShard, NotFound
from cluster.packing.adopted_shard import ScanTask, key_digest, record_uri, scan_one
from tests.datasets import tar_bytes

MEMBERS = [
    ("000.jpg", b"one"),
    ("000.json", b'{"caption": "a", "url": "http://x/1.jpg", "key": "000"}'),
    ("000.txt", b"a caption"),
    ("001.png", b"two"),
    ("001.json", b'{"labels": [3, 5]}'),
    ("002.webp", b"three"),
    ("002.cls", b"7"),
]
CONTENT = tar_bytes(MEMBERS)


def task_for(tmp_path: Path, content: bytes = CONTENT, *, with_keys: bool = True) -> ScanTask:
    path = tmp_path / "00000.tar"
    path.write_bytes(content)
    return ScanTask(str(path), str(tmp_path / "records"), with_keys)


def test_a_scan_tells_what_a_manifest_needs(tmp_path: Path) -> None:
    task = task_for(tmp_path)
    record = scan_one(task).record
    assert (record.uri, record.bytes, record.count, record.labeled) == (task.uri, len(CONTENT), 3, 2)
    assert record.sha256 == hashlib.sha256(CONTENT).hexdigest()
    digests = sorted(key_digest(key) for key in ("000", "001", "002"))
    assert Path(record.keys_uri).read_bytes() == b"".join(digests)
    for byte in range(256):
        inside = digests[record.key_starts[byte] : record.key_starts[byte + 1]]
        assert inside == [digest for digest in digests if digest[0] == byte]
    assert Path(task.uri).read_bytes() == CONTENT


def test_a_record_is_used_again_only_for_the_same_shard(tmp_path: Path) -> None:
    task = task_for(tmp_path)
    first = scan_one(task)
    assert (first.reused, scan_one(task).reused) == (False, True)
    assert scan_one(task).record == first.record
    Path(first.record.keys_uri).write_bytes(b"cut")
    assert not scan_one(task).reused
    Path(record_uri(task.records_uri, task.uri)).write_bytes(b"{")
    assert not scan_one(task).reused
    Path(task.uri).write_bytes(CONTENT.replace(b"three", b"other"))
    os.utime(task.uri, ns=(1, 2))
    again = scan_one(task)
    assert not again.reused
    assert again.record.sha256 != first.record.sha256


def test_keys_are_left_only_where_they_are_wanted(tmp_path: Path) -> None:
    without = task_for(tmp_path, with_keys=False)
    record = scan_one(without).record
    assert (record.keys_uri, record.key_starts) == ("", ())
    assert scan_one(without).reused
    wanted = ScanTask(without.uri, without.records_uri, with_keys=True)
    assert not scan_one(wanted).reused
    assert scan_one(without).reused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable tar"),
        (b"<html>no such object</html>" * 50, "not a readable tar"),
        (CONTENT[:700], "cut inside|not a readable tar|end mark"),
        (CONTENT[: 2 * 512], "no end mark of a tar: cut off, or still being written"),
        (tar_bytes([*MEMBERS, ("000.jpg", b"again")]), "'000' comes twice"),
    ],
)
def test_what_training_could_not_read_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    task = task_for(tmp_path, content)
    with pytest.raises(CorruptShard, match=rf"{task.uri}: .*({message})"):
        scan_one(task)
    assert not (tmp_path / "records").exists()


def test_samples_that_cannot_be_used_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    content = tar_bytes([("a.jpg", b"x"), ("b.json", b"{}"), ("b.txt", b"x"), ("c.jpg", b"x"), ("c.cls", b"cat")])
    record = scan_one(task_for(tmp_path, content)).record
    assert (record.count, record.unusable) == (3, 2)
    assert record.first_unusable == "'b': 0 image members, expected 1"
    assert scan_one(task_for(tmp_path)).record.first_unusable == ""


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    task = task_for(tmp_path)
    Path(task.uri).unlink()
    with pytest.raises(NotFound, match=task.uri):
        scan_one(task)
