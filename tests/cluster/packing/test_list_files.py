"""The field's lists: labels by column, images found wherever they lie, and what is wrong with them by name."""

from pathlib import Path

import pytest

from cibhash.errors import ConfigError, DataError, NotFound
from cluster.packing.list_files import ImageFinder
from cluster.packing.source_items import Source
from cluster.packing.sources import open_source
from cluster.packing_config import PackConfig
from tests.benchmark_folders import list_line, touch_images, write_lists

AUTHORS = "/home/somebody/run/dataset/nus_wide"
NUSWIDE = {
    "database": {f"{AUTHORS}/1_10_m.jpg": (0, 20), f"{AUTHORS}/2_20_m.jpg": (3,), f"{AUTHORS}/3_30_m.jpg": ()},
    "test": {f"{AUTHORS}/4_40_m.jpg": (5, 6, 7)},
    "train": {f"{AUTHORS}/2_20_m.jpg": (3,)},
}
IMAGES = [f"{number}_{10 * number}_m.jpg" for number in range(1, 6)]


def opened(source: str, data: Path, **fields: object) -> Source:
    return open_source(PackConfig.model_validate({"source": source, "output": "x", "data": str(data), **fields}))


def rows(source: Source) -> list[tuple[str, tuple[int, ...], str]]:
    return sorted((item.key, item.labels, item.split) for item in source.items)


@pytest.mark.parametrize("place", ["", "images/", "nus_wide/a/"])
def test_hashnets_lists_of_nuswide(tmp_path: Path, place: str) -> None:
    touch_images(tmp_path, [f"{place}{name}" for name in IMAGES])
    source = opened("nuswide", write_lists(tmp_path, NUSWIDE, 21))
    assert rows(source) == [
        ("1_10_m", (0, 20), "database"),
        ("2_20_m", (3,), "database"),
        ("2_20_m", (3,), "train"),
        ("3_30_m", (), "database"),
        ("4_40_m", (5, 6, 7), "query"),
    ]
    assert {item.key: item.uri for item in source.items}["4_40_m"] == str(tmp_path / f"{place}4_40_m.jpg")
    assert (source.name, source.split_name, source.seeded) == ("nuswide", "nuswide/lists", False)
    assert (source.missing, source.warnings, source.may_miss) == ((), (), True)


def test_lists_of_mscoco_lie_where_they_are_said_to(tmp_path: Path) -> None:
    paths = [f"coco/{part}2014/COCO_{part}2014_{n:012d}.jpg" for n, part in enumerate(("train", "val", "train"))]
    touch_images(tmp_path / "data", [path.removeprefix("coco/") for path in paths])
    lists = {"database": {paths[0]: (79,), paths[2]: (1,)}, "test": {paths[1]: (0, 4)}}
    source = opened("mscoco", tmp_path / "data", lists=str(write_lists(tmp_path / "lists", lists, 80)))
    assert rows(source) == [
        ("COCO_train2014_000000000000", (79,), "database"),
        ("COCO_train2014_000000000002", (1,), "database"),
        ("COCO_val2014_000000000001", (0, 4), "query"),
    ]
    with pytest.raises(NotFound, match=r"instances_train2014\.json"):
        opened("mscoco", tmp_path / "data")
    with pytest.raises(NotFound, match=r"database\.txt: no such file"):
        opened("mscoco", tmp_path / "data", protocol="lists")


def test_eighty_one_labels_are_nuswide_too(tmp_path: Path) -> None:
    touch_images(tmp_path, IMAGES)
    lists = {"database": {f"./data/{IMAGES[0]}": (80,)}, "test": {f"./data/{IMAGES[1]}": ()}}
    assert rows(opened("nuswide", write_lists(tmp_path, lists, 81)))[0] == ("1_10_m", (80,), "database")


