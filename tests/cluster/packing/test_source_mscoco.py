"""MSCOCO from its official annotations, read one element at a time."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cibhash.errors import DataError, NotFound
from cluster.packing.source_items import Source
from cluster.packing.source_mscoco import _elements
from cluster.packing.sources import open_source
from cluster.packing_config import PackConfig
from tests.benchmark_folders import write_coco_official


def opened(data: Path, **fields: Any) -> Source:
    return open_source(PackConfig(source="mscoco", output="x", data=str(data), **fields))


def test_the_official_annotations(tmp_path: Path) -> None:
    write_coco_official(tmp_path, 10_300, 5200)
    source = opened(tmp_path)
    assert source.classes == tuple(f"category{number}" for number in range(1, 81))
    labeled = 15_500 - 310
    assert Counter(i.split for i in source.items) == {"query": 5000, "database": labeled - 5000, "train": 10_000}
    labels = {item.key: item.labels for item in source.items}
    assert len(labels) == labeled
    assert labels["COCO_train2014_000000000001"] == (1, 8)
    assert labels["COCO_val2014_000000010399"] == ((10399 + 7) % 80, 10399 % 80)
    assert "COCO_train2014_000000000050" not in labels
    queries = {item.key for item in source.items if item.split == "query"}
    assert not queries & {item.key for item in source.items if item.split != "query"}
    assert queries != {item.key for item in opened(tmp_path, seed=1).items if item.split == "query"}
    (tmp_path / "annotations/instances_val2014.json").unlink()
    with pytest.raises(NotFound, match=r"annotations/instances_val2014\.json is missing"):
        opened(tmp_path)


def test_annotations_that_are_refused(tmp_path: Path) -> None:
    write_coco_official(tmp_path, 20, 10, indent=1)
    with pytest.raises(DataError, match="29 labeled images, too few for 5000 queries and 10000"):
        opened(tmp_path)
    path = tmp_path / "annotations/instances_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["image_id"] = 999
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="annotations of categories or images that are not listed"):
        opened(tmp_path)
    for text in ("", "{", '{"images": [', '{"images": [{}]}', '{"images": 3,,}', "[1]", '{"annotations": [1]}'):
        path.write_text(text)
        with pytest.raises(DataError, match=rf"{path}: not COCO annotations"):
            opened(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4), st.sampled_from([None, 0, 2]))
def test_elements_are_those_of_the_whole(content: dict[str, Any], indent: int | None) -> None:
    expected = [(name, element) for name, of in content.items() if isinstance(of, list) for element in of]
    assert list(_elements(json.dumps(content, indent=indent))) == expected
