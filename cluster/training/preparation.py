"""What is made once before the first step, by the driver, and read by every worker: cached views, rotation, neighbors.

Knows nothing of steps. Everything lies in files, so a restarted worker, or a restarted run, finds it again.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from torch import Tensor

from cibhash.encoder import HashEncoder
from cibhash.errors import AlreadyExists, ConfigError
from cibhash.frozen_features import feature_extractor
from cibhash.rotation import fit_rotation
from cibhash.sampling import held_out_positions
from cibhash.types import Ids, Labels, Sample
from cluster import storage
from cluster.datasets import open_dataset, shard_samples
from cluster.manifests import DatasetManifest
from cluster.telemetry import log
from cluster.training.monitor import HeldOut
from cluster.training.neighbor_graph import FeatureBlock, build_graph, load_graph
from cluster.training.view_batches import CachedViews
from cluster.training.view_cache import ViewCache, cache_views, view_cache
from cluster.training.view_making import PLAIN, decoded, make_views
from cluster.training_config import TrainConfig

_SMALLEST_SLICE = 20
_ROTATION_VIEWS = 2
"""Cached views that the rotation is fitted to."""


@dataclass(frozen=True)
class HeldOutSlice:
    """Which images are kept to look at."""

    dataset_uri: str
    dataset: DatasetManifest
    ids: Ids
    """int64, ascending; empty: there is no monitor."""
    own: bool
    """Whether they are of the training dataset, and so must not be trained on."""

    @property
    def from_training(self) -> frozenset[int]:
        """Ids of the training dataset that are not trained on."""
        return frozenset(self.ids.tolist()) if self.own else frozenset()


def held_out_slice(config: TrainConfig, dataset: DatasetManifest) -> HeldOutSlice:
    """Chooses the held-out images by seed; none where there are too few."""
    uri, of, limit = config.dataset, dataset, dataset.num_samples // 10
    if config.monitor.dataset:
        uri, of = config.monitor.dataset, open_dataset(config.monitor.dataset)
        limit = of.num_samples
    count = min(config.monitor.images, limit)
    if count < _SMALLEST_SLICE:
        count = 0
    counts = [shard.count for shard in of.shards]
    positions = held_out_positions(counts, count, seed=config.view_seed)
    return HeldOutSlice(uri, of, _ids(of)[positions], not config.monitor.dataset)


def prepare(config: TrainConfig, dataset: DatasetManifest) -> None:
    """Makes what cached training needs, inside a Ray session; what an earlier run made is verified and kept.

    Raises:
        DataError: an image cannot be decoded; names its key.
        ConfigError: more components or neighbors are asked for than there are.
    """
    if not config.num_cached_views:
        return
    cache = cache_views(config, dataset)
    gigabytes = config.num_cached_views * dataset.num_samples * _width(config, cache) * 4 / 2**30
    if gigabytes > 1:
        log("train: every worker holds all cached features", memory=f"{gigabytes:.1f} GiB")
    if config.rotation:
        _fit_rotation(config, cache)
    if config.neighbors:
        build_graph(
            _blocks(cache), k=config.neighbors, folder=_graph_folder(config, cache), key=cache.folder, use_gpu=False
        )


def fill_rotation(config: TrainConfig, dataset: DatasetManifest, encoder: HashEncoder) -> None:
    """Gives the encoder the rotation that was fitted."""
    if config.rotation:
        content = safetensors.numpy.load(storage.read_bytes(_rotation_uri(config, view_cache(config, dataset))))
        encoder.fixed_head[0].load_state_dict({name: torch.from_numpy(value) for name, value in content.items()})


def cached_source(
    config: TrainConfig, dataset: DatasetManifest, encoder: HashEncoder, held_out: HeldOutSlice
) -> CachedViews:
    """The cached features of the training images, as the learned part of the head is given them.

    Raises:
        ManifestMismatch: a file differs from its digest.
    """
    cache = view_cache(config, dataset)
    kept = ~np.isin(_ids(dataset), np.array(sorted(held_out.from_training), np.int64))
    features = np.stack([_read_view(cache, view, encoder)[kept] for view in range(config.num_cached_views)])
    neighbors = None
    if config.neighbors:
        new_rows = np.where(kept, np.cumsum(kept) - 1, -1)
        neighbors = new_rows[load_graph(_graph_folder(config, cache), cache.folder)[kept]]
    return CachedViews(features, _ids(dataset)[kept], neighbors, config.neighbor_probability)


def held_out_features(
    config: TrainConfig, dataset: DatasetManifest, encoder: HashEncoder, held_out: HeldOutSlice, device: torch.device
) -> HeldOut | None:
    """The held-out images as the monitor takes them: features where the backbone is frozen, else pixels."""
    if not len(held_out.ids):
        return None
    samples = _samples(held_out)
    labels = _labels(samples)
    if config.num_cached_views and held_out.own:
        cache = view_cache(config, dataset)
        rows = np.isin(_ids(dataset), held_out.ids)
        views = [torch.from_numpy(_read_view(cache, view, encoder)[rows]).float() for view in (PLAIN, 0, 1)]
        return HeldOut((views[0].to(device), views[1].to(device), views[2].to(device)), labels)
    images = [decoded(held_out.dataset_uri, sample) for sample in samples]
    pixels = [
        make_views(
            images,
            held_out.ids.tolist(),
            config.views,
            encoder.spec.image_size,
            seed=config.view_seed,
            epoch=0,
            view=view,
        ).on(device)
        for view in (PLAIN, 0, 1)
    ]
    if encoder.spec.backbone.trainable:
        return HeldOut((pixels[0], pixels[1], pixels[2]), labels)
    encoder.eval()
    extract = feature_extractor(encoder, precision=config.precision)
    features = [torch.cat([encoder.fixed_head(extract(block)) for block in torch.split(view, 64)]) for view in pixels]
    return HeldOut((features[0], features[1], features[2]), labels)


def keys_of(uri: str, ids: Ids) -> list[str]:
    """The keys of some images of the dataset at `uri`."""
    wanted = HeldOutSlice(uri, open_dataset(uri), np.sort(ids), own=False)
    return [sample.key for sample in _samples(wanted)]


def _samples(held_out: HeldOutSlice) -> list[Sample]:
    return list(_read_samples(held_out))


def _read_samples(held_out: HeldOutSlice) -> Iterator[Sample]:
    """The samples, from only those shards that have some."""
    for shard in held_out.dataset.shards:
        inside = (held_out.ids >= shard.first_id) & (held_out.ids < shard.first_id + shard.count)
        wanted = set(held_out.ids[inside].tolist())
        if wanted:
            yield from (s for s in shard_samples(held_out.dataset_uri, shard) if s.id in wanted)


def _labels(samples: list[Sample]) -> Labels | None:
    """Labels as bool (N, C); None where no image has one."""
    vocabulary = sorted({label for sample in samples for label in sample.labels})
    if not vocabulary:
        return None
    return np.array([[label in sample.labels for label in vocabulary] for sample in samples])


def _read_view(cache: ViewCache, view: int, encoder: HashEncoder) -> npt.NDArray[np.floating[Any]]:
    """One view of all images, rotated where the encoder rotates, (N, D)."""
    return np.concatenate([_rotated(encoder, cache.read(shard, view)) for shard in range(len(cache.counts))])


def _rotated(encoder: HashEncoder, features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    if not encoder.spec.rotation:
        return features
    with torch.no_grad():
        rotated: Tensor = encoder.fixed_head.cpu()(torch.from_numpy(features.astype(np.float32)))
    return rotated.numpy()


def _ids(dataset: DatasetManifest) -> Ids:
    """Ids of all images, in the dataset's order."""
    return np.concatenate([np.arange(s.first_id, s.first_id + s.count) for s in dataset.shards])


