"""From codes to images: every pair, count, group and overlap against loops over all pairs of images."""

import itertools
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cibhash.distinct_codes import distinct_codes
from cibhash.near_groups import summarize
from cibhash.near_pairs import NearPairs, near_pairs
from cibhash.types import Codes, Ids
from cluster.dedup.confirm import correlation
from cluster.dedup.found import Duplicates, duplicates_from_pairs, duplicates_of, images_of_codes
from cluster.dedup.written import grouped_rows
from tests import oracles
from tests.cibhash.test_near_groups import reachable

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Codes, Ids, int]:
    """Codes of which many are equal or close, their splits in order, and a radius."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, num_splits = draw(st.integers(1, 25)), draw(st.integers(1, 3))
    codes = rng.integers(0, draw(st.sampled_from([2, 8, 64])), (count, 1), np.uint8)
    return codes, np.sort(rng.integers(0, num_splits, count)), draw(st.integers(0, 3))


def found_in(codes: Codes, splits: Ids, radius: int, limit: int) -> Duplicates:
    distinct = distinct_codes(codes)
    images = images_of_codes(distinct, splits, 3)
    pairs = near_pairs(codes[distinct.order[distinct.starts[:-1]]], radius)
    return duplicates_of(distinct, images, summarize([pairs], images, radius, limit), limit)


def pairs_of(codes: Codes, radius: int) -> list[tuple[int, int, int]]:
    every = itertools.combinations(range(len(codes)), 2)
    near = ((oracles.hamming(codes[a], codes[b]), a, b) for a, b in every)
    return sorted(pair for pair in near if pair[0] <= radius)


@PROPERTY
@given(tables())
def test_without_a_limit_all_pairs_are_listed(case: tuple[Codes, Ids, int]) -> None:
    codes, splits, radius = case
    found, expected = found_in(codes, splits, radius, 10**6), pairs_of(codes, radius)
    listed = zip(found.pairs.distances.tolist(), found.pairs.first.tolist(), found.pairs.second.tolist(), strict=True)
    assert list(listed) == expected
    check_counts(found, expected, splits, radius)
    again = duplicates_from_pairs(found.pairs, splits, 3, radius)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one, other)


@PROPERTY
@given(tables(), st.integers(1, 5))
def test_with_a_limit_the_closest_of_each_group_are(case: tuple[Codes, Ids, int], limit: int) -> None:
    codes, splits, radius = case
    found, expected = found_in(codes, splits, radius, limit), pairs_of(codes, radius)
    check_counts(found, expected, splits, radius)
    group = found.representative
    for head in set(group.tolist()):
        mine = [pair for pair in expected if group[pair[1]] == head]
        listed = found.pairs.take(group[found.pairs.first] == head)
        triples = zip(listed.distances.tolist(), listed.first.tolist(), listed.second.tolist(), strict=True)
        kept = list(triples)
        assert [pair[0] for pair in kept] == [pair[0] for pair in mine[:limit]]
        assert set(kept) <= set(mine)
        assert len(set(kept)) == len(kept)


def check_counts(found: Duplicates, expected: list[tuple[int, int, int]], splits: Ids, radius: int) -> None:
    """What does not depend on the limit."""
    edges = [(a, b) for _, a, b in expected]
    assert found.representative.tolist() == reachable(len(splits), edges)
    counts = np.zeros((radius + 1, 3, 3), np.int64)
    overlaps = np.zeros((radius + 1, 3, 3), np.int64)
    seen = set()
    for distance, a, b in expected:
        counts[distance, splits[a], splits[b]] += 1
        for row, other in ((a, b), (b, a)):
            if (row, splits[other]) not in seen:
                seen.add((row, splits[other]))
                overlaps[distance, splits[row], splits[other]] += 1
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_array_equal(found.overlaps, overlaps)


def test_a_collapsed_table_stays_small() -> None:
    """100,000 images with one code: 5e9 pairs are counted, and no more than the limit listed."""
    codes = np.zeros((100_000, 8), np.uint8)
    found = found_in(codes, np.repeat([0, 1], 50_000), 2, 100)
    assert found.counts[0].tolist() == [
        [50_000 * 49_999 // 2, 50_000**2, 0],
        [0, 50_000 * 49_999 // 2, 0],
        [0, 0, 0],
    ]
    assert len(found.pairs.first) == 100
    assert len({*zip(found.pairs.first.tolist(), found.pairs.second.tolist(), strict=True)}) == 100
    assert not found.representative.any()


def test_the_largest_group_comes_first() -> None:
    representative = np.array([0, 1, 2, 1, 0, 2, 2, 7])
    members, groups = grouped_rows(representative)
    assert members.tolist() == [2, 5, 6, 0, 4, 1, 3]
    assert groups.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert Counter(groups.tolist()) == {0: 3, 1: 2, 2: 2}


def test_nothing_found() -> None:
    found = found_in(np.array([[0], [255]], np.uint8), np.array([0, 0]), 1, 5)
    assert (len(found.pairs.first), found.representative.tolist()) == (0, [0, 1])
    none = NearPairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))
    assert duplicates_from_pairs(none, np.array([0, 0]), 1, 1).overlaps.sum() == 0


def test_images_correlate_as_pictures_not_as_backgrounds() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (16, 16, 3), np.uint8)
    brighter = (picture * 0.8 + 30).astype(np.uint8)
    other = rng.integers(0, 256, (16, 16, 3), np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 200, 16)[:, None, None], (16, 16, 3)).astype(np.uint8)
    flat = np.full((16, 16, 3), 9, np.uint8)
    first = np.stack([picture, picture, picture, picture, ramp, flat])
    second = np.stack([picture, brighter, picture[:, ::-1], other, ramp // 2, flat])
    found = correlation(first, second)
    assert (found[:3] > 0.99).all()
    assert abs(found[3]) < 0.3
    assert found[4:].tolist() == [0, 0]