def test_missing_images_are_counted_below_the_share(tmp_path: Path) -> None:
    touch_images(tmp_path, IMAGES[1:])
    write_lists(tmp_path, NUSWIDE, 21)
    with pytest.raises(
        DataError, match=r"1 of 4 images are missing .* limit is 1\.00% .*; first: /home/.*/1_10_m\.jpg"
    ):
        opened("nuswide", tmp_path)
    source = opened("nuswide", tmp_path, max_missing=0.25)
    assert source.missing == (f"{AUTHORS}/1_10_m.jpg",)
    assert [key for key, _, _ in rows(source)] == ["2_20_m", "2_20_m", "3_30_m", "4_40_m"]
    with pytest.raises(DataError, match="1 of 4 images"):
        opened("nuswide", tmp_path, max_missing=0.24)


def test_oddities_are_told(tmp_path: Path) -> None:
    touch_images(tmp_path, IMAGES)
    write_lists(tmp_path, {**NUSWIDE, "train": {f"{AUTHORS}/4_40_m.jpg": (5, 6, 7)}}, 21)
    with open(tmp_path / "test.txt", "a") as file:
        file.write("\n" + list_line(f"{AUTHORS}/4_40_m.jpg", (5, 6, 7), 21))
    source = opened("nuswide", tmp_path)
    assert [item.key for item in source.items].count("4_40_m") == 2
    leaked, repeated = source.warnings
    assert "1 lines repeat an earlier one" in repeated
    assert "1 queries are in the database or the training set too" in leaked


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg 0 1 0\n", "line 2: 'a.jpg 0 1 0', expected a path and 21 or 81 times 0 or 1"),
        ("a.jpg" + " 2" * 21 + "\n", "line 2: .* expected a path and 21 or 81 times 0 or 1"),
        ("a.jpg" + " 0" * 81 + "\n", "line 2"),
        (list_line(f"{AUTHORS}/1_10_m.jpg", (1,), 21), r"'1_10_m' has labels \(0, 20\) and \(1,\)"),
        (list_line("elsewhere/4_40_m.jpg", (5, 6, 7), 21), r"key '4_40_m' comes twice"),
        (list_line("notes.txt", (0,), 21), "suffix 'txt'"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, line: str, message: str) -> None:
    touch_images(tmp_path, [*IMAGES, "notes.txt"])
    write_lists(tmp_path, NUSWIDE, 21)
    with open(tmp_path / "test.txt", "a") as file:
        file.write(line)
    with pytest.raises(DataError, match=message):
        opened("nuswide", tmp_path)


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    touch_images(tmp_path, ["train/x/1.jpg", "val/x/1.jpg", "val/y/2.jpg", "w/y/2.jpg"])
    finder = ImageFinder(str(tmp_path))
    assert finder.find("/elsewhere/val/x/1.jpg") == str(tmp_path / "val/x/1.jpg")
    assert finder.find("train\\x\\1.jpg") == str(tmp_path / "train/x/1.jpg")
    assert finder.find("3.jpg") is None
    with pytest.raises(DataError, match=r"y/2\.jpg may be .*/val/y/2\.jpg or .*/w/y/2\.jpg"):
        finder.find("y/2.jpg")


def test_fields_of_other_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mscoco needs data"):
        open_source(PackConfig(source="mscoco", output="x"))
    with pytest.raises(ConfigError, match="protocol 'mecoq_i' of nuswide: expected lists or seeded"):
        opened("nuswide", tmp_path, protocol="mecoq_i")
    for source, field, value in (("digits", "data", "x"), ("cifar10", "lists", "x"), ("nuswide", "download", True)):
        with pytest.raises(ConfigError, match=f"{field} .* is for .*, not {source}"):
            open_source(PackConfig.model_validate({"source": source, "output": "x", field: value}))
    touch_images(tmp_path, IMAGES)
    write_lists(tmp_path, NUSWIDE, 21)
    with pytest.raises(ConfigError, match=r"nuswide has its own splits \('database'\)"):
        opened("nuswide", tmp_path, splits="query=0.5")
