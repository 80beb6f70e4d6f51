"""Which images meet in which batch: a partition of the dataset that does not depend on the workers."""

from collections.abc import Sequence
from itertools import chain, islice

import numpy as np
import pytest

from cibhash.errors import ConfigError
from cibhash.sampling import (
    cached_order,
    epoch_spans,
    held_out_positions,
    neighbor_partners,
    shuffled,
    steps_per_epoch,
    view_pairs,
)

UNEQUAL = [(1, 7, 5000), (5000, 1, 7), (3,), (4, 4, 4, 4), (1,) * 13, (0, 5, 0, 9)]


def _ids_of_stream(counts: Sequence[int], num_streams: int, stream: int, *, seed: int, epoch: int) -> list[int]:
    starts = np.concatenate([[0], np.cumsum(counts)])
    return [
        int(starts[span.shard]) + position
        for span in epoch_spans(counts, num_streams, stream, seed=seed, epoch=epoch)
        for position in range(span.start, span.stop)
    ]


@pytest.mark.parametrize("counts", UNEQUAL, ids=str)
@pytest.mark.parametrize("num_streams", [1, 2, 3, 4, 8])
def test_streams_partition_the_dataset(counts: tuple[int, ...], num_streams: int) -> None:
    for epoch in range(4):
        streams = [_ids_of_stream(counts, num_streams, s, seed=5, epoch=epoch) for s in range(num_streams)]
        assert sorted(chain.from_iterable(streams)) == list(range(sum(counts)))
        lengths = [len(stream) for stream in streams]
        assert max(lengths) - min(lengths) <= 1


def test_spans_stay_within_their_shard_and_depend_on_seed_and_epoch() -> None:
    counts = [10, 3, 8, 1, 6]
    orders = set()
    for seed in range(3):
        for epoch in range(3):
            spans = epoch_spans(counts, 1, 0, seed=seed, epoch=epoch)
            assert sorted((s.shard, s.start, s.stop) for s in spans) == [(n, 0, c) for n, c in enumerate(counts)]
            orders.add(tuple(span.shard for span in spans))
            assert spans == epoch_spans(counts, 1, 0, seed=seed, epoch=epoch)
    assert len(orders) > 5


