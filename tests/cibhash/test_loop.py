"""The training loop: any number of workers gives the same training, it resumes inside an epoch, it stops for all."""

import copy
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cibhash.checkpoint import Progress, load_checkpoint, save_checkpoint
from cibhash.errors import TrainingDiverged
from cibhash.gather import rank, world_size
from cibhash.loop import EpochStats, NotFiniteLoss, Objective, StepStats, train_epoch
from cibhash.objective import cibhash_loss
from cibhash.specs import ViewSpec
from cibhash.types import ViewBatch
from cluster.datasets import open_dataset
from cluster.training.fresh_views import FreshViews
from cluster.training.view_batches import CachedViews, Share
from tests import oracles
from tests.datasets import shape_dataset, tiny_encoder
from tests.gloo import run_gloo

_OBJECTIVE = Objective((8, 16))
_SAMPLINGS = ("threshold", "bernoulli", "relaxed")
_FEATURES, _BITS, _BATCH, _EPOCHS, _STEPS, _RATE, _SEED = 24, 16, 16, 2, 10, 0.5, 6

Settings = tuple[str, str, torch.dtype]
"""Code sampling, whose codes are negatives, and the dtype of features and weights."""
_CASES: list[Settings] = [
    *((sampling, "global", dtype) for sampling in _SAMPLINGS for dtype in (torch.float32, torch.float64)),
    *((sampling, "local", torch.float32) for sampling in _SAMPLINGS),
]
Record = tuple[list[StepStats], list[list[Tensor]], list[Tensor]]
"""Statistics and gradients of every step, and the weights after the last one."""


def _head(dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(_FEATURES, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, _BITS))
        return layers.to(dtype)


def _features(num_views: int = 3, num_samples: int = 80) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Views are noisy copies of their image's vector, of 8 groups."""
    draws = np.random.default_rng(0)
    groups = draws.normal(size=(8, _FEATURES))[np.arange(num_samples) % 8]
    return (groups + 0.3 * draws.normal(size=(num_views, num_samples, _FEATURES))).astype(np.float32)


def _cached(num_samples: int = 80) -> CachedViews:
    return CachedViews(_features(num_samples=num_samples), np.arange(num_samples))


def _global_batch(epoch: int, step: int, dtype: torch.dtype = torch.float32) -> ViewBatch:
    draws = np.random.default_rng([epoch, step])
    features = _features()[:, draws.permutation(80)[:_BATCH]]
    a, b = (torch.from_numpy(view).to(dtype) for view in features[:2])
    return ViewBatch(a, b, np.arange(_BATCH) + 100 * step)


def _own_part(batch: ViewBatch) -> ViewBatch:
    """This rank's images."""
    share = len(batch.ids) // world_size()
    rows = slice(rank() * share, (rank() + 1) * share)
    return ViewBatch(batch.view_a[rows], batch.view_b[rows], batch.ids[rows])


def _parallel(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model) if world_size() > 1 else model


def _twenty_steps(case: Settings) -> Record:
    """Trains on this rank's part of every batch; the learning rate and the batch are given as for one process."""
    sampling, negatives, dtype = case
    model = _head(dtype)
    project, optimizer = _parallel(model), torch.optim.SGD(model.parameters(), lr=_RATE)
    objective = Objective((8, 16), beta=0.05, code_sampling=sampling, negatives=negatives)  # type: ignore[arg-type]
    steps: list[StepStats] = []
    gradients: list[list[Tensor]] = []

    def record(step: StepStats, _: EpochStats) -> None:
        steps.append(step)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])

    for epoch in range(_EPOCHS):
        batches = (_own_part(_global_batch(epoch, step, dtype)) for step in range(_STEPS))
        train_epoch(project, optimizer, batches, objective, epoch=epoch, seed=_SEED, after_step=record)
    return steps, gradients, [p.detach().clone() for p in model.parameters()]


