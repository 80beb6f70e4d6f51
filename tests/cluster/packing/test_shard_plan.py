"""Shards by count and by size: every image once, in order, and no file above the size that was asked for."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cibhash.errors import NotFound
from cibhash.shards import SourceImage, write_shard
from cluster.packing.shard_plan import by_count, by_size, image_sizes
from cluster.packing.source_items import SourceItem, read_image


def items_of(sizes: list[int], labels: tuple[int, ...] = ()) -> list[SourceItem]:
    return [SourceItem(f"k{n}", "jpg", labels, "", f"{n}", data=b"x" * size) for n, size in enumerate(sizes)]


def test_by_count() -> None:
    items = items_of([1] * 7)
    assert [len(shard) for shard in by_count(items, 3)] == [3, 3, 1]
    assert [item for shard in by_count(items, 3) for item in shard] == items
    assert list(by_count([], 3)) == []


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 9000), min_size=1, max_size=40),
    st.sampled_from([(), (3,), tuple(range(300))]),
    st.sampled_from([10_240, 20_480, 25_000, 51_200]),
)
def test_by_size_fills_files_up_to_the_limit(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], labels: tuple[int, ...], limit: int
) -> None:
    path = tmp_path_factory.mktemp("shard") / "x.tar"
    items = items_of(sizes, labels)
    shards = list(by_size(items, sizes, limit))
    assert [item for shard in shards for item in shard] == items

    def written(part: tuple[SourceItem, ...]) -> int:
        images = (SourceImage(item.key, item.suffix, item.data, item.labels) for item in part)
        return write_shard(path, "x.tar", images, 0).bytes

    for number, shard in enumerate(shards):
        assert written(shard) <= limit or len(shard) == 1
        if number + 1 < len(shards):
            assert written((*shard, shards[number + 1][0])) > limit, "one more would have fit"


def test_sizes_are_those_of_what_is_stored(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x" * 77)
    items = [
        SourceItem("a", "jpg", (), "", str(tmp_path / "a.jpg")),
        SourceItem("b", "jpg", (), "", str(tmp_path / "a.jpg"), offset=5, size=11),
        SourceItem("c", "jpg", (), "", "memory", data=b"x" * 9),
        *(SourceItem(f"d{n}", "png", (), "", "", data=os.urandom(3 * 32 * 32), planes=32) for n in range(3)),
    ]
    assert list(image_sizes(items)) == [len(read_image(item)) for item in items]
    with pytest.raises(NotFound, match=r"gone\.jpg: no such file"):
        list(image_sizes([SourceItem("e", "jpg", (), "", str(tmp_path / "gone.jpg"))]))