@pytest.mark.parametrize(
    ("num_samples", "num_streams", "batch_size", "steps"),
    [(64, 1, 64, 1), (127, 1, 64, 1), (128, 2, 64, 2), (11, 4, 8, 1), (15, 4, 8, 1), (16, 4, 8, 2), (5008, 4, 64, 78)],
)
def test_steps_fill_whole_batches_from_every_stream(
    num_samples: int, num_streams: int, batch_size: int, steps: int
) -> None:
    assert steps_per_epoch(num_samples, num_streams, batch_size) == steps
    shortest = min(num_samples * (s + 1) // num_streams - num_samples * s // num_streams for s in range(num_streams))
    assert steps * (batch_size // num_streams) <= shortest < (steps + 1) * (batch_size // num_streams)


@pytest.mark.parametrize("num_streams", [1, 2, 4])
@pytest.mark.parametrize("num_samples", [8, 9, 12, 15, 16, 17, 33, 100])
def test_steps_are_those_of_dealing_images_out_one_by_one(num_samples: int, num_streams: int) -> None:
    """Without drop_last nothing is left, and no step is without images; with it every step is a full batch."""
    batch_size = 8
    left = [num_samples * (s + 1) // num_streams - num_samples * s // num_streams for s in range(num_streams)]
    batches = []
    while sum(left):
        takes = [min(batch_size // num_streams, images) for images in left]
        left = [images - take for images, take in zip(left, takes, strict=True)]
        batches.append(sum(takes))
    full = sum(batch == batch_size for batch in batches)
    assert steps_per_epoch(num_samples, num_streams, batch_size) == full
    assert steps_per_epoch(num_samples, num_streams, batch_size, drop_last=False) == len(batches)
    assert batches[:full] == [batch_size] * full
    assert sum(batches) == num_samples


def test_the_steps_do_not_depend_on_how_images_lie_in_shards() -> None:
    """One shard and many workers, shards of 1, 7 and 5,000: what every stream reads lasts for all steps."""
    for counts in ((5008,), (1, 7, 5000), (7, 5000, 1), (2504, 2504), (1,) * 8 + (5000,)):
        steps = steps_per_epoch(5008, 4, 64)
        assert steps == 78
        for stream in range(4):
            spans = epoch_spans(counts, 4, stream, seed=1, epoch=3)
            assert sum(span.stop - span.start for span in spans) >= steps * 16


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("num_samples", "num_streams", "batch_size"), [(63, 1, 64), (0, 1, 2), (7, 4, 8)])
def test_too_few_images_are_a_config_error_with_the_numbers(
    num_samples: int, num_streams: int, batch_size: int, drop_last: bool
) -> None:
    with pytest.raises(ConfigError, match=rf"{batch_size}.*{num_samples}") as caught:
        steps_per_epoch(num_samples, num_streams, batch_size, drop_last=drop_last)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("counts", [(40,), (1, 7, 100), (5,) * 30, (0, 5, 0, 9), (1,) * 20], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_held_out_positions_are_so_many_different_ones_of_the_dataset(counts: tuple[int, ...], share: float) -> None:
    total = sum(counts)
    count = round(share * total)
    held_out = held_out_positions(counts, count, seed=3)
    assert held_out.dtype == np.int64
    assert held_out.tolist() == sorted(set(held_out.tolist()))
    assert len(held_out) == count
    assert all(0 <= position < total for position in held_out.tolist())
    np.testing.assert_array_equal(held_out, held_out_positions(counts, count, seed=3))
    if 0.0 < share < 1.0:
        others = {tuple(held_out_positions(counts, count, seed=seed).tolist()) for seed in range(8)}
        assert len(others) > 3


def test_held_out_images_come_from_few_shards_and_from_anywhere_in_them() -> None:
    counts, chosen = (50,) * 40, set[int]()
    for seed in range(30):
        held_out = held_out_positions(counts, 60, seed=seed)
        shards = set((held_out // 50).tolist())
        assert len(shards) <= 8
        chosen |= shards
        assert 15 < np.mean(held_out % 50) < 34
    assert len(chosen) > 35
    # Where a few shards do not hold enough, there must be more.
    assert len(set((held_out_positions(counts, 1000, seed=0) // 50).tolist())) == 20


def test_every_image_can_be_held_out() -> None:
    times = np.zeros(20, int)
    for seed in range(400):
        times[held_out_positions((5, 15), 5, seed=seed)] += 1
    # 100 each on average; five standard deviations of a binomial draw.
    assert np.abs(times - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)


@pytest.mark.parametrize("counts", [(1, 7, 500), (40, 40), (123,)], ids=str)
def test_global_batches_are_the_same_for_any_number_of_workers(counts: tuple[int, ...]) -> None:
    """Four streams dealt to 1, 2 and 4 workers: the union over workers of step i is the same set, in rank order too."""
    batch_size, num_streams = 16, 4
    runs = []
    for workers in (1, 2, 4):
        per_worker = []
        for rank in range(workers):
            mine = range(rank * num_streams // workers, (rank + 1) * num_streams // workers)
            streams = [
                shuffled(
                    iter(_ids_of_stream(counts, num_streams, s, seed=3, epoch=2)), seed=3, epoch=2, stream=s, size=32
                )
                for s in mine
            ]
            steps = steps_per_epoch(sum(counts), num_streams, batch_size)
            per_worker.append(
                [[i for s in streams for i in islice(s, batch_size // num_streams)] for _ in range(steps)]
            )
        runs.append([list(chain(*parts)) for parts in zip(*per_worker, strict=True)])
    assert runs[0] == runs[1] == runs[2]
    assert all(len(set(batch)) == batch_size for batch in runs[0])
    used = list(chain.from_iterable(runs[0]))
    assert len(set(used)) == len(used) > sum(counts) - batch_size - num_streams


@pytest.mark.parametrize("size", [1, 2, 7, 100, 5000])
def test_the_shuffle_loses_and_repeats_nothing(size: int) -> None:
    out = list(shuffled(iter(range(1000)), seed=1, epoch=2, stream=3, size=size))
    assert sorted(out) == list(range(1000))
    assert out == list(shuffled(iter(range(1000)), seed=1, epoch=2, stream=3, size=size))
    if size > 1:
        assert out != list(range(1000))
        for other in ({"seed": 2}, {"epoch": 3}, {"stream": 4}):
            key = {"seed": 1, "epoch": 2, "stream": 3, **other}
            assert out != list(shuffled(iter(range(1000)), size=size, **key))


def test_the_shuffle_of_nothing_is_nothing() -> None:
    assert list(shuffled(iter([]), seed=0, epoch=0, stream=0)) == []


def test_the_shuffle_reaches_far() -> None:
    """With a full buffer every item can come anywhere: positions and values are hardly correlated."""
    out = np.array(list(shuffled(iter(range(4000)), seed=0, epoch=0, stream=0, size=4096)))
    assert abs(np.corrcoef(out, np.arange(4000))[0, 1]) < 0.05


def test_cached_order_is_a_new_permutation_every_epoch() -> None:
    orders = [cached_order(50, seed=s, epoch=e) for s in range(2) for e in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(50))
    assert len({tuple(order.tolist()) for order in orders}) == 6
    np.testing.assert_array_equal(orders[1], cached_order(50, seed=0, epoch=1))


@pytest.mark.parametrize("num_views", [2, 3, 10])
def test_view_pairs_are_two_different_views_drawn_evenly(num_views: int) -> None:
    pairs = view_pairs(6000, num_views, seed=0, epoch=1)
    assert pairs.shape == (6000, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    counts = np.zeros((num_views, num_views), int)
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    expected = 6000 / (num_views * (num_views - 1))
    off_diagonal = counts[~np.eye(num_views, dtype=bool)]
    assert (np.abs(off_diagonal - expected) < 6 * np.sqrt(expected)).all()
    assert not np.array_equal(pairs, view_pairs(6000, num_views, seed=0, epoch=2))
    np.testing.assert_array_equal(pairs, view_pairs(6000, num_views, seed=0, epoch=1))


@pytest.mark.parametrize(("num_neighbors", "probability"), [(10, 0.5), (1, 0.3), (3, 0.0), (4, 1.0)])
def test_partners_are_neighbors_drawn_evenly_with_the_probability(num_neighbors: int, probability: float) -> None:
    partners = neighbor_partners(6000, num_neighbors, probability, seed=0, epoch=1)
    assert partners.shape == (6000,)
    assert partners.dtype == np.int64
    counts = {int(column): int((partners == column).sum()) for column in np.unique(partners)}
    assert set(counts) <= {-1, *range(num_neighbors)}
    for column in range(-1, num_neighbors):
        expected = 6000 * (1 - probability if column == -1 else probability / num_neighbors)
        assert abs(counts.get(column, 0) - expected) <= 5 * np.sqrt(expected)
    np.testing.assert_array_equal(partners, neighbor_partners(6000, num_neighbors, probability, seed=0, epoch=1))


def test_partners_are_drawn_anew_for_every_seed_and_epoch() -> None:
    drawn = [neighbor_partners(2000, 10, 0.5, seed=s, epoch=e) for s in range(2) for e in range(3)]
    for other in drawn[1:]:
        both = (other >= 0) & (drawn[0] >= 0)
        assert abs(both.mean() - 0.25) < 0.05
        assert abs((other == drawn[0])[both].mean() - 0.1) < 0.07


@pytest.mark.parametrize(
    ("num_neighbors", "probability", "message"),
    [(0, 0.5, "num_neighbors is 0"), (5, 1.1, r"probability is 1\.1"), (5, -0.1, r"-0\.1"), (5, np.nan, "nan")],
)
def test_wrong_arguments_of_partners_are_named(num_neighbors: int, probability: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neighbor_partners(10, num_neighbors, probability, seed=0, epoch=0)
