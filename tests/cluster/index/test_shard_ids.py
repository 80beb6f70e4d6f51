import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cibhash.types import Ids
from cluster.index.shard_ids import as_array, compact, ids_at, positions_of

ASCENDING = st.lists(st.integers(0, 60), unique=True, max_size=40).map(lambda ids: np.array(sorted(ids), np.int64))


@given(ids=st.one_of(ASCENDING, st.integers(0, 9).map(lambda first: np.arange(first, first + 20))), data=st.data())
def test_a_range_is_like_the_array(ids: Ids, data: st.DataObject) -> None:
    kept = compact(ids)
    assert isinstance(kept, range) == (len(ids) == 0 or ids[-1] - ids[0] == len(ids) - 1)
    np.testing.assert_array_equal(as_array(kept), ids)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(ids))] * 2)))
    np.testing.assert_array_equal(as_array(kept, start, stop), ids[start:stop])
    wanted = np.array(data.draw(st.lists(st.integers(-3, 70))), np.int64)
    known = ids.tolist()
    expected = [known.index(one) if one in known else -1 for one in wanted.tolist()]
    assert positions_of(kept, wanted).tolist() == positions_of(ids, wanted).tolist() == expected
    if len(ids):
        places = np.array(data.draw(st.lists(st.integers(0, len(ids) - 1))), np.int64).reshape(1, -1)
        np.testing.assert_array_equal(ids_at(kept, places), ids[places])


@pytest.mark.parametrize("count", [1, 1000])
def test_all_are_int64(count: int) -> None:
    for ids in (np.arange(5, 5 + count), np.arange(count) * 2):
        kept = compact(ids)
        assert as_array(kept).dtype == ids_at(kept, np.arange(1)).dtype == positions_of(kept, ids).dtype == np.int64
