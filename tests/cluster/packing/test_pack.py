"""Packing: every image lands in a shard once, bytes unchanged, and equal runs give equal bytes."""

import hashlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from cibhash.errors import AlreadyExists, DataError, NotFound
from cibhash.types import Sample
from cluster.datasets import open_dataset, shard_samples
from cluster.manifests import load_manifest
from cluster.packing.pack import CLASSES_FILE, MISSING_FILE, pack
from cluster.packing.split_identity import SplitManifest
from cluster.packing_config import PackConfig
from tests.benchmark_folders import touch_images, write_lists
from tests.cifar10_batches import batches, write_python_batches

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


def test_the_bytes_do_not_depend_on_how_many_tasks_run_at_once(
    ray_local: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"bytes_per_shard": "20.48kB", "splits": "query=0.2,database=0.8"}
    many = pack(config(folder, tmp_path / "many", **fields))
    monkeypatch.setattr("cluster.in_flight.default_limit", lambda: 1)
    pack(config(folder, tmp_path / "one", **fields))
    assert tree(tmp_path / "many") == tree(tmp_path / "one")
    sizes = [path.stat().st_size for path in (tmp_path / "one").rglob("*.tar")]
    assert len(sizes) == 4
    assert max(sizes) <= 20_480
    assert many.datasets["database"].shards == 3
    keys = {sample.key for dataset in many.datasets.values() for sample in samples_of(dataset.uri)}
    assert len(keys) == 30


def test_the_split_is_named_with_its_checksum(ray_local: None, folder: Path, tmp_path: Path) -> None:
    result = pack(config(folder, tmp_path / "out", splits="query=0.2,database=0.8", seed=3))
    split = load_manifest(SplitManifest, str(tmp_path / "out"))
    assert (split.name, split.seed) == ("query=0.2,database=0.8", 3)
    assert (result.split.name, result.split.seed, result.split.sha256) == (split.name, split.seed, split.sha256)
    assert (result.split.published, result.split.parts) == (None, split.parts)
    lines = sorted(
        f"{sample.key}\t{sample.labels[0]}\n".encode() for sample in samples_of(result.datasets["query"].uri)
    )
    assert split.parts["query"].sha256 == hashlib.sha256(b"".join(lines)).hexdigest()
    assert split.parts["query"].count == 6


def test_cifar10_batches_become_png_shards(ray_local: None, tmp_path: Path) -> None:
    made = batches()
    data = write_python_batches(tmp_path / "data", made)
    result = pack(config("cifar10", tmp_path / "out", data=str(data), protocol="mecoq_i"))
    assert {name: dataset.samples for name, dataset in result.datasets.items()} == {
        "database": 125,
        "query": 25,
        "train": 125,
    }
    test = {sample.key: sample for sample in samples_of(result.datasets["query"].uri)}
    counts = dict.fromkeys(range(10), 0)
    for label, pixels in zip(made[5].labels, made[5].pixels, strict=True):
        sample = test[f"test-{result.classes[label]}-{counts[label]:04d}"]
        counts[label] += 1
        image = Image.open(io.BytesIO(sample.image))
        assert image.format == "PNG"
        assert bytes(pixels) == b"".join(channel.tobytes() for channel in image.split())
        assert sample.labels == (label,)
    assert (result.split.name, result.split.published) == ("cifar10/mecoq_i", False)
    assert len(result.warnings) == 7
    assert "not the published split cifar10/mecoq_i: database, query, train hold other images" in result.warnings[-1]


def test_missing_and_dead_images_are_left_out_and_counted(ray_local: None, tmp_path: Path) -> None:
    names = [f"{number}_5_m.jpg" for number in range(40)]
    data = touch_images(tmp_path / "data", names, real=True)
    database = {name: (n % 21, 20) for n, name in enumerate(names[:30])}
    train = {name: database[name] for name in names[:9]}
    write_lists(data, {"database": database, "test": dict.fromkeys(names[30:], (1,)), "train": train}, 21)
    (data / names[0]).write_bytes(b"<html>This photo is no longer available</html>")
    (data / names[4]).write_bytes(b"")
    (data / names[35]).unlink()
    fields = {"data": str(data), "samples_per_shard": 7}
    result = pack(config("nuswide", tmp_path / "out", **fields, max_missing=0.08))
    assert result.missing == 3
    listed = (tmp_path / "out" / MISSING_FILE).read_text().splitlines()
    assert sorted(line.rpartition("/")[2] for line in listed) == [names[0], names[35], names[4]]
    assert {name: dataset.samples for name, dataset in result.datasets.items()} == {
        "database": 28,
        "query": 9,
        "train": 7,
    }
    assert {name: part.count for name, part in result.split.parts.items()} == {"database": 28, "query": 9, "train": 7}
    samples = samples_of(result.datasets["database"].uri)
    assert [sample.id for sample in samples] == list(range(28))
    assert {sample.key: sample.labels for sample in samples}["29_5_m"] == (8, 20)
    assert pack(config("nuswide", tmp_path / "out", **fields, max_missing=0.08)) == result
    with pytest.raises(DataError, match=r"3 of 40 images are missing or no images, the limit is 5\.00%"):
        pack(config("nuswide", tmp_path / "refused", **fields, max_missing=0.05))
    with pytest.raises(NotFound):
        open_dataset(str(tmp_path / "refused/database"))
