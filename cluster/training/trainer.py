"""The train job: Ray Train around `cluster.training.worker`, one live run per output, and the encoder at the end.

Knows nothing of the method. A worker that dies is answered by a restart of all from the last checkpoint
(`max_failures` times); a run that was killed continues when it is started again with the same output, and one that is
complete is returned as it is.
"""

import contextlib
import dataclasses
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch

from cibhash.backbones import resolve
from cibhash.encoder import ENCODER_FILE
from cibhash.errors import AlreadyExists, ConfigError, DataError, NotFound, WorkersLost
from cibhash.sampling import steps_per_epoch
from cibhash.types import TarShard
from cibhash.weight_average import take_average
from cluster import storage
from cluster.datasets import check_shards, open_dataset, verify_shard
from cluster.encoders import encoder_info, publish_encoder
from cluster.failures import raise_failure
from cluster.in_flight import completed, default_limit, named_call
from cluster.lease import hold_lease
from cluster.manifests import DatasetManifest
from cluster.runtime import ray_session, require_resources, root_cause
from cluster.telemetry import log, progress
from cluster.training.assembly import checkpoint_store, untrained_encoder
from cluster.training.checkpoints import CheckpointEntry
from cluster.training.curves import write_curves
from cluster.training.metrics_log import MetricsLog, read_rows
from cluster.training.preparation import HeldOutSlice, fill_rotation, held_out_slice, prepare
from cluster.training.run import checkpointed_part
from cluster.training.run_board import Sign, answer, shown_board
from cluster.training.selected import Choice, choice, choices
from cluster.training.worker import train_worker
from cluster.training_config import TrainConfig

_SETTINGS, _LEASE = "training.json", "training.lease"
_POLL_S, _WAITING_S = 0.5, 30.0
_FREE_TO_CHANGE = {
    *("ray", "dry_run", "output", "dataset", "num_workers", "num_streams", "use_gpu", "threads_per_worker"),
    *("loaders_per_worker", "checkpoint_every", "checkpoint_every_steps", "max_failures", "metrics_every", "strict"),
    *("collective_timeout_s", "start_timeout_s", "view_cache", "compiled", "monitor", "selection"),
}
"""Settings with which an interrupted run may continue although they changed."""
_CHANGES_NUMBERS = {
    "num_workers": "sums are rounded in another order",
    "streams": "the order of images changes from here on",
    "use_gpu": "rounding is another device's",
}
"""Of those, what makes the result differ from the uninterrupted run's, and how."""


@dataclass(frozen=True)
class TrainResult:
    """What the train job made."""

    encoder_uri: str
    encoder_digest: str
    dataset_digest: str
    bits: tuple[int, ...]
    images: int
    """Of the dataset."""
    held_out: int
    """Of those, not trained on."""
    epochs: int
    steps: int
    loss: float | None
    """Mean of the last epoch."""
    selected: Choice | None
    """The checkpoint that became the encoder."""
    choices: tuple[Choice, ...]
    """What every rule would have chosen."""
    continued: tuple[str, ...]
    """What differs from the run that was continued."""