def _blocks(cache: ViewCache) -> list[FeatureBlock]:
    """The cached features as the neighbor graph takes them."""
    starts = np.cumsum([0, *cache.counts])
    views = range(cache.num_views)
    return [
        FeatureBlock(int(start), count, tuple(cache.uri(shard, view) for view in views))
        for shard, (start, count) in enumerate(zip(starts, cache.counts, strict=False))
        if count
    ]


def _fit_rotation(config: TrainConfig, cache: ViewCache) -> None:
    location = _rotation_uri(config, cache)
    if storage.exists(location):
        return
    blocks = _CachedBlocks(cache)
    try:
        rotation = fit_rotation(blocks, config.rotation)
    except ValueError as error:
        raise ConfigError(f"rotation {config.rotation}: {error}") from None
    weight = (rotation.scale * rotation.components).astype(np.float32)
    content = safetensors.numpy.save({"mean": rotation.mean.astype(np.float32), "weight": np.ascontiguousarray(weight)})
    with contextlib.suppress(AlreadyExists):  # another run on the same cache; both fit the same
        storage.create_bytes(location, content)


@dataclass(frozen=True)
class _CachedBlocks:
    """The features that the rotation is fitted to, read anew on every pass."""

    cache: ViewCache

    def __iter__(self) -> Iterator[npt.NDArray[np.floating[Any]]]:
        for shard in range(len(self.cache.counts)):
            for view in range(min(_ROTATION_VIEWS, self.cache.num_views)):
                yield self.cache.read(shard, view)


def _rotation_uri(config: TrainConfig, cache: ViewCache) -> str:
    return storage.join(cache.folder, f"rotation-{config.rotation}.safetensors")


def _graph_folder(config: TrainConfig, cache: ViewCache) -> str:
    return storage.join(cache.folder, f"neighbors-{config.neighbors}-of-{config.num_cached_views}-views")


def _width(config: TrainConfig, cache: ViewCache) -> int:
    """Values per cached view once it is loaded."""
    return config.rotation or cache.read(0, 0).shape[1]
