"""Local storage: whole files or none, one winner per race, and refusals that name the location."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from cibhash.errors import AlreadyExists, ConfigError, NotFound, StorageError
from cluster import storage
from tests.patience import HANG_S

WRITERS = 16
REFUSED = ["pipe:cat /etc/passwd", "http://host/a", "https://host/a", "file:///etc/passwd", "s3:", "s3://", "s3:///key"]
REFUSED += ["S3://bucket/key", "gs://bucket/key", ""]


def race(action: "object") -> list[int]:
    """Runs `action(n)` in 16 threads at once; the numbers of those that did not lose."""
    barrier = Barrier(WRITERS)

    def attempt(number: int) -> bool:
        barrier.wait()
        try:
            action(number)  # type: ignore[operator]
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(WRITERS) as threads:
        return [n for n, won in enumerate(threads.map(attempt, range(WRITERS))) if won]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    uri = str(tmp_path / "new/folder/a b ü.bin")
    storage.write_bytes(uri, b"one")
    assert storage.read_bytes(uri) == b"one"
    storage.write_bytes(uri, b"")
    assert storage.read_bytes(uri) == b""
    assert storage.exists(uri)
    assert not storage.exists(str(tmp_path / "new"))
    assert os.listdir(tmp_path / "new/folder") == ["a b ü.bin"]
    assert os.stat(uri).st_mode & 0o777 == 0o644


def test_create_only_keeps_the_first(tmp_path: Path) -> None:
    uri = str(tmp_path / "a")
    storage.create_bytes(uri, b"first")
    with pytest.raises(AlreadyExists, match=uri) as caught:
        storage.create_bytes(uri, b"second")
    assert caught.value.exit_code == 4
    assert storage.read_bytes(uri) == b"first"
    assert os.listdir(tmp_path) == ["a"]


def test_one_of_many_creators_wins(tmp_path: Path) -> None:
    uri = str(tmp_path / "folder/manifest.json")
    (winner,) = race(lambda n: storage.create_bytes(uri, b"%d" % n * 10_000))
    assert storage.read_bytes(uri) == b"%d" % winner * 10_000
    assert os.listdir(tmp_path / "folder") == ["manifest.json"]


def test_one_of_many_swappers_wins(tmp_path: Path) -> None:
    uri = str(tmp_path / "CURRENT")
    (first,) = race(lambda n: storage.swap_bytes(uri, None, b"v%d" % n))
    expected = storage.read_bytes(uri)
    assert expected == b"v%d" % first
    (second,) = race(lambda n: storage.swap_bytes(uri, expected, b"w%d" % n))
    assert storage.read_bytes(uri) == b"w%d" % second


def test_swap_needs_what_was_expected(tmp_path: Path) -> None:
    uri = str(tmp_path / "CURRENT")
    with pytest.raises(NotFound, match=uri):
        storage.swap_bytes(uri, b"v1", b"v2")
    storage.swap_bytes(uri, None, b"v1")
    for expected in (None, b"v0"):
        with pytest.raises(AlreadyExists, match=uri):
            storage.swap_bytes(uri, expected, b"v2")
    storage.swap_bytes(uri, b"v1", b"v2")
    assert storage.read_bytes(uri) == b"v2"


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    uri = str(tmp_path / "a")
    contents = [bytes([n]) * 2_000_000 for n in range(4)]
    storage.write_bytes(uri, contents[0])
    with ThreadPoolExecutor(2) as threads:
        writes = [threads.submit(storage.write_bytes, uri, content) for content in contents * 3]
        while not all(write.done() for write in writes):
            assert storage.read_bytes(uri) in contents


@pytest.mark.parametrize("uri", REFUSED)
def test_other_schemes_are_refused_before_any_attempt(uri: str, tmp_path: Path) -> None:
    actions = (
        storage.is_s3,
        storage.read_bytes,
        storage.exists,
        storage.absolute,
        storage.sha256_of,
        lambda u: storage.write_bytes(u, b"x"),
        lambda u: storage.create_bytes(u, b"x"),
        lambda u: storage.swap_bytes(u, b"x", b"y"),
        lambda u: storage.read_range(u, 0, 1),
        lambda u: storage.put_file(Path(__file__), u),
        lambda u: storage.get_file(u, tmp_path / "x"),
        storage.remove,
    )
    for action in actions:
        with pytest.raises(ConfigError) as caught:
            action(uri)
        assert caught.value.exit_code == 2
    assert not (tmp_path / "x").exists()


def test_a_bucket_without_an_object_is_refused() -> None:
    for action in (storage.read_bytes, storage.exists, lambda u: storage.write_bytes(u, b"")):
        with pytest.raises(ConfigError, match="s3://bucket"):
            action("s3://bucket")


def test_missing_files_are_not_found(tmp_path: Path) -> None:
    uri = str(tmp_path / "nothing/here")
    assert not storage.exists(uri)
    for action in (
        storage.read_bytes,
        storage.sha256_of,
        lambda u: storage.read_range(u, 0, 1),
        lambda u: storage.get_file(u, tmp_path / "copy"),
    ):
        with pytest.raises(NotFound, match=uri):
            action(uri)
    assert not (tmp_path / "copy").exists()


def test_what_cannot_be_read_or_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for action in (
        lambda: storage.read_bytes(str(tmp_path)),
        lambda: storage.write_bytes(str(tmp_path / "file/below"), b"x"),
        lambda: storage.create_bytes(str(tmp_path / "file/below"), b"x"),
        lambda: storage.write_bytes("/dev/null/below", b"x"),
    ):
        with pytest.raises(StorageError) as caught:
            action()
        assert "\n" not in str(caught.value)


def test_ranges_are_exact(tmp_path: Path) -> None:
    uri = str(tmp_path / "a")
    storage.write_bytes(uri, bytes(range(100)))
    assert storage.read_range(uri, 10, 5) == bytes(range(10, 15))
    assert storage.read_range(uri, 99, 1) == b"\x63"
    assert storage.read_range(uri, 0, 100) == bytes(range(100))
    for offset, size in ((99, 2), (100, 1), (5000, 10)):
        with pytest.raises(StorageError, match=rf"{uri}.*{size} bytes at offset {offset}"):
            storage.read_range(uri, offset, size)


def test_files_are_copied_both_ways_with_their_digest(tmp_path: Path) -> None:
    import hashlib

    content = os.urandom(3_000_000)
    (tmp_path / "source").write_bytes(content)
    uri = str(tmp_path / "new/folder/copy")
    storage.put_file(tmp_path / "source", uri)
    storage.get_file(uri, tmp_path / "back/again")
    assert (tmp_path / "back/again").read_bytes() == content
    assert storage.sha256_of(uri) == (hashlib.sha256(content).hexdigest(), len(content))
    assert os.listdir(tmp_path / "new/folder") == ["copy"]


def test_a_removed_file_is_gone_and_so_is_the_folder_that_it_leaves_empty(tmp_path: Path) -> None:
    uris = [str(tmp_path / "kept/folder" / name) for name in ("a", "b")]
    for uri in uris:
        storage.write_bytes(uri, b"x")
    storage.write_bytes(str(tmp_path / "kept/c"), b"y")
    storage.remove(uris[0])
    assert os.listdir(tmp_path / "kept/folder") == ["b"]
    storage.remove(uris[1])
    assert os.listdir(tmp_path / "kept") == ["c"]
    for missing in (uris[0], uris[1], str(tmp_path / "kept/nothing")):
        storage.remove(missing)
    assert os.listdir(tmp_path / "kept") == ["c"]


def test_only_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(StorageError, match="folder") as caught:
        storage.remove(str(tmp_path / "folder"))
    assert not isinstance(caught.value, NotFound)
    storage.remove(str(tmp_path / "link"))
    assert sorted(os.listdir(tmp_path)) == ["folder", "target"]
    with pytest.raises(StorageError, match="target/below"):
        storage.remove(str(tmp_path / "target/below"))


def test_join_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.join("a", "b", "c.json") == "a/b/c.json"
    assert storage.join("s3://bucket/prefix/", "b") == "s3://bucket/prefix/b"
    assert storage.join("a", "/abs/b") == "/abs/b"
    assert storage.join("a", "s3://bucket/b") == "s3://bucket/b"
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("x/../y/") == str(tmp_path / "y")
    assert storage.absolute("s3://bucket/prefix/") == "s3://bucket/prefix"


_FULL_DISK = """
import os, resource, sys
from pathlib import Path
from cibhash.errors import StorageError
from cluster import storage
folder = sys.argv[1]
storage.write_bytes(f"{folder}/kept", b"old")
Path(folder, "source").write_bytes(b"y" * 1_000_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for action in (
    lambda: storage.write_bytes(f"{folder}/kept", b"x" * 1_000_000),
    lambda: storage.create_bytes(f"{folder}/new", b"x" * 1_000_000),
    lambda: storage.put_file(Path(folder, "source"), f"{folder}/copied"),
):
    try:
        action()
        sys.exit("written")
    except StorageError as error:
        print(error)
os.unlink(f"{folder}/source")
"""


def test_a_full_disk_is_told_with_the_free_space_and_leaves_no_half_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line, name in zip(lines, ("kept", "new", "copied"), strict=True):
        assert f"{tmp_path}/{name}: " in line
        assert "MiB free" in line
    assert os.listdir(tmp_path) == ["kept"]
    assert (tmp_path / "kept").read_bytes() == b"old"


def test_reading_into_a_full_device_is_a_storage_error(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a"), b"x" * 1_000_000)
    with pytest.raises(StorageError, match="/dev/full"):
        storage.get_file(str(tmp_path / "a"), Path("/dev/full"))