def train(config: TrainConfig) -> TrainResult:
    """Trains an encoder and commits it at the output, continuing an interrupted run of the same settings.

    Raises:
        ConfigError: the output holds a run with other settings or one that is alive, the images do not fill a batch, or
            there were no resources in time.
        CorruptShard: a shard is not what the dataset's manifest lists.
        TrainingDiverged: the loss is no longer finite, or the codes collapsed.
        WorkersLost: workers died or hung more often than `max_failures`.
    """
    config = _with_absolute_paths(config)
    dataset, output = open_dataset(config.dataset), config.output
    held_out = held_out_slice(config, dataset)
    steps = num_steps(config, dataset, held_out)
    encoder = untrained_encoder(config, dataset)
    result = TrainResult(
        output,
        "",
        dataset.digest,
        config.bits,
        dataset.num_samples,
        len(held_out.from_training),
        config.epochs,
        steps,
        loss=None,
        selected=None,
        choices=(),
        continued=(),
    )
    if config.dry_run:
        return result
    changes = _compare(config, dataset, output)
    if storage.exists(storage.join(output, ENCODER_FILE)):
        log("train: already complete", encoder=output)
        return _finished(result, config, encoder_info(output).digest, changes, checkpoint_store(config).best())
    check_shards(config.dataset, dataset.shards)
    with hold_lease(storage.join(output, _LEASE)):
        _claim(config, dataset, output)
        for change in changes:
            log(f"train: continuing with {change}")
        with ray_session(config.ray):
            require_resources(config.ray, "num_workers", config.num_workers, cpus=1.0, gpus=float(config.use_gpu))
            _verify(config.dataset, dataset)
            prepare(config, dataset)
            with shown_board(MetricsLog(output), config.epochs) as board:
                _fit(config, board, output)
        fill_rotation(config, dataset, encoder)
        checkpointed = checkpointed_part(config, encoder)
        best = checkpoint_store(config).load_best(checkpointed)
        if best is None:
            raise DataError(f"{output}: training ended without a checkpoint")
        take_average(checkpointed)
        digest = publish_encoder(encoder.eval(), output)
        write_curves(output, read_rows(output))
    return _finished(result, config, digest, changes, best)


def num_steps(config: TrainConfig, dataset: DatasetManifest, held_out: HeldOutSlice) -> int:
    """Steps of the whole run.

    Raises:
        ConfigError: the images do not fill a batch.
    """
    streams = 1 if config.num_cached_views else config.streams
    images = dataset.num_samples - len(held_out.from_training)
    return steps_per_epoch(images, streams, config.batch_size, drop_last=config.drop_last) * config.epochs


def _finished(
    result: TrainResult, config: TrainConfig, digest: str, changes: tuple[str, ...], best: CheckpointEntry | None
) -> TrainResult:
    epochs = [row for row in read_rows(config.output) if row["kind"] == "epoch"]
    return dataclasses.replace(
        result,
        encoder_digest=digest,
        loss=epochs[-1]["loss"] if epochs else None,
        selected=choice(config.selection, best) if best is not None else None,
        choices=choices(checkpoint_store(config).history()),
        continued=changes,
    )


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The config as workers need it: their working folder is another one."""
    backbone = config.backbone
    if backbone.weights not in ("hub", "none"):
        backbone = dataclasses.replace(backbone, weights=storage.absolute(backbone.weights))
    paths = {name: storage.absolute(getattr(config, name)) for name in ("dataset", "output")}
    if config.view_cache:
        paths["view_cache"] = storage.absolute(config.view_cache)
    monitor = config.monitor
    if monitor.dataset:
        monitor = monitor.model_copy(update={"dataset": storage.absolute(monitor.dataset)})
    return config.model_copy(update={**paths, "backbone": backbone, "monitor": monitor})


def deciding_settings(config: TrainConfig, dataset: DatasetManifest) -> dict[str, Any]:
    """What decides the result of a training but for rounding, as JSON takes it; weights by content, not by place."""
    settings = {**config.model_dump(mode="json", exclude=_FREE_TO_CHANGE), "dataset_digest": dataset.digest}
    settings["backbone"] |= {"mean": None, "std": None} | _transform(config)
    if config.backbone.weights not in ("hub", "none"):
        settings["backbone"]["weights"] = storage.sha256_of(config.backbone.weights)[0]
    settings["monitor"] = {"images": config.monitor.images, "dataset": config.monitor.dataset}
    return settings


def _settings(config: TrainConfig, dataset: DatasetManifest) -> dict[str, Any]:
    """What decides the result, and last what only rounds it otherwise."""
    return deciding_settings(config, dataset) | {name: getattr(config, name) for name in _CHANGES_NUMBERS}


def _transform(config: TrainConfig) -> dict[str, Any]:
    backbone = resolve(config.backbone)
    return {"mean": list(backbone.mean), "std": list(backbone.std)}


def _compare(config: TrainConfig, dataset: DatasetManifest, output: str) -> tuple[str, ...]:
    """What differs from the run at the output, if there is one, and is allowed to.

    Raises:
        ConfigError: it is another run.
    """
    settings = _settings(config, dataset)
    try:
        found = json.loads(storage.read_bytes(storage.join(output, _SETTINGS)))
    except NotFound:
        return ()
    changes = []
    for name in sorted(settings.keys() | found.keys()):
        if settings.get(name) == found.get(name):
            continue
        change = f"{name} {found.get(name)}, asked for {settings.get(name)}"
        if name not in _CHANGES_NUMBERS:
            raise ConfigError(f"{output}: holds a run with {change}: choose another output")
        changes.append(f"{name} {settings.get(name)} instead of {found.get(name)}: {_CHANGES_NUMBERS[name]}")
    return tuple(changes)


def _claim(config: TrainConfig, dataset: DatasetManifest, output: str) -> None:
    """Records the run's settings where it is new."""
    content = json.dumps(_settings(config, dataset), indent=1) + "\n"
    with contextlib.suppress(AlreadyExists):
        storage.create_bytes(storage.join(output, _SETTINGS), content.encode())


