"""The training loop: any number of workers gives the same training, it learns, and it stops when it diverges."""

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cibhash.errors import TrainingDiverged
from cibhash.gather import rank, world_size
from cibhash.loop import EpochStats, Objective, train_epoch
from cibhash.objective import cibhash_loss
from cibhash.specs import ViewSpec
from cluster.datasets import open_dataset
from cluster.training.view_batches import CachedViews, FreshViews, Share
from tests.datasets import shape_dataset, tiny_encoder
from tests.gloo import run_gloo

_OBJECTIVE = Objective((8, 16))


def _head(features: int = 24, bits: int = 16) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, bits))


def _features(num_views: int = 3, num_samples: int = 80) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Views are noisy copies of their image's vector, of 8 groups."""
    draws = np.random.default_rng(0)
    groups = draws.normal(size=(8, 24))[np.arange(num_samples) % 8]
    return (groups + 0.3 * draws.normal(size=(num_views, num_samples, 24))).astype(np.float32)


def _trained(
    model: nn.Module, source: CachedViews | FreshViews, optimizer: torch.optim.Optimizer, epochs: int
) -> tuple[dict[str, Tensor], list[EpochStats]]:
    """Trains on this rank's share, with DDP where there is a group."""
    project = DistributedDataParallel(model) if world_size() > 1 else model
    share = Share(rank(), world_size(), 2, 16, seed=4)
    stats = [train_epoch(project, optimizer, source.pairs(e, share), _OBJECTIVE, epoch=e) for e in range(epochs)]
    return {name: value.clone() for name, value in model.state_dict().items()}, stats


def _train_cached() -> tuple[dict[str, Tensor], list[EpochStats]]:
    model = _head()
    return _trained(model, CachedViews(_features()), torch.optim.Adam(model.parameters()), epochs=4)


def _train_fresh(uri: str) -> tuple[dict[str, Tensor], list[EpochStats]]:
    """The convnet too: its uint8 views go through the whole encoder.

    Plain descent, for Adam turns the rounding noise of a gradient near zero into a full step.
    """
    model = tiny_encoder((8, 16), train_from="all").train()
    with ThreadPoolExecutor(1) as threads:
        source = FreshViews(uri, open_dataset(uri).shards, ViewSpec(), 32, threads)
        return _trained(model, source, torch.optim.SGD(model.parameters(), lr=0.1), epochs=5)


def _assert_same_training(runs: list[tuple[dict[str, Tensor], list[EpochStats]]]) -> None:
    (expected, stats), *others = runs
    assert sum(s.steps for s in stats) == 20
    for weights, other_stats in others:
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)
        for mine, other in zip(stats, other_stats, strict=True):
            assert (mine.epoch, mine.steps) == (other.epoch, other.steps)
            assert [other.loss, other.contrastive, other.kl] == pytest.approx(
                [mine.loss, mine.contrastive, mine.kl], rel=1e-4, abs=1e-6
            )


def test_two_workers_train_as_one_on_cached_views() -> None:
    torch.set_num_threads(1)
    _assert_same_training([_train_cached(), *run_gloo(2, _train_cached)])


def test_two_workers_train_as_one_on_fresh_views(tmp_path: Path) -> None:
    uri = shape_dataset(tmp_path, [30, 1, 35])
    _assert_same_training([_train_fresh(uri), *run_gloo(2, _train_fresh, uri)])


def _train_with_nan(bad_rank: int) -> str:
    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        draws = torch.Generator().manual_seed(rank())
        for step in range(6):
            a, b = (torch.randn(8, 24, generator=draws) for _ in range(2))
            if step == 3 and rank() == bad_rank:
                a[0, 0] = torch.nan
            yield a, b

    model = _head()
    project = DistributedDataParallel(model) if world_size() > 1 else model
    try:
        train_epoch(project, torch.optim.Adam(model.parameters()), pairs(), Objective((16,)), epoch=7)
    except TrainingDiverged as error:
        finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
        return f"exit {error.exit_code}, weights {'finite' if finite else 'lost'}: {error}"
    return "finished"


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step() -> None:
    message = _train_with_nan(0)
    assert message.startswith("exit 5, weights finite: ")
    assert "nan" in message
    assert "epoch 7, step 3" in message


@pytest.mark.parametrize("bad_rank", [0, 1])
def test_all_workers_stop_at_the_step_where_one_diverges(bad_rank: int) -> None:
    messages = run_gloo(2, _train_with_nan, bad_rank, timeout_s=60)
    assert ["epoch 7, step 3" in message for message in messages] == [True, True]


@pytest.mark.parametrize("sampling", ["threshold", "bernoulli"])
def test_training_lowers_the_loss_and_separates_groups(sampling: Any) -> None:
    source, model = CachedViews(_features()), _head()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    share, draws = Share(0, 1, 1, 40, seed=0), torch.Generator().manual_seed(0)
    objective = Objective((16,), code_sampling=sampling)
    losses = [
        train_epoch(model, optimizer, source.pairs(e, share), objective, epoch=e, generator=draws).loss
        for e in range(40)
    ]
    assert losses[-1] < losses[0] - 0.3
    with torch.no_grad():
        codes = (model(torch.from_numpy(_features()[0])) > 0).numpy()
    distances = (codes[:, None] != codes[None]).sum(axis=2)
    groups = np.arange(80) % 8
    same = groups[:, None] == groups[None]
    assert distances[same].mean() < distances[~same].mean() - 2


def test_statistics_are_means_over_the_epoch() -> None:
    """With a learning rate of zero the loss of every step can be computed apart."""
    model, source = _head(), CachedViews(_features())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    share = Share(0, 1, 1, 16, seed=0)
    stats = train_epoch(model, optimizer, source.pairs(1, share), _OBJECTIVE, epoch=1)
    terms = []
    for a, b in source.pairs(1, share):
        with torch.no_grad():
            p_a, p_b = torch.sigmoid(model(a)), torch.sigmoid(model(b))
            terms.append([float(t) for t in cibhash_loss(p_a, p_b, prefixes=(8, 16))])
    expected = np.mean(terms, axis=0)
    assert stats.steps == 5
    assert [stats.loss, stats.contrastive, stats.kl] == pytest.approx(expected.tolist(), rel=1e-5)
    assert 0 < stats.bit_entropy <= 1


def test_bit_entropy_tells_dead_from_balanced_bits() -> None:
    dead, balanced = nn.Linear(2, 8), nn.Linear(2, 8)
    with torch.no_grad():
        dead.weight.zero_()
        dead.bias.fill_(5.0)
        balanced.weight.copy_(torch.tensor([[100.0, 0.0]]).expand(8, 2))
        balanced.bias.zero_()
    views = torch.tensor([[1.0, 0.0], [-1.0, 0.0]] * 4)
    for model, expected in ((dead, 0.0), (balanced, 1.0)):
        optimizer = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.0)
        stats = train_epoch(model, optimizer, [(views, views)], Objective((8,)), epoch=0)
        assert stats.bit_entropy == pytest.approx(expected, abs=1e-9)


def test_there_is_no_group_here() -> None:
    """The single-process runs above are what they claim to be."""
    assert not dist.is_initialized()