def _slow_training(case: Settings, num_ranks: int) -> Record:
    """The same by the definition, in one process, image by image where codes are drawn; descent by hand.

    With local negatives the loss is the mean over `num_ranks` parts of each batch.
    """
    sampling, negatives, dtype = case
    model = _head(dtype)
    steps, gradients = [], []
    for epoch, step in itertools.product(range(_EPOCHS), range(_STEPS)):
        batch = _global_batch(epoch, step, dtype)
        p_a, p_b = torch.sigmoid(model(batch.view_a)), torch.sigmoid(model(batch.view_b))
        codes_a, codes_b = _slow_codes(p_a, p_b, sampling, epoch, step)
        contrastive, kl = [], []
        for length in (8, 16):
            for rows in torch.arange(_BATCH).chunk(num_ranks if negatives == "local" else 1):
                contrastive.append(oracles.nt_xent(codes_a[rows, :length], codes_b[rows, :length], 0.3))
            for p, q in ((p_a, p_b.detach()), (p_b, p_a.detach())):
                terms = p * ((p + 1e-8).log() - (q + 1e-8).log())
                terms = terms + (1 - p) * ((1 - p + 1e-8).log() - (1 - q + 1e-8).log())
                kl.append(terms[:, :length].sum() / _BATCH)
        mean_contrastive, mean_kl = (torch.stack(values).mean() for values in (contrastive, kl))
        loss = mean_contrastive + 0.05 * mean_kl
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(model.parameters(), gradient, strict=True):
                parameter -= _RATE * slope
        entropy, minority = _slow_bit_statistics(torch.cat([p_a, p_b]))
        terms_of_step = (loss.item(), mean_contrastive.item(), mean_kl.item())
        steps.append(StepStats(epoch, step, *terms_of_step, entropy, minority, _BATCH, 0.0))
        gradients.append(list(gradient))
    return steps, gradients, list(model.parameters())


def _slow_codes(p_a: Tensor, p_b: Tensor, sampling: str, epoch: int, step: int) -> tuple[Tensor, Tensor]:
    """Of the whole batch; Bernoulli draws come from a generator keyed by seed, epoch and step."""
    if sampling == "relaxed":
        return 2 * p_a - 1, 2 * p_b - 1
    bounds = torch.full((_BATCH, 2, _BITS), 0.5)
    if sampling == "bernoulli":
        key = int(np.random.SeedSequence([_SEED, epoch, step, 5]).generate_state(1, np.uint64)[0] >> 1)
        bounds = torch.rand((_BATCH, 2, _BITS), generator=torch.Generator().manual_seed(key))
    codes = []
    for view, p in enumerate((p_a, p_b)):
        values, limits = p.tolist(), bounds[:, view].tolist()
        rows = [
            [1.0 if values[image][bit] > limits[image][bit] else -1.0 for bit in range(_BITS)]
            for image in range(_BATCH)
        ]
        codes.append(torch.tensor(rows, dtype=p.dtype) + (p - p.detach()))
    return codes[0], codes[1]


def _slow_bit_statistics(p: Tensor) -> tuple[float, float]:
    """Entropy in bits and share of the rarer value, means over bits."""
    entropies, minorities = [], []
    for bit in range(p.shape[1]):
        ones = sum(value > 0.5 for value in p[:, bit].tolist()) / len(p)
        entropies.append(-sum(share * math.log2(share) for share in (ones, 1 - ones) if share > 0))
        minorities.append(min(ones, 1 - ones))
    return math.fsum(entropies) / len(entropies), math.fsum(minorities) / len(minorities)


