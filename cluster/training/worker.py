"""What every Ray Train worker runs: restore, train epochs, report checkpoints.

Knows nothing of the driver. All ranks report at the same epochs; rank 0 brings the files.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from cibhash.checkpoint import Progress, load_checkpoint, save_checkpoint
from cibhash.encoder import EncoderSpec, HashEncoder, new_encoder
from cibhash.loop import Objective, train_epoch
from cluster.config import TrainConfig
from cluster.datasets import open_dataset
from cluster.encoders import local_weights
from cluster.manifests import DatasetManifest
from cluster.training.view_batches import CachedViews, FreshViews, Share
from cluster.training.view_cache import load_views

_RECORDED = {
    "temperature",
    "beta",
    "code_sampling",
    "epochs",
    "batch_size",
    "learning_rate",
    "num_cached_views",
    "seed",
}


def train_worker(arguments: dict[str, Any]) -> None:
    """Trains from the last committed checkpoint to the last epoch.

    Args:
        arguments: `config`: a TrainConfig as JSON; `views`: URI of the view cache, or empty; `board`: an EpochBoard.
    """
    config = TrainConfig.model_validate(arguments["config"])
    torch.set_num_threads(config.threads_per_worker)
    dataset = open_dataset(config.dataset)
    encoder, rank = untrained_encoder(config, dataset), ray.train.get_context().get_world_rank()
    device = ray.train.torch.get_device()
    encoder.to(device).train()
    trained = trained_part(encoder)
    optimizer = torch.optim.Adam(trained.parameters(), lr=config.learning_rate)
    done = Progress(0, 0)
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            done = load_checkpoint(Path(folder), trained, optimizer)
    project = _projection(encoder, ray.train.torch.prepare_model(trained), cached=bool(arguments["views"]))
    world_size = ray.train.get_context().get_world_size()
    share = Share(rank, world_size, config.streams, config.batch_size, config.seed)
    objective = Objective(config.bits, config.temperature, config.beta, config.code_sampling)
    with ThreadPoolExecutor(config.threads_per_worker) as threads:
        source = _views(config, dataset, arguments["views"], threads)
        for epoch in range(done.epochs_done, config.epochs):
            pairs = ((a.to(device), b.to(device)) for a, b in source.pairs(epoch, share))
            draws = torch.Generator(device).manual_seed(_draw_seed(config.seed, epoch, rank))
            stats = train_epoch(project, optimizer, pairs, objective, epoch=epoch, generator=draws)
            done = Progress(epoch + 1, done.steps_done + stats.steps)
            if rank == 0:
                arguments["board"].add.remote(asdict(stats))
            if (epoch + 1) % config.checkpoint_every == 0 or epoch + 1 == config.epochs:
                _report(rank, trained, optimizer, done, asdict(stats))


def untrained_encoder(config: TrainConfig, dataset: DatasetManifest) -> HashEncoder:
    """The encoder as every rank and the driver build it before training."""
    backbone = dataclasses.replace(config.backbone, options=dict(config.backbone.options))
    objective = {"name": "cibhash", **config.model_dump(mode="json", include=_RECORDED)}
    spec = EncoderSpec(backbone, config.bits, config.hidden, objective, dataset.digest)
    with local_weights(config.backbone.weights) as weights:
        return new_encoder(spec, seed=config.seed, weights=weights)


def trained_part(encoder: HashEncoder) -> nn.Module:
    """What learns: the head, or the whole encoder where the backbone is trainable."""
    return encoder if encoder.spec.backbone.trainable else encoder.head


def _report(
    rank: int, trained: nn.Module, optimizer: torch.optim.Optimizer, done: Progress, metrics: dict[str, Any]
) -> None:
    """Commits a checkpoint; every rank takes part."""
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), trained, optimizer, done)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _projection(encoder: HashEncoder, trained: nn.Module, *, cached: bool) -> Callable[[Tensor], Tensor]:
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


def _draw_seed(seed: int, epoch: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])
