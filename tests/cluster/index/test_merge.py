import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cibhash import hamming
from cibhash.types import PADDING_DISTANCE, PADDING_ID, Neighbors, RangeNeighbors
from cluster.index.merge import merge_neighbors, merge_ranges
from tests import oracles


@settings(deadline=None, max_examples=60)
@given(data=st.data(), num_shards=st.sampled_from([1, 2, 3, 7]), k=st.integers(1, 12))
def test_shards_merged_are_one_index(data: st.DataObject, num_shards: int, k: int) -> None:
    # Four values in one byte: nearly everything is a tie.
    values = data.draw(st.lists(st.sampled_from([0, 1, 3, 7]), max_size=30))
    codes = np.array(values, np.uint8).reshape(-1, 1)
    ids = np.array(data.draw(st.permutations(range(len(values)))), np.int64) * 5
    owners = np.array(data.draw(st.lists(st.integers(0, num_shards - 1), min_size=len(ids), max_size=len(ids))), int)
    queries = np.array([[0], [2], [255]], np.uint8)
    shards = [(codes[owners == shard], ids[owners == shard]) for shard in range(num_shards)]

    nearest = merge_neighbors([hamming.search(queries, c, k, ids=i) for c, i in shards], k)
    within = merge_ranges([hamming.range_search(queries, c, 2, ids=i) for c, i in shards])

    for number, query in enumerate(queries):
        expected = oracles.search(query, codes, ids.tolist())
        padded = (expected + [(PADDING_DISTANCE, PADDING_ID)] * k)[:k]
        assert list(zip(nearest.distances[number].tolist(), nearest.ids[number].tolist(), strict=True)) == padded
        rows = slice(within.limits[number], within.limits[number + 1])
        found = list(zip(within.distances[rows].tolist(), within.ids[rows].tolist(), strict=True))
        assert found == [pair for pair in expected if pair[0] <= 2]


def test_types_are_those_of_one_shard() -> None:
    empty = Neighbors(np.full((2, 3), -1, np.int64), np.full((2, 3), PADDING_DISTANCE, np.int32))
    merged = merge_neighbors([empty, empty], 4)
    assert [array.dtype for array in merged] == [np.int64, np.int32]
    assert merged.ids.shape == merged.distances.shape == (2, 4)
    assert (merged.ids == PADDING_ID).all()
    assert (merged.distances == PADDING_DISTANCE).all()
    nothing = RangeNeighbors(np.zeros(3, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))
    both = merge_ranges([nothing, nothing])
    assert [array.dtype for array in both] == [np.int64, np.int64, np.int32]
    assert both.limits.tolist() == [0, 0, 0]


def test_shards_may_answer_with_different_widths() -> None:
    one = Neighbors(np.array([[4]]), np.array([[1]], np.int32))
    two = Neighbors(np.array([[2, 9, -1]]), np.array([[1, 3, PADDING_DISTANCE]], np.int32))
    merged = merge_neighbors([one, two], 2)
    assert merged.ids.tolist() == [[2, 4]]
    assert merged.distances.tolist() == [[1, 1]]


def test_refuses_what_cannot_be_merged() -> None:
    one = Neighbors(np.array([[4]]), np.array([[1]], np.int32))
    two = Neighbors(np.array([[4], [5]]), np.array([[1], [1]], np.int32))
    with pytest.raises(ValueError, match="k is 0"):
        merge_neighbors([one], 0)
    with pytest.raises(ValueError, match="no answers"):
        merge_neighbors([], 1)
    with pytest.raises(ValueError, match="1, 2"):
        merge_neighbors([one, two], 1)
    with pytest.raises(ValueError, match="no answers"):
        merge_ranges([])
