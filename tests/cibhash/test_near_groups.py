"""Summaries of pairs: the same however pairs are portioned and summaries merged, against loops over all pairs."""

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cibhash import near_groups as module
from cibhash.components import Components
from cibhash.distinct_codes import distinct_codes
from cibhash.near_groups import PairSummarizer, PairSummary, places_in_groups, summarize
from cibhash.near_pairs import NearPairs

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)
Edges = list[tuple[int, int]]


def reachable(num_nodes: int, edges: Edges) -> list[int]:
    """The smallest node that each node reaches, by breadth-first search."""
    neighbors = defaultdict(list)
    for a, b in edges:
        neighbors[a].append(b)
        neighbors[b].append(a)
    smallest = [-1] * num_nodes
    for start in range(num_nodes):
        if smallest[start] >= 0:
            continue
        queue = [start]
        smallest[start] = start
        while queue:
            for other in neighbors[queue.pop()]:
                if smallest[other] < 0:
                    smallest[other] = start
                    queue.append(other)
    return smallest


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, Edges]:
    num_nodes = draw(st.integers(1, 30))
    node = st.integers(0, num_nodes - 1)
    return num_nodes, draw(st.lists(st.tuples(node, node), max_size=40))


def arrays(edges: Edges) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(edges, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


@PROPERTY
@given(graphs(), st.integers(1, 5))
def test_components_are_those_of_a_search(graph: tuple[int, Edges], portions: int) -> None:
    num_nodes, edges = graph
    components = Components(num_nodes)
    for part in range(portions):
        components.join(*arrays(edges[part::portions]))
    assert components.smallest.tolist() == reachable(num_nodes, edges)


@PROPERTY
@given(graphs())
def test_few_edges_connect_the_same(graph: tuple[int, Edges]) -> None:
    num_nodes, edges = graph
    components = Components(num_nodes)
    components.join(*arrays(edges))
    first, second = components.edges()
    assert reachable(num_nodes, list(zip(first.tolist(), second.tolist(), strict=True))) == reachable(num_nodes, edges)
    assert len(first) < num_nodes


def test_a_long_chain_in_bad_order() -> None:
    order = np.random.default_rng(0).permutation(50_000)
    components = Components(50_000)
    components.join(order[:-1], order[1:])
    assert not components.smallest.any()


@PROPERTY
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 6), st.integers(1, 3))
def test_a_summary_is_that_of_all_pairs(seed: int, limit: int, parts: int, num_splits: int) -> None:
    """With buffers so small that everything is reduced again and again."""
    rng = np.random.default_rng(seed)
    num_codes, radius = 14, 3
    every = list(itertools.combinations(range(num_codes), 2))
    edges = [every[place] for place in rng.permutation(len(every))[: rng.integers(0, 30)]]
    distances = rng.integers(0, radius + 1, len(edges))
    pairs = NearPairs(*arrays(edges), distances.astype(np.int32))
    images = rng.integers(0, 3, (num_codes, num_splits))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PORTION", 3)
        patch.setattr(module, "_MANY", 4)
        found = PairSummarizer(images, radius, limit)
        for part in range(parts):
            inside = np.arange(part, len(edges), parts)
            portions = [pairs.take(one) for one in np.array_split(inside, 3)]
            found.merge(summarize(portions, images, radius, limit))
        summary = found.summary()
    check(summary, edges, distances.tolist(), images, limit)


def check(summary: PairSummary, edges: Edges, distances: list[int], images: np.ndarray, limit: int) -> None:
    num_codes, num_splits = images.shape
    group = reachable(num_codes, edges)
    links = list(zip(*(end.tolist() for end in summary.links), strict=True))
    assert reachable(num_codes, links) == group
    ranked = sorted((distance, a, b) for (a, b), distance in zip(edges, distances, strict=True))
    seen: Counter[int] = Counter()
    expected = []
    for distance, a, b in ranked:
        seen[group[a]] += 1
        if seen[group[a]] <= limit:
            expected.append((a, b, distance))
    assert sorted(zip(*(column.tolist() for column in summary.closest), strict=True)) == sorted(expected)
    counts = np.zeros_like(summary.counts)
    nearest: dict[tuple[int, int], int] = {}
    for distance, a, b in ranked:
        counts[distance] += np.outer(images[a], images[b])
        for code, other in ((a, b), (b, a)):
            for split in range(num_splits):
                if images[other, split]:
                    nearest.setdefault((code, split), distance)
    np.testing.assert_array_equal(summary.counts, counts)
    cells = zip(*(column.tolist() for column in summary.nearest), strict=True)
    assert {(code, split): distance for code, split, distance in cells} == nearest


def test_what_is_kept_does_not_grow_with_the_pairs() -> None:
    """Of 2,000 codes that are all close, 2 million pairs: a few links and the closest pairs remain."""
    rows = np.arange(2000)
    images = np.ones((2000, 1), np.int64)
    pairs = [NearPairs(np.full(1999 - a, a), rows[a + 1 :], np.full(1999 - a, 1, np.int32)) for a in range(1999)]
    summary = summarize(pairs, images, 2, 10)
    assert (len(summary.links[0]), len(summary.closest.first), len(summary.nearest.codes)) == (1999, 10, 2000)
    assert summary.counts[:, 0, 0].tolist() == [0, 2000 * 1999 // 2, 0]


def test_places_in_groups() -> None:
    assert places_in_groups(np.array([5, 1, 5, 5, 1])).tolist() == [0, 0, 1, 2, 1]
    assert places_in_groups(np.array([], np.int64)).tolist() == []


@PROPERTY
@given(st.lists(st.integers(0, 5), max_size=30), st.sampled_from([1, 9]))
def test_distinct_codes(values: list[int], width: int) -> None:
    codes = np.repeat(np.array(values, np.uint8)[:, None], width, axis=1)
    order, starts = distinct_codes(codes)
    found = [order[a:b].tolist() for a, b in itertools.pairwise(starts)]
    assert sorted(found) == sorted([row for row, value in enumerate(values) if value == one] for one in set(values))
