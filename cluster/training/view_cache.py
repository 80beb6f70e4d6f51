"""Features of V augmented views per image, computed once by Ray tasks and kept as files.

Knows nothing of heads. One file per (tar shard, view), named after everything that decides its content; a rerun keeps
those that are there, since each is written atomically.
"""

import dataclasses
import hashlib
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import safetensors.numpy
import torch

from cibhash.encoder import EncoderSpec, HashEncoder, new_encoder
from cibhash.errors import BadImage, DataError
from cibhash.images import decode_image
from cibhash.types import Sample, TarShard
from cibhash.views import Pixels, random_view, view_generator
from cluster import storage
from cluster.config import TrainConfig
from cluster.datasets import shard_samples
from cluster.encoders import local_weights
from cluster.manifests import DatasetManifest
from cluster.telemetry import log, progress

_BATCH = 128


def cache_views(config: TrainConfig, dataset: DatasetManifest) -> str:
    """Computes what is missing of the view cache and returns its folder's URI."""
    with local_weights(config.backbone.weights) as path:
        weights = storage.sha256_of(path)[0] if path not in ("hub", "none") else path
    folder = storage.join(storage.absolute(config.output), "views", _cache_key(config, dataset, weights))
    todo = [
        (number, view)
        for number, view in itertools.product(range(len(dataset.shards)), range(config.num_cached_views))
        if not storage.exists(_file(folder, number, view))
    ]
    if not todo:
        log("views: all cached", folder=folder)
        return folder
    raw, waiting = config.model_dump(mode="json"), list(reversed(todo))
    pending: list[Any] = []
    gpus = 1 if config.use_gpu else 0
    with progress("cache views", sum(dataset.shards[number].count for number, _ in todo), "views") as line:
        while waiting or pending:
            while waiting and len(pending) < config.num_workers:
                number, view = waiting.pop()
                task = _cache_view.options(name=f"cache-views-{number}-{view}", num_gpus=gpus)
                pending.append(task.remote(raw, dataset.shards[number], view, _file(folder, number, view)))
            done, pending = ray.wait(pending)
            line.advance(sum(ray.get(done)))
    return folder


def load_views(folder: str, num_shards: int, num_views: int) -> npt.NDArray[np.float32]:
    """The cached features, float32 (V, N, D), images in the dataset's order."""
    return np.stack(
        [
            np.concatenate(
                [
                    safetensors.numpy.load(storage.read_bytes(_file(folder, number, view)))["features"]
                    for number in range(num_shards)
                ]
            )
            for view in range(num_views)
        ]
    )


@ray.remote(num_cpus=1)
def _cache_view(raw_config: dict[str, Any], shard: TarShard, view: int, uri: str) -> int:
    config = TrainConfig.model_validate(raw_config)
    torch.set_num_threads(config.threads_per_worker)
    with local_weights(config.backbone.weights) as weights:
        encoder = new_encoder(EncoderSpec(config.backbone, (8,)), seed=config.seed, weights=weights).eval()
    if config.use_gpu:
        encoder.cuda()
    features = []
    samples = shard_samples(config.dataset, shard)
    with ThreadPoolExecutor(config.threads_per_worker) as threads:
        while batch := list(itertools.islice(samples, _BATCH)):
            views = list(threads.map(lambda sample: _augment(config, sample, view), batch))
            features.append(_features(encoder, views))
    content = np.concatenate(features)
    storage.write_bytes(uri, safetensors.numpy.save({"features": content}))
    return len(content)


def _augment(config: TrainConfig, sample: Sample, view: int) -> Pixels:
    try:
        image = decode_image(sample.image)
    except BadImage as error:
        raise DataError(f"{config.dataset}: key {sample.key!r}: {error}") from None
    return random_view(image, config.views, config.backbone.image_size, view_generator(config.seed, 0, sample.id, view))


def _features(encoder: HashEncoder, views: list[Pixels]) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        images = torch.from_numpy(np.stack(views)).to(encoder.mean.device)
        return encoder.features(images).float().cpu().numpy()


def _cache_key(config: TrainConfig, dataset: DatasetManifest, weights: str) -> str:
    backbone = {**dataclasses.asdict(config.backbone), "weights": weights}
    content = [backbone, dataclasses.asdict(config.views), config.seed, dataset.digest]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _file(folder: str, shard: int, view: int) -> str:
    return storage.join(folder, f"shard-{shard:06d}-view-{view:03d}.safetensors")
