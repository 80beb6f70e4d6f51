"""A split's checksum says which images with which labels are in which role, and nothing else."""

import hashlib
from dataclasses import replace

from cluster.packing.source_items import SourceItem
from cluster.packing.split_identity import differing, identify

ITEMS = [
    SourceItem("b", "jpg", (3, 12), "query", "here/b.jpg"),
    SourceItem("a", "jpg", (), "query", "here/a.jpg"),
    SourceItem("c", "png", (5,), "database", "here/c.png"),
]


def test_the_checksum_is_of_sorted_lines() -> None:
    split = identify("name", 3, ITEMS)
    assert {name: part.count for name, part in split.parts.items()} == {"query": 2, "database": 1}
    assert split.parts["query"].sha256 == hashlib.sha256(b"a\t\nb\t3,12\n").hexdigest()
    assert split.parts["database"].sha256 == hashlib.sha256(b"c\t5\n").hexdigest()


def test_only_keys_labels_and_roles_count() -> None:
    split = identify("name", 3, ITEMS)
    moved = [replace(item, uri=f"s3://bucket/{item.key}", suffix="webp", data=b"x") for item in reversed(ITEMS)]
    assert identify("name", 3, moved) == split
    assert identify("other", None, ITEMS).sha256 == split.sha256
    for change in ({"key": "z"}, {"labels": (4,)}, {"split": "train"}):
        assert identify("name", 3, [replace(ITEMS[0], **change), *ITEMS[1:]]).sha256 != split.sha256  # type: ignore[arg-type]


def test_differing_parts_are_named() -> None:
    split = identify("name", None, ITEMS)
    known = {name: part.sha256 for name, part in split.parts.items()}
    assert differing(split, known) == []
    assert differing(split, {"query": known["query"]}) == []
    assert differing(split, {**known, "query": "0" * 64, "train": known["query"]}) == ["query", "train"]
