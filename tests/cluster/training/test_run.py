"""One rank's training: the loop that it stands for, bit for bit through interruptions, and every way it may end."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cibhash.encoder import EncoderSpec, HashEncoder, encoder_digest, new_encoder
from cibhash.errors import ConfigError, TrainingDiverged
from cibhash.gather import rank, world_size
from cibhash.loop import NotFiniteLoss
from cibhash.objective import cibhash_loss
from cibhash.selection import CheckpointScores
from cibhash.types import Ids, ViewBatch
from cluster.datasets import open_dataset
from cluster.training.checkpoints import CheckpointStore
from cluster.training.fresh_views import FreshViews
from cluster.training.metrics_log import MetricsLog, Row, read_rows
from cluster.training.monitor import HeldOut, Look, Monitor
from cluster.training.run import Surroundings, ViewSource, train_run, trained_part
from cluster.training.view_batches import CachedViews, Share
from cluster.training_config import TrainConfig
from tests.datasets import make_dataset, plain_image, png, shape_dataset, shape_sources
from tests.gloo import run_gloo

_CONVNET = {"name": "convnet-small", "weights": "none", "image_size": 8}
_WIDTH = 1024
_IMAGES = 40


class _Stop(Exception):
    """The end of a process, as far as one process can show it."""


def _config(**settings: Any) -> TrainConfig:
    fixed = {
        "dataset": "unused",
        "output": "unused",
        "bits": (8, 16),
        "backbone": _CONVNET,
        "hidden": 12,
        "epochs": 4,
        "batch_size": 8,
        "num_streams": 2,
        "checkpoint_every": 2,
        "metrics_every": 3,
        "loaders_per_worker": 0,
    }
    return TrainConfig.model_validate({**fixed, **settings})


def _encoder(config: TrainConfig) -> HashEncoder:
    return new_encoder(EncoderSpec(config.backbone, config.bits, config.hidden), seed=config.seed)


def _share(config: TrainConfig) -> Share:
    return Share(rank(), world_size(), config.streams, config.batch_size, config.seed, config.drop_last)


def _cached(num_images: int = _IMAGES, width: int = _WIDTH) -> CachedViews:
    """Views are noisy copies of their image's vector, of 8 groups."""
    draws = np.random.default_rng(0)
    groups = draws.normal(size=(8, width))[np.arange(num_images) % 8]
    features = groups + 0.5 * draws.normal(size=(3, num_images, width))
    return CachedViews(features.astype(np.float32), 1000 + np.arange(num_images))


def _fresh(uri: str, config: TrainConfig, held_out: frozenset[int] = frozenset(), loaders: int = 0) -> FreshViews:
    return FreshViews(uri, open_dataset(uri).shards, config.views, config.backbone.image_size, held_out, loaders)


def _trained(
    config: TrainConfig,
    source: ViewSource,
    *,
    store: CheckpointStore | None = None,
    monitor: Any = None,
    emit: Callable[[list[Row]], None] = lambda rows: None,
    beat: Callable[[int], None] = lambda step: None,
) -> HashEncoder:
    encoder = _encoder(config)
    around = Surroundings(emit=emit, beat=beat)
    if world_size() > 1:
        around = dataclasses.replace(around, distribute=DistributedDataParallel)
    train_run(config, encoder, source, _share(config), store=store, monitor=monitor, surroundings=around)
    return encoder.eval()


def _stop_at(step: int) -> Callable[[int], None]:
    def beat(done: int) -> None:
        if done == step:
            raise _Stop

    return beat


def _plain_loop(config: TrainConfig, source: ViewSource) -> HashEncoder:
    """The same training written down in one piece, for one process and threshold codes."""
    encoder, share = _encoder(config), _share(config)
    optimizer = torch.optim.Adam(
        [
            {"params": list(encoder.head.parameters()), "lr": config.learning_rate},
            {"params": [p for p in encoder.backbone.parameters() if p.requires_grad], "lr": 1e-4},
        ]
    )
    for epoch in range(config.epochs):
        (batches,) = source.epochs(epoch, epoch + 1, share)
        for batch in batches:
            views = torch.cat([batch.view_a, batch.view_b])
            p_a, p_b = torch.sigmoid(encoder.head(views) if views.ndim == 2 else encoder(views)).chunk(2)
            loss = cibhash_loss(p_a, p_b, temperature=config.temperature, beta=config.beta, prefixes=config.bits)
            optimizer.zero_grad()
            loss.total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return encoder.eval()


