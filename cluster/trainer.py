"""The train job: Ray Train workers around `cibhash.loop`, checkpoints, resume, and the encoder at the end.

Knows nothing of the method. A worker that dies is answered by a restart of all from the last committed checkpoint
(`max_failures` times); a run that was killed continues when it is started again with the same output.
"""

import dataclasses
import json
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from cibhash.checkpoint import Progress, load_checkpoint, save_checkpoint
from cibhash.encoder import ENCODER_FILE, EncoderSpec, HashEncoder, new_encoder
from cibhash.errors import AlreadyExists, ConfigError, DataError
from cibhash.loop import Objective, train_epoch
from cibhash.sampling import steps_per_epoch
from cluster import storage
from cluster.config import TrainConfig
from cluster.datasets import open_dataset, verify_shard
from cluster.encoders import encoder_info, local_weights, publish_encoder
from cluster.manifests import DatasetManifest
from cluster.runtime import ray_session
from cluster.telemetry import progress
from cluster.view_batches import CachedViews, FreshViews, Share
from cluster.view_cache import cache_views, load_views

_RUN_NAME = "checkpoints"
_FREE_TO_CHANGE = {
    *("ray", "dry_run", "output", "dataset", "num_workers", "num_streams", "use_gpu", "threads_per_worker"),
    *("checkpoint_every", "max_failures", "epochs"),
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
    loss: float
    resumed_from_epoch: int


def train(config: TrainConfig) -> TrainResult:
    """Trains an encoder and commits it at the output, continuing an interrupted run of the same settings.

    Raises:
        ConfigError: the output holds a run with other settings, or the images do not fill a batch.
        AlreadyExists: the output holds a finished encoder.
        CorruptShard: a shard is not what the dataset's manifest lists.
        TrainingDiverged: the loss is no longer finite.
    """
    dataset = open_dataset(config.dataset)
    steps = steps_per_epoch(dataset.num_samples, _num_streams(config), config.batch_size)
    output = storage.absolute(config.output)
    if storage.exists(storage.join(output, ENCODER_FILE)):
        raise AlreadyExists(
            f"{output}: holds encoder {encoder_info(output).digest[:16]}... already: choose another output"
        )
    with local_weights(config.backbone.weights):
        pass
    if config.dry_run:
        return TrainResult(output, "", dataset.digest, config.bits, dataset.num_samples, config.epochs, steps, 0.0, 0)
    _claim(config, dataset, output)
    with ray_session(config.ray):
        _verify(config.dataset, dataset)
        views = cache_views(config, dataset) if config.num_cached_views else ""
        board = EpochBoard.options(name=f"cibhash-epochs-{output}", get_if_exists=True).remote()  # type: ignore[attr-defined]
        try:
            with _shown(board, config.epochs, steps):
                checkpoint = _fit(config, views, board, output)
            rows = ray.get(board.rows.remote(0))
        finally:
            ray.kill(board)
        encoder = _trained_encoder(config, dataset, checkpoint)
    digest = publish_encoder(encoder, output)
    resumed = rows[0]["epoch"] if rows else config.epochs
    _write_metrics(output, rows)
    loss = rows[-1]["loss"] if rows else 0.0
    return TrainResult(
        output,
        digest,
        dataset.digest,
        encoder.spec.prefixes,
        dataset.num_samples,
        config.epochs,
        steps * config.epochs,
        loss,
        resumed,
    )


def _num_streams(config: TrainConfig) -> int:
    return max(config.num_streams, config.num_workers)


def _claim(config: TrainConfig, dataset: DatasetManifest, output: str) -> None:
    """Records the run's settings, or compares them with those of the run that is to be continued."""
    settings = {**config.model_dump(mode="json", exclude=_FREE_TO_CHANGE), "dataset_digest": dataset.digest}
    location = storage.join(output, "training.json")
    try:
        storage.create_bytes(location, (json.dumps(settings, indent=1) + "\n").encode())
    except AlreadyExists:
        found = json.loads(storage.read_bytes(location))
        for name in sorted(settings.keys() | found.keys()):
            if settings.get(name) != found.get(name):
                raise ConfigError(
                    f"{output}: holds a run with {name} {found.get(name)}, asked for {settings.get(name)}: "
                    "choose another output"
                ) from None


def _verify(uri: str, dataset: DatasetManifest) -> None:
    tasks = [_verify_shard.options(name=f"verify-{n}").remote(uri, asdict(s)) for n, s in enumerate(dataset.shards)]
    ray.get(tasks)


@ray.remote(num_cpus=0.5)
def _verify_shard(uri: str, raw_shard: dict[str, Any]) -> None:
    from cibhash.types import TarShard

    verify_shard(uri, TarShard(**raw_shard))


@ray.remote(num_cpus=0)
class EpochBoard:
    """Where rank 0 puts a row per epoch and the driver reads them."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Adds an epoch's statistics."""
        self._rows.append(row)

    def rows(self, start: int) -> list[dict[str, Any]]:
        """The rows from `start` on."""
        return self._rows[start:]


class _shown:  # noqa: N801 (a context manager, used like a function)
    """Shows the board's rows as progress while the block runs."""

    def __init__(self, board: Any, epochs: int, steps: int) -> None:
        self._board, self._epochs, self._steps = board, epochs, steps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _show(self) -> None:
        with progress("train", self._epochs, "epochs") as line:
            seen = 0
            while not (stopping := self._stop.wait(1.0)) or stopping:
                try:
                    rows = ray.get(self._board.rows.remote(seen))
                except ray.exceptions.RayError:
                    return
                seen += len(rows)
                for row in rows:
                    note = f"loss {row['loss']:.4f}, bit entropy {row['bit_entropy']:.3f}"
                    line.advance(row["epoch"] + 1 - line.done, note)
                if stopping:
                    return


def _fit(config: TrainConfig, views: str, board: Any, output: str) -> ray.train.Checkpoint:
    arguments = {"config": config.model_dump(mode="json"), "views": views, "board": board}
    resources = {"CPU": 1.0, **({"GPU": 1.0} if config.use_gpu else {})}
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=arguments,
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.num_workers, use_gpu=config.use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=_RUN_NAME,
            storage_path=output,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    result = trainer.fit()
    if result.checkpoint is None:
        raise DataError(f"{output}: training ended without a checkpoint")
    checkpoint: ray.train.Checkpoint = result.checkpoint
    return checkpoint


def train_worker(arguments: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    config = TrainConfig.model_validate(arguments["config"])
    torch.set_num_threads(config.threads_per_worker)
    dataset = open_dataset(config.dataset)
    encoder, rank = _new_encoder(config, dataset), ray.train.get_context().get_world_rank()
    encoder.to(ray.train.torch.get_device()).train()
    trained = _trained_part(encoder)
    optimizer = torch.optim.Adam(trained.parameters(), lr=config.learning_rate)
    done = Progress(0, 0)
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            done = load_checkpoint(Path(folder), trained, optimizer)
    project = _projection(encoder, ray.train.torch.prepare_model(trained), bool(arguments["views"]))
    share = Share(rank, ray.train.get_context().get_world_size(), _num_streams(config), config.batch_size, config.seed)
    objective = Objective(config.bits, config.temperature, config.beta, config.code_sampling)
    with ThreadPoolExecutor(config.threads_per_worker) as threads:
        source = _views(config, dataset, arguments["views"], threads)
        for epoch in range(done.epochs_done, config.epochs):
            generator = torch.Generator(encoder.mean.device).manual_seed(_draw_seed(config.seed, epoch, rank))
            stats = train_epoch(
                project,
                optimizer,
                ((a.to(encoder.mean.device), b.to(encoder.mean.device)) for a, b in source.pairs(epoch, share)),
                objective,
                epoch=epoch,
                generator=generator,
            )
            done = Progress(epoch + 1, done.steps_done + stats.steps)
            if rank == 0:
                arguments["board"].add.remote(asdict(stats))
            if (epoch + 1) % config.checkpoint_every == 0 or epoch + 1 == config.epochs:
                _report(rank, trained, optimizer, done, asdict(stats))


def _report(
    rank: int, trained: nn.Module, optimizer: torch.optim.Optimizer, done: Progress, metrics: dict[str, Any]
) -> None:
    """Commits a checkpoint; every rank takes part, rank 0 brings the files."""
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), trained, optimizer, done)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _spec(config: TrainConfig, dataset: DatasetManifest) -> EncoderSpec:
    names = (
        "temperature",
        "beta",
        "code_sampling",
        "epochs",
        "batch_size",
        "learning_rate",
        "num_cached_views",
        "seed",
    )
    objective = {"name": "cibhash", **config.model_dump(mode="json", include=set(names))}
    backbone = dataclasses.replace(config.backbone, options=dict(config.backbone.options))
    return EncoderSpec(backbone, config.bits, config.hidden, objective, dataset.digest)


