"""Which images meet in which batch: a partition of the dataset that does not depend on the workers."""

from collections.abc import Sequence
from itertools import chain, islice

import numpy as np
import pytest

from cibhash.errors import ConfigError
from cibhash.sampling import cached_order, epoch_spans, shuffled, steps_per_epoch, view_pairs

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


@pytest.mark.parametrize(("num_samples", "num_streams", "batch_size"), [(63, 1, 64), (0, 1, 2), (7, 4, 8)])
def test_too_few_images_are_a_config_error_with_the_numbers(
    num_samples: int, num_streams: int, batch_size: int
) -> None:
    with pytest.raises(ConfigError, match=rf"{batch_size}.*{num_samples}") as caught:
        steps_per_epoch(num_samples, num_streams, batch_size)
    assert caught.value.exit_code == 2


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