def _assert_same(ours: Record, expected: Record) -> None:
    """Losses, gradients and weights after every step, to the precision that float32 leaves after twenty of them."""
    assert len(ours[0]) == len(expected[0]) == _EPOCHS * _STEPS
    for step, by_hand in zip(ours[0], expected[0], strict=True):
        assert (step.epoch, step.step, step.images) == (by_hand.epoch, by_hand.step, by_hand.images)
        for name in ("loss", "contrastive", "kl", "bit_entropy", "minority"):
            assert getattr(step, name) == pytest.approx(getattr(by_hand, name), rel=1e-4, abs=1e-6), name
    for gradients, by_hand_gradients in zip((*ours[1], ours[2]), (*expected[1], expected[2]), strict=True):
        for one, other in zip(gradients, by_hand_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


def _trained(
    model: nn.Module, source: CachedViews | FreshViews, optimizer: torch.optim.Optimizer, epochs: int
) -> tuple[dict[str, Tensor], list[EpochStats]]:
    """Trains on this rank's share, with DDP where there is a group."""
    project, share = _parallel(model), Share(rank(), world_size(), 4, _BATCH, seed=4)
    stats = [
        train_epoch(project, optimizer, batches, _OBJECTIVE, epoch=epoch)
        for epoch, batches in enumerate(source.epochs(0, epochs, share))
    ]
    return {name: value.clone() for name, value in model.state_dict().items()}, stats


def _train_cached() -> tuple[dict[str, Tensor], list[EpochStats]]:
    model = _head()
    return _trained(model, _cached(), torch.optim.Adam(model.parameters()), epochs=4)


def _train_fresh(uri: str) -> tuple[dict[str, Tensor], list[EpochStats]]:
    """The convnet too: its uint8 views go through the whole encoder.

    Plain descent, for Adam turns the rounding noise of a gradient near zero into a full step.
    """
    model = tiny_encoder((8, 16), train_from="all").train()
    source = FreshViews(uri, open_dataset(uri).shards, ViewSpec(), 32)
    return _trained(model, source, torch.optim.SGD(model.parameters(), lr=0.1), epochs=5)


_DIVERGENCES = ("nan", "inf", "infinite loss")
_BAD_STEP = 3


def _diverging_batch(step: int, kind: str) -> ViewBatch:
    """Equal views where the loss shall be infinite: their KL is 0, and only the bad step's has a weight to overflow."""
    draws = torch.Generator().manual_seed(10 * step + rank())
    a, b = (torch.randn(8, _FEATURES, generator=draws) for _ in range(2))
    ids = np.arange(8) + 100 * step + 1000 * rank()
    return ViewBatch(a, a if kind == "infinite loss" else b, ids)


def _spoiled(batch: ViewBatch, kind: str) -> ViewBatch:
    a, b = batch.view_a.clone(), batch.view_b.clone()
    if kind == "infinite loss":
        return ViewBatch(100 * a, -100 * a, batch.ids)
    a[0, 0] = float(kind)
    return ViewBatch(a, b, batch.ids)


def _diverge(kind: str, bad_rank: int, negatives: Any) -> dict[str, Any]:
    """What a rank sees when one of them has a loss that is not finite, and whether its weights are the last good."""
    infinite = kind == "infinite loss"
    objective = Objective((16,), beta=1e38 if infinite else 0.001, negatives=negatives)

    def run(model: nn.Module, num_steps: int) -> tuple[torch.optim.Optimizer, list[int], NotFiniteLoss | None]:
        # With a weight that overflows the descent would, too: its steps must be of size 0, and NaN where one is made.
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0 if infinite else 0.001)
        done: list[int] = []

        def batches() -> Iterator[ViewBatch]:
            for step in range(num_steps):
                batch = _diverging_batch(step, kind)
                yield _spoiled(batch, kind) if step == _BAD_STEP and rank() == bad_rank else batch

        try:
            train_epoch(
                _parallel(model),
                optimizer,
                batches(),
                objective,
                epoch=7,
                after_step=lambda step, _: done.append(step.step),
            )
        except NotFiniteLoss as error:
            return optimizer, done, error
        return optimizer, done, None

    good, model = _head(), _head()
    assert run(good, _BAD_STEP)[2] is None
    optimizer, done, error = run(model, 6)
    if error is None:
        return {"message": "finished"}
    return {
        "message": str(error),
        "exit_code": error.exit_code,
        "where": (error.epoch, error.step),
        "ids": error.ids.tolist(),
        "done": done,
        "optimizer_steps": {int(state["step"]) for state in optimizer.state.values()},
        "same_weights": all(torch.equal(a, b) for a, b in zip(good.parameters(), model.parameters(), strict=True)),
    }


