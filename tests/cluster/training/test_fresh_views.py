"""Fresh views: whatever workers, processes and shards there are, the same global batches, and errors by name."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cibhash.errors import CorruptShard, DataError
from cibhash.fast_views import fast_view
from cibhash.images import decode_image
from cibhash.shards import SourceImage
from cibhash.specs import ViewSpec
from cibhash.types import ViewBatch
from cibhash.view_draws import view_generator
from cibhash.views import random_view
from cluster.datasets import open_dataset, shard_samples
from cluster.training.fresh_views import FreshViews
from cluster.training.view_batches import Share
from tests.datasets import make_dataset, plain_sources, shape_dataset, shape_sources

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
_COLOR_KEPT = ViewSpec(jitter=0, grayscale=0, blur=0)


class Told(NamedTuple):
    """A global batch: ids, and the numbers that the colors of both views tell."""

    ids: list[int]
    numbers_a: list[int]
    numbers_b: list[int]


def _fresh(uri: str, spec: ViewSpec = _COLOR_KEPT, **settings: Any) -> FreshViews:
    return FreshViews(uri, open_dataset(uri).shards, spec, 8, **settings)


def _plain_dataset(folder: Path, counts: Sequence[int]) -> str:
    starts = itertools.accumulate(counts, initial=0)
    return make_dataset(folder, [plain_sources(n, start) for n, start in zip(counts, starts, strict=False)])


def _numbers(view: torch.Tensor) -> npt.NDArray[np.int64]:
    """The numbers that plain images tell by their color; every pixel must tell the same."""
    pixels = view.numpy().astype(np.int64)
    numbers = pixels[:, 0] + 256 * pixels[:, 1]
    assert (numbers == numbers[:, :1, :1]).all()
    told: npt.NDArray[np.int64] = numbers[:, 0, 0]
    return told


def _told(parts: Sequence[ViewBatch]) -> Told:
    """What the workers' parts of a step are together, in rank order."""
    sides: list[list[int]] = []
    for side in range(2):
        for part in parts:
            assert part[side].dtype == torch.uint8
            assert part[side].shape == (len(part.ids), 3, 8, 8)
        sides.append(np.concatenate([_numbers(part[side]) for part in parts]).tolist())
    ids = np.concatenate([part.ids for part in parts])
    assert ids.dtype == np.int64
    return Told(ids.tolist(), *sides)


