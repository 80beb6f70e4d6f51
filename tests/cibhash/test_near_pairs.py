"""The self-join against a loop over all pairs, by both methods and any blocks."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cibhash import near_pairs as module
from cibhash.near_pairs import (
    NearPairs,
    PieceTables,
    all_pairs,
    best_tables,
    cheapest,
    code_distances,
    concatenated,
    near_pairs,
)
from cibhash.types import Codes
from tests import oracles

PROPERTY = settings(derandomize=True, deadline=None, max_examples=80)


@st.composite
def joins(draw: st.DrawFn) -> tuple[Codes, int, np.random.Generator]:
    """Codes close to few centers, some of them equal, and a radius."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    width = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 12, 16, 33]))
    centers = rng.integers(0, 256, (draw(st.integers(1, 4)), width), np.uint8)
    codes = centers[rng.integers(0, len(centers), draw(st.integers(0, 40)))]
    flips = np.packbits(rng.random((len(codes), 8 * width)) < draw(st.sampled_from([0, 0.02, 0.1])), axis=1)
    return codes ^ flips, draw(st.integers(0, min(8 * width + 1, 12))), rng


def brute_force(codes: Codes, radius: int) -> list[tuple[int, int, int]]:
    return [
        (a, b, distance)
        for a, b in itertools.combinations(range(len(codes)), 2)
        if (distance := oracles.hamming(codes[a], codes[b])) <= radius
    ]


def listed(pairs: NearPairs) -> list[tuple[int, int, int]]:
    return sorted(zip(*(column.tolist() for column in pairs), strict=True))


@PROPERTY
@given(joins())
def test_blocks_find_what_a_loop_finds(case: tuple[Codes, int, np.random.Generator]) -> None:
    codes, radius, rng = case
    size = int(rng.integers(1, len(codes) + 2))
    blocks = [slice(start, min(start + size, len(codes))) for start in range(0, len(codes), size)]
    found = [
        part
        for a, rows in enumerate(blocks)
        for others in blocks[a:]
        for part in all_pairs(codes, rows, others, radius)
    ]
    assert listed(concatenated(found)) == brute_force(codes, radius)


@PROPERTY
@given(joins(), st.integers(1, 4), st.booleans())
def test_piece_tables_find_every_pair_once(
    case: tuple[Codes, int, np.random.Generator], more: int, by_kernel: bool
) -> None:
    codes, radius, _ = case
    radius = min(radius, 4)
    tables = PieceTables(8 * codes.shape[1], radius, min(radius + more, 8 * codes.shape[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LONG_RUN", 3 if by_kernel else 96)
        patch.setattr(module, "_RUN_ROWS", 5)
        found = [part for table in range(len(tables)) for part in tables.pairs(codes, table)]
    assert listed(concatenated(found)) == brute_force(codes, radius)


@PROPERTY
@given(joins())
def test_the_cheaper_method_finds_them_in_order(case: tuple[Codes, int, np.random.Generator]) -> None:
    codes, radius, _ = case
    assert list(zip(*(column.tolist() for column in near_pairs(codes, radius)), strict=True)) == brute_force(
        codes, radius
    )


def test_planted_pairs_are_all_found() -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, (20_000, 8), np.uint8)
    rows = rng.permutation(20_000)[:600].reshape(300, 2)
    for number, (first, second) in enumerate(rows):
        bits = np.zeros(64, np.uint8)
        bits[rng.permutation(64)[: number % 4]] = 1
        codes[second] = codes[first] ^ np.packbits(bits, bitorder="little")
    found = near_pairs(codes, 3)
    assert cheapest(codes, 3) is not None
    assert set(map(frozenset, rows.tolist())) <= {frozenset(pair[:2]) for pair in listed(found)}
    every = slice(0, len(codes))
    assert listed(concatenated(list(all_pairs(codes, every, every, 3)))) == listed(found)


def test_memory_of_a_portion_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_PAIRS", 100)
    codes = np.zeros((60, 4), np.uint8)
    portions = list(all_pairs(codes, slice(0, 60), slice(0, 60), 0))
    assert sum(len(part.first) for part in portions) == 60 * 59 // 2
    assert max(len(part.first) for part in portions) <= 160


def test_pieces_are_chosen_where_they_are_cheaper() -> None:
    rng = np.random.default_rng(0)
    spread = rng.integers(0, 256, (50_000, 8), np.uint8)
    close = np.packbits(rng.random((50_000, 64)) < 0.01, axis=1)
    assert cheapest(spread, 2) is not None
    assert cheapest(spread, 40) is None
    assert cheapest(close, 10) is None
    assert best_tables(spread[:10], 64) == (None, float("inf"))
    for tables in (cheapest(spread, radius) for radius in range(4)):
        assert tables is None or len(tables) <= module.MAX_TABLES


def test_arguments_are_checked() -> None:
    codes = np.zeros((3, 2), np.uint8)
    with pytest.raises(ValueError, match="radius is -1"):
        near_pairs(codes, -1)
    with pytest.raises(ValueError, match="uint8"):
        near_pairs(codes.astype(np.int32), 1)  # type: ignore[arg-type]


def test_distances_row_by_row() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 256, (2, 9, 5), np.uint8)
    assert code_distances(first, second).tolist() == [oracles.hamming(a, b) for a, b in zip(first, second, strict=True)]
