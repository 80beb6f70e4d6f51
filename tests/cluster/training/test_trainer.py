"""The train job on Ray: the encoder of one process, through deaths and hangs, and every refusal by name."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from cibhash.encoder import HashEncoder, encode, load_encoder
from cibhash.errors import ConfigError, CorruptShard, DataError, NotFound, TrainingDiverged, WorkersLost
from cibhash.images import decode_image
from cibhash.shards import SourceImage
from cibhash.views import eval_view
from cibhash.weight_average import take_average
from cluster.config import RayConfig
from cluster.datasets import open_dataset, shard_samples
from cluster.runtime import root_cause
from cluster.training.assembly import checkpoint_store, untrained_encoder
from cluster.training.fresh_views import FreshViews
from cluster.training.metrics_log import Row, read_rows
from cluster.training.preparation import cached_source, fill_rotation, held_out_slice
from cluster.training.run import Surroundings, checkpointed_part, train_run
from cluster.training.trainer import train
from cluster.training.view_batches import CachedViews, Share
from cluster.training_config import TrainConfig
from tests.cluster.training.conftest import FinishedRun
from tests.datasets import make_dataset, shape_dataset, shape_sources
from tests.events import events, points, steps_done_twice
from tests.ray_processes import end_ray, workers_of

_SMALL = {"name": "convnet-small", "weights": "none", "image_size": 32, "train_from": "all"}
_COUNTS = (100, 10, 101)
_HELD_OUT, _STEPS, _EPOCHS = 21, 11, 12
"""A tenth of the images; steps per epoch of the others."""


def _config(dataset: str, output: Path | str, **settings: Any) -> TrainConfig:
    fixed = {
        "dataset": dataset,
        "output": str(output),
        "bits": (8, 16),
        "backbone": _SMALL,
        "backbone_learning_rate": 0.001,
        "views": {"jitter": 0.2, "grayscale": 0.0},
        "hidden": 24,
        "epochs": _EPOCHS,
        "batch_size": 16,
        "num_streams": 2,
        "num_workers": 2,
        "threads_per_worker": 1,
        "loaders_per_worker": 0,
        "checkpoint_every": 3,
        "checkpoint_every_steps": 20,
        "metrics_every": 1,
        "monitor": {"every_steps": 50},
    }
    return TrainConfig.model_validate({**fixed, **settings})


def _assert_as_one_process(config: TrainConfig, source: FreshViews | CachedViews) -> None:
    """The job's loss of every step of two epochs is that of one process without Ray and workers.

    Later, sooner or later, rounding decides a bit of some code, and from then on both go their own ways.
    """
    dataset = open_dataset(config.dataset)
    encoder = untrained_encoder(config, dataset)
    fill_rotation(config, dataset, encoder)
    expected: list[Row] = []
    share = Share(0, 1, config.streams, config.batch_size, config.seed)
    settings = config.model_copy(update={"epochs": 2})
    train_run(
        settings, encoder, source, share, store=None, monitor=None, surroundings=Surroundings(emit=expected.extend)
    )
    found = {(row["kind"], row["step"]): row for row in read_rows(config.output)}
    assert len(expected) == 2 * _STEPS + 2
    for row in expected:
        for name in ("loss", "contrastive", "kl", "bit_entropy"):
            assert found[row["kind"], row["step"]][name] == pytest.approx(row[name], rel=1e-4, abs=1e-6)


def _best(config: TrainConfig) -> HashEncoder:
    """The encoder as the checkpoint has it that the job should choose."""
    dataset = open_dataset(config.dataset)
    encoder = untrained_encoder(config, dataset)
    fill_rotation(config, dataset, encoder)
    checkpointed = checkpointed_part(config, encoder)
    checkpoint_store(config).load_best(checkpointed)
    take_average(checkpointed)
    return encoder.eval()


def _codes(encoder: HashEncoder, dataset: str) -> np.ndarray:
    samples = [s for shard in open_dataset(dataset).shards for s in shard_samples(dataset, shard)]
    size = encoder.spec.image_size
    views = np.stack([eval_view(decode_image(sample.image), size) for sample in samples])
    return encode(encoder, torch.from_numpy(views)).codes


def _workers() -> set[int]:
    """Ray Train's workers of this session's Ray."""
    return workers_of(ray._private.worker._global_node.get_session_dir_path(), b"ray::RayTrainWorker")


@dataclass
class _Seen:
    """What went on beside a run."""

    workers: set[int]
    struck: int = 0
    struck_s: float = 0.0
    """When, on the clock of `time.monotonic`."""


@contextmanager
def _watched(config: TrainConfig, strike: signal.Signals | None = None) -> Iterator[_Seen]:
    """Counts the workers during the block; one gets the signal as soon as a checkpoint in mid-epoch is listed."""
    seen, end = _Seen(set()), threading.Event()

    def watch() -> None:
        while not end.wait(0.02):
            seen.workers |= (now := _workers())
            if strike is not None and not seen.struck and len(now) == 2 and _in_mid_epoch(config):
                end.wait(0.1)  # some steps later
                seen.struck, seen.struck_s = min(now), time.monotonic()
                os.kill(seen.struck, strike)

    before = _workers()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()
        seen.workers -= before
        if strike is signal.SIGSTOP and seen.struck in _workers():
            os.kill(seen.struck, signal.SIGKILL)


def _in_mid_epoch(config: TrainConfig) -> bool:
    return any(entry.steps_done % _STEPS for entry in checkpoint_store(config).entries())


@pytest.fixture(scope="module")
def whole(quick_ray: None, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Two workers with a loader process each."""
    folder = tmp_path_factory.mktemp("whole")
    config = _config(shape_dataset(folder / "data", _COUNTS), folder / "out", loaders_per_worker=1)
    return FinishedRun(config, train(config))