def _on_every_rank(uri: str) -> dict[Any, Any]:
    """All that is asked of a group, for starting its processes takes longer than what they do."""
    found: dict[Any, Any] = {case: _twenty_steps(case) for case in _CASES}
    found["cached"] = _train_cached()
    found["fresh"] = _train_fresh(uri)
    for kind, negatives, bad_rank in itertools.product(_DIVERGENCES, ("global", "local"), (0, world_size() - 1)):
        found[kind, negatives, bad_rank] = _diverge(kind, bad_rank, negatives)
    return found


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shape_dataset(tmp_path_factory.mktemp("shapes"), [30, 1, 35])


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, shapes: str) -> list[dict[Any, Any]]:
    found: list[dict[Any, Any]] = run_gloo(request.param, _on_every_rank, shapes)
    return found


@pytest.fixture(scope="module")
def alone() -> dict[Settings, Record]:
    """One process with the global batches."""
    return {case: _twenty_steps(case) for case in _CASES}


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_one_process_trains_as_the_definition_says(alone: dict[Settings, Record], case: Settings) -> None:
    _assert_same(alone[case], _slow_training(case, 1))
    steps, _, weights = alone[case]
    assert not any(torch.allclose(a, b) for a, b in zip(weights, _head(case[2]).parameters(), strict=True))
    assert len({step.loss for step in steps}) == _EPOCHS * _STEPS


@pytest.mark.parametrize("case", [case for case in _CASES if case[1] == "global"], ids=str)
def test_ranks_train_as_one_process(ranks: list[dict[Any, Any]], alone: dict[Settings, Record], case: Settings) -> None:
    """Global batch, global learning rate, global negatives: loss, gradient and weights, for every code sampling."""
    for found in ranks:
        _assert_same(found[case], alone[case])


@pytest.mark.parametrize("case", [case for case in _CASES if case[1] == "local"], ids=str)
def test_local_negatives_are_those_of_each_rank_alone(
    ranks: list[dict[Any, Any]], alone: dict[Settings, Record], case: Settings
) -> None:
    expected = _slow_training(case, len(ranks))
    for found in ranks:
        _assert_same(found[case], expected)
        with_global = found[case[0], "global", case[2]]
        assert abs(found[case][0][0].contrastive - with_global[0][0].contrastive) > 0.1
        assert not torch.allclose(found[case][2][0], with_global[2][0], atol=1e-3)
    for one, other in zip(alone[case][2], alone[case[0], "global", case[2]][2], strict=True):
        assert torch.equal(one, other)


def _assert_same_training(runs: list[tuple[dict[str, Tensor], list[EpochStats]]]) -> None:
    (expected, stats), *others = runs
    assert sum(s.steps for s in stats) == 20
    for weights, other_stats in others:
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=name)
        for mine, other in zip(stats, other_stats, strict=True):
            assert (mine.epoch, mine.steps, mine.images) == (other.epoch, other.steps, other.images)
            assert [other.loss, other.contrastive, other.kl] == pytest.approx(
                [mine.loss, mine.contrastive, mine.kl], rel=1e-4, abs=1e-6
            )


def test_ranks_train_as_one_process_on_cached_views(ranks: list[dict[Any, Any]]) -> None:
    _assert_same_training([_train_cached(), *(found["cached"] for found in ranks)])


def test_ranks_train_as_one_process_on_fresh_views(ranks: list[dict[Any, Any]], shapes: str) -> None:
    _assert_same_training([_train_fresh(shapes), *(found["fresh"] for found in ranks)])


def _assert_stopped_before_the_step(found: dict[str, Any], kind: str) -> None:
    assert found["where"] == (7, _BAD_STEP)
    assert f"epoch 7, step {_BAD_STEP}" in found["message"]
    assert ("the loss is inf" if kind == "infinite loss" else "the loss is nan") in found["message"]
    assert found["exit_code"] == 5
    assert found["done"] == list(range(_BAD_STEP))
    assert found["optimizer_steps"] == {_BAD_STEP}
    assert found["same_weights"]


