"""Packing: every image lands in a shard once, bytes unchanged, and equal runs give equal bytes."""

import hashlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from cibhash.errors import AlreadyExists, NotFound
from cibhash.types import Sample
from cluster.datasets import open_dataset, shard_samples
from cluster.packing.pack import CLASSES_FILE, pack
from cluster.packing_config import PackConfig

pytestmark = pytest.mark.ray


def png(color: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (color, 255 - color, 7)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number in range(30):
        path = root / ("cat", "dog", "eel")[number % 3] / f"img.{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(number))
    return root


def config(source: object, output: Path, **fields: object) -> PackConfig:
    return PackConfig.model_validate({"source": str(source), "output": str(output), **fields})


def samples_of(uri: str) -> list[Sample]:
    return [sample for shard in open_dataset(uri).shards for sample in shard_samples(uri, shard)]


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_class_folders_round_trip_in_shuffled_shards(ray_local: None, folder: Path, tmp_path: Path) -> None:
    result = pack(config(folder, tmp_path / "out", samples_per_shard=8))
    assert (result.samples, result.left_out, result.classes) == (30, 0, ("cat", "dog", "eel"))
    packed = result.datasets["all"]
    assert (packed.samples, packed.shards, packed.uri) == (30, 4, str(tmp_path / "out" / "all"))
    manifest = open_dataset(packed.uri)
    assert manifest.digest == packed.digest
    assert [shard.uri for shard in manifest.shards] == [f"shard-00000{n}.tar" for n in range(4)]
    assert [shard.first_id for shard in manifest.shards] == [0, 8, 16, 24]
    samples = samples_of(packed.uri)
    assert [sample.id for sample in samples] == list(range(30))
    expected = {
        f"{('cat', 'dog', 'eel')[number % 3]}/img%2E{number}": (png(number), (number % 3,)) for number in range(30)
    }
    assert {sample.key: (sample.image, sample.labels) for sample in samples} == expected
    for start in range(0, 24, 8):
        assert len({sample.labels for sample in samples[start : start + 8]}) > 1, "classes are mixed in every shard"
    assert json.loads((tmp_path / "out" / CLASSES_FILE).read_text()) == {"0": "cat", "1": "dog", "2": "eel"}


def test_equal_input_gives_equal_bytes_and_reruns_change_nothing(ray_local: None, folder: Path, tmp_path: Path) -> None:
    fields = {"samples_per_shard": 10, "splits": "query=0.2,database=0.8"}
    first = pack(config(folder, tmp_path / "a", **fields))
    pack(config(folder, tmp_path / "b", **fields))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert {name: dataset.samples for name, dataset in first.datasets.items()} == {"database": 24, "query": 6}
    keys = [{sample.key for sample in samples_of(dataset.uri)} for dataset in first.datasets.values()]
    assert len(keys[0] | keys[1]) == 30

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.tar")}
    assert pack(config(folder, tmp_path / "a", **fields)) == first
    assert {path: path.stat().st_mtime_ns for path in times} == times

    before = tree(tmp_path / "a")
    with pytest.raises(AlreadyExists, match=first.datasets["database"].digest[:16]):
        pack(config(folder, tmp_path / "a", **fields, seed=1))
    assert tree(tmp_path / "a") == before


def test_a_missing_image_leaves_no_dataset(ray_local: None, tmp_path: Path) -> None:
    (tmp_path / "here.png").write_bytes(png(1))
    (tmp_path / "list.csv").write_text("path\nhere.png\ngone.png\n")
    with pytest.raises(NotFound, match=r"gone\.png: no such file"):
        pack(config(tmp_path / "list.csv", tmp_path / "out"))
    with pytest.raises(NotFound, match=r"dataset\.json is missing"):
        open_dataset(str(tmp_path / "out" / "all"))


def test_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    result = pack(config("digits", tmp_path / "out", samples_per_shard=500, dry_run=True))
    assert {name: (d.samples, d.shards) for name, d in result.datasets.items()} == {
        "database": (1497, 3),
        "query": (300, 1),
        "train": (1497, 3),
    }
    assert list(tmp_path.iterdir()) == []
