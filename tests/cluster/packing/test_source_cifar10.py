"""CIFAR-10: the same keys, labels and pixels from every form, and the protocols' splits with their checksums."""

import hashlib
import io
import os
import pickle
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cibhash.errors import ConfigError, DataError, NotFound
from cluster import storage
from cluster.packing import cifar10_files
from cluster.packing.cifar10_files import CLASSES, DATABASE_SHARDS, QUERY_SHARDS, Cifar10, read_cifar10
from cluster.packing.source_cifar10 import PUBLISHED, cifar10, deal
from cluster.packing.source_items import Source, SourceItem, read_image
from cluster.packing.split_identity import differing, identify
from cluster.packing_config import PackConfig
from tests.cifar10_batches import (
    Batch,
    archived,
    batches,
    python3_pickle,
    write_binary_batches,
    write_python_batches,
    write_shards,
)
from tests.s3 import s3_bucket

__all__ = ["s3_bucket"]


def opened(data: object, **fields: object) -> Source:
    return cifar10(PackConfig.model_validate({"source": "cifar10", "output": "unused", "data": str(data), **fields}))


def python_archive(folder: Path, made: list[Batch]) -> Path:
    return archived(write_python_batches(folder, made), "cifar-10-python.tar.gz")


def binary_archive(folder: Path, made: list[Batch]) -> Path:
    return archived(write_binary_batches(folder, made), "cifar-10-binary.tar.gz")


def resaved(folder: Path, made: list[Batch]) -> Path:
    write_python_batches(folder, made)
    for number, batch in enumerate(made[:5]):
        path = folder / "cifar-10-batches-py" / f"data_batch_{number + 1}"
        path.write_bytes(python3_pickle(batch, number + 1))
    return folder


FORMS: dict[str, Callable[[Path, list[Batch]], Path]] = {
    "python": write_python_batches,
    "python, the folder itself": lambda folder, made: write_python_batches(folder, made) / "cifar-10-batches-py",
    "python, saved anew": resaved,
    "python, archive": python_archive,
    "archive by name": lambda folder, made: python_archive(folder, made) / "cifar-10-python.tar.gz",
    "binary": write_binary_batches,
    "binary, archive": binary_archive,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(tmp_path: Path, form: str) -> None:
    made = batches()
    images = read_cifar10(str(FORMS[form](tmp_path / "data", made)))
    assert images.in_batch_order
    assert [len(images.train), len(images.test)] == [125, 25]
    for kind, items, of in (("train", images.train, made[:5]), ("test", images.test, made[5:])):
        labels = [label for batch in of for label in batch.labels]
        pixels = np.concatenate([batch.pixels for batch in of])
        counts: Counter[int] = Counter()
        for item, label, expected in zip(items, labels, pixels, strict=True):
            assert item.key == f"{kind}-{CLASSES[label]}-{counts[label]:04d}"
            assert item.labels == (label,)
            counts[label] += 1
            image = Image.open(io.BytesIO(read_image(item)))
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))
            assert np.asarray(image).transpose(2, 0, 1).tobytes() == expected.tobytes()
    assert len({item.key for item in (*images.train, *images.test)}) == 150
    assert read_image(images.test[3]) == read_image(images.test[3])


def test_files_unlike_the_published_ones_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = batches()
    python = read_cifar10(str(write_python_batches(tmp_path / "python", made)))
    assert len(python.warnings) == 6
    assert re.fullmatch(
        rf"{tmp_path}/python/cifar-10-batches-py/data_batch_1: not the published file, MD5 [0-9a-f]{{32}}, "
        "expected c99cafc152244af753f735de768cd75f",
        python.warnings[0],
    )
    assert len(read_cifar10(str(binary_archive(tmp_path / "archive", made))).warnings) == 1
    assert read_cifar10(str(write_binary_batches(tmp_path / "binary", made))).warnings == ()
    form, other = cifar10_files._FORMS
    content = [path.read_bytes() for path in sorted((tmp_path / "python/cifar-10-batches-py").iterdir())[1:]]
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in zip(form.batches, content, strict=True)}
    monkeypatch.setattr(cifar10_files, "_FORMS", (replace(form, batches=md5), other))
    assert read_cifar10(str(tmp_path / "python")).warnings == ()


