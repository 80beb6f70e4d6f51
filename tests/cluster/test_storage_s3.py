"""S3 storage, against an emulator: the contract of local files. Says nothing of credentials and throttling."""

import os
from pathlib import Path
from typing import Any

import pytest

from cibhash.errors import AlreadyExists, NotFound, StorageError
from cluster import s3_client, storage
from cluster.listing import list_folder, list_uris, stat
from tests.cluster.test_storage import race
from tests.s3 import own_client, s3_bucket

__all__ = ["own_client", "s3_bucket"]


def test_what_is_written_is_read_back(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/prefix/a b ü.bin"
    storage.write_bytes(uri, b"one")
    assert storage.read_bytes(uri) == b"one"
    storage.write_bytes(uri, b"")
    assert storage.read_bytes(uri) == b""
    assert storage.exists(uri)
    assert not storage.exists(f"{s3_bucket}/prefix")


def test_create_only_and_swap_lose_to_another_writer(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/CURRENT"
    with pytest.raises(NotFound, match=uri):
        storage.swap_bytes(uri, b"v1", b"v2")
    storage.create_bytes(uri, b"v1")
    for action in (
        lambda: storage.create_bytes(uri, b"v2"),
        lambda: storage.swap_bytes(uri, None, b"v2"),
        lambda: storage.swap_bytes(uri, b"v0", b"v2"),
    ):
        with pytest.raises(AlreadyExists, match=uri):
            action()
    assert storage.read_bytes(uri) == b"v1"
    storage.swap_bytes(uri, b"v1", b"v2")
    assert storage.read_bytes(uri) == b"v2"


def test_one_of_many_creators_and_swappers_wins(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/manifest.json"
    (first,) = race(lambda n: storage.create_bytes(uri, b"v%d" % n))
    assert storage.read_bytes(uri) == b"v%d" % first
    (second,) = race(lambda n: storage.swap_bytes(uri, b"v%d" % first, b"w%d" % n))
    assert storage.read_bytes(uri) == b"w%d" % second


def test_a_removed_object_is_gone_and_a_missing_one_needs_no_removing(s3_bucket: str) -> None:
    for name in ("a", "ab", "a/b"):
        storage.write_bytes(f"{s3_bucket}/{name}", b"x")
    for _ in range(2):
        storage.remove(f"{s3_bucket}/a")
        assert [storage.exists(f"{s3_bucket}/{name}") for name in ("a", "ab", "a/b")] == [False, True, True]
    with pytest.raises(NotFound, match="s3://no-such-bucket/a"):
        storage.remove("s3://no-such-bucket/a")


def test_a_prefix_is_listed_as_a_folder_is(s3_bucket: str) -> None:
    for name in ("b.tar", "a/c.tar", "a/deeper/d.tar", "ab/e.tar", *(f"many/{n:04d}" for n in range(1005))):
        storage.write_bytes(f"{s3_bucket}/{name}", b"x")
    assert list_folder(s3_bucket) == ["a/", "ab/", "b.tar", "many/"]
    assert list_folder(f"{s3_bucket}/a") == list_folder(f"{s3_bucket}/a/") == ["c.tar", "deeper/"]
    assert len(list_folder(f"{s3_bucket}/many")) == 1005
    for gone in (f"{s3_bucket}/gone", f"{s3_bucket}/b.tar", "s3://no-such-bucket-here"):
        with pytest.raises(NotFound, match=gone):
            list_folder(gone)


def test_missing_objects_and_buckets_are_not_found(s3_bucket: str, tmp_path: Path) -> None:
    for uri, what in ((f"{s3_bucket}/nothing", "object"), ("s3://no-such-bucket/a", "bucket")):
        assert not storage.exists(uri)
        for action in (
            storage.read_bytes,
            storage.sha256_of,
            lambda u: storage.read_range(u, 0, 1),
            lambda u: storage.get_file(u, tmp_path / "copy"),
        ):
            with pytest.raises(NotFound, match=rf"{uri}.*{what}"):
                action(uri)
    for action in (
        lambda u: storage.write_bytes(u, b"x"),
        lambda u: storage.create_bytes(u, b"x"),
        lambda u: storage.put_file(Path(__file__), u),
    ):
        with pytest.raises(StorageError, match="s3://no-such-bucket/a"):
            action("s3://no-such-bucket/a")


def test_ranges_are_exact(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/a"
    storage.write_bytes(uri, bytes(range(100)))
    assert storage.read_range(uri, 10, 5) == bytes(range(10, 15))
    assert storage.read_range(uri, 0, 100) == bytes(range(100))
    for offset, size in ((99, 2), (5000, 10)):
        with pytest.raises(StorageError, match=uri):
            storage.read_range(uri, offset, size)


def test_large_files_are_copied_both_ways(s3_bucket: str, tmp_path: Path) -> None:
    """Above the size from which the SDK uploads in parts."""
    import hashlib

    content = os.urandom(9 * 2**20)
    (tmp_path / "source").write_bytes(content)
    uri = f"{s3_bucket}/folder/copy"
    storage.put_file(tmp_path / "source", uri)
    storage.get_file(uri, tmp_path / "back/again")
    assert (tmp_path / "back/again").read_bytes() == content
    assert storage.sha256_of(uri) == (hashlib.sha256(content).hexdigest(), len(content))
    with storage.open_stream(uri) as stream:
        assert stream.read(1000) == content[:1000]
        assert stream.read(1000) == content[1000:2000]


def test_an_endpoint_that_does_not_answer_is_a_storage_error(
    s3_bucket: str, own_client: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)
    s3_client.forget_client()
    uri = f"{s3_bucket}/a"
    with pytest.raises(StorageError, match=uri) as caught:
        storage.read_bytes(uri)
    assert caught.value.exit_code == 4
    assert not isinstance(caught.value, NotFound)


def test_objects_below_a_prefix_are_listed_page_by_page(s3_bucket: str, own_client: None) -> None:
    client: Any = s3_client.client()
    client.meta.events.register("before-parameter-build.s3.ListObjectsV2", lambda params, **_: params.update(MaxKeys=2))
    names = [f"data/{number:04d}.tar" for number in range(5)]
    for name in (*names, "data/.adopt/x.json", "data-2/y.tar", "data/deep/z.tar"):
        client.put_object(Bucket=s3_bucket[5:], Key=name, Body=b"")
    expected = [f"{s3_bucket}/{name}" for name in (*names, "data/deep/z.tar")]
    assert list(list_uris(f"{s3_bucket}/data")) == expected
    assert list(list_uris(f"{s3_bucket}/data/")) == expected
    assert len(list(list_uris(s3_bucket))) == len(expected) + 1
    assert list(list_uris(f"{s3_bucket}/nothing")) == []
    with pytest.raises(NotFound, match="no-such-bucket"):
        list(list_uris("s3://no-such-bucket/a"))


def test_stat_tells_size_and_change(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/a"
    storage.write_bytes(uri, b"12345")
    first = stat(uri)
    assert (first, first.bytes) == (stat(uri), 5)
    storage.write_bytes(uri, b"54321")
    assert stat(uri).version != first.version
    with pytest.raises(NotFound, match=f"{s3_bucket}/b"):
        stat(f"{s3_bucket}/b")