def _global_batches(
    source: FreshViews, workers: int, batch_size: int, *, epochs: range = range(5, 6), num_streams: int = 4
) -> list[list[Told]]:
    """Of every epoch; all ranks must take the same number of steps."""
    shares = [Share(rank, workers, num_streams, batch_size, seed=3) for rank in range(workers)]
    streams = [source.epochs(epochs.start, epochs.stop, share) for share in shares]
    found = []
    for ranks in zip(*streams, strict=True):
        steps = [list(batches) for batches in ranks]
        assert {len(batches) for batches in steps} == {source.steps(shares[0])}
        assert {len(part.ids) for batches in steps for part in batches} == {batch_size // workers}
        found.append([_told(parts) for parts in zip(*steps, strict=True)])
    return found


@pytest.mark.parametrize(
    ("counts", "worlds"), [((1, 7, 5000), (1, 4)), ((7, 320, 1), (1, 2, 4)), ((320,), (1, 2, 4))], ids=str
)
def test_global_batches_do_not_depend_on_the_workers(
    tmp_path: Path, counts: tuple[int, ...], worlds: tuple[int, ...]
) -> None:
    """Shards of 1, 7 and 5,000 images, and one shard for four workers: equal steps on all, and no image twice."""
    source = _fresh(_plain_dataset(tmp_path, counts))
    (batches,), *others = (_global_batches(source, workers, 64) for workers in worlds)
    assert all(run == [batches] for run in others)
    assert len(batches) == sum(counts) // 4 // 16
    for batch in batches:
        assert batch.ids == batch.numbers_a == batch.numbers_b
    seen = [number for batch in batches for number in batch.ids]
    assert len(set(seen)) == len(seen) > sum(counts) - 64 - 4
    assert 0.3 < np.mean(np.diff(seen) > 0) < 0.7


@pytest.mark.parametrize(("workers", "rank"), [(1, 0), (2, 1)])
def test_batches_do_not_depend_on_the_processes(tmp_path: Path, workers: int, rank: int) -> None:
    """Also where processes do not divide the streams, or are more than they: epoch after epoch, to the bit."""
    uri = shape_dataset(tmp_path, [1, 30, 24])
    share = Share(rank, workers, 4, 8, seed=3)
    runs = []
    for loaders in (0, 1, 2, 3, 6):
        source = _fresh(uri, ViewSpec(), loaders=loaders)
        run = []
        for batches in source.epochs(1, 3, share):
            run.append([(b.ids.tolist(), b.view_a.numpy().tobytes(), b.view_b.numpy().tobytes()) for b in batches])
        assert [len(epoch) for epoch in run] == [6, 6]
        runs.append(run)
    assert all(run == runs[0] for run in runs[1:])
    assert runs[0][0] != runs[0][1]


@pytest.mark.parametrize("loaders", [0, 2])
def test_the_rest_of_an_epoch_is_what_is_left_of_it(tmp_path: Path, loaders: int) -> None:
    """And the epochs after it are whole."""
    source = _fresh(shape_dataset(tmp_path, [20, 21]), ViewSpec(), loaders=loaders)
    share = Share(0, 1, 4, 8, seed=3)

    def run(first: int, first_step: int) -> list[list[bytes]]:
        return [
            [b.ids.tobytes() + b.view_a.numpy().tobytes() + b.view_b.numpy().tobytes() for b in batches]
            for batches in source.epochs(first, 3, share, first_step)
        ]

    whole = run(1, 0)
    assert [len(epoch) for epoch in whole] == [5, 5]
    for first_step in (1, 3, 5):
        assert run(1, first_step) == [whole[0][first_step:], whole[1]]
    assert run(2, 4) == [whole[1][4:]]


@pytest.mark.parametrize("engine", ["pillow", "opencv"])
def test_views_are_those_of_seed_epoch_and_id(tmp_path: Path, engine: Any) -> None:
    uri = shape_dataset(tmp_path, [3, 5])
    images = [decode_image(s.image) for shard in open_dataset(uri).shards for s in shard_samples(uri, shard)]
    spec, expected = ViewSpec(engine=engine), {}
    for number, image in enumerate(images):
        generators = [view_generator(9, 2, number, view) for view in (0, 1)]
        if engine == "pillow":
            views = [random_view(image, spec, 8, generator) for generator in generators]
        else:
            views = [fast_view(np.asarray(image), spec, 8, generator).transpose(2, 0, 1) for generator in generators]
        expected[number] = [view.tobytes() for view in views]
    (batches,) = _fresh(uri, spec).epochs(2, 3, Share(0, 1, 2, 8, seed=9))
    found = {}
    for batch in batches:
        for number, a, b in zip(batch.ids, batch.view_a, batch.view_b, strict=True):
            found[int(number)] = [a.numpy().tobytes(), b.numpy().tobytes()]
    assert found == expected


def test_the_device_engine_finishes_views_after_the_processes(tmp_path: Path) -> None:
    """To two levels of the opencv engine's, for what is drawn is the same."""
    uri, share = shape_dataset(tmp_path, [16]), Share(0, 1, 2, 8, seed=1)
    runs = []
    for engine, loaders in (("opencv", 0), ("device", 0), ("device", 2)):
        (batches,) = _fresh(uri, ViewSpec(engine=engine), loaders=loaders).epochs(0, 1, share)  # type: ignore[arg-type]
        runs.append(torch.stack([torch.stack(batch[:2]) for batch in batches]).int())
    assert torch.equal(runs[1], runs[2])
    assert (runs[1] - runs[0]).abs().max() <= 2
    assert (runs[1] - runs[0]).abs().float().mean() < 0.2


def test_epochs_differ(tmp_path: Path) -> None:
    source = _fresh(_plain_dataset(tmp_path, [40]))
    epochs = _global_batches(source, 1, 8, epochs=range(3), num_streams=1)
    orders = [[number for batch in batches for number in batch.ids] for batches in epochs]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(40)) for order in orders)
    again = _global_batches(source, 1, 8, epochs=range(1, 2), num_streams=1)
    assert again == [epochs[1]]


@pytest.mark.parametrize("loaders", [0, 2])
def test_held_out_images_never_appear(tmp_path: Path, loaders: int) -> None:
    """A whole shard of them, the first and the last of others: all the rest comes, with its own ids."""
    counts = [10, 6, 24]
    held_out = frozenset({0, 9, *range(10, 16), 16, 30, 39})
    source = _fresh(_plain_dataset(tmp_path, counts), held_out=held_out, loaders=loaders)
    assert source.counts == [8, 0, 21]
    share = Share(0, 1, 2, 4, seed=3, drop_last=False)
    for epoch in source.epochs(0, 3, share):
        told = [_told([batch]) for batch in epoch]
        assert all(batch.ids == batch.numbers_a == batch.numbers_b for batch in told)
        assert sorted(n for batch in told for n in batch.ids) == sorted(set(range(40)) - held_out)
    assert source.steps(Share(0, 1, 2, 4, seed=3)) == 7


