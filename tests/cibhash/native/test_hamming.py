"""The compiled Hamming functions: numpy's answers at every level, whatever the width, the ties and the sample."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cibhash import hamming, hamming_numpy
from cibhash.native import hamming as native
from cibhash.native.library import Level, library
from cibhash.relevance import share_label
from cibhash.types import Codes
from tests.patience import HANG_S

pytestmark = pytest.mark.skipif(library() is None, reason="no compiled library")
LEVELS = [level for level in Level if (found := library()) is not None and level <= found.cibhash_level()]
PROPERTY = hypothesis_settings(derandomize=True, deadline=None, max_examples=60)
BLOCK_EDGES = [0, 1, 2, 63, 64, 255, 256, 257, 511, 513, 767, 768, 1023, 1025, 2047, 2049, 4097]
OUT_OF_RANGE, NO_MEMORY = 1, 2


class Case(NamedTuple):
    """Codes of one width and the draws that made them."""

    queries: Codes
    database: Codes
    draws: np.random.Generator


def _case(seed: int, width: int, num_queries: int, num_database: int, distinct: int, flips: int) -> Case:
    """Few distinct codes, of which each has up to `flips` bytes changed: duplicates and ties are the rule."""
    draws = np.random.default_rng(seed)
    centers = draws.integers(0, 256, (distinct, width), np.uint8)

    def make(count: int) -> Codes:
        codes = centers[draws.integers(0, distinct, count)]
        for _ in range(flips):
            codes[np.arange(count), draws.integers(0, width, count)] ^= np.uint8(1) << draws.integers(
                0, 8, count, np.uint8
            )
        return codes

    return Case(make(num_queries), make(num_database), draws)


CASES = st.builds(
    _case,
    seed=st.integers(0, 2**32),
    width=st.integers(1, 64),
    num_queries=st.integers(0, 6),
    num_database=st.one_of(st.integers(0, 40), st.sampled_from(BLOCK_EDGES), st.integers(0, 3000)),
    distinct=st.integers(1, 12),
    flips=st.integers(0, 6),
)


def _check(arguments: tuple[Any, ...], ours: Callable[..., Any], expected: tuple[npt.NDArray[Any], ...]) -> None:
    for level in LEVELS:
        found = ours(*arguments, level)
        assert found is not None
        for array, wanted in zip(found, expected, strict=True):
            assert array.dtype == wanted.dtype
            np.testing.assert_array_equal(array, wanted, err_msg=f"with {level.name}")


def _check_search(queries: Codes, database: Codes, k: int) -> None:
    _check((queries, database, k), native.search, hamming_numpy.search(queries, database, k))


@PROPERTY
@given(CASES, st.floats(0, 1), st.booleans())
def test_search(case: Case, share: float, few: bool) -> None:
    if len(case.database):
        k = min(1 + int(20 * share), len(case.database)) if few else max(1, int(share * len(case.database)))
        _check_search(case.queries, case.database, k)


@pytest.mark.parametrize("bits", range(8, 520, 8))
def test_search_at_every_width(bits: int) -> None:
    case = _case(bits, bits // 8, 5, 1500, 20, 5)
    _check_search(case.queries, case.database, 40)


@PROPERTY
@given(CASES, st.integers(0, 512))
@example(_case(0, 4, 3, 2049, 3, 2), 0)
@example(_case(0, 64, 3, 2049, 3, 2), 512)
def test_range_search(case: Case, radius: int) -> None:
    arguments = (case.queries, case.database, min(radius, 8 * case.queries.shape[1]))
    _check(arguments, native.range_search, hamming_numpy.range_search(*arguments))


@PROPERTY
@given(CASES, st.sampled_from([None, 0, 1, 24, 64, 65, 130]))
@example(_case(0, 64, 3, 4097, 3, 2), None)
@example(_case(0, 64, 3, 4097, 3, 2), 130)
def test_histogram(case: Case, classes: int | None) -> None:
    sides = [
        case.draws.integers(-2, 4, len(codes)) if classes is None else case.draws.random((len(codes), classes)) < 0.03
        for codes in case[:2]
    ]
    relevant = share_label(*sides, len(case.queries), len(case.database))
    expected = hamming_numpy.histogram(case.queries, case.database, relevant)
    _check((case.queries, case.database, *map(native.comparable, sides)), native.histogram, expected)


SAMPLED = 33_000
"""Codes of which a sample is taken."""


def _by_distance(width: int) -> Codes:
    """From near to far of zero."""
    codes = np.random.default_rng(width).integers(0, 256, (SAMPLED, width), np.uint8)
    return codes[np.argsort(np.bitwise_count(codes).sum(axis=1), kind="stable")]


def _sampled(width: int) -> npt.NDArray[np.bool_]:
    """What the sample consists of: the codes of a cache line, one line in 64."""
    run = 64 // width
    return np.arange(SAMPLED) % (64 * run) < run


def _misleading(width: int, *, near: bool) -> Codes:
    """The sample is nearer to zero than all else, or farther."""
    codes = np.random.default_rng(width).integers(0, 256, (SAMPLED, width), np.uint8)
    codes[_sampled(width) == near] &= 0x11
    return codes


@pytest.mark.parametrize("width", [1, 2, 4, 8, 12, 16, 32, 64])
@pytest.mark.parametrize("k", [1, 10, 300, 2500, SAMPLED // 3, SAMPLED])
def test_no_order_and_no_sample_changes_the_answer(width: int, k: int) -> None:
    ascending = _by_distance(width)
    constant = np.zeros((SAMPLED, width), np.uint8)
    exact = np.where(_sampled(width)[:, None], np.uint8(0), np.uint8(255)) * np.ones(width, np.uint8)
    queries = np.vstack((constant[:1], ~constant[:1], ascending[[5, 20_000]]))
    makes: list[Codes] = [ascending, ascending[::-1], constant, exact]
    makes += [_misleading(width, near=True), _misleading(width, near=False)]
    for database in makes if width in (4, 8) else makes[3:]:
        _check_search(queries, np.ascontiguousarray(database), k)


def test_a_misleading_sample_is_noticed() -> None:
    """Its codes are the query itself, 512 of them; the next thousand are found all the same."""
    database = np.full((SAMPLED, 8), 255, np.uint8)
    database[_sampled(8)] = 0
    database[5::32] = 1
    for level in LEVELS:
        found = native.search(np.zeros((2, 8), np.uint8), database, 1000, level)
        assert found is not None
        zeros, others = np.flatnonzero(~database.any(axis=1)), np.flatnonzero(database[:, 0] == 1)
        np.testing.assert_array_equal(found[0][1], np.concatenate((zeros, others))[:1000])


@pytest.mark.parametrize("offset", [1, 4, 8, 16])
@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("num_queries", [1, 5])
def test_codes_may_lie_anywhere(offset: int, width: int, num_queries: int) -> None:
    case = _case(offset, width, num_queries, 3000, 10, 6)
    memory = np.zeros(case.database.nbytes + 64 + offset, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    moved = memory[start : start + case.database.nbytes].reshape(case.database.shape)
    moved[:] = case.database
    _check_search(case.queries, moved, 70)


def test_arrays_need_not_be_contiguous() -> None:
    case = _case(0, 16, 6, 3000, 10, 6)
    queries, database = case.queries[::2, ::2], case.database[::-1, ::2]
    _check_search(queries, database, 70)
    _check((queries, database, 9), native.range_search, hamming_numpy.range_search(queries, database, 9))
    labels = case.draws.random((3, 6)) < 0.5, (case.draws.random((6, 6000)) < 0.5)[:, ::2].T
    expected = hamming_numpy.histogram(queries, database, share_label(*labels, 3, 3000))
    _check((queries, database, *map(native.comparable, labels)), native.histogram, expected)


def _sliced(seed: int, width: int, count: int, ones: float = 0.5, apart: float = 0.5) -> tuple[Codes, Codes]:
    """Enough queries and codes to be compared plane by plane at every level.

    Args:
        ones: Share of bits that queries have; they are much alike, but for one with all and one with none.
        apart: Share of bits in which codes differ from queries, about.
    """
    draws = np.random.default_rng(seed)

    def make(rows: int, share: float) -> Codes:
        return np.packbits(draws.random((rows, 8 * width)) < share, axis=1)

    center = make(1, ones)
    queries = center ^ make(38, 0.02)
    queries[:2] = [[0] * width, [255] * width]
    return queries, center ^ make(count, apart)


@pytest.mark.parametrize("bits", range(8, 520, 8))
@pytest.mark.parametrize("half", [False, True])
def test_planes_at_every_width(bits: int, half: bool) -> None:
    """Some are equal to queries, or the nearest are at about half of the bits: what is counted is largest."""
    queries, database = _sliced(bits, bits // 8, 17_000, apart=min(0.5 + 1.6 * half / bits**0.5, 1.0))
    if not half:
        database[::3000] = queries[2:8]
    _check_search(queries, database, 7)


@hypothesis_settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    width=st.integers(1, 64),
    count=st.integers(16_384, 24_000),
    ones=st.sampled_from([0.02, 0.4, 0.5, 0.6, 0.98]),
    apart=st.sampled_from([0.0, 0.02, 0.3, 0.7, 0.98, 1.0]),
    number=st.integers(0, 37),
    rank=st.integers(0, 60),
)
@example(seed=0, width=64, count=24_000, ones=0.5, apart=1.0, number=0, rank=0)
def test_planes_within_any_radius(
    seed: int, width: int, count: int, ones: float, apart: float, number: int, rank: int
) -> None:
    """Few codes are within it of one query at least, be it small or nearly all bits."""
    queries, database = _sliced(seed, width, count, ones, apart)
    radius = int(np.sort(hamming_numpy.distances(queries[number : number + 1], database)[0])[rank])
    for each in {max(radius - 1, 0), radius, 0}:
        arguments = (queries, database, each)
        _check(arguments, native.range_search, hamming_numpy.range_search(*arguments))


@pytest.mark.parametrize("few", [0, 20, 40])
def test_planes_that_only_some_queries_want(few: int) -> None:
    """Of 40 queries all others find most of the codes, in one half of the database and not in the other."""
    database = np.random.default_rng(few).integers(0, 256, (40_000, 8), np.uint8)
    database[:20_000] &= 0x11
    queries = np.zeros((40, 8), np.uint8)
    queries[:few] = 255
    for radius in (16, 25):
        arguments = (queries, database, radius)
        _check(arguments, native.range_search, hamming_numpy.range_search(*arguments))


def test_more_queries_than_the_budget_holds_at_once() -> None:
    """Each may keep 4 (k + 256) keys of 8 bytes: together more than 64 MB."""
    case = _case(1, 8, 700, 45_000, 500, 12)
    assert len(case.queries) * 32 * (2800 + 256) > 2**26
    assert len(case.database) / 2800 > 16  # else all distances are counted, and nothing is kept
    _check_search(case.queries, case.database, 2800)


def test_longer_codes_are_left_to_numpy() -> None:
    case = _case(0, 65, 2, 50, 3, 9)
    assert native.search(case.queries, case.database, 3) is None
    assert native.range_search(case.queries, case.database, 3) is None
    labels = np.zeros(2, int), np.zeros(50, int)
    assert native.histogram(case.queries, case.database, *labels) is None
    expected = hamming_numpy.search(case.queries, case.database, 3)
    np.testing.assert_array_equal(hamming.search(case.queries, case.database, 3).ids, expected[0])


CODES = np.zeros((4, 8), np.uint8)
NUMBERS = np.zeros((2, 64), np.int64)


def _call(name: str, *arguments: object) -> int:
    loaded = library()
    assert loaded is not None
    codes: int = getattr(loaded, f"cibhash_hamming_{name}")(
        *(item.ctypes.data if isinstance(item, np.ndarray) else item for item in arguments)
    )
    return codes


@pytest.mark.parametrize(
    ("num_queries", "num_codes", "width"),
    [(-1, 4, 8), (1, -1, 8), (1, 4, 0), (1, 4, -8), (1, 4, 65), (2**60, 4, 8), (1, 2**60, 8)],
)
def test_sizes_out_of_range(num_queries: int, num_codes: int, width: int) -> None:
    pair = (CODES, num_queries, CODES, num_codes, width)
    assert _call("search", *pair, 1, *NUMBERS, 2) == OUT_OF_RANGE
    assert _call("count", *pair, 1, NUMBERS, 2) == OUT_OF_RANGE
    assert _call("fill", *pair, 1, NUMBERS, *NUMBERS, 2) == OUT_OF_RANGE
    assert _call("histogram", *pair, CODES, CODES, 0, *NUMBERS, 2) == OUT_OF_RANGE


def test_other_arguments_out_of_range() -> None:
    pair = (CODES, 1, CODES, 4, 8)
    assert [_call("search", *pair, k, *NUMBERS, 2) for k in (-1, 0, 5, 4)] == [OUT_OF_RANGE] * 3 + [0]
    assert [_call("count", *pair, radius, NUMBERS, 2) for radius in (-1, 65, 64)] == [OUT_OF_RANGE] * 2 + [0]
    assert _call("histogram", *pair, CODES, CODES, -1, *NUMBERS, 2) == OUT_OF_RANGE


@pytest.mark.parametrize("limits", [(0, 3), (0, 5), (1, 0), (-4, 0), (-1, 3)])
def test_limits_that_do_not_fit_the_codes(limits: tuple[int, int]) -> None:
    """As when the codes changed between counting and filling: nothing is written beyond the room there is."""
    answer = np.full((2, 8), -7, np.int64)
    arguments = (CODES, 1, CODES, 4, 8, 3, np.array(limits), *answer, 2)
    assert _call("fill", *arguments) == OUT_OF_RANGE
    assert (answer[:, max(limits[1], 0) :] == -7).all()


_LITTLE_MEMORY = """
import resource
from pathlib import Path
import numpy as np
from cibhash.native.library import library
queries, database, k = np.zeros((700, 8), np.uint8), np.zeros((45_000, 8), np.uint8), 2800
positions, distances = np.empty((700, k), np.int64), np.empty((700, k), np.int32)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 20_000_000,) * 2)
for count in (700, 70):
    addresses = queries.ctypes.data, count, database.ctypes.data, 45_000, 8
    print(library().cibhash_hamming_search(*addresses, k, positions.ctypes.data, distances.ctypes.data, 2))
