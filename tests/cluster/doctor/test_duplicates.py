"""Equal rows against a comparison of all with all."""

import numpy as np
import pytest

from cluster.doctor.duplicates import EqualRows, Repeats


def pairs(repeats: Repeats) -> list[tuple[int, int]]:
    return list(zip(repeats.rows.tolist(), repeats.firsts.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("width", [0, 2])
def test_against_the_slow_twin(seed: int, width: int) -> None:
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 60))
    digests = generator.integers(0, 12, (count, width) if width else count).astype(np.uint64)
    if width:
        digests[:, 1] = digests[:, 0] % 3
    starts = [0, *sorted(generator.integers(0, count + 1, 2).tolist()), count]
    values = generator.integers(0, 3, count).astype(np.uint64)
    rows = [tuple(np.atleast_1d(row).tolist()) for row in digests]
    dataset = [max(d for d in range(3) if starts[d] <= row) for row in range(count)]
    equal = EqualRows(digests, starts)

    within, conflicts = [], []
    for row in range(count):
        same = [other for other in range(count) if rows[other] == rows[row]]
        first = next(other for other in same if dataset[other] == dataset[row])
        if first != row:
            within.append((row, first))
        having = [other for other in same if values[other]]
        if values[row] and values[having[0]] != values[row]:
            conflicts.append((row, having[0]))
    assert pairs(equal.within()) == within
    assert pairs(equal.in_conflict(values)) == conflicts

    found = {(shared.first, shared.second): pairs(shared.repeats) for shared in equal.across()}
    for first in range(3):
        for second in range(3):
            expected = [
                (row, others[0])
                for row in range(count)
                if dataset[row] == first
                and (others := [o for o in range(count) if dataset[o] == second and rows[o] == rows[row]])
            ]
            if first != second:
                assert found.get((first, second), []) == expected


def test_no_rows_and_no_repeats() -> None:
    for digests in (np.empty((0, 2), np.uint64), np.arange(6, dtype=np.uint64).reshape(3, 2)):
        equal = EqualRows(digests, [0, len(digests)])
        assert pairs(equal.within()) == []
        assert equal.across() == []
        assert pairs(equal.in_conflict(np.ones(len(digests), np.uint64))) == []