def test_the_digests_are_those_that_torchvision_knows() -> None:
    from torchvision.datasets import CIFAR10

    form, other = cifar10_files._FORMS
    assert list(form.batches.items()) == [tuple(pair) for pair in (*CIFAR10.train_list, *CIFAR10.test_list)]
    assert (form.folder, form.archive, form.archive_md5) == (CIFAR10.base_folder, CIFAR10.filename, CIFAR10.tgz_md5)
    assert len(other.archive_md5) == 32


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_a_pickle_bomb_in_place_of_a_batch_is_refused(tmp_path: Path) -> None:
    data, target = write_python_batches(tmp_path / "data", batches()), tmp_path / "executed"
    for protocol in range(6):
        content = {"labels": [1], "data": Bomb(str(target))}
        (data / "cifar-10-batches-py/data_batch_3").write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(DataError, match=r"data_batch_3: refers to posix\.mkdir, expected arrays"):
            opened(data)
    assert not target.exists()


def test_damaged_batches_are_named(tmp_path: Path) -> None:
    data = write_python_batches(tmp_path / "python", batches())
    path = data / "cifar-10-batches-py/test_batch"
    for content, message in (
        (b"<html>", "not a pickle of plain data"),
        (pickle.dumps([1]), "holds a list, expected a dict"),
        (pickle.dumps({"labels": [1], "pixels": 2}), "fields labels, pixels, expected"),
        (pickle.dumps({"labels": [1], "data": np.zeros((2, 3072), np.uint8)}), r"data is u1 \(2, 3072\)"),
        (pickle.dumps({"labels": [1], "data": np.zeros((1, 3072))}), r"data is f8 \(1, 3072\)"),
        (pickle.dumps({"labels": [10], "data": np.zeros((1, 3072), np.uint8)}), "image 0 has label 10"),
        (pickle.dumps({"labels": ["a"], "data": np.zeros((1, 3072), np.uint8)}), "image 0 has label 'a'"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{path}: {message}"):
            read_cifar10(str(data))
    path.unlink()
    with pytest.raises(NotFound, match=r"cifar-10-batches-py: test_batch is missing \(1 of 6\)"):
        read_cifar10(str(data))
    data = write_binary_batches(tmp_path / "binary", batches())
    (data / "cifar-10-batches-bin/data_batch_2.bin").write_bytes(bytes(3074))
    with pytest.raises(DataError, match=r"data_batch_2\.bin: 3074 bytes, expected a multiple of 3073"):
        read_cifar10(str(data))


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    data = python_archive(tmp_path, batches())
    archive = data / "cifar-10-python.tar.gz"
    content = archive.read_bytes()
    for damaged in (content[: len(content) // 2], b"<html>no such page</html>", b""):
        archive.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{archive}: (not a readable archive|.* is missing)"):
            read_cifar10(str(data))


def test_where_nothing_is_the_forms_are_listed(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no CIFAR-10 there, expected cifar-10-batches-py or .* \(or --download\)"):
        opened(tmp_path)
    with pytest.raises(NotFound, match="no CIFAR-10 there"):
        opened(tmp_path, download=True, dry_run=True)
    with pytest.raises(ConfigError, match="cifar10 needs data"):
        opened("")
    with pytest.raises(ConfigError, match=r"protocol 'paper' of cifar10: expected cibhash, official_seed0, mecoq_i"):
        opened(tmp_path, protocol="paper")


def test_tar_shards_and_their_protocol(tmp_path: Path) -> None:
    source = opened(write_shards(tmp_path))
    assert Counter(item.split for item in source.items) == {"database": 20, "query": 4, "train": 2}
    assert {item.key for item in source.items if item.split == "train"} == {
        "cifar10-database-000000-0",
        "cifar10-database-000000-1",
    }
    for item in source.items:
        assert read_image(item) == f"jpeg of {item.key}".encode()
        assert item.labels == (int(item.key[-1]),)
    assert source.classes[3] == "cat"


def test_tar_shard_errors_name_folder_and_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, broken=QUERY_SHARDS[1])
    with pytest.raises(DataError, match="expected both"):
        opened(tmp_path)
    (tmp_path / DATABASE_SHARDS[4]).unlink()
    with pytest.raises(NotFound, match=rf"{tmp_path}: cifar10-database-000004.tar is missing \(1 of 12\)"):
        opened(tmp_path)


@pytest.fixture(scope="module")
def whole() -> Cifar10:
    """As many images per class as there really are, in a random order, without pixels."""
    parts = []
    for kind, per_class in (("train", 5000), ("test", 1000)):
        counts: Counter[int] = Counter()
        items = []
        for label in np.random.default_rng(5).permutation(np.arange(10 * per_class) % 10).tolist():
            key = f"{kind}-{CLASSES[label]}-{counts[label]:04d}"
            items.append(SourceItem(key, "png", (label,), "", kind, len(items)))
            counts[label] += 1
        parts.append(tuple(items))
    return Cifar10(*parts, in_batch_order=True)


def keys_of(items: list[SourceItem]) -> dict[str, list[str]]:
    return {split: [i.key for i in items if i.split == split] for split in {item.split for item in items}}


@pytest.mark.parametrize(
    ("protocol", "sizes"),
    [
        ("cibhash", {"query": 10_000, "database": 50_000, "train": 5000}),
        ("mecoq_i", {"query": 10_000, "database": 50_000, "train": 50_000}),
        ("official_seed0", {"query": 5000, "validation": 5000, "database": 50_000, "train": 5000}),
        ("deephash", {"query": 1000, "database": 59_000, "train": 5000}),
    ],
)
def test_protocols_have_the_published_sizes_and_checksums(whole: Cifar10, protocol: str, sizes: dict[str, int]) -> None:
    items = list(deal(whole, protocol, 0))
    keys = keys_of(items)
    assert {split: len(of) for split, of in keys.items()} == sizes
    assert set(keys["train"]) <= set(keys["database"])
    assert not set(keys["query"]) & set(keys["database"])
    if sizes["train"] == 5000:
        assert Counter(key.split("-")[1] for key in keys["train"]) == dict.fromkeys(CLASSES, 500)
    split = identify(protocol, None, items)
    assert differing(split, PUBLISHED.get(protocol, {})) == []
    changed = [replace(item, labels=(9,)) if item.key == keys["train"][0] else item for item in items]
    if protocol in PUBLISHED:
        assert differing(identify(protocol, None, changed), PUBLISHED[protocol]) == ["database", "train"]


def test_the_released_codes_split_is_reproduced(whole: Cifar10) -> None:
    """Against the released code's steps with NumPy's global generator, on arrays of positions and labels."""
    train_labels, test_labels = (np.array([item.labels[0] for item in items]) for items in (whole.train, whole.test))
    state = np.random.get_state()
    try:
        np.random.seed(0)
        chosen: list[int] = []
        for label in range(10):
            index = np.where(train_labels == label)[0]
            order = np.random.permutation(index.shape[0])
            chosen.extend(index[order][0:500].tolist())
        idxs = list(range(len(test_labels)))
        np.random.shuffle(idxs)
    finally:
        np.random.set_state(state)
    keys = keys_of(list(deal(whole, "official_seed0", 7)))
    assert keys["train"] == [whole.train[number].key for number in chosen]
    assert keys["validation"] == [whole.test[number].key for number in idxs[:5000]]
    assert keys["query"] == [whole.test[number].key for number in idxs[5000:]]


def test_only_the_seeded_protocol_depends_on_the_seed(whole: Cifar10) -> None:
    for protocol in ("cibhash", "mecoq_i", "official_seed0", "deephash"):
        same = identify("", None, deal(whole, protocol, 0)) == identify("", None, deal(whole, protocol, 1))
        assert same == (protocol != "deephash")


def test_protocols_that_the_files_cannot_give(tmp_path: Path, whole: Cifar10) -> None:
    shards = write_shards(tmp_path)
    with pytest.raises(ConfigError, match="official_seed0 shuffles the test images in the order of their batch"):
        opened(shards, protocol="official_seed0")
    with pytest.raises(DataError, match=r"class airplane: \d+ images, the protocol needs 600"):
        opened(shards, protocol="deephash")
    few = replace(whole, test=whole.test[:100])
    with pytest.raises(DataError, match="100 test images, expected more than 5000"):
        list(deal(few, "official_seed0", 0))


def test_s3_is_read_too(tmp_path: Path, s3_bucket: str) -> None:
    write_binary_batches(tmp_path, batches())
    for path in (tmp_path / "cifar-10-batches-bin").iterdir():
        storage.put_file(path, f"{s3_bucket}/c/cifar-10-batches-bin/{path.name}")
    assert [item.key for item in read_cifar10(f"{s3_bucket}/c").train] == [
        item.key for item in read_cifar10(str(tmp_path)).train
    ]