def _new_encoder(config: TrainConfig, dataset: DatasetManifest) -> HashEncoder:
    with local_weights(config.backbone.weights) as weights:
        return new_encoder(_spec(config, dataset), seed=config.seed, weights=weights)


def _trained_part(encoder: HashEncoder) -> nn.Module:
    """What learns: the head, or the whole encoder where the backbone is trainable."""
    return encoder if encoder.spec.backbone.trainable else encoder.head


def _projection(encoder: HashEncoder, trained: nn.Module, cached: bool) -> Callable[[Tensor], Tensor]:
    """Maps what the view source yields to logits."""
    if cached or encoder.spec.backbone.trainable:
        return trained

    def project(images: Tensor) -> Tensor:
        with torch.no_grad():
            features = encoder.features(images)
        logits: Tensor = trained(features)
        return logits

    return project


def _views(
    config: TrainConfig, dataset: DatasetManifest, views: str, threads: ThreadPoolExecutor
) -> CachedViews | FreshViews:
    if views:
        return CachedViews(load_views(views, len(dataset.shards), config.num_cached_views))
    return FreshViews(config.dataset, dataset.shards, config.views, config.backbone.image_size, threads)


def _trained_encoder(config: TrainConfig, dataset: DatasetManifest, checkpoint: ray.train.Checkpoint) -> HashEncoder:
    encoder = _new_encoder(config, dataset)
    with checkpoint.as_directory() as folder:
        load_checkpoint(Path(folder), _trained_part(encoder))
    return encoder.eval()


def _write_metrics(output: str, rows: list[dict[str, Any]]) -> None:
    storage.write_bytes(storage.join(output, "metrics.jsonl"), "".join(json.dumps(row) + "\n" for row in rows).encode())


def _draw_seed(seed: int, epoch: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])
