"""Memory of a shard: in proportion to what it holds, and against what FAISS itself writes."""

import numpy as np
import pytest

from cluster.index.approximate_codes import build_structure, to_bytes
from cluster.index.kinds import APPROXIMATE, IndexKind, KindSpec
from cluster.planning.shard_memory import file_bytes, shard_memory
from cluster.planning_config import EVERY_KIND


def parameters(kind: IndexKind, count: int) -> dict[str, int]:
    return KindSpec(kind).of_shard(count, 16) if kind in APPROXIMATE else {}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_memory_grows_with_codes_and_ids(kind: IndexKind) -> None:
    sizes = [2**power for power in range(17, 28)]
    found = [shard_memory(kind, parameters(kind, n), n, n / 2, 16, contiguous=False) for n in sizes]
    resident = [one.resident for one in found]
    assert resident == sorted(set(resident))
    assert all(one.loading >= one.resident for one in found)
    bare = [shard_memory(kind, parameters(kind, n), n, n / 2, 16, contiguous=True) for n in sizes]
    assert [one.resident - other.resident for one, other in zip(found, bare, strict=True)] == [8 * n for n in sizes]


def test_exact_kinds_hold_what_they_are_made_of() -> None:
    million = 10**6
    assert shard_memory("flat", {}, million, million, 64, contiguous=True).resident == 8 * million
    few = shard_memory("unique", {}, million, 1000, 64, contiguous=True).resident
    assert few == 16 * million + 24 * 1000
    assert shard_memory("unique", {}, million, million, 64, contiguous=True).resident == 40 * million


@pytest.mark.parametrize("kind", sorted(APPROXIMATE))
@pytest.mark.parametrize("bits", [32, 64])
def test_file_bytes_are_those_that_are_written(kind: IndexKind, bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (5000, bits // 8), np.uint8)
    chosen = KindSpec(kind).of_shard(len(codes), bits)
    written = len(to_bytes(build_structure(kind, codes, chosen))) + codes.nbytes
    assert file_bytes(kind, chosen, len(codes), bits, contiguous=True) == pytest.approx(written, rel=0.1)


def test_an_exact_kind_has_no_structure() -> None:
    assert file_bytes("unique", {}, 1000, 64, contiguous=False) == 16_000