@pytest.mark.parametrize("kind", _DIVERGENCES)
@pytest.mark.parametrize("negatives", ["global", "local"])
def test_all_ranks_stop_at_the_step_where_one_diverges(ranks: list[dict[Any, Any]], kind: str, negatives: str) -> None:
    """Whichever rank it is, and also where no other sees its codes; each tells of its own images."""
    for bad_rank in (0, len(ranks) - 1):
        for number, found in enumerate(ranks):
            _assert_stopped_before_the_step(found[kind, negatives, bad_rank], kind)
            expected = [100 * _BAD_STEP + 1000 * number + image for image in range(8)]
            assert found[kind, negatives, bad_rank]["ids"] == expected


@pytest.mark.parametrize("kind", _DIVERGENCES)
def test_a_loss_that_is_not_finite_stops_with_epoch_and_step(kind: str) -> None:
    found = _diverge(kind, 0, "global")
    _assert_stopped_before_the_step(found, kind)
    assert found["ids"] == [300, 301, 302, 303, 304, 305, 306, 307]
    assert _diverge(kind, -1, "global") == {"message": "finished"}
    assert issubclass(NotFiniteLoss, TrainingDiverged)


class _Interrupted(Exception):
    """Ends a run between two steps."""


def _run(
    folder: Path, objective: Objective, dropout: float, stop: tuple[int, int] | None
) -> tuple[dict[str, Tensor], list[EpochStats], list[list[int]]]:
    """Trains three epochs of five steps, from the checkpoint where there is one; torch's generator is keyed by step.

    Args:
        folder: Of the checkpoint that is written when the run is interrupted.
        objective: Settings.
        dropout: Of the model.
        stop: After which step of which epoch the run is interrupted.
    """
    source, share = _cached(), Share(0, 1, 1, _BATCH, seed=2)
    model = _head(dropout=dropout).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    progress = load_checkpoint(folder, model, optimizer) if any(folder.iterdir()) else Progress(EpochStats(0), 0)
    so_far, first, seen = progress.epoch, progress.epoch.epoch, list[list[int]]()

    def seeded(epoch: int, batches: Iterator[ViewBatch], first_step: int) -> Iterator[ViewBatch]:
        for step, batch in enumerate(batches, start=first_step):
            torch.manual_seed(1000 * epoch + step)
            seen.append(batch.ids.tolist())
            yield batch

    def after(step: StepStats, stats: EpochStats) -> None:
        if (step.epoch, stats.steps) == stop:
            save_checkpoint(folder, model, optimizer, Progress(stats, len(seen)))
            raise _Interrupted

    stats = []
    try:
        for epoch, batches in enumerate(source.epochs(first, 3, share, so_far.steps), start=first):
            stats.append(
                train_epoch(
                    model,
                    optimizer,
                    seeded(epoch, batches, so_far.steps),
                    objective,
                    epoch=epoch,
                    so_far=so_far,
                    seed=3,
                    after_step=after,
                )
            )
            so_far = EpochStats(epoch + 1)
    except _Interrupted:
        pass
    return {name: value.clone() for name, value in model.state_dict().items()}, stats, seen


