"""All pairs of codes within a radius of each other, exact, by comparing all or by codes that share pieces.

Knows nothing of ids, files and Ray. Codes are best distinct: equal ones give a pair each with each. Shapes: N codes, B
bits, W words, E pairs.

Two methods find the same pairs. `all_pairs` compares blocks of rows by the compiled kernel, N^2/2 comparisons.
`PieceTables` uses the pigeonhole principle: cut into m pieces, two codes that differ in at most r bits agree in at
least m - r pieces, so they are equal in one of C(m, r) choices of m - r pieces. For each choice, a table, codes are
sorted by these bits and compared only with those that have them all (Manku et al. 2007, Detecting near-duplicates for
web crawling). `cheapest` chooses by a model of the seconds of one core:

    all pairs      N^2 / 2 * PAIR_S * max(1, W)
    piece tables   C(m, r) * N * SORT_S * max(1, W) + candidates * CANDIDATE_S

where the candidates are counted in some tables of a sample of the codes, and scaled.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cibhash.binary import as_words, check_codes
from cibhash.hamming import range_counts, range_search
from cibhash.types import Codes, Distances, Ids

PAIR_S, SORT_S, CANDIDATE_S = 1.0e-10, 1.0e-7, 5.0e-8
"""Seconds of one comparison of a word by the kernel, of a code in a table, of a candidate: measured on one core."""
MAX_TABLES = 600
_SAMPLE_ROWS = 2**17
_SAMPLE_TABLES = 3
_QUERY_ROWS = 2**12
_CHUNK_PAIRS = 2**20
_LONG_RUN = 96
"""Codes that share their pieces and are so many or more are compared by the kernel."""
_RUN_ROWS = 2**15
_MIX = np.uint64(0x9E3779B97F4A7C15)


class NearPairs(NamedTuple):
    """Pairs of rows within the radius, each once, `first < second`."""

    first: Ids
    """int64 (E,)."""
    second: Ids
    """int64 (E,)."""
    distances: Distances
    """int32 (E,)."""

    def take(self, kept: npt.NDArray[Any]) -> "NearPairs":
        """Some of the pairs, by index or mask."""
        return NearPairs(self.first[kept], self.second[kept], self.distances[kept])


def no_pairs() -> NearPairs:
    """An empty list."""
    return NearPairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32))


def concatenated(parts: list[NearPairs]) -> NearPairs:
    """The pairs of all parts."""
    return NearPairs(*map(np.concatenate, zip(no_pairs(), *parts, strict=True)))


def near_pairs(codes: Codes, radius: int) -> NearPairs:
    """All pairs of rows within an inclusive radius, in the order of (first, second), by the cheaper method.

    Args:
        codes: Packed codes, uint8 (N, B/8).
        radius: Largest distance that counts, at least 0.

    Raises:
        ValueError: `radius` is below 0, or `codes` is not a packed code array.
    """
    tables = cheapest(codes, radius)
    if tables is None:
        found = concatenated(list(all_pairs(codes, slice(0, len(codes)), slice(0, len(codes)), radius)))
    else:
        found = concatenated([part for table in range(len(tables)) for part in tables.pairs(codes, table)])
    return found.take(np.lexsort((found.second, found.first)))


def all_pairs(codes: Codes, rows: slice, others: slice, radius: int) -> Iterator[NearPairs]:
    """Pairs between two blocks of rows, or within one, by comparing all; some at a time, so that memory is bounded.

    Args:
        codes: Packed codes, uint8 (N, B/8).
        rows: A range of rows.
        others: The same range, or one that begins where it ends or later.
        radius: Largest distance that counts, at least 0.
    """
    within = rows == others
    for start in range(rows.start, rows.stop, _QUERY_ROWS):
        queries = codes[start : min(start + _QUERY_ROWS, rows.stop)]
        base = start if within else others.start
        database = codes[base : others.stop]
        counts = range_counts(queries, database, radius)
        hits = np.flatnonzero(counts > within)
        for few in _portions(hits, counts[hits]):
            found = range_search(queries[few], database, radius)
            first = np.repeat(few, np.diff(found.limits)) + start
            second = found.ids + base
            later = second > first
            yield NearPairs(first[later], second[later], found.distances[later])


def _portions(rows: Ids, counts: Ids) -> Iterator[Ids]:
    """The rows in portions with about `_CHUNK_PAIRS` pairs, or one row with more."""
    number = (np.cumsum(counts) - counts) // _CHUNK_PAIRS
    if len(rows):
        yield from np.split(rows, np.flatnonzero(np.diff(number)) + 1)


class PieceTables(NamedTuple):
    """The tables that find all pairs within a radius: one for each choice of `num_pieces - radius` pieces."""

    bits: int
    radius: int
    num_pieces: int

    def __len__(self) -> int:
        """Number of tables."""
        return math.comb(self.num_pieces, self.radius)

    def pairs(self, codes: Codes, table: int) -> Iterator[NearPairs]:
        """Pairs that one table finds; of the tables that could find a pair, the first one does.

        Args:
            codes: Packed codes, uint8 (N, B/8).
            table: Number of the table, below `len`.
        """
        words = as_words(codes)
        chosen = self._choice(table)
        order, starts, lengths = _runs(words, self._mask(chosen, words.dtype))
        for start, length in zip(starts[lengths >= _LONG_RUN], lengths[lengths >= _LONG_RUN], strict=True):
            rows = np.sort(order[start : start + length])
            every = slice(0, len(rows))
            for found in all_pairs(codes[rows], every, every, self.radius):
                yield self._own(words, chosen, NearPairs(rows[found.first], rows[found.second], found.distances))
        short = (lengths > 1) & (lengths < _LONG_RUN)
        for found in _within_runs(words, order, starts[short], lengths[short], self.radius):
            yield self._own(words, chosen, found)

    def candidates(self, codes: Codes, scale: float) -> float:
        """Estimated comparisons over all tables for `scale` times as many codes, those by the kernel at their price."""
        words, total = as_words(codes), 0.0
        numbers = np.unique(np.linspace(0, len(self) - 1, _SAMPLE_TABLES).round().astype(np.int64)).tolist()
        for number in numbers:
            _, _, lengths = _runs(words, self._mask(self._choice(number), words.dtype))
            pairs = lengths * (lengths - 1) / 2 * scale**2
            total += float(np.where(lengths * scale < _LONG_RUN, pairs, pairs * (3 * PAIR_S / CANDIDATE_S)).sum())
        return total * len(self) / len(numbers)

    def _choice(self, table: int) -> tuple[int, ...]:
        choices = itertools.combinations(range(self.num_pieces), self.num_pieces - self.radius)
        return next(itertools.islice(choices, table, None))

    def _mask(self, pieces: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The bits of these pieces as words (W,)."""
        piece_of_bit = np.arange(self.bits) * self.num_pieces // self.bits
        packed = np.packbits(np.isin(piece_of_bit, pieces), bitorder="little")
        words = as_words(packed[None])[:, 0]
        assert words.dtype == dtype
        return words

    def _own(self, words: npt.NDArray[Any], chosen: tuple[int, ...], pairs: NearPairs) -> NearPairs:
        """The pairs that no earlier table finds: all chosen pieces agree, and no other before the last of them."""
        if not len(pairs.first):
            return pairs
        differ = words[:, pairs.first] ^ words[:, pairs.second]
        own = np.ones(len(pairs.first), np.bool_)
        for piece in range(chosen[-1] + 1):
            mask = self._mask((piece,), words.dtype)
            agrees = ~np.any(differ & mask[:, None], axis=0)
            own &= agrees if piece in chosen else ~agrees
        return pairs.take(own)


