"""Repeated keys: found whatever the ranges, and the first pair of shards is the same whatever the order of tasks."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.packing import duplicate_keys
from cluster.packing.adopted_shard import ScanRecord, ScanTask, key_digest, scan_one
from cluster.packing.duplicate_keys import Repeated, combined, key_ranges, repeated_keys
from tests.datasets import tar_bytes


def records_of(folder: Path, shards: list[set[int]]) -> list[ScanRecord]:
    records = []
    for number, keys in enumerate(shards):
        path = folder / f"{number:03d}.tar"
        path.write_bytes(tar_bytes([(f"key-{key}.jpg", b"x") for key in sorted(keys)]))
        records.append(scan_one(ScanTask(str(path), str(folder / "records"), with_keys=True)).record)
    return records


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sets(st.integers(0, 30), max_size=8), min_size=1, max_size=6), st.sampled_from([1, 3, 1000]))
def test_against_counting(tmp_path_factory: pytest.TempPathFactory, shards: list[set[int]], per_task: int) -> None:
    records = records_of(tmp_path_factory.mktemp("shards"), shards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicate_keys, "KEYS_PER_TASK", per_task)
        ranges = list(key_ranges(sum(map(len, shards))))
    assert (ranges[0][0], ranges[-1][1]) == (0, 256)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
    found = combined([repeated_keys(records, start, stop) for start, stop in reversed(ranges)])
    counts = Counter(key for keys in shards for key in keys)
    repeated = [key for key, count in counts.items() if count > 1]
    places = {key: [n for n, keys in enumerate(shards) if key in keys][:2] for key in repeated}
    assert found.count == sum(count - 1 for count in counts.values())
    if places:
        first = min(places.values())
        assert [found.first_shard, found.second_shard] == first
        assert found.digest in {key_digest(f"key-{key}") for key, pair in places.items() if pair == first}
    else:
        assert found == Repeated(0)
