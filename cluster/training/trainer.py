"""The train job: Ray Train around `cluster.training.worker`, resume, and the encoder at the end.

Knows nothing of the method. A worker that dies is answered by a restart of all from the last committed checkpoint
(`max_failures` times); a run that was killed continues when it is started again with the same output, and one that is
complete is returned as it is.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch

from cibhash.checkpoint import load_checkpoint
from cibhash.encoder import ENCODER_FILE
from cibhash.errors import AlreadyExists, ConfigError, DataError
from cibhash.sampling import steps_per_epoch
from cibhash.types import TarShard
from cluster import storage
from cluster.config import TrainConfig
from cluster.datasets import open_dataset, verify_shard
from cluster.encoders import encoder_info, publish_encoder
from cluster.manifests import DatasetManifest
from cluster.runtime import ray_session, require_resources
from cluster.telemetry import log
from cluster.training.epoch_board import read_rows, shown_board
from cluster.training.view_cache import cache_views
from cluster.training.worker import train_worker, trained_part, untrained_encoder

_RUN_NAME = "checkpoints"
_FREE_TO_CHANGE = {
    *("ray", "dry_run", "output", "dataset", "num_workers", "num_streams", "use_gpu", "threads_per_worker"),
    *("checkpoint_every", "max_failures"),
}
"""Settings with which an interrupted run may continue although they changed."""


@dataclass(frozen=True)
class TrainResult:
    """What the train job made."""

    encoder_uri: str
    encoder_digest: str
    dataset_digest: str
    bits: tuple[int, ...]
    images: int
    epochs: int
    steps: int
    loss: float | None
    """Mean of the last epoch."""


def train(config: TrainConfig) -> TrainResult:
    """Trains an encoder and commits it at the output, continuing an interrupted run of the same settings.

    Raises:
        ConfigError: the output holds a run with other settings, or the images do not fill a batch.
        CorruptShard: a shard is not what the dataset's manifest lists.
        TrainingDiverged: the loss is no longer finite.
    """
    config = _with_absolute_paths(config)
    dataset = open_dataset(config.dataset)
    steps = steps_per_epoch(dataset.num_samples, config.streams, config.batch_size) * config.epochs
    output = storage.absolute(config.output)
    encoder = untrained_encoder(config, dataset)
    if config.dry_run:
        return TrainResult(output, "", dataset.digest, config.bits, dataset.num_samples, config.epochs, steps, None)
    _claim(config, dataset, output)
    metrics_uri = storage.join(output, "metrics.jsonl")
    if storage.exists(storage.join(output, ENCODER_FILE)):
        digest = encoder_info(output).digest
        log("train: already complete", encoder=output)
    else:
        with ray_session(config.ray):
            require_resources(config.ray, "num_workers", config.num_workers, cpus=1.0, gpus=float(config.use_gpu))
            _verify(config.dataset, dataset)
            views = cache_views(config, dataset) if config.num_cached_views else ""
            with shown_board(metrics_uri, config.epochs) as board:
                checkpoint = _fit(config, views, board, output)
            with checkpoint.as_directory() as folder:
                load_checkpoint(Path(folder), trained_part(encoder))
        digest = publish_encoder(encoder.eval(), output)
    rows = read_rows(metrics_uri)
    loss = rows[-1]["loss"] if rows else None
    return TrainResult(output, digest, dataset.digest, config.bits, dataset.num_samples, config.epochs, steps, loss)


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The config as workers need it: their working folder is another one."""
    backbone = config.backbone
    if backbone.weights not in ("hub", "none"):
        backbone = dataclasses.replace(backbone, weights=storage.absolute(backbone.weights))
    return config.model_copy(update={"dataset": storage.absolute(config.dataset), "backbone": backbone})


def _claim(config: TrainConfig, dataset: DatasetManifest, output: str) -> None:
    """Records the run's settings, or compares them with those of the run that is to be continued."""
    settings = {**config.model_dump(mode="json", exclude=_FREE_TO_CHANGE), "dataset_digest": dataset.digest}
    settings["streams"] = config.streams
    if config.backbone.weights not in ("hub", "none"):
        settings["backbone"]["weights"] = storage.sha256_of(config.backbone.weights)[0]
    location = storage.join(output, "training.json")
    try:
        storage.create_bytes(location, (json.dumps(settings, indent=1) + "\n").encode())
    except AlreadyExists:
        found = json.loads(storage.read_bytes(location))
        for name in sorted(settings.keys() | found.keys()):
            if name == "streams" and settings["streams"] != found.get("streams"):
                log("train: the order of images changes from here on", streams=found.get(name), now=config.streams)
            elif settings.get(name) != found.get(name):
                raise ConfigError(
                    f"{output}: holds a run with {name} {found.get(name)}, asked for {settings.get(name)}: "
                    "choose another output"
                ) from None


def _verify(uri: str, dataset: DatasetManifest) -> None:
    tasks = [_verify_shard.options(name=f"verify-{n}").remote(uri, s) for n, s in enumerate(dataset.shards)]
    ray.get(tasks)


@ray.remote(num_cpus=0.5)
def _verify_shard(uri: str, shard: TarShard) -> None:
    verify_shard(uri, shard)


def _fit(config: TrainConfig, views: str, board: Any, output: str) -> ray.train.Checkpoint:
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "views": views, "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": 1.0, **({"GPU": 1.0} if config.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=_RUN_NAME,
            storage_path=output,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    checkpoint: ray.train.Checkpoint | None = trainer.fit().checkpoint
    if checkpoint is None:
        raise DataError(f"{output}: training ended without a checkpoint")
    return checkpoint