@pytest.mark.parametrize("workers", [2, 4])
def test_held_out_images_leave_equal_steps_on_all_workers(tmp_path: Path, workers: int) -> None:
    held_out = frozenset(range(3, 40))
    source = _fresh(_plain_dataset(tmp_path, [1, 7, 60]), held_out=held_out)
    alone, found = (_global_batches(source, number, 8) for number in (1, workers))
    assert found == alone
    assert len(found[0]) == (68 - 37) // 4 // 2
    assert not held_out & {number for batch in found[0] for number in batch.ids}


@pytest.mark.parametrize("loaders", [0, 1, 2, 4])
@pytest.mark.parametrize(("count", "lengths"), [(16, [8, 8]), (17, [8, 8, 1]), (21, [8, 8, 5])])
def test_without_drop_last_the_rest_is_a_batch(tmp_path: Path, loaders: int, count: int, lengths: list[int]) -> None:
    """Of one image even where most processes have none left."""
    source = _fresh(_plain_dataset(tmp_path, [3, count - 3]), loaders=loaders)
    share = Share(0, 1, 4, 8, seed=3, drop_last=False)
    for epoch in source.epochs(0, 2, share):
        told = [_told([batch]) for batch in epoch]
        assert [len(batch.ids) for batch in told] == lengths
        assert sorted(n for batch in told for n in batch.ids) == list(range(count))
        assert all(batch.ids == batch.numbers_a == batch.numbers_b for batch in told)
    assert source.steps(share) == len(lengths)


def _failure(source: FreshViews, share: Share) -> tuple[int, DataError]:
    """How many steps the first epoch makes, and the error that ends it.

    Without its traceback, which would keep the processes alive beyond the test.
    """
    made = 0
    try:
        for batches in source.epochs(0, 1, share):
            for _ in batches:
                made += 1
    except DataError as error:
        return made, error.with_traceback(None)
    pytest.fail(f"{made} steps without an error")


@pytest.mark.parametrize("loaders", [0, 2])
def test_a_bad_image_stops_training_and_is_named(tmp_path: Path, loaders: int) -> None:
    uri = make_dataset(tmp_path, [[*shape_sources(7), SourceImage("broken", "jpg", b"no image", ())]])
    _, error = _failure(_fresh(uri, ViewSpec(), loaders=loaders), Share(0, 1, 2, 4, seed=0))
    assert type(error) is DataError
    assert str(error).startswith(f"{tmp_path}: key 'broken': ")
    assert "\n" not in str(error)
    # Where it is held out it is not even decoded.
    held_out = _fresh(uri, ViewSpec(), loaders=loaders, held_out=frozenset({7}))
    (batches,) = held_out.epochs(0, 1, Share(0, 1, 1, 7, seed=0))
    assert [sorted(batch.ids) for batch in batches] == [list(range(7))]


@pytest.mark.parametrize("loaders", [0, 2])
@pytest.mark.parametrize("damage", ["cut", "missing", "no tar"])
def test_a_corrupt_shard_stops_training_and_is_named(tmp_path: Path, loaders: int, damage: str) -> None:
    source = _fresh(shape_dataset(tmp_path, [6, 6]), loaders=loaders)
    path = tmp_path / "shard-000001.tar"
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"x" * len(content))
    _, error = _failure(source, Share(0, 1, 4, 4, seed=0))
    assert type(error) is CorruptShard
    assert str(path) in str(error)
    assert error.exit_code == 3
    assert "\n" not in str(error)


def test_steps_before_a_bad_image_are_made(tmp_path: Path) -> None:
    """An error comes with its step, not with the processes' start, and names the same image for any number of them."""
    sources = plain_sources(60)
    sources[41] = SourceImage("broken", "png", b"", ())
    uri = make_dataset(tmp_path, [sources])
    found = [_failure(_fresh(uri, loaders=loaders), Share(0, 1, 3, 6, seed=2)) for loaders in (0, 1, 3)]
    steps, messages = {made for made, _ in found}, {str(error) for _, error in found}
    assert len(steps) == len(messages) == 1
    assert 0 < steps.pop() < 10
