"""Needs no more than torch, numpy and pytest, so that it runs where the GPU is."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cibhash.errors import ConfigError
from cluster.index.device_flat import DeviceFlat
from tests import oracles
from tests.cibhash.test_device_hamming import DEVICES, code_sets


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", [8, 16, 64, 256])
def test_search_is_brute_force(device: str, bits: int) -> None:
    queries, codes, _ = code_sets(5, bits, num_queries=12, num_database=50)
    flat = DeviceFlat(codes, device)
    rankings = [oracles.search(query, codes, range(50)) for query in queries]
    for k in (1, 9, 49, 50):
        positions, distances = flat.search(queries, k)
        assert (positions.dtype, distances.dtype) == (np.int64, np.int32)
        for row, ranking in enumerate(rankings):
            assert list(zip(distances[row].tolist(), positions[row].tolist(), strict=True)) == ranking[:k]
    for radius in (0, bits // 3, bits):
        limits, positions, distances = flat.range_search(queries, radius)
        for row, ranking in enumerate(rankings):
            cut = slice(limits[row], limits[row + 1])
            found = list(zip(distances[cut].tolist(), positions[cut].tolist(), strict=True))
            assert found == [pair for pair in ranking if pair[0] <= radius]


@pytest.mark.parametrize("device", DEVICES)
def test_threads_get_their_own_answers(device: str) -> None:
    queries, codes, _ = code_sets(6, 64, num_queries=24, num_database=500, distinct=100)
    flat = DeviceFlat(codes, device)
    expected = flat.search(queries, 7)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: flat.search(queries[row : row + 1], 7), range(len(queries))))
    for column, whole in enumerate(expected):
        np.testing.assert_array_equal(np.concatenate([answer[column] for answer in found]), whole)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^no CUDA device: "):
        DeviceFlat(np.zeros((3, 8), np.uint8), "cuda")
