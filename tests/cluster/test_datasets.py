"""Datasets by URI: samples with stable ids, and shards that are checked against the manifest."""

from pathlib import Path

import pytest

from cibhash.errors import CorruptShard, DataError, NotFound
from cibhash.types import TarShard
from cluster import storage
from cluster.datasets import check_shards, located, open_dataset, shard_samples, verify_shard
from cluster.manifests import DatasetManifest, create_manifest
from tests.datasets import make_dataset, shape_dataset, shape_sources
from tests.s3 import s3_bucket

__all__ = ["s3_bucket"]


def test_samples_of_all_shards_count_up(tmp_path: Path) -> None:
    uri = shape_dataset(tmp_path, [2, 0, 3])
    manifest = open_dataset(uri)
    samples = [s for shard in manifest.shards for s in shard_samples(uri, shard)]
    assert [s.id for s in samples] == list(range(5))
    assert [(s.key, s.image) for s in samples] == [(s.key, s.image) for s in shape_sources(5)]
    for shard in manifest.shards:
        verify_shard(uri, shard)


def test_a_dataset_is_read_from_s3_as_from_a_folder(tmp_path: Path, s3_bucket: str) -> None:
    local, remote = shape_dataset(tmp_path, [3]), shape_dataset(f"{s3_bucket}/data", [3])
    assert open_dataset(local) == open_dataset(remote)
    (shard,) = open_dataset(remote).shards
    verify_shard(remote, shard)
    assert list(shard_samples(remote, shard)) == list(shard_samples(local, shard))


def test_a_dataset_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape_dataset(tmp_path / "before", [3])
    (tmp_path / "before").rename(tmp_path / "after")
    monkeypatch.chdir(tmp_path)
    (shard,) = open_dataset("after").shards
    assert len(list(shard_samples("after", shard))) == 3
    assert located("after", shard).uri == str(tmp_path / "after/shard-000000.tar")
    elsewhere = TarShard("s3://bucket/x.tar", 1, "", 1, 0)
    assert located("after", elsewhere) == elsewhere


def test_missing_and_empty_datasets(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nowhere: not a complete dataset"):
        open_dataset(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no samples"):
        open_dataset(make_dataset(tmp_path / "empty", [[], []]))
    create_manifest(str(tmp_path / "none"), DatasetManifest(name="n", split="all", shards=()))
    with pytest.raises(DataError, match="no samples"):
        open_dataset(str(tmp_path / "none"))


def test_shards_that_are_not_those_of_the_manifest_are_named(tmp_path: Path) -> None:
    uri = shape_dataset(tmp_path, [3, 2])
    shard, path = open_dataset(uri).shards[1], tmp_path / "shard-000001.tar"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[600] ^= 4
    for damage, named in ((content[:-512], "bytes"), (bytes(flipped), "sha256"), (b"", "bytes"), (None, "missing")):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        with pytest.raises(CorruptShard, match=rf"{path}.*{named}") as caught:
            verify_shard(uri, shard)
        assert caught.value.exit_code == 3
        if named != "sha256":
            with pytest.raises(CorruptShard, match=rf"{path}: .*{named}"):
                check_shards(uri, open_dataset(uri).shards)
        with pytest.raises(CorruptShard, match=str(path)):
            list(shard_samples(uri, shard))


def test_the_first_bytes_of_every_shard_are_looked_at(tmp_path: Path) -> None:
    """As long as the manifest says, and something else."""
    uri = shape_dataset(tmp_path, [3, 2, 4])
    shards = open_dataset(uri).shards
    check_shards(uri, shards)
    for number, start in ((1, b"\x89PNG"), (2, b"<!doctype html>")):
        path = tmp_path / f"shard-00000{number}.tar"
        path.write_bytes(start + path.read_bytes()[len(start) :])
    with pytest.raises(
        CorruptShard, match=r"shard-000001.tar: not a tar: it is a PNG image \(and 1 more of 3 shards\)"
    ):
        check_shards(uri, shards)


def test_a_shard_listed_by_a_refused_scheme_is_never_opened(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    shard = TarShard(f"pipe:touch {target}", 1, "", 1, 0)
    with pytest.raises(Exception):  # noqa: B017
        list(shard_samples(str(tmp_path), shard))
    assert not target.exists()
    assert not storage.exists(str(target))