def _verify(uri: str, dataset: DatasetManifest) -> None:
    """Reads every shard once and compares it with the manifest."""
    calls = (
        (shard.uri, named_call(_verify_shard, f"verify-{number}", uri, shard))
        for number, shard in enumerate(dataset.shards)
    )
    with progress("verify", len(dataset.shards), "shards") as line:
        for _ in completed(calls, default_limit()):
            line.advance()


@ray.remote(num_cpus=0.5)
def _verify_shard(uri: str, shard: TarShard) -> None:
    verify_shard(uri, shard)


def _fit(config: TrainConfig, board: Any, output: str) -> None:
    """Runs the workers to the end of the last epoch.

    Raises:
        ConfigError: the workers did not get their resources in time.
        WorkersLost: they failed too often.
    """
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "board": board},
        torch_config=ray.train.torch.TorchConfig(timeout_s=max(1, round(config.collective_timeout_s))),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": 1.0, **({"GPU": 1.0} if config.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=secrets.token_hex(4),
            storage_path=storage.join(output, "ray"),
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
        ),
    )
    failures: list[BaseException] = []
    # Not in the main thread: there Ray takes over the interrupt, and an interrupted job would end as a good one.
    thread = threading.Thread(target=_caught, args=(trainer.fit, failures), daemon=True)
    thread.start()
    begun = told = time.monotonic()
    while thread.is_alive():
        thread.join(_POLL_S)
        now = time.monotonic()
        if now - told < _WAITING_S or not thread.is_alive() or answer(board.started.remote(), True):
            continue
        needs = f"num_workers {config.num_workers} with 1 CPU{' and 1 GPU' if config.use_gpu else ''} each"
        if now - begun > config.start_timeout_s:
            raise ConfigError(
                f"{needs}: the cluster had no room for them within {config.start_timeout_s:g} s (--start-timeout-s)"
            )
        log(f"train: waiting for {needs}", waited_s=round(now - begun))
        told = now
    raise_failure(answer(board.failure.remote(), ""))
    if failures:
        raise WorkersLost(_account(failures[0], answer(board.signs.remote(), []), config)) from failures[0]


def _caught(function: Callable[[], object], failures: list[BaseException]) -> None:
    try:
        function()
    except BaseException as error:
        failures.append(error)


def _account(error: BaseException, signs: list[Sign], config: TrainConfig) -> str:
    """Why the workers are gone, how far each had come, and which one died or was not heard of while others were."""
    cause = root_cause(error)
    reason = " ".join(str(cause).split())[:300] or type(cause).__name__
    told = ", ".join(f"rank {sign.rank}: step {sign.step}" for sign in signs) or "none"
    dead = {rank for rank, failure in getattr(error, "worker_failures", {}).items() if _is_death(failure)}
    first = "".join(
        f"; rank {sign.rank} ({sign.place}) {'died' if sign.rank in dead else 'fell silent'} first"
        for sign in signs
        if sign.rank in dead or sign.is_silent
    )
    limit = f"workers failed more than max_failures {config.max_failures} times"
    return f"{limit}: {reason} (last signs of life: {told}{first})"


def _is_death(failure: BaseException) -> bool:
    """Whether a worker's process ended, rather than that it raised an error."""
    return isinstance(getattr(failure, "health_check_failure", failure), ray.exceptions.RayActorError)
