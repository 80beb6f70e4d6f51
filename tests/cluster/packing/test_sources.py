"""What a person has becomes items: folders, lists, benchmarks; keys and splits."""

import io
import json
import os
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cibhash.errors import ConfigError, DataError, NotFound
from cluster.packing.source_items import MAX_KEY_BYTES, Source, SourceItem, read_image, safe_key
from cluster.packing.sources import assign_splits, open_source
from cluster.packing_config import PackConfig


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"bytes of {name}".encode())
    return root


def opened(source: object, **fields: object) -> Source:
    return open_source(PackConfig.model_validate({"source": str(source), "output": "unused", **fields}))


def items_by_key(source: Source) -> dict[str, SourceItem]:
    return {item.key: item for item in source.items}


def test_class_folders_give_labels_by_sorted_name(tmp_path: Path) -> None:
    touch(tmp_path / "pets", "dog/a.JPG", "cat/b.png", "cat/deep/c.webp", "ant/d.jpeg", "cat/.hidden", ".git/x.txt")
    source = opened(tmp_path / "pets")
    assert source.name == "pets"
    assert source.classes == ("ant", "cat", "dog")
    found = items_by_key(source)
    assert {key: (item.suffix, item.labels, item.split) for key, item in found.items()} == {
        "ant/d": ("jpeg", (0,), "all"),
        "cat/b": ("png", (1,), "all"),
        "cat/deep/c": ("webp", (1,), "all"),
        "dog/a": ("jpg", (2,), "all"),
    }
    assert read_image(found["cat/b"]) == b"bytes of cat/b.png"


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    source = opened(touch(tmp_path, "a.jpg", "b.jpg"))
    assert source.classes == ()
    assert [item.labels for item in source.items] == [(), ()]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat/a.jpg", "loose.jpg"], "loose.jpg lies beside the class folder cat"),
        (["cat/a.jpg", "cat/notes.txt"], "cat/notes.txt: suffix 'txt', expected one of jpg, jpeg, png, webp"),
        (["cat/a.gif"], "cat/a.gif: suffix 'gif'"),
        (["cat/a.jpg", "cat/a.png"], r"key 'cat/a' comes twice: .*/cat/a\.jpg and .*/cat/a\.png"),
        ([".hidden"], "no images found"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(touch(tmp_path, *names))


def test_a_link_to_a_parent_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.jpg")
    os.symlink(tmp_path, tmp_path / "cat" / "again")
    with pytest.raises(DataError, match="cat/again: a link to a folder that holds it"):
        opened(tmp_path)


def test_sources_that_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere: no such folder or list, and not one of digits, cifar10"):
        opened(tmp_path / "nowhere")
    with pytest.raises(NotFound, match=r"no\.csv: no such list"):
        opened(tmp_path / "no.csv")
    with pytest.raises(ConfigError, match=r"a folder on S3 is packed from a list"):
        opened("s3://bucket/images")
    with pytest.raises(ConfigError, match="expected a folder or a list"):
        opened(touch(tmp_path, "photos.zip") / "photos.zip")


LIST_ROWS = [
    {"path": "a/1.jpg", "key": "", "labels": "3", "split": "query"},
    {"path": "a/2.v1.jpg", "key": "", "labels": "5;1", "split": "database"},
    {"path": "/elsewhere/3.png", "key": "third", "labels": "", "split": "database"},
    {"path": "s3://bucket/4.png", "key": "IMG 4.b", "labels": "0", "split": "database"},
]
LIST_EXPECTED = [
    ("a/1", (3,), "query", "{folder}/a/1.jpg"),
    ("a/2%2Ev1", (1, 5), "database", "{folder}/a/2.v1.jpg"),
    ("third", (), "database", "/elsewhere/3.png"),
    ("IMG 4%2Eb", (0,), "database", "s3://bucket/4.png"),
]


def write_list(path: Path) -> Path:
    if path.suffix == ".csv":
        lines = ["path,key,labels,split", *(",".join(row.values()) for row in LIST_ROWS)]
        path.write_text("\n".join(lines) + "\n")
    else:
        rows = [{**row, "labels": [int(x) for x in row["labels"].split(";") if x]} for row in LIST_ROWS]
        if path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_lists_agree_in_all_formats(tmp_path: Path, suffix: str) -> None:
    source = opened(write_list(tmp_path / f"images{suffix}"))
    assert source.name == "images"
    found = [(item.key, item.labels, item.split, item.uri) for item in source.items]
    assert found == [(*row, uri.format(folder=tmp_path)) for *row, uri in LIST_EXPECTED]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,labels\na.jpg,1\n", "row 1: path None, expected the path of an image .columns: file, labels."),
        ("path,labels\na.jpg,cat\n", "row 1: labels 'cat', expected integers"),
        ("path,labels\na.jpg,1\nb.jpg\n", "row 2: not as many fields as the header's 2"),
        ("path,key\na.jpg,x\nb.jpg,x\n", r"key 'x' comes twice: .*a\.jpg and .*b\.jpg"),
        ("path,split\na.jpg,query\nb.jpg,\n", "'b' has no split, but others do"),
        ("path,split\na.jpg,../up\n", "split '../up', expected letters"),
        ("path,key\na.jpg," + "k" * 91 + "\n", "has 91 bytes, the limit is 90"),
        ("path\nhttp.txt\n", "suffix 'txt'"),
        ("path\n", "no images found"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        opened(path)


def test_one_image_may_be_in_two_splits(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("path,split\na.jpg,train\na.jpg,database\n")
    assert [(item.key, item.split) for item in opened(path).items] == [("a", "train"), ("a", "database")]


@given(st.text(alphabet=st.sampled_from(list("ab./%\\\n é")), min_size=1, max_size=12))
def test_keys_are_reversible_and_safe(name: str) -> None:
    key = safe_key(name)
    assert unquote(key) == name
    assert "." not in key.rsplit("/", 1)[-1]
    assert not key.startswith("/")
    assert not {"", ".", ".."} & set(key.split("/"))


def test_long_paths_are_cut_but_stay_apart(tmp_path: Path) -> None:
    folder = "/".join(["a-rather-long-folder-name"] * 4)
    source = opened(touch(tmp_path, f"x/{folder}/1.jpg", f"y/{folder}/1.jpg"))
    keys = [item.key for item in source.items]
    assert len(set(keys)) == 2
    assert all(len(key.encode()) <= MAX_KEY_BYTES and key[16] == "~" and key.endswith("_1") for key in keys)


def numbered(count: int) -> list[SourceItem]:
    return [SourceItem(f"k{number}", "jpg", (), "", f"{number}.jpg") for number in range(count)]


def test_splits_are_exact_disjoint_seeded_and_independent_of_order() -> None:
    items = numbered(1000)
    first = {item.key: item.split for item in assign_splits(items, "query=0.1,database=0.85", 0)}
    assert Counter(first.values()) == {"query": 100, "database": 850}
    assert first == {item.key: item.split for item in assign_splits(items[::-1], "query=0.1,database=0.85", 0)}
    assert first != {item.key: item.split for item in assign_splits(items, "query=0.1,database=0.85", 1)}


def test_what_shares_leave_over_is_counted(tmp_path: Path) -> None:
    source = opened(touch(tmp_path, *(f"{n}.jpg" for n in range(20))), splits="query=0.1,database=0.5")
    assert Counter(item.split for item in source.items) == {"query": 2, "database": 10}
    assert source.left_out == 8


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ("query=0.5,database=0.6", "add up to 1.1, above 1"),
        ("query", "'query', expected NAME=SHARE"),
        ("query=x", "'query=x', expected NAME=SHARE"),
        ("query=-1", "'query=-1', expected NAME=SHARE"),
        ("a=0.1,a=0.2", "named twice"),
        ("query=0.01,database=0.9", "query is empty, 10 images are too few"),
    ],
)
def test_shares_that_are_refused(shares: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list(assign_splits(numbered(10), shares, 0))


def test_digits_protocol() -> None:
    source = opened("digits")
    splits = {name: [i for i in source.items if i.split == name] for name in ("query", "database", "train")}
    assert {name: len(items) for name, items in splits.items()} == {"query": 300, "database": 1497, "train": 1497}
    assert Counter(item.labels for item in splits["query"]) == {(label,): 30 for label in range(10)}
    keys = {name: {item.key for item in items} for name, items in splits.items()}
    assert keys["train"] == keys["database"]
    assert keys["query"] | keys["database"] == {f"digit-{number:04d}" for number in range(1797)}
    assert keys["query"] != {item.key for item in opened("digits", seed=1).items if item.split == "query"}
    with pytest.raises(ConfigError, match="digits has its own splits"):
        opened("digits", splits="query=0.1")


def test_digit_images_are_the_scaled_pixels() -> None:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    item = items_by_key(opened("digits"))["digit-0007"]
    image = Image.open(io.BytesIO(item.data))
    assert (image.size, image.mode, image.format) == ((32, 32), "RGB", "PNG")
    pixels, raw = np.asarray(image), load_digits().images[7]
    assert (pixels[..., 0] == pixels[..., 1]).all()
    # Four pixels of the enlarged image surround the center of every original pixel but the border's.
    centers = pixels[1:-1, 1:-1, 0].astype(float)
    assert abs(centers.mean() - raw.mean() * 255 / 16) < 12
    assert pixels.max() <= 255 * raw.max() / 16 + 0.5