def _assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-5, msg=name)


def _config_and_source(kind: str, folder: Path) -> tuple[TrainConfig, Callable[[], ViewSource]]:
    """Every way in which the parts of an encoder are fed and learn."""
    if kind == "cached":
        return _config(num_cached_views=3, code_sampling="bernoulli"), _cached
    backbones: dict[str, dict[str, Any]] = {
        "frozen": _CONVNET,
        "dropout": {"name": "test_vit", "weights": "none", "image_size": 32, "dropout": True},
        "trained": {**_CONVNET, "train_from": "all"},
    }
    config = _config(backbone=backbones[kind])
    uri = shape_dataset(folder / "data", (9, 1, 30))
    return config, lambda: _fresh(uri, config)


@pytest.mark.parametrize("kind", ["cached", "frozen", "trained"])
def test_a_run_is_the_plain_loop(tmp_path: Path, kind: str) -> None:
    config, source = _config_and_source(kind, tmp_path)
    config = config.model_copy(update={"code_sampling": "threshold"})
    rows: list[Row] = []
    steps: list[int] = []
    encoder = _trained(config, source(), emit=rows.extend, beat=steps.append)
    _assert_close(encoder.state_dict(), _plain_loop(config, source()).state_dict())
    before = _encoder(config).state_dict()
    changed = {
        name.split(".")[0] for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == ({"head", "backbone"} if kind == "trained" else {"head"})
    assert steps == list(range(1, 21))
    assert [row["step"] for row in rows if row["kind"] == "epoch"] == [5, 10, 15, 20]
    assert [row["step"] for row in rows if row["kind"] == "step"] == [3, 6, 9, 12, 15, 18, 20]


@pytest.mark.parametrize("kind", ["cached", "dropout", "trained"])
def test_an_interrupted_run_ends_bit_for_bit_as_an_uninterrupted_one(tmp_path: Path, kind: str) -> None:
    """Ended in mid-epoch right after a checkpoint, two steps later, before the first one, and after the last step."""
    config, source = _config_and_source(kind, tmp_path)
    config = config.model_copy(update={"checkpoint_every_steps": 4})
    whole: list[Row] = []
    expected = encoder_digest(_trained(config, source(), emit=whole.extend))
    assert encoder_digest(_trained(config, source())) == expected
    other = config.model_copy(update={"seed": 1})
    assert encoder_digest(_trained(other, source())) != expected

    store = CheckpointStore(str(tmp_path / "checkpoints"), strict=True)
    begun = []
    for stop in (3, 5, 6, 11, 19, 20):
        log, steps = MetricsLog(str(tmp_path)), list[int]()

        def beat(step: int, seen: list[int] = steps, last: int = stop) -> None:
            seen.append(step)
            _stop_at(last)(step)

        with pytest.raises(_Stop):
            _trained(config, source(), store=store, emit=log.add, beat=beat)
        log.write()
        begun.append(steps[0])
    assert begun == [1, 1, 5, 5, 11, 17]
    log = MetricsLog(str(tmp_path))
    encoder = _trained(config, source(), store=store, emit=log.add)
    log.write()
    assert encoder_digest(encoder) == expected
    assert [entry.steps_done for entry in store.history()] == [4, 8, 10, 12, 16, 20]
    again = _trained(config, source(), store=store, beat=pytest.fail)
    assert encoder_digest(again) == expected, "a run that was at its end does nothing"

    rows = read_rows(str(tmp_path))
    places = [(row["kind"], row["step"]) for row in rows]
    assert len(places) == len(set(places))
    measured = ("images_per_s", "step_s")
    epochs = [{k: v for k, v in row.items() if k not in measured} for row in rows if row["kind"] == "epoch"]
    assert epochs == [{k: v for k, v in row.items() if k not in measured} for row in whole if row["kind"] == "epoch"]


@dataclasses.dataclass(frozen=True)
class _Patched:
    """A source one of whose batches is not a number in one place."""

    source: CachedViews
    bad_rank: int
    bad_step: int

    def steps(self, share: Share) -> int:
        return self.source.steps(share)

    def epochs(self, first: int, last: int, share: Share, first_step: int = 0) -> Iterator[Iterator[ViewBatch]]:
        for epoch, batches in enumerate(self.source.epochs(first, last, share, first_step), start=first):
            yield (
                self._patched(batch) if (epoch, step, share.rank) == (1, self.bad_step, self.bad_rank) else batch
                for step, batch in enumerate(batches, start=first_step if epoch == first else 0)
            )

    @staticmethod
    def _patched(batch: ViewBatch) -> ViewBatch:
        view = batch.view_a.clone()
        view[-1, 3] = math.nan
        return batch._replace(view_a=view)


def _diverged(folder: str, bad_rank: int) -> tuple[str, int, list[int], list[int], bool]:
    """Message, exit code, ids of the batch, steps that were done, and whether the weights are still finite."""
    config = _config(num_cached_views=3, checkpoint_every_steps=3)
    store = CheckpointStore(folder)
    encoder, steps = _encoder(config), list[int]()
    around = Surroundings(beat=steps.append)
    if world_size() > 1:
        around = dataclasses.replace(around, distribute=DistributedDataParallel)
    source = _Patched(_cached(), bad_rank, bad_step=2)
    with pytest.raises(NotFiniteLoss) as caught:
        train_run(config, encoder, source, _share(config), store=store, monitor=None, surroundings=around)
    finite = all(bool(torch.isfinite(value).all()) for value in encoder.state_dict().values())
    return str(caught.value), caught.value.exit_code, sorted(caught.value.ids.tolist()), steps, finite


def _bad_batch() -> Ids:
    """Ids of all images of epoch 1, step 2."""
    _, epoch = _cached().epochs(0, 2, Share(0, 1, 2, 8, 0))
    return np.sort([batch.ids for batch in epoch][2])


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    message, exit_code, ids, steps, finite = _diverged(str(tmp_path), 0)
    assert message == "the loss is nan at epoch 1, step 2; the last good checkpoint is of step 6"
    assert (exit_code, finite, steps) == (5, True, list(range(1, 8)))
    assert ids == _bad_batch().tolist()
    store = CheckpointStore(str(tmp_path), strict=True)
    config = _config(num_cached_views=3, checkpoint_every_steps=3)
    healed = _trained(config, _cached(), store=store)
    assert encoder_digest(healed) == encoder_digest(_trained(config, _cached()))


def test_weights_that_are_not_finite_never_become_a_checkpoint(tmp_path: Path) -> None:
    config = _config(num_cached_views=3, checkpoint_every_steps=3)
    for folder, kept in (("first", []), ("later", [3])):
        store = CheckpointStore(str(tmp_path / folder))
        encoder = _encoder(config)

        def spoil(step: int, encoder: HashEncoder = encoder, at: int = 3 + 3 * len(kept)) -> None:
            if step == at:
                encoder.head[-1].bias.data[5] = math.inf

        with pytest.raises(TrainingDiverged) as caught:
            train_run(
                config,
                encoder,
                _cached(),
                _share(config),
                store=store,
                monitor=None,
                surroundings=Surroundings(beat=spoil),
            )
        last = "the last good checkpoint is of step 3" if kept else "there is no checkpoint"
        assert str(caught.value) == f"the weights are not finite after step {3 + 3 * len(kept)}; {last}"
        assert [entry.steps_done for entry in store.history()] == kept


def _random(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def _identical(folder: Path, count: int) -> str:
    """A dataset of one image, many times."""
    sources = [source._replace(image=png(plain_image(77))) for source in shape_sources(count)]
    return make_dataset(folder, [sources])


def test_codes_that_collapse_end_the_run_or_raise_alarms_as_the_config_says(tmp_path: Path) -> None:
    """Identical images without any color change: all codes of a batch are one code."""
    views = {"jitter": 0, "grayscale": 0, "blur": 0}
    settings: dict[str, Any] = {"epochs": 52, "batch_size": 16, "views": views, "checkpoint_every": 48}
    uri = _identical(tmp_path / "data", 32)
    warn = _config(**settings, monitor={"on_collapse": "warn"})
    plain = _random(30, _WIDTH)
    constant = torch.zeros(30, _WIDTH)

    stopped = CheckpointStore(str(tmp_path / "stopped"))
    rows: list[Row] = []
    with pytest.raises(TrainingDiverged) as caught:
        _trained(_config(**settings), _fresh(uri, warn), store=stopped, emit=rows.extend)
    assert caught.value.exit_code == 5
    for part in ("collapsed at step 100: codes of a batch differ in 0.0000", "last good checkpoint is of step 96"):
        assert part in str(caught.value)
    assert [(row["step"], len(row["alarms"])) for row in rows if "alarms" in row] == [(100, 1)]

    monitor = Monitor(HeldOut((plain, constant, constant), None), None, prefixes=(8, 16), temperature=0.3, batch_size=8)
    store, log = CheckpointStore(str(tmp_path / "warned"), rule="sep10"), MetricsLog(str(tmp_path))
    _trained(warn, _fresh(uri, warn), store=store, monitor=monitor, emit=log.add)
    log.write()
    alarms = {row["step"]: row["alarms"] for row in read_rows(str(tmp_path)) if row.get("alarms")}
    assert list(alarms) == [100, 101, 102, 103, 104]
    assert [entry.steps_done for entry in store.history()] == [96, 104]


def test_collapse_that_only_the_held_out_images_show_ends_the_run(tmp_path: Path) -> None:
    held_out = torch.zeros(30, _WIDTH)
    monitor = Monitor(HeldOut((held_out,) * 3, None), None, prefixes=(8, 16), temperature=0.3, batch_size=8)
    settings: dict[str, Any] = {"num_cached_views": 3, "epochs": 24, "checkpoint_every": 8}
    look = {"every_steps": 55}
    with pytest.raises(TrainingDiverged, match=r"collapsed at step 110: bit entropy 0\.000 is below") as caught:
        _trained(_config(**settings, monitor=look), _cached(), monitor=monitor)
    assert "16 of 16 bits are dead" in str(caught.value)
    assert "there is no checkpoint" in str(caught.value)

    store = CheckpointStore(str(tmp_path), rule="sep10")
    rows: list[Row] = []
    warn = _config(**settings, monitor={**look, "on_collapse": "warn"})
    _trained(warn, _cached(), store=store, monitor=monitor, emit=rows.extend)
    looks = [row for row in rows if row["kind"] == "look"]
    assert [(row["step"], "alarms" in row) for row in looks] == [
        (40, False),
        (55, False),
        (80, False),
        (110, True),
        (120, True),
    ]
    best = store.load_best(trained_part(_encoder(warn)))
    assert best is not None
    assert best.steps_done == 120, "no score is a number"


@dataclasses.dataclass(frozen=True)
class _Scripted:
    """A monitor that finds given scores."""

    scores: dict[int, float]

    def look(self, project: Callable[[Tensor], Tensor], *, step: int) -> Look:
        found = CheckpointScores(self.scores[step], 1.0)
        return Look(found, (), {"kind": "look", "step": step, "sep10": found.sep10})


def test_the_encoder_is_that_of_the_checkpoint_with_the_best_score(tmp_path: Path) -> None:
    """Each checkpoint carries the scores of the look at its own step, in mid-epoch and at the end of one."""
    config = _config(num_cached_views=3, checkpoint_every_steps=4, epochs=6)
    monitor = _Scripted({4: 0.1, 8: 0.7, 10: 0.2, 12: 0.9, 16: 0.3, 20: 0.4, 24: 0.5, 28: 0.6, 30: 0.8})
    states: dict[int, dict[str, Tensor]] = {}
    encoder = _encoder(config)

    def note(step: int) -> None:
        states[step] = {name: value.clone() for name, value in encoder.state_dict().items()}

    store, around = CheckpointStore(str(tmp_path), rule="sep10"), Surroundings(beat=note)
    train_run(config, encoder, _cached(), _share(config), store=store, monitor=monitor, surroundings=around)  # type: ignore[arg-type]
    history = {entry.steps_done: entry.scores.sep10 for entry in store.history() if entry.scores}
    assert history == monitor.scores
    chosen = _encoder(config)
    best = store.load_best(trained_part(chosen))
    assert best is not None
    assert best.steps_done == 12
    torch.testing.assert_close(chosen.state_dict(), states[12], rtol=0, atol=0)
    assert not torch.equal(chosen.head[0].weight, states[30]["head.0.weight"])


def test_looks_do_not_change_the_training(tmp_path: Path) -> None:
    """Neither its random draws nor its mode: dropout, and a monitor every second step or none."""
    config, source = _config_and_source("dropout", tmp_path)
    looked = config.model_copy(update={"monitor": config.monitor.model_copy(update={"every_steps": 2})})
    encoder = _encoder(config)
    width = encoder.num_features
    monitor = Monitor(HeldOut((_random(30, width),) * 3, None), None, prefixes=(8, 16), temperature=0.3, batch_size=8)
    rows: list[Row] = []
    with_looks = _trained(looked, source(), monitor=monitor, emit=rows.extend)
    assert sum(row["kind"] == "look" for row in rows) == 10
    assert encoder_digest(with_looks) == encoder_digest(_trained(config, source()))


@pytest.mark.parametrize("loaders", [0, 2])
def test_a_last_batch_of_one_image(tmp_path: Path, loaders: int) -> None:
    """9 images in batches of 8: with 8 streams only one stream has a ninth image."""
    uri = shape_dataset(tmp_path / "data", (9,))
    config = _config(drop_last=False, num_streams=8, epochs=2, backbone={**_CONVNET, "train_from": "all"})
    seen: list[list[int]] = []

    class _Noted:
        source = _fresh(uri, config, loaders=loaders)
        steps = source.steps

        def epochs(self, *arguments: Any) -> Iterator[Iterator[ViewBatch]]:
            for batches in self.source.epochs(*arguments):
                yield self._noted(batches)

        @staticmethod
        def _noted(batches: Iterator[ViewBatch]) -> Iterator[ViewBatch]:
            for batch in batches:
                assert len(batch.view_a) == len(batch.view_b) == len(batch.ids)
                seen.append(batch.ids.tolist())
                yield batch

    rows: list[Row] = []
    encoder = _trained(config, _Noted(), emit=rows.extend)
    assert [len(ids) for ids in seen] == [8, 1, 8, 1]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(9))
    assert all(math.isfinite(row["loss"]) for row in rows)
    _assert_close(encoder.state_dict(), _plain_loop(config, _fresh(uri, config)).state_dict())
    dropped = config.model_copy(update={"drop_last": True})
    assert _fresh(uri, dropped).steps(_share(dropped)) == 1


def test_images_that_do_not_fill_a_batch_are_refused(tmp_path: Path) -> None:
    uri = shape_dataset(tmp_path / "data", (7,))
    for drop_last in (True, False):
        config = _config(drop_last=drop_last)
        for source in (_cached(7), _fresh(uri, config)):
            with pytest.raises(ConfigError, match=r"batch_size 8 .* only 7 images"):
                _trained(config, source)


def test_held_out_images_have_no_part_in_the_training(tmp_path: Path) -> None:
    """Whatever they show, the weights are the same; without being held out they would not be."""
    held_out = frozenset({0, 3, 21, 39})
    config = _config(drop_last=False)
    uris = [shape_dataset(tmp_path / "one", (9, 1, 30))]
    sources = shape_sources(40)
    others = [
        source._replace(image=png(plain_image(5))) if number in held_out else source
        for number, source in enumerate(sources)
    ]
    uris.append(make_dataset(tmp_path / "two", [others[:9], others[9:10], others[10:]]))
    digests = [encoder_digest(_trained(config, _fresh(uri, config, held_out))) for uri in uris]
    assert digests[0] == digests[1]
    (batches,) = _fresh(uris[0], config, held_out).epochs(0, 1, _share(config))
    assert sorted(number for batch in batches for number in batch.ids) == sorted(set(range(40)) - held_out)
    assert encoder_digest(_trained(config, _fresh(uris[0], config))) != encoder_digest(
        _trained(config, _fresh(uris[1], config))
    )


def _on_two_ranks(folder: str) -> dict[str, Any]:
    """All that two ranks are to show, in one group of processes."""
    config = _config(num_cached_views=3, checkpoint_every_steps=3)
    rows: list[Row] = []
    whole = _trained(config, _cached(), emit=rows.extend)
    store = CheckpointStore(f"{folder}/continued", strict=True)
    with pytest.raises(_Stop):
        _trained(config, _cached(), store=store, beat=_stop_at(8))
    held_out = torch.zeros(30, _WIDTH)
    monitor = Monitor(HeldOut((held_out,) * 3, None), None, prefixes=(8, 16), temperature=0.3, batch_size=8)
    steps: list[int] = []
    with pytest.raises(TrainingDiverged) as collapse:
        _trained(
            _config(num_cached_views=3, epochs=24),
            _cached(),
            monitor=monitor if rank() == 0 else None,
            beat=steps.append,
        )
    return {
        "weights": whole.state_dict(),
        "rows": rows,
        "nan": [_diverged(f"{folder}/nan-{bad_rank}", bad_rank) for bad_rank in (0, 1)],
        "collapse": (str(collapse.value), steps[-1]),
    }


def test_two_ranks_train_as_one_and_end_at_the_same_step(tmp_path: Path) -> None:
    first, second = run_gloo(2, _on_two_ranks, str(tmp_path))
    config = _config(num_cached_views=3, checkpoint_every_steps=3)
    rows: list[Row] = []
    expected = _trained(config, _cached(), emit=rows.extend).state_dict()
    for found in (first, second):
        _assert_close(found["weights"], expected)
        for name, value in first["weights"].items():
            assert torch.equal(found["weights"][name], value)
    assert second["rows"] == [], "only rank 0 tells"
    for mine, one in zip(first["rows"], rows, strict=True):
        for name in ("kind", "step", "epoch"):
            assert mine[name] == one[name]
        for name in ("loss", "contrastive", "kl", "bit_entropy"):
            assert mine[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6)

    # One rank's batch is not a number: both name the same step, both ranks' images, and go no further.
    for bad_rank in (0, 1):
        assert first["nan"][bad_rank] == second["nan"][bad_rank]
        message, exit_code, ids, steps, finite = first["nan"][bad_rank]
        assert message == "the loss is nan at epoch 1, step 2; the last good checkpoint is of step 6"
        assert (exit_code, finite, steps) == (5, True, list(range(1, 8)))
        assert ids == _bad_batch().tolist()
        history = CheckpointStore(str(tmp_path / f"nan-{bad_rank}"), strict=True).history()
        assert [entry.steps_done for entry in history] == [3, 6]

    # Rank 0 alone looks; both stop where it sees codes collapse.
    assert first["collapse"] == second["collapse"]
    assert first["collapse"][1] == 100
    assert "collapsed at step 100" in first["collapse"][0]

    # What two began, one finishes.
    store = CheckpointStore(str(tmp_path / "continued"), strict=True)
    assert [entry.steps_done for entry in store.history()] == [3, 6]
    _assert_close(_trained(config, _cached(), store=store).state_dict(), expected)
