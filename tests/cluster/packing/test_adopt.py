"""Adopting: shards stay as they are and become a dataset that everything else can read."""

import json
import os
from pathlib import Path

import pytest

from cibhash.errors import AlreadyExists, CorruptShard, DataError
from cibhash.types import Sample
from cluster.datasets import open_dataset, shard_samples, verify_shard
from cluster.packing.adopt import RECORDS, AdoptResult, adopt
from cluster.packing_config import AdoptConfig
from tests.datasets import plain_image, png, tar_bytes

pytestmark = pytest.mark.ray
COUNTS = (3, 2, 4)


def img2dataset(root: Path) -> Path:
    """Shards as img2dataset writes them, with the files that it leaves beside them."""
    root.mkdir()
    for number, count in enumerate(COUNTS):
        members = []
        for position in range(count):
            key = f"{number:05d}{position:04d}"
            meta = {
                "caption": f"photo {key}",
                "url": f"http://x/{key}.jpg",
                "key": key,
                "width": 12,
            }
            members += [(f"{key}.jpg", png(plain_image(100 * number + position)))]
            members += [(f"{key}.json", json.dumps(meta, indent=4).encode()), (f"{key}.txt", b"photo")]
        (root / f"{number:05d}.tar").write_bytes(tar_bytes(members))
        (root / f"{number:05d}.parquet").write_bytes(b"not read")
        (root / f"{number:05d}_stats.json").write_text("{}")
    return root


def adopted(shards: object, **fields: object) -> AdoptResult:
    return adopt(AdoptConfig.model_validate({"tar_shards": str(shards), **fields}))


def samples_of(uri: str) -> list[Sample]:
    manifest = open_dataset(uri)
    for shard in manifest.shards:
        verify_shard(uri, shard)
    return [sample for shard in manifest.shards for sample in shard_samples(uri, shard)]


def state(root: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.glob("*.tar")}


def test_img2datasets_shards_become_a_dataset(ray_local: None, tmp_path: Path) -> None:
    root = img2dataset(tmp_path / "laion")
    before = state(root)
    planned = adopted(root, dry_run=True)
    assert (planned.shards, planned.digest) == (3, "")
    assert not (root / "dataset.json").exists()
    result = adopted(root)
    assert (result.output, result.name, result.split) == (str(root), "laion", "all")
    assert (result.samples, result.labeled, result.shards, result.shards_reused) == (9, 0, 3, 0)
    assert result.bytes == sum(len(content) for content, _ in before.values())
    assert result.ignored == {".json": 3, ".parquet": 3}
    assert state(root) == before
    assert not (root / RECORDS).exists()
    manifest = open_dataset(str(root))
    assert [(s.uri, s.count, s.first_id) for s in manifest.shards] == [
        ("00000.tar", 3, 0),
        ("00001.tar", 2, 3),
        ("00002.tar", 4, 5),
    ]
    samples = samples_of(str(root))
    assert [sample.id for sample in samples] == list(range(9))
    keys = [f"{number:05d}{position:04d}" for number, count in enumerate(COUNTS) for position in range(count)]
    assert [sample.key for sample in samples] == keys
    assert samples[4].image == png(plain_image(101))

    manifest_bytes = (root / "dataset.json").read_bytes()
    again = adopted(root)
    assert (again.digest, again.samples, again.labeled) == (result.digest, 9, None)
    for fields in ({"split": "query"}, {"name": "other"}):
        with pytest.raises(AlreadyExists, match=r"holds another dataset: laion \(all\), asked for"):
            adopted(root, **fields)
    (root / "00003.tar").write_bytes(tar_bytes([("x.jpg", b"x")]))
    with pytest.raises(AlreadyExists, match=r"00003\.tar has 10240 bytes, listed not"):
        adopted(root)
    assert (root / "dataset.json").read_bytes() == manifest_bytes


def test_a_dataset_elsewhere_lists_absolute_uris(ray_local: None, tmp_path: Path) -> None:
    root = img2dataset(tmp_path / "laion")
    result = adopted(
        root / "{00001..00002}.tar", output=tmp_path.joinpath("own").as_posix(), name="some", split="train"
    )
    assert (result.name, result.split, result.samples, result.ignored) == ("some", "train", 6, {})
    uri = str(tmp_path / "own")
    assert [shard.uri for shard in open_dataset(uri).shards] == [str(root / f"0000{n}.tar") for n in (1, 2)]
    assert [sample.id for sample in samples_of(uri)] == list(range(6))
    assert sorted(os.listdir(tmp_path / "own")) == ["dataset.json"]


def test_a_rerun_scans_only_what_is_left(ray_local: None, tmp_path: Path) -> None:
    root = img2dataset(tmp_path / "laion")
    whole = (root / "00002.tar").read_bytes()
    (root / "00002.tar").write_bytes(whole[: len(whole) // 2 // 512 * 512])
    with pytest.raises(CorruptShard, match=r"00002\.tar: "):
        adopted(root)
    assert not (root / "dataset.json").exists()
    (root / "00002.tar").write_bytes(whole)
    result = adopted(root)
    assert (result.shards, result.shards_reused) == (3, 2)
    untouched = adopted(img2dataset(tmp_path / "other"), name="laion")
    assert result.digest == untouched.digest
    assert len(samples_of(str(root))) == 9


def test_a_key_in_two_shards_is_refused_or_allowed(ray_local: None, tmp_path: Path) -> None:
    root = img2dataset(tmp_path / "laion")
    (root / "00003.tar").write_bytes(tar_bytes([("z.jpg", b"1"), ("000000001.jpg", b"2"), ("000020000.jpg", b"3")]))
    message = r"2 keys come again in another shard; first: '000000001' in .*/00000\.tar and .*/00003\.tar \(--allow-dup"
    with pytest.raises(DataError, match=message):
        adopted(root)
    result = adopted(root, allow_duplicate_keys=True)
    assert (result.samples, result.shards_reused) == (12, 4)
    assert len(samples_of(str(root))) == 12


def test_shards_without_samples_are_no_dataset(ray_local: None, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([]))
    with pytest.raises(DataError, match="1 shards without any sample"):
        adopted(tmp_path)
