"""What every Ray Train worker runs: builds its part of the run from the config, and tells the driver of failures.

Knows nothing of the loop. A failure that a restart would only repeat goes to the board: the restarted workers find it
there and end at once, and the driver raises it.
"""

import dataclasses
from typing import Any

import cv2
import ray
import ray.train
import ray.train.torch
import torch

from cibhash.encoder import EncoderSpec, HashEncoder, new_encoder
from cibhash.errors import ConfigError, DataError, TrainingDiverged
from cibhash.loop import NotFiniteLoss
from cluster import storage
from cluster.config import TrainConfig
from cluster.datasets import open_dataset
from cluster.encoders import local_weights
from cluster.failures import described
from cluster.manifests import DatasetManifest
from cluster.training.checkpoints import CheckpointStore
from cluster.training.fresh_views import FreshViews
from cluster.training.monitor import Monitor
from cluster.training.preparation import (
    HeldOutSlice,
    cached_source,
    fill_rotation,
    held_out_features,
    held_out_slice,
    keys_of,
)
from cluster.training.run import Surroundings, ViewSource, train_run
from cluster.training.run_board import Pulse
from cluster.training.view_batches import Share

CHECKPOINTS = "checkpoints"
_RECORDED = {
    "temperature",
    "beta",
    "code_sampling",
    "kl_stopgrad",
    "negatives",
    "neighbors",
    "neighbor_probability",
    "epochs",
    "batch_size",
    "drop_last",
    "learning_rate",
    "backbone_learning_rate",
    "num_cached_views",
    "precision",
    "selection",
    "seed",
}


def train_worker(arguments: dict[str, Any]) -> None:
    """Trains from the last checkpoint to the last epoch.

    Args:
        arguments: `config`: a TrainConfig as JSON; `board`: a RunBoard.
    """
    board = arguments["board"]
    if ray.get(board.failure.remote()):
        return
    config = TrainConfig.model_validate(arguments["config"])
    try:
        _train(config, board)
    except TrainingDiverged as error:
        # All ranks are here, so all return, and nothing is restarted.
        ray.get(board.fail.remote(described(_with_keys(config, error))))
    except (ConfigError, DataError) as error:
        ray.get(board.fail.remote(described(error)))
        raise


def _train(config: TrainConfig, board: Any) -> None:
    torch.set_num_threads(config.threads_per_worker)
    cv2.setNumThreads(1)
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    dataset = open_dataset(config.dataset)
    encoder = untrained_encoder(config, dataset)
    fill_rotation(config, dataset, encoder)
    held_out = held_out_slice(config, dataset)
    share = Share(rank, world_size, config.streams, config.batch_size, config.seed, config.drop_last)
    source = _source(config, dataset, encoder, held_out, device)
    encoder.to(device)
    pulse = Pulse(board, rank)
    train_run(
        config,
        encoder,
        source,
        share,
        store=checkpoint_store(config),
        monitor=new_monitor(config, dataset, encoder, held_out, device) if rank == 0 else None,
        surroundings=Surroundings(
            device=device,
            distribute=lambda module: ray.train.torch.prepare_model(module, move_to_device=False),
            emit=lambda rows: board.add.remote(rows),
            beat=pulse.beat,
        ),
    )


def untrained_encoder(config: TrainConfig, dataset: DatasetManifest) -> HashEncoder:
    """The encoder as every rank and the driver build it before training; its rotation is still empty."""
    backbone = dataclasses.replace(config.backbone, options=dict(config.backbone.options))
    objective = {"name": "cibhash", **config.model_dump(mode="json", include=_RECORDED)}
    spec = EncoderSpec(backbone, config.bits, config.hidden, config.rotation, objective, dataset.digest)
    with local_weights(config.backbone.weights) as weights:
        return new_encoder(spec, seed=config.seed, weights=weights)


def checkpoint_store(config: TrainConfig) -> CheckpointStore:
    """The checkpoints of the run."""
    uri = storage.join(storage.absolute(config.output), CHECKPOINTS)
    return CheckpointStore(uri, rule=config.selection, strict=config.strict)


def new_monitor(
    config: TrainConfig,
    dataset: DatasetManifest,
    encoder: HashEncoder,
    held_out: HeldOutSlice,
    device: torch.device,
) -> Monitor | None:
    """What looks at the held-out images, if there are any."""
    images = held_out_features(config, dataset, encoder, held_out, device)
    if images is None:
        return None

    def features(pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = encoder.fixed_head(encoder.features(pixels))
        return found

    return Monitor(
        images,
        features if encoder.spec.backbone.trainable else None,
        prefixes=config.bits,
        temperature=config.temperature,
        batch_size=config.batch_size,
    )


def _source(
    config: TrainConfig, dataset: DatasetManifest, encoder: HashEncoder, held_out: HeldOutSlice, device: torch.device
) -> ViewSource:
    if config.num_cached_views:
        return cached_source(config, dataset, encoder, held_out)
    return FreshViews(
        config.dataset,
        dataset.shards,
        config.views,
        encoder.spec.image_size,
        held_out.from_training,
        config.loaders_per_worker,
        device,
    )


def _with_keys(config: TrainConfig, error: TrainingDiverged) -> TrainingDiverged:
    """The error with the keys of the step's images, where it tells of a step."""
    if not isinstance(error, NotFiniteLoss) or not len(error.ids):
        return error
    keys = keys_of(config.dataset, error.ids)
    listed = ", ".join(repr(key) for key in keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
    return TrainingDiverged(f"{error}; the batch was {listed}")
