"""NUS-WIDE from its official ground truth: the 21 most frequent concepts, and seeded draws per concept."""

from collections import Counter
from pathlib import Path

import pytest

from cibhash.errors import DataError, NotFound
from cluster.packing.source_items import Source, SourceItem
from cluster.packing.source_nuswide import deal_per_concept
from cluster.packing.sources import open_source
from cluster.packing_config import PackConfig
from tests.benchmark_folders import CONCEPTS, write_nuswide_official


def opened(data: Path, seed: int = 0) -> Source:
    return open_source(PackConfig(source="nuswide", output="x", data=str(data), seed=seed))


def test_the_official_ground_truth(tmp_path: Path) -> None:
    write_nuswide_official(tmp_path, per_concept=700)
    source = opened(tmp_path)
    assert source.classes == CONCEPTS[:21]
    assert (source.split_name, source.seeded, source.missing) == ("nuswide/seeded", True, ())
    assert Counter(item.split for item in source.items) == {
        "query": 2100,
        "database": 21 * 700 - 2100,
        "train": 10_500,
    }
    labels = {item.key: item.labels for item in source.items}
    assert len(labels) == 21 * 700, "the image without any concept is left out"
    assert labels["000005_77"] == (5,)
    assert labels["000030_77"] == (9, 10)
    keys = {split: {item.key for item in source.items if item.split == split} for split in ("query", "train")}
    assert not keys["query"] & keys["train"]
    assert keys["query"] != {item.key for item in opened(tmp_path, seed=1).items if item.split == "query"}
    path = tmp_path / "Groundtruth/AllLabels/Labels_conceptb.txt"
    path.write_text(path.read_text()[2:])
    with pytest.raises(DataError, match=rf"{path}: 14700 lines, expected 0 or 1 for 14701 images"):
        opened(tmp_path)
    path.unlink()
    (tmp_path / "Groundtruth/AllLabels/Labels_concepta.txt").unlink()
    (tmp_path / "Groundtruth/AllLabels/Labels_conceptc.txt").unlink()
    with pytest.raises(DataError, match="20 concepts, expected at least 21"):
        opened(tmp_path)


def test_too_few_images_of_a_concept_and_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"neither database\.txt and test\.txt nor ImageList/Imagelist\.txt"):
        opened(tmp_path)
    with pytest.raises(DataError, match="concept concepta: 44 images left to draw 100 of the query split from"):
        opened(write_nuswide_official(tmp_path, per_concept=40))


def test_draws_are_per_concept_and_independent_of_order() -> None:
    items = [SourceItem(f"k{n}", "jpg", (n % 3,) if n % 4 else (0, 2), "", f"{n}.jpg") for n in range(60)]
    dealt = list(deal_per_concept(items, ("a", "b", "c"), 0, queries=2, train=3))
    splits = {split: {i.key for i in dealt if i.split == split} for split in ("query", "database", "train")}
    assert [len(splits[split]) for split in ("query", "database", "train")] == [6, 54, 9]
    assert splits["train"] <= splits["database"]
    assert not splits["query"] & splits["database"]
    again = list(deal_per_concept(items[::-1], ("a", "b", "c"), 0, queries=2, train=3))
    assert {(i.key, i.split) for i in dealt} == {(i.key, i.split) for i in again}
