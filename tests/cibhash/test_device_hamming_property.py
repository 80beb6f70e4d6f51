"""Search on a device is `cibhash.hamming` for whatever codes, budget and way hypothesis finds."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cibhash import device_distances, device_hamming, hamming
from cibhash.device_codes import device_codes
from tests.cibhash.test_device_hamming import DEVICES, assert_equal, code_sets, labels_for

SIZES = {
    "seed": st.integers(0, 2**32),
    "bits": st.sampled_from([8, 16, 24, 32, 56, 64, 72, 128, 200, 256, 512]),
    "num_queries": st.integers(0, 12),
    "num_database": st.integers(0, 50),
    "distinct": st.integers(2, 40),
}


@pytest.mark.parametrize("device", DEVICES)
@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    sizes=st.fixed_dictionaries(SIZES),
    budget=st.integers(1, 200_000),
    first=st.integers(1, 60),
    product_from=st.sampled_from([1, 8, math.inf]),
    k=st.integers(1, 60),
    radius_share=st.floats(0, 1),
    own_ids=st.booleans(),
    kind=st.sampled_from(["single", "several"]),
)
def test_all_answers_are_those_of_hamming(
    device, sizes, budget, first, product_from, k, radius_share, own_ids, kind
) -> None:
    queries, database, rng = code_sets(**sizes)
    ids = rng.permutation(10 * len(database))[: len(database)] if own_ids else None
    radius = round(radius_share * sizes["bits"])
    labels = labels_for(rng, len(queries), kind), labels_for(rng, len(database), kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_hamming, "_FIRST_CODES", first)
        patch.setattr(device_distances, "_PRODUCT_QUERIES", product_from)
        held = device_codes(database, device, ids=ids)
        found = device_hamming.search(queries, held, k, scratch_bytes=budget)
        assert_equal(found, hamming.search(queries, database, k, ids=ids))
        within = device_hamming.range_search(queries, held, radius, scratch_bytes=budget)
        assert_equal(within, hamming.range_search(queries, database, radius, ids=ids))
        counts = device_hamming.histogram(queries, held, *labels, scratch_bytes=budget)
        assert_equal(counts, hamming.histogram(queries, database, *labels))