@pytest.mark.parametrize("sampling", _SAMPLINGS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("stop", [(0, 5), (1, 1), (1, 3), (2, 4)], ids=str)
def test_a_run_resumed_inside_an_epoch_is_the_uninterrupted_one(
    tmp_path: Path, sampling: Any, dropout: float, stop: tuple[int, int]
) -> None:
    """Bit for bit, with draws of codes and of dropout; every image is seen once per epoch, before or after."""
    folders = [tmp_path / name for name in ("whole", "parts")]
    for folder in folders:
        folder.mkdir()
    objective = Objective((8, 16), code_sampling=sampling)
    weights, stats, seen = _run(folders[0], objective, dropout, None)
    _, stats_before, seen_before = _run(folders[1], objective, dropout, stop)
    resumed, stats_after, seen_after = _run(folders[1], objective, dropout, None)
    assert len(seen_before) == 5 * stop[0] + stop[1]
    assert seen_before + seen_after == seen
    for name, value in weights.items():
        assert torch.equal(resumed[name], value), name
    merged = [replace(epoch, seconds=0.0) for epoch in (*stats_before, *stats_after)]
    assert merged == [replace(epoch, seconds=0.0) for epoch in stats]
    assert [epoch.steps for epoch in merged] == [5, 5, 5]


def _losses(seed: int, epoch: int, so_far: int = 0, sampling: Any = "bernoulli") -> list[float]:
    """Of three steps on the same batch with a learning rate of zero: what differs is what was drawn."""
    model, losses = _head(), list[float]()
    train_epoch(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        [_global_batch(0, 0)] * 3,
        Objective((8, 16), code_sampling=sampling),
        epoch=epoch,
        so_far=EpochStats(epoch, steps=so_far),
        seed=seed,
        after_step=lambda step, _: losses.append(step.loss),
    )
    return losses


def test_bernoulli_draws_are_keyed_by_seed_epoch_and_step() -> None:
    losses = _losses(1, 0)
    for key in ((1, 0), (2, 0), (1, 1), (0, 1)):
        torch.manual_seed(sum(key))
        found = _losses(*key)
        assert len(set(found)) == 3
        assert found == _losses(*key)
        assert (found == losses) == (key == (1, 0))
    assert _losses(1, 0, so_far=1)[:2] == losses[1:]
    assert len(set(_losses(1, 0, sampling="threshold"))) == 1


@pytest.mark.parametrize("sampling", _SAMPLINGS)
def test_training_lowers_the_loss_and_separates_groups(sampling: Any) -> None:
    source, model = _cached(), _head()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    objective = Objective((16,), code_sampling=sampling)
    losses = [
        train_epoch(model, optimizer, batches, objective, epoch=epoch).loss
        for epoch, batches in enumerate(source.epochs(0, 40, Share(0, 1, 1, 40, seed=0)))
    ]
    assert losses[-1] < losses[0] - 0.3
    with torch.no_grad():
        codes = (model(torch.from_numpy(_features()[0])) > 0).numpy()
    distances = (codes[:, None] != codes[None]).sum(axis=2)
    groups = np.arange(80) % 8
    same = groups[:, None] == groups[None]
    assert distances[same].mean() < distances[~same].mean() - 2


def _append(steps: list[StepStats], step: StepStats, _: EpochStats) -> None:
    steps.append(step)


def test_statistics_are_means_over_the_epoch() -> None:
    """With a learning rate of zero the loss of every step can be computed apart."""
    model, source, share = _head(), _cached(), Share(0, 1, 1, _BATCH, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    calls: list[tuple[StepStats, EpochStats]] = []
    (batches,) = source.epochs(1, 2, share)
    stats = train_epoch(
        model, optimizer, batches, _OBJECTIVE, epoch=1, after_step=lambda step, so_far: calls.append((step, so_far))
    )
    terms, bits = [], []
    (batches,) = source.epochs(1, 2, share)
    for a, b, _ in batches:
        with torch.no_grad():
            p_a, p_b = torch.sigmoid(model(a)), torch.sigmoid(model(b))
        terms.append([float(t) for t in cibhash_loss(p_a, p_b, prefixes=(8, 16))])
        bits.append(_slow_bit_statistics(torch.cat([p_a, p_b])))
    assert (stats.epoch, stats.steps, stats.images) == (1, 5, 80)
    assert [stats.loss, stats.contrastive, stats.kl] == pytest.approx(np.mean(terms, axis=0).tolist(), rel=1e-5)
    assert stats.bit_entropy == pytest.approx(bits[-1][0], rel=1e-6)
    assert 0 < stats.bit_entropy <= 1
    for number, (step, so_far) in enumerate(calls):
        assert (step.epoch, step.step, step.images) == (1, number, _BATCH)
        assert [step.loss, step.contrastive, step.kl] == pytest.approx(terms[number], rel=1e-5)
        assert (step.bit_entropy, step.minority) == pytest.approx(bits[number], rel=1e-6)
        assert (so_far.steps, so_far.images) == (number + 1, _BATCH * (number + 1))
        assert so_far.loss == pytest.approx(np.mean(terms[: number + 1], axis=0)[0], rel=1e-5)
    assert calls[-1][1] == stats
    assert stats.seconds == pytest.approx(math.fsum(step.seconds for step, _ in calls))


def test_a_step_is_added_to_what_an_epoch_has_so_far() -> None:
    begun = EpochStats(4, 2, 30, 1.5, (3.0, 2.0, 10.0), 0.25)
    step = StepStats(4, 2, 1.5, 1.0, 5.0, 0.75, 0.4, 10, 0.5)
    assert begun.plus(step) == EpochStats(4, 3, 40, 2.0, (4.5, 3.0, 15.0), 0.75)
    assert (begun.plus(step).loss, begun.plus(step).contrastive, begun.plus(step).kl) == (1.5, 1.0, 5.0)
    assert (EpochStats(0).loss, EpochStats(0).contrastive, EpochStats(0).kl) == (0.0, 0.0, 0.0)


def test_nothing_left_of_an_epoch_changes_nothing() -> None:
    model = _head()
    before = copy.deepcopy(model.state_dict())
    so_far = EpochStats(2, 5, 80, 1.0, (5.0, 4.0, 3.0), 0.5)
    optimizer = torch.optim.Adam(model.parameters())
    assert train_epoch(model, optimizer, [], _OBJECTIVE, epoch=2, so_far=so_far) == so_far
    assert train_epoch(model, optimizer, [], _OBJECTIVE, epoch=3) == EpochStats(3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_last_batch_of_one_image_is_a_step() -> None:
    """It has no negatives and no contrastive loss; what is left of the loss is finite."""
    model = _head()
    steps: list[StepStats] = []
    (batches,) = _cached(33).epochs(0, 1, Share(0, 1, 1, _BATCH, seed=0, drop_last=False))
    optimizer = torch.optim.Adam(model.parameters())
    stats = train_epoch(model, optimizer, batches, _OBJECTIVE, epoch=0, after_step=functools.partial(_append, steps))
    assert [step.images for step in steps] == [16, 16, 1]
    assert (steps[-1].contrastive, stats.steps, stats.images) == (0, 3, 33)
    assert steps[-1].kl > 0
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_bit_entropy_and_minority_tell_dead_from_balanced_bits() -> None:
    dead, balanced = nn.Linear(2, 8), nn.Linear(2, 8)
    with torch.no_grad():
        dead.weight.zero_()
        dead.bias.fill_(5.0)
        balanced.weight.copy_(torch.tensor([[100.0, 0.0]]).expand(8, 2))
        balanced.bias.zero_()
    views = torch.tensor([[1.0, 0.0], [-1.0, 0.0]] * 4)
    for model, entropy, minority in ((dead, 0.0, 0.0), (balanced, 1.0, 0.5)):
        optimizer = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.0)
        batch, steps = ViewBatch(views, views, np.arange(8)), list[StepStats]()
        after = functools.partial(_append, steps)
        stats = train_epoch(model, optimizer, [batch], Objective((8,)), epoch=0, after_step=after)
        assert stats.bit_entropy == steps[0].bit_entropy == pytest.approx(entropy, abs=1e-9)
        assert steps[0].minority == pytest.approx(minority, abs=1e-9)


def test_half_precision_logits_are_lost_in_nothing_but_themselves() -> None:
    """Under autocast a model gives bfloat16; probabilities and loss are computed in float32."""
    model, terms = _head(), []
    for project in (model, lambda views: model(views).to(torch.bfloat16)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        terms.append(train_epoch(project, optimizer, [_global_batch(0, 0)], _OBJECTIVE, epoch=0))
    logits = model(torch.cat(_global_batch(0, 0)[:2])).detach().to(torch.bfloat16).float()
    expected = cibhash_loss(*torch.sigmoid(logits).chunk(2), prefixes=(8, 16))
    assert terms[1].loss == pytest.approx(float(expected.total), rel=1e-6)
    assert terms[1].kl == pytest.approx(terms[0].kl, rel=0.05)


def test_there_is_no_group_here() -> None:
    """The single-process runs above are what they claim to be."""
    assert not dist.is_initialized()
