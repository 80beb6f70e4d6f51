"""Puts the parts of one rank's run together from its config: encoder, batches, monitor, checkpoints.

Knows nothing of Ray and of who runs it.
"""

import dataclasses
from dataclasses import dataclass

import torch

from cibhash.encoder import EncoderSpec, HashEncoder, new_encoder
from cluster import storage
from cluster.datasets import open_dataset
from cluster.encoders import local_weights
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
)
from cluster.training.run import ViewSource
from cluster.training.view_batches import Share
from cluster.training_config import TrainConfig

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
    "weight_average",
    "num_cached_views",
    "precision",
    "selection",
    "seed",
}


@dataclass(frozen=True)
class Assembly:
    """What a rank trains with."""

    encoder: HashEncoder
    """On the device, untrained, its rotation in place."""
    source: ViewSource
    share: Share
    monitor: Monitor | None
    """On rank 0, where there are held-out images."""


def assemble(config: TrainConfig, *, rank: int, world_size: int, device: torch.device) -> Assembly:
    """The parts of one rank; what `cluster.training.preparation.prepare` makes must be there.

    Raises:
        ManifestMismatch: a cached file differs from its digest.
        DataError: a held-out image cannot be decoded.
    """
    dataset = open_dataset(config.dataset)
    encoder = untrained_encoder(config, dataset)
    fill_rotation(config, dataset, encoder)
    held_out = held_out_slice(config, dataset)
    source = _source(config, dataset, encoder, held_out, device)
    encoder.to(device)
    share = Share(rank, world_size, config.streams, config.batch_size, config.seed, config.drop_last)
    monitor = _monitor(config, dataset, encoder, held_out, device) if rank == 0 else None
    return Assembly(encoder, source, share, monitor)


def untrained_encoder(config: TrainConfig, dataset: DatasetManifest) -> HashEncoder:
    """The encoder before training, its rotation still empty."""
    backbone = dataclasses.replace(config.backbone, options=dict(config.backbone.options))
    objective = {"name": "cibhash", **config.model_dump(mode="json", include=_RECORDED)}
    spec = EncoderSpec(backbone, config.bits, config.hidden, config.rotation, objective, dataset.digest)
    with local_weights(config.backbone.weights) as weights:
        return new_encoder(spec, seed=config.seed, weights=weights)


def checkpoint_store(config: TrainConfig) -> CheckpointStore:
    """The checkpoints of the run."""
    uri = storage.join(storage.absolute(config.output), CHECKPOINTS)
    return CheckpointStore(uri, rule=config.selection, strict=config.strict)


def _monitor(
    config: TrainConfig,
    dataset: DatasetManifest,
    encoder: HashEncoder,
    held_out: HeldOutSlice,
    device: torch.device,
) -> Monitor | None:
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
