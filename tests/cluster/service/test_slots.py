"""Shards are dealt to slots: each once, evenly, and those of before stay where they are."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.service.slots import deal

COUNTS = st.lists(st.integers(0, 1000), max_size=30)


@given(COUNTS, st.integers(1, 8))
def test_every_shard_is_in_one_slot(counts: list[int], num_slots: int) -> None:
    dealt = deal(counts, num_slots)
    assert len(dealt) == num_slots
    assert sorted(number for numbers in dealt for number in numbers) == list(range(len(counts)))
    loads = [sum(counts[number] for number in numbers) for numbers in dealt]
    assert max(loads) - min(loads) <= max(counts, default=0)


@given(COUNTS, COUNTS, st.integers(1, 8))
def test_shards_of_before_stay(before: list[int], added: list[int], num_slots: int) -> None:
    grown = deal(before + added, num_slots)
    for then, now in zip(deal(before, num_slots), grown, strict=True):
        assert now[: len(then)] == then


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8))
def test_as_many_slots_as_shards_have_one_each(counts: list[int]) -> None:
    assert sorted(deal(counts, len(counts))) == [(number,) for number in range(len(counts))]
