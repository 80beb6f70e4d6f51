"""A worker's share of every step, and batches of cached views: the same global batches for any number of workers."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cibhash.errors import ConfigError
from cibhash.types import ViewBatch
from cluster.training.view_batches import CachedViews, Share

Batch = list[tuple[int, int, int, int, int]]
"""Per image of a global batch: its id, and image and view that its two features tell."""


def _telling(num_views: int, num_samples: int, dtype: Any = np.float32) -> npt.NDArray[Any]:
    """Features that tell their image and view, (V, N, 2)."""
    rows = [[(image, view) for image in range(num_samples)] for view in range(num_views)]
    return np.array(rows, dtype)


def _source(num_views: int, num_samples: int, **settings: Any) -> CachedViews:
    """Ids are no rows: they have gaps where images are held out."""
    return CachedViews(_telling(num_views, num_samples), 3 * np.arange(num_samples) + 1000, **settings)


def _told(batch: ViewBatch) -> Batch:
    a, b = (view.numpy().astype(int).tolist() for view in (batch.view_a, batch.view_b))
    return [(int(number), *one, *other) for number, one, other in zip(batch.ids, a, b, strict=True)]


def _global_batches(
    source: CachedViews, workers: int, batch_size: int, *, epoch: int, seed: int = 1, first_step: int = 0
) -> list[Batch]:
    """The epoch's batches, put together in rank order; all ranks must take the same number of steps."""
    ranks = []
    for rank in range(workers):
        share = Share(rank, workers, 4, batch_size, seed)
        (batches,) = source.epochs(epoch, epoch + 1, share, first_step)
        ranks.append([_told(batch) for batch in batches])
        assert len(ranks[-1]) == source.steps(share) - first_step
        assert all(len(batch) == batch_size // workers for batch in ranks[-1])
    return [list(itertools.chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize(("num_streams", "workers"), [(1, 1), (4, 1), (4, 2), (4, 4), (8, 2)])
def test_shares_deal_all_streams_in_rank_order(num_streams: int, workers: int) -> None:
    shares = [Share(rank, workers, num_streams, 16, seed=0) for rank in range(workers)]
    assert list(itertools.chain.from_iterable(share.streams for share in shares)) == list(range(num_streams))
    assert {len(share.streams) for share in shares} == {num_streams // workers}


@pytest.mark.parametrize("num_views", [2, 3])
def test_global_batches_do_not_depend_on_the_workers(num_views: int) -> None:
    source = _source(num_views, 37)
    runs = [_global_batches(source, workers, 8, epoch=3) for workers in (1, 2, 4)]
    assert runs[0] == runs[1] == runs[2]
    images = list(itertools.chain.from_iterable(runs[0]))
    assert len({image for _, image, *_ in images}) == len(images) == 32
    for number, image_a, view_a, image_b, view_b in images:
        assert number == 3 * image_a + 1000
        assert image_a == image_b
        assert view_a != view_b
        assert {view_a, view_b} <= set(range(num_views))


def test_epochs_and_seeds_differ_in_order_and_views() -> None:
    source = _source(3, 40)
    keys = list(itertools.product((0, 1), (0, 1, 2)))
    runs = [_global_batches(source, 1, 8, epoch=epoch, seed=seed) for seed, epoch in keys]
    for (i, one), (j, other) in itertools.combinations(enumerate(runs), 2):
        ids_a, ids_b = ([number for batch in run for number, *_ in batch] for run in (one, other))
        assert ids_a != ids_b, (keys[i], keys[j])
        assert sorted(ids_a) == sorted(ids_b)
        views = [{number: (a, b) for batch in run for number, _, a, _, b in batch} for run in (one, other)]
        assert views[0] != views[1]
    assert runs[4] == _global_batches(source, 1, 8, epoch=keys[4][1], seed=keys[4][0])


def test_several_epochs_at_once_are_each_epoch_alone() -> None:
    source, share = _source(2, 30), Share(1, 2, 2, 8, seed=5)
    together = [[_told(batch) for batch in batches] for batches in source.epochs(1, 4, share)]
    apart = [[_told(batch) for batches in source.epochs(e, e + 1, share) for batch in batches] for e in (1, 2, 3)]
    assert together == apart
    assert len(together) == 3
    assert list(source.epochs(4, 4, share)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_the_rest_of_an_epoch_is_what_is_left_of_it(workers: int) -> None:
    source = _source(3, 41, neighbors=np.arange(41)[::-1, None].copy())
    whole = _global_batches(source, workers, 8, epoch=2)
    for first_step in range(6):
        assert _global_batches(source, workers, 8, epoch=2, first_step=first_step) == whole[first_step:]
    # Only the first epoch is a rest.
    share = Share(0, 1, 1, 8, seed=1)
    lengths = [len(list(batches)) for batches in source.epochs(2, 4, share, first_step=3)]
    assert lengths == [2, 5]


@pytest.mark.parametrize(("num_samples", "lengths"), [(32, [8] * 4), (33, [8] * 4 + [1]), (39, [8] * 4 + [7])])
def test_without_drop_last_the_rest_is_a_batch(num_samples: int, lengths: list[int]) -> None:
    """Of as few as one image; with it the rest is left out, and every image comes in some epoch."""
    source = _source(2, num_samples)
    share = Share(0, 1, 4, 8, seed=0, drop_last=False)
    (batches,) = source.epochs(0, 1, share)
    told = [_told(batch) for batch in batches]
    assert [len(batch) for batch in told] == lengths
    assert source.steps(share) == len(lengths)
    assert sorted(number for batch in told for number, *_ in batch) == source.ids.tolist()
    assert told[:4] == _global_batches(source, 1, 8, epoch=0, seed=0)
    seen = {n for epoch in range(8) for batch in _global_batches(source, 1, 8, epoch=epoch) for n, *_ in batch}
    assert seen == set(source.ids.tolist())


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_features_of_either_precision_come_as_float32(dtype: Any) -> None:
    features = np.random.default_rng(0).normal(size=(2, 9, 5)).astype(dtype)
    (batches,) = CachedViews(features, np.arange(9)).epochs(0, 1, Share(0, 1, 1, 4, seed=0))
    for batch in batches:
        assert batch.view_a.dtype == batch.view_b.dtype == torch.float32
        assert batch.view_a.shape == (4, 5)
        assert batch.ids.dtype == np.int64
        for row, number in enumerate(batch.ids):
            own = {tuple(view.astype(np.float32)) for view in features[:, number]}
            assert {tuple(batch.view_a[row].tolist()), tuple(batch.view_b[row].tolist())} == own


def test_a_batch_does_not_share_memory_with_the_cache() -> None:
    """What a step does to its batch must not reach the epochs after it."""
    source, share = _source(2, 8), Share(0, 1, 1, 8, seed=0)
    before = source.features.copy()
    (batches,) = source.epochs(0, 1, share)
    next(batches).view_a.zero_()
    np.testing.assert_array_equal(source.features, before)


def test_too_few_images_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="batch_size 8"):
        _source(2, 7).steps(Share(0, 1, 1, 8, seed=0))


_NEIGHBORS = np.array([[(row + 10 * k + 1) % 600 for k in range(4)] for row in range(600)])


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_second_views_are_of_neighbors_with_the_probability(probability: float) -> None:
    """Of all columns alike, and the first view is the image's own; ids are of the first view's image."""
    source, columns, others = _source(3, 600, neighbors=_NEIGHBORS, neighbor_probability=probability), Counter[int](), 0
    for epoch in range(5):
        for number, image, view_a, partner, view_b in itertools.chain(*_global_batches(source, 1, 60, epoch=epoch)):
            assert number == 3 * image + 1000
            assert view_a != view_b
            if partner != image:
                columns[_NEIGHBORS[image].tolist().index(partner)] += 1
                others += 1
    count = 5 * 600
    assert abs(others - probability * count) <= 5 * np.sqrt(count * probability * (1 - probability))
    for column in range(4):
        assert abs(columns[column] - others / 4) <= 5 * np.sqrt(others * 3 / 16)


def test_a_missing_neighbor_is_the_image_itself() -> None:
    """As where a neighbor is held out: its place is not given to another one."""
    neighbors = _NEIGHBORS.copy()
    neighbors[::2, 1:] = -1
    neighbors[0] = -1
    source, itself = _source(2, 600, neighbors=neighbors, neighbor_probability=1.0), Counter[bool]()
    for epoch in range(4):
        for _, image, _, partner, _ in itertools.chain(*_global_batches(source, 1, 60, epoch=epoch)):
            if image % 2:
                assert partner in neighbors[image]
            elif image == 0:
                assert partner == image
            else:
                assert partner in (image, neighbors[image, 0])
                itself[partner == image] += 1
    assert abs(itself[True] / itself.total() - 0.75) < 5 * np.sqrt(0.1875 / itself.total())


def test_neighbors_do_not_depend_on_the_workers_and_change_with_the_epoch() -> None:
    source = _source(3, 600, neighbors=_NEIGHBORS, neighbor_probability=0.5)
    runs = [_global_batches(source, workers, 40, epoch=1) for workers in (1, 2, 4)]
    assert runs[0] == runs[1] == runs[2]
    partners = []
    for run in (runs[0], _global_batches(source, 1, 40, epoch=2), _global_batches(source, 1, 40, epoch=1, seed=9)):
        partners.append({image: partner for _, image, _, partner, _ in itertools.chain(*run)})
    for other in partners[1:]:
        assert 0.4 < np.mean([other[image] != partner for image, partner in partners[0].items()]) < 0.85


def test_the_order_of_images_does_not_depend_on_their_neighbors() -> None:
    with_neighbors, without = _source(2, 600, neighbors=_NEIGHBORS), _source(2, 600)
    for one, other in zip(*(_global_batches(s, 1, 40, epoch=1) for s in (with_neighbors, without)), strict=True):
        assert [row[:3] for row in one] == [row[:3] for row in other]