"""


@pytest.mark.skipif(bool(os.environ.get("CIBHASH_NATIVE")), reason="a sanitizer needs all the memory there is")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_memory_that_runs_out() -> None:
    """The process may take 20 MB more than it has; one of its own, that no freed memory of other tests is at hand."""
    done = subprocess.run([sys.executable, "-c", _LITTLE_MEMORY], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(map(int, done.stdout.split())) == [NO_MEMORY, 0]


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads_give_the_same_bytes(threads: int) -> None:
    case = _case(0, 8, 7, 30_000, 30, 9)
    labels = case.draws.integers(-1, 5, 7), case.draws.integers(-1, 5, 30_000)
    masks = case.draws.random((7, 70)) < 0.1, case.draws.random((30_000, 70)) < 0.1
    ids = case.draws.permutation(30_000)
    for call in (
        lambda n: hamming.search(case.queries, case.database, 50, ids=ids, threads=n),
        lambda n: hamming.range_search(case.queries, case.database, 6, ids=ids, threads=n),
        lambda n: hamming.histogram(case.queries, case.database, *labels, threads=n),
        lambda n: hamming.histogram(case.queries, case.database, *masks, threads=n),
    ):
        assert [part.tobytes() for part in call(threads)] == [part.tobytes() for part in call(1)]


def test_callers_at_once() -> None:
    cases = [_case(number, 1 + 5 * number, 4, 20_000, 30, 9) for number in range(8)]
    expected = [hamming_numpy.search(case.queries, case.database, 200) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda case: native.search(case.queries, case.database, 200), cases * 3))
    for answer, wanted in zip(found, expected * 3, strict=True):
        assert answer is not None
        assert [part.tobytes() for part in answer] == [part.tobytes() for part in wanted]


def test_the_arguments_are_left_as_they_were() -> None:
    case = _case(0, 8, 3, 20_000, 30, 9)
    before = case.queries.tobytes(), case.database.tobytes()
    native.search(case.queries, case.database, 20)
    native.range_search(case.queries, case.database, 20)
    assert before == (case.queries.tobytes(), case.database.tobytes())
