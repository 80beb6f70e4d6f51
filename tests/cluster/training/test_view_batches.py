"""Pairs of views per worker: what a step holds, and that it does not depend on the number of workers."""

from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cibhash.errors import DataError
from cibhash.images import decode_image
from cibhash.shards import SourceImage
from cibhash.specs import ViewSpec
from cibhash.views import random_view, view_generator
from cluster.datasets import open_dataset, shard_samples
from cluster.training.view_batches import CachedViews, FreshViews, Share
from tests.datasets import make_dataset, plain_sources, shape_dataset, shape_sources

_COLOR_KEPT = ViewSpec(jitter=0, grayscale=0, blur=0)


def _fresh(uri: str, spec: ViewSpec, threads: ThreadPoolExecutor) -> FreshViews:
    return FreshViews(uri, open_dataset(uri).shards, spec, 8, threads)


def _numbers(view: torch.Tensor) -> npt.NDArray[np.int64]:
    """The numbers that plain images tell by their color; every pixel must tell the same."""
    pixels = view.numpy().astype(np.int64)
    numbers = pixels[:, 0] + 256 * pixels[:, 1]
    assert (numbers == numbers[:, :1, :1]).all()
    return numbers[:, 0, 0]


def test_fresh_global_batches_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    uri = make_dataset(tmp_path, [plain_sources(1), plain_sources(7, 1), plain_sources(290, 8)])
    runs = []
    with ThreadPoolExecutor(2) as threads:
        source = _fresh(uri, _COLOR_KEPT, threads)
        for workers in (1, 2, 4):
            shares = [Share(rank, workers, 4, 16, seed=3) for rank in range(workers)]
            steps = zip(*(source.pairs(5, share) for share in shares), strict=True)
            batches = []
            for parts in steps:
                for a, b in parts:
                    assert a.shape == b.shape == (16 // workers, 3, 8, 8)
                    assert a.dtype == b.dtype == torch.uint8
                    np.testing.assert_array_equal(_numbers(a), _numbers(b))
                batches.append(np.concatenate([_numbers(a) for a, _ in parts]).tolist())
            runs.append(batches)
    assert runs[0] == runs[1] == runs[2]
    seen = list(chain.from_iterable(runs[0]))
    assert len(runs[0]) == 298 // 4 // 4
    assert len(set(seen)) == len(seen)


def test_fresh_views_are_those_of_seed_epoch_and_id(tmp_path: Path) -> None:
    uri = shape_dataset(tmp_path, [3, 5])
    images = [decode_image(s.image) for shard in open_dataset(uri).shards for s in shard_samples(uri, shard)]
    spec = ViewSpec()
    expected = {}
    for number, image in enumerate(images):
        views = [random_view(image, spec, 8, view_generator(9, 2, number, view)) for view in (0, 1)]
        expected[views[0].tobytes()] = views[1].tobytes()
    with ThreadPoolExecutor(2) as threads:
        pairs = list(_fresh(uri, spec, threads).pairs(2, Share(0, 1, 2, 8, seed=9)))
    found = {a.numpy().tobytes(): b.numpy().tobytes() for step in pairs for a, b in zip(*step, strict=True)}
    assert found == expected


def test_epochs_differ(tmp_path: Path) -> None:
    uri = make_dataset(tmp_path, [plain_sources(40)])
    with ThreadPoolExecutor(2) as threads:
        source, share = _fresh(uri, _COLOR_KEPT, threads), Share(0, 1, 1, 8, seed=0)
        orders = [np.concatenate([_numbers(a) for a, _ in source.pairs(epoch, share)]).tolist() for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40))


def test_a_bad_image_stops_training_and_is_named(tmp_path: Path) -> None:
    uri = make_dataset(tmp_path, [[*shape_sources(3), SourceImage("broken", "jpg", b"no image", ())]])
    with ThreadPoolExecutor(2) as threads, pytest.raises(DataError, match="'broken'") as caught:
        list(_fresh(uri, ViewSpec(), threads).pairs(0, Share(0, 1, 1, 4, seed=0)))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("num_views", [2, 3])
def test_cached_global_batches_do_not_depend_on_the_workers(num_views: int) -> None:
    """Features that tell their image and view."""
    num_samples = 37
    features = np.stack(
        [np.stack([np.arange(num_samples), np.full(num_samples, v)], axis=1) for v in range(num_views)]
    ).astype(np.float32)
    source, runs = CachedViews(features), []
    for workers in (1, 2, 4):
        shares = [Share(rank, workers, 4, 8, seed=1) for rank in range(workers)]
        batches = []
        for parts in zip(*(source.pairs(3, share) for share in shares), strict=True):
            for a, b in parts:
                assert a.shape == b.shape == (8 // workers, 2)
                np.testing.assert_array_equal(a[:, 0], b[:, 0])
                assert (a[:, 1] != b[:, 1]).all()
            batches.append([torch.cat([pair[side] for pair in parts]).tolist() for side in (0, 1)])
        runs.append(batches)
    assert runs[0] == runs[1] == runs[2]
    images = [row[0] for a, _ in runs[0] for row in a]
    assert len(images) == len(set(images)) == 32