@pytest.mark.ray
def test_two_workers_train_what_one_process_would(whole: FinishedRun) -> None:
    config, result = whole.config, whole.result
    dataset = open_dataset(config.dataset)
    assert (result.images, result.held_out, result.epochs, result.steps, result.bits) == (
        *(sum(_COUNTS), _HELD_OUT, _EPOCHS, _EPOCHS * _STEPS),
        (8, 16),
    )
    assert (result.dataset_digest, result.continued) == (dataset.digest, ())
    held_out = held_out_slice(config, dataset).from_training
    assert len(held_out) == _HELD_OUT
    source = FreshViews(config.dataset, dataset.shards, config.views, 32, held_out)
    _assert_as_one_process(config, source)


@pytest.mark.ray
def test_the_encoder_is_that_of_the_best_checkpoint(whole: FinishedRun) -> None:
    config, result = whole.config, whole.result
    history = checkpoint_store(config).history()
    assert [entry.steps_done for entry in history] == sorted({*range(20, 132, 20), *range(33, 133, 33)})
    scores = {entry.steps_done: entry.scores for entry in history}
    assert result.selected is not None
    steps = max(scores, key=lambda step: (scores[step].sep10, step))  # type: ignore[union-attr]
    assert (result.selected.rule, result.selected.steps, result.selected.sep10) == (
        *("sep10", steps),
        scores[steps].sep10,  # type: ignore[union-attr]
    )
    assert [choice.rule for choice in result.choices] == ["sep10", "nt_xent", "oracle", "last"]
    assert result.choices[0] == result.selected
    encoder = load_encoder(Path(config.output))
    assert encoder.digest == result.encoder_digest
    assert encoder.spec.prefixes == (8, 16)
    assert encoder.spec.training_data == result.dataset_digest
    torch.testing.assert_close(encoder.state_dict(), _best(config).state_dict(), rtol=0, atol=0)


@pytest.mark.ray
def test_every_step_epoch_and_look_is_in_the_metrics_and_in_tensorboard(whole: FinishedRun) -> None:
    config, last = whole.config, _EPOCHS * _STEPS
    rows = read_rows(config.output)
    steps = {kind: [row["step"] for row in rows if row["kind"] == kind] for kind in ("step", "epoch", "look")}
    looks = sorted({50, 100, *range(20, last, 20), *range(3 * _STEPS, last + 1, 3 * _STEPS)})
    assert steps == {"step": list(range(1, last + 1)), "epoch": list(range(_STEPS, last + 1, _STEPS)), "look": looks}
    losses = {row["step"]: row["loss"] for row in rows if row["kind"] == "step"}
    epochs = [row for row in rows if row["kind"] == "epoch"]
    for row in epochs:
        assert row["loss"] == pytest.approx(
            np.mean([losses[step] for step in range(row["step"] - _STEPS + 1, row["step"] + 1)])
        )
    assert epochs[-1]["loss"] == whole.result.loss
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert all({"sep10", "oracle", "bit_entropy", "alignment"} <= row.keys() for row in rows if row["kind"] == "look")
    (path,) = Path(config.output, "tensorboard").iterdir()
    shown = {(point.name, point.step): point.value for point in points(path)}
    expected = {
        (f"{row['kind']}/{name}", row["step"]): float(np.float32(value))
        for row in rows
        for name, value in row.items()
        if name not in ("kind", "step", "epoch", "alarms")
    }
    assert shown == expected
    assert "<svg" in Path(config.output, "training.svg").read_text()