def cheapest(codes: Codes, radius: int) -> PieceTables | None:
    """The piece tables that find the pairs in the least time, None if comparing all codes takes less.

    Raises:
        ValueError: `radius` is below 0, or `codes` is not a packed code array.
    """
    check_codes(codes, "codes")
    words = -(-codes.shape[1] // 8)
    tables, seconds = best_tables(codes, radius)
    return tables if tables is not None and seconds < len(codes) ** 2 / 2 * PAIR_S * words else None


def best_tables(codes: Codes, radius: int) -> tuple[PieceTables | None, float]:
    """The number of pieces that takes the least time, and the seconds of one core that it takes.

    Returns:
        None and infinity where no number of pieces will do: from a radius of B on, where every pair counts.
    """
    check_codes(codes, "codes")
    if radius < 0:
        raise ValueError(f"radius is {radius}, expected at least 0")
    bits, words = 8 * codes.shape[1], -(-codes.shape[1] // 8)
    sample = codes[:: max(1, len(codes) // _SAMPLE_ROWS)]
    scale = len(codes) / max(1, len(sample))
    best: tuple[PieceTables | None, float] = None, math.inf
    for num_pieces in range(radius + 1, bits + 1):
        tables = PieceTables(bits, radius, num_pieces)
        sorting = len(tables) * len(codes) * SORT_S * words
        if num_pieces > radius + 1 and (len(tables) > MAX_TABLES or sorting > best[1]):
            break
        seconds = sorting + tables.candidates(sample, scale) * CANDIDATE_S
        best = min(best, (tables, seconds), key=lambda one: one[1])
    return best


def _runs(words: npt.NDArray[Any], mask: npt.NDArray[Any]) -> tuple[Ids, Ids, Ids]:
    """Rows sorted by the masked bits, and where each run of equal ones starts and how long it is.

    Of several words a mixture is taken: rows that differ may share it, and are told apart later.
    """
    kept = np.flatnonzero(mask)
    keys = words[kept[0]] & mask[kept[0]] if len(kept) else np.zeros(words.shape[1], np.uint64)
    for word in kept[1:]:
        keys = (keys ^ (keys >> np.uint64(29))) * _MIX + (words[word] & mask[word])
    order = np.argsort(keys)
    keys = keys[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    return order, starts, np.diff(starts, append=len(keys))


def _within_runs(words: npt.NDArray[Any], order: Ids, starts: Ids, lengths: Ids, radius: int) -> Iterator[NearPairs]:
    """Pairs within the radius in each of many short runs, by comparing rows with those 1, 2, ... places later."""
    if not len(starts):
        return
    ends_of_runs = np.cumsum(lengths)
    begins = ends_of_runs - lengths
    rows = order[np.repeat(starts - begins, lengths) + np.arange(ends_of_runs[-1])]
    ends = np.repeat(ends_of_runs, lengths)
    words = words[:, rows]
    for low in range(0, len(rows), _RUN_ROWS):
        places = np.arange(low, min(low + _RUN_ROWS, len(rows)))
        limits = ends[low : low + _RUN_ROWS]
        for shift in itertools.count(1):
            further = places + shift < limits
            places, limits = places[further], limits[further]
            if not len(places):
                break
            distances = np.bitwise_count(words[:, places] ^ words[:, places + shift]).sum(axis=0, dtype=np.int32)
            near = np.flatnonzero(distances <= radius)
            if len(near):
                first, second = rows[places[near]], rows[places[near] + shift]
                yield NearPairs(np.minimum(first, second), np.maximum(first, second), distances[near])


def code_distances(first: Codes, second: Codes) -> Distances:
    """Hamming distance of each row of one array to the same row of another, int32 (N,)."""
    counts: Distances = np.bitwise_count(as_words(first) ^ as_words(second)).sum(axis=0, dtype=np.int32)
    return counts