@pytest.mark.ray
def test_a_complete_run_is_returned_as_it_is_and_another_one_refused(whole: FinishedRun, tmp_path: Path) -> None:
    config, result = whole.config, whole.result
    assert train(config) == result
    more = {"num_workers": 1, "loaders_per_worker": 3, "max_failures": 0, "metrics_every": 7, "start_timeout_s": 5.0}
    found = train(config.model_copy(update=more))
    assert found == replace(result, continued=("num_workers 1 instead of 2: sums are rounded in another order",))
    for name, value, both in (
        ("seed", 1, "seed 0, asked for 1"),
        ("bits", (16,), r"bits \[8, 16\], asked for \[16\]"),
        ("learning_rate", 0.5, "learning_rate 0.001, asked for 0.5"),
        ("epochs", 5, "epochs 12, asked for 5"),
        ("dataset", shape_dataset(tmp_path / "other", (200,)), "dataset_digest .*, asked for "),
    ):
        with pytest.raises(ConfigError, match=f"{config.output}.*{both}.*another output") as caught:
            train(config.model_copy(update={name: value}))
        assert caught.value.exit_code == 2


@pytest.mark.ray
def test_a_killed_worker_is_replaced_and_the_run_ends_bit_for_bit_as_the_undisturbed_one(
    whole: FinishedRun, tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    config = whole.config.model_copy(update={"output": str(tmp_path), "loaders_per_worker": 0})
    with _watched(config, signal.SIGKILL) as seen:
        result = train(config)
    assert seen.struck in seen.workers
    assert len(seen.workers) == 4, "two at first, two after the restart"
    assert replace(result, encoder_uri="") == replace(whole.result, encoder_uri="")

    # Whatever was done twice is there twice, with the same values, and began at a checkpoint.
    (path,) = (tmp_path / "tensorboard").iterdir()
    again = steps_done_twice(path, _EPOCHS * _STEPS)
    if again:
        assert again[0] - 1 in {0, *(entry.steps_done for entry in checkpoint_store(config).history())}
    rows = read_rows(str(tmp_path))
    assert len({(row["kind"], row["step"]) for row in rows}) == len(rows) == len(read_rows(whole.config.output))
    times = sorted(event.wall_time for event in events(path))
    record_testsuite_property("T1 steps lost", len(again))
    record_testsuite_property("T1 seconds without a step", max(np.diff(times)))


_DRIVER = """
import sys
import ray
from cibhash.errors import CIBHashError
from cluster.config import RayConfig
from cluster.training_config import TrainConfig
from cluster.runtime import ray_session
from cluster.training import trainer
crowded, config = (TrainConfig.model_validate_json(text) for text in sys.argv[1:])
with ray_session(RayConfig(num_cpus=4)):
    print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
    trainer._WAITING_S = 1.0
    try:
        trainer.train(crowded)
    except CIBHashError as error:
        print(type(error).__name__, error.exit_code, error, flush=True)
    trainer.train(config)
"""


@dataclass(frozen=True)
class _Killed:
    """What was seen of a driver before and when it was killed."""

    pid: int
    config: TrainConfig
    waited: str
    """The end of a run that had no room."""
    log: str
    refusal: ConfigError
    """Of a second run on the same output, while the first one was alive."""


@pytest.fixture(scope="module")
def killed(whole: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> _Killed:
    """A driver with a Ray of its own, killed after two checkpoints; before, it waits in vain for room for 5 workers."""
    folder = tmp_path_factory.mktemp("killed")
    crowded = whole.config.model_copy(
        update={
            "output": str(folder / "crowded"),
            "num_workers": 5,
            "num_streams": 5,
            "batch_size": 20,
            "start_timeout_s": 2.0,
            "ray": RayConfig(address="a-cluster:6379"),
        }
    )
    config = whole.config.model_copy(update={"output": str(folder / "out"), "loaders_per_worker": 0})
    store = checkpoint_store(config)
    # Rank 0 pauses after every checkpoint, so that the run is alive while it is looked at and killed.
    environment = os.environ | {"CIBHASH_FAULT": "checkpoint.after_index:sleep=7", "CIBHASH_ALLOW_FAULTS": "1"}
    with open(folder / "log", "wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-c", _DRIVER, crowded.model_dump_json(), config.model_dump_json()],
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
        )
    assert driver.stdout is not None
    session = driver.stdout.readline().decode().strip()
    try:
        waited = driver.stdout.readline().decode().strip()
        _wait_for_checkpoints(driver, lambda: len(store.history()) == 1)
        with pytest.raises(ConfigError) as caught:
            train(config)
        _wait_for_checkpoints(driver, lambda: len(store.history()) == 2)
    finally:
        driver.kill()
        driver.wait()
        end_ray(session)
    return _Killed(driver.pid, config, waited, (folder / "log").read_text(), caught.value)


@pytest.mark.ray
def test_a_cluster_that_does_not_grow_is_waited_for_and_named(killed: _Killed) -> None:
    """As after the loss of a node: a cluster with an address may grow, so what is missing is waited for."""
    assert killed.waited == (
        "ConfigError 2 num_workers 5 with 1 CPU each: the cluster had no room for them within 2 s (--start-timeout-s)"
    )
    assert "num_workers 5 needs 5 CPUs, the Ray cluster has 4 now: waiting for it to grow" in killed.log
    assert "train: waiting for num_workers 5 with 1 CPU each" in killed.log


@pytest.mark.ray
def test_a_second_live_run_on_an_output_is_refused(killed: _Killed) -> None:
    assert killed.refusal.exit_code == 2
    assert killed.config.output in str(killed.refusal)
    assert f"pid {killed.pid} on {socket.gethostname()}" in str(killed.refusal)


@pytest.mark.ray
def test_a_killed_run_continues_from_its_last_intact_checkpoint(
    whole: FinishedRun, killed: _Killed, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """The second of its two checkpoints is damaged; the dead driver's lease is no obstacle."""
    output = Path(killed.config.output)
    assert not (output / "encoder.json").exists()
    first, second = checkpoint_store(killed.config).entries()
    damaged = output / "checkpoints" / second.name / "optimizer.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)

    before = set((output / "tensorboard").glob("*"))
    result = train(killed.config)
    assert replace(result, encoder_uri="") == replace(whole.result, encoder_uri="")
    (path,) = set((output / "tensorboard").iterdir()) - before
    done = sorted({point.step for point in points(path) if point.name == "step/loss"})
    assert done == list(range(first.steps_done + 1, _EPOCHS * _STEPS + 1)), "from the intact one, not from scratch"
    record_testsuite_property(
        "T3 steps repeated, the last checkpoint being damaged", second.steps_done - first.steps_done
    )


def _wait_for_checkpoints(driver: subprocess.Popen[bytes], holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not holds():
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.ray
def test_a_worker_that_hangs_ends_the_run_by_name(
    whole: FinishedRun, tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    settings = {"output": str(tmp_path), "loaders_per_worker": 0, "max_failures": 0, "collective_timeout_s": 10.0}
    config = whole.config.model_copy(update=settings)
    with _watched(config, signal.SIGSTOP) as seen, pytest.raises(WorkersLost) as caught:
        train(config)
    seconds = time.monotonic() - seen.struck_s
    message = str(caught.value)
    place = rf"\(pid {seen.struck} on {socket.gethostname()}\) fell silent first"
    assert "max_failures 0" in message
    assert "rank 0: step " in message
    assert "rank 1: step " in message
    assert re.search(place, message)
    assert message.count("first") == 1
    assert "\n" not in message
    assert not (tmp_path / "encoder.json").exists()
    assert _in_mid_epoch(config), "what was committed is kept"
    record_testsuite_property("T7 seconds to the end, of which collective_timeout_s 10", seconds)


@pytest.mark.ray
def test_a_loss_that_is_not_finite_ends_the_run_at_once(quick_ray: None, tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", (40,))
    config = _config(dataset, tmp_path / "out", temperature=1e-40, max_failures=2)
    with _watched(config) as seen, pytest.raises(TrainingDiverged) as caught:
        train(config)
    assert len(seen.workers) == 2, "no restart"
    assert caught.value.exit_code == 5
    message = str(caught.value)
    for part in ("the loss is ", "epoch 0, step 0", "there is no checkpoint", "the batch was 'shape-000", "and 8 more"):
        assert part in message
    assert not (tmp_path / "out/encoder.json").exists()


@pytest.mark.ray
def test_a_bad_image_on_one_of_two_ranks_is_named_and_not_tried_again(quick_ray: None, tmp_path: Path) -> None:
    bad = SourceImage("broken/one", "jpg", b"<html>", ())
    dataset = make_dataset(tmp_path / "data", [[*shape_sources(31), bad]])
    config = _config(dataset, tmp_path / "out", max_failures=2)
    with _watched(config) as seen, pytest.raises(DataError, match=f"{dataset}.*'broken/one'") as caught:
        train(config)
    assert type(caught.value) is DataError
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert len(seen.workers) <= 4, "those that are started for the first retry find the failure told"
    assert not (tmp_path / "out/encoder.json").exists()


@pytest.mark.ray
def test_the_neighbor_recipe_trains_what_one_process_would(neighbor_run: FinishedRun) -> None:
    """Two workers against one process, then the encoder."""
    config, result = neighbor_run.config, neighbor_run.result
    manifest = open_dataset(config.dataset)
    assert (result.held_out, result.steps) == (_HELD_OUT, 4 * _STEPS)
    blank = untrained_encoder(config, manifest)
    fill_rotation(config, manifest, blank)
    _assert_as_one_process(config, cached_source(config, manifest, blank, held_out_slice(config, manifest)))
    encoder = load_encoder(Path(config.output))
    assert (encoder.digest, encoder.spec.rotation) == (result.encoder_digest, 8)
    assert encoder.spec.objective["neighbors"] == 3
    torch.testing.assert_close(encoder.fixed_head.state_dict(), blank.fixed_head.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(encoder.state_dict(), _best(config).state_dict(), rtol=0, atol=0)
    codes = _codes(encoder, config.dataset)
    assert codes.shape == (sum(_COUNTS), 2)
    assert len(np.unique(codes, axis=0)) > 10
    assert train(config) == result


@pytest.mark.ray
def test_a_corrupt_or_missing_shard_is_named_before_training(quick_ray: None, tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", (9, 1, 16))
    path = tmp_path / "data/shard-000002.tar"
    content = path.read_bytes()
    for damage in (content[: 512 * 7], content[:5000] + b"?" + content[5001:], None):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        with pytest.raises(CorruptShard) as caught:
            train(_config(dataset, tmp_path / "out"))
        cause = root_cause(caught.value)
        assert isinstance(cause, CorruptShard)
        assert str(path) in str(cause)
    assert not (tmp_path / "out/checkpoints").exists()


@pytest.mark.ray
def test_more_workers_than_a_private_ray_can_hold_are_refused(quick_ray: None, tmp_path: Path) -> None:
    config = _config(
        shape_dataset(tmp_path / "data", (40,)), tmp_path / "out", num_workers=17, batch_size=34, num_streams=17
    )
    with pytest.raises(ConfigError, match="num_workers 17 needs 17 CPUs, the Ray cluster has 16") as caught:
        train(config)
    assert caught.value.exit_code == 2


def test_what_cannot_work_is_refused_before_ray_starts(tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", (5,))
    with pytest.raises(ConfigError, match=r"batch_size 16.*5 images"):
        train(_config(dataset, tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"batch_size 16.*5 images"):
        train(_config(dataset, tmp_path / "out", drop_last=False, num_workers=1))
    with pytest.raises(NotFound, match="nowhere"):
        train(_config(str(tmp_path / "nowhere"), tmp_path / "out"))
    backbone = {**_SMALL, "weights": str(tmp_path / "gone.safetensors")}
    with pytest.raises(NotFound, match=r"gone\.safetensors"):
        train(_config(dataset, tmp_path / "out", batch_size=4, backbone=backbone))
    assert not (tmp_path / "out").exists()


def test_held_out_images_count_as_missing(tmp_path: Path) -> None:
    """200 images fill a batch of 192, but 20 of them are held out."""
    dataset = shape_dataset(tmp_path / "data", (200,))
    with pytest.raises(ConfigError, match=r"batch_size 192 .* only 180 images"):
        train(_config(dataset, tmp_path / "out", batch_size=192, dry_run=True))
    for monitor, held_out in (({"images": 0}, 0), ({"images": 8}, 0), ({"dataset": dataset}, 0)):
        result = train(_config(dataset, tmp_path / "out", batch_size=192, monitor=monitor, dry_run=True))
        assert (result.held_out, result.steps) == (held_out, _EPOCHS)


def test_the_checkpoints_are_chosen_and_trusted_as_the_config_says(tmp_path: Path) -> None:
    for settings, rule, strict in (({}, "sep10", False), ({"selection": "last", "strict": True}, "last", True)):
        store = checkpoint_store(_config("unused", tmp_path, **settings))
        assert (store.rule, store.strict, store.uri) == (rule, strict, str(tmp_path / "checkpoints"))


def test_dry_run_touches_nothing(tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", _COUNTS)
    result = train(_config(dataset, tmp_path / "out", dry_run=True))
    assert (result.images, result.held_out, result.steps) == (sum(_COUNTS), _HELD_OUT, _EPOCHS * _STEPS)
    assert (result.loss, result.selected, result.encoder_digest) == (None, None, "")
    assert not (tmp_path / "out").exists()
