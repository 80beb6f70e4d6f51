"""Features of V augmented views of every image, computed once by a Ray Data job and kept as files.

Knows nothing of heads. The folder is named after everything that decides its content, so runs can share it. One file
per (tar shard, view), each with a record of its digest that is written after it: a rerun verifies and keeps those.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from cibhash.backbones import resolve
from cibhash.encoder import EncoderSpec, new_encoder
from cibhash.errors import CIBHashError, ManifestMismatch, NotFound
from cibhash.frozen_features import FeatureExtractor, Precision, feature_extractor
from cibhash.specs import BackboneSpec, ViewSpec
from cibhash.types import TarShard
from cluster import storage
from cluster.datasets import shard_samples
from cluster.encoders import local_weights
from cluster.failures import described, raise_failure
from cluster.manifests import DatasetManifest
from cluster.telemetry import log, progress
from cluster.training.view_making import PLAIN, decoded, make_views
from cluster.training_config import TrainConfig

_FORMAT = "views-1"
"""Changes with how views are drawn and applied, so that no cache of other views is taken for theirs."""
_BATCH = 128
_VIEWS_PER_PASS = 4
"""Views of a shard that are made together, each image decoded once for them."""


@dataclass(frozen=True)
class ViewCache:
    """The cached features of a dataset."""

    folder: str
    counts: tuple[int, ...]
    """Images per tar shard."""
    num_views: int

    def uri(self, shard: int, view: int) -> str:
        """The file of one shard's features of one view."""
        name = "plain" if view == PLAIN else f"{view:03d}"
        return storage.join(self.folder, f"shard-{shard:06d}-view-{name}.safetensors")

    def read(self, shard: int, view: int) -> npt.NDArray[np.floating[Any]]:
        """Features (N, D) of one shard, float32 or float16.

        Raises:
            ManifestMismatch: the file is not the one its record tells of.
        """
        uri = self.uri(shard, view)
        content = storage.read_bytes(uri)
        record = _read_record(uri)
        if record is None or hashlib.sha256(content).hexdigest() != record.sha256:
            raise ManifestMismatch(f"{uri}: not the file that its record tells of: remove both and train again")
        features: npt.NDArray[np.floating[Any]] = safetensors.numpy.load(content)["features"]
        return features

    @property
    def views(self) -> tuple[int, ...]:
        """All views that are kept: the plain one and the augmented ones."""
        return (PLAIN, *range(self.num_views))


@dataclass(frozen=True)
class _Plan:
    """What every actor must know."""

    dataset_uri: str
    folder: str
    backbone: BackboneSpec
    views: ViewSpec
    seed: int
    """Of the views."""
    weights_seed: int
    """Of a backbone with random weights: the run's, for its encoder has the same ones."""
    precision: Precision
    compiled: bool
    num_threads: int
    use_gpu: bool


class _Record(BaseModel):
    """Beside a file: it is complete."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str
    rows: int


def cache_views(config: TrainConfig, dataset: DatasetManifest) -> ViewCache:
    """Computes what is missing of the view cache, inside a Ray session.

    Raises:
        DataError: an image cannot be decoded; names its key.
    """
    cache = view_cache(config, dataset)
    missing = {
        number: [view for view in cache.views if not _is_complete(cache.uri(number, view), count)]
        for number, count in enumerate(cache.counts)
    }
    work = [
        (number, views[start : start + _VIEWS_PER_PASS])
        for number, views in missing.items()
        for start in range(0, len(views), _VIEWS_PER_PASS)
    ]
    if not work:
        log("views: all cached", folder=cache.folder)
        return cache
    plan = _Plan(
        config.dataset,
        cache.folder,
        config.backbone,
        config.views,
        config.view_seed,
        config.seed,
        config.precision,
        config.compiled,
        config.threads_per_worker,
        config.use_gpu,
    )
    _compute(plan, cache, dataset, work, config.num_workers)
    return cache


def view_cache(config: TrainConfig, dataset: DatasetManifest) -> ViewCache:
    """Where the views are, or will be."""
    with local_weights(config.backbone.weights) as path:
        weights = storage.sha256_of(path)[0] if path not in ("hub", "none") else path
    backbone = {**dataclasses.asdict(resolve(config.backbone)), "weights": weights}
    content = [_FORMAT, backbone, dataclasses.asdict(config.views), config.view_seed, config.precision, dataset.digest]
    if weights == "none":
        content.append(config.seed)  # which the random weights come from
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    folder = config.view_cache or storage.join(config.output, "views")
    counts = tuple(shard.count for shard in dataset.shards)
    return ViewCache(storage.join(storage.absolute(folder), name), counts, config.num_cached_views)


def _compute(
    plan: _Plan, cache: ViewCache, dataset: DatasetManifest, work: list[tuple[int, list[int]]], num_workers: int
) -> None:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # importing ray.data has just set its own level
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [
        {"number": n, "shard": json.dumps(dataclasses.asdict(dataset.shards[n])), "views": json.dumps(views)}
        for n, views in work
    ]
    pipeline = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _ViewCacher,
        fn_constructor_args=(plan, cache),
        batch_size=1,
        num_cpus=1,
        num_gpus=1 if plan.use_gpu else 0,
        compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(rows))),
    )
    with progress("cache views", sum(cache.counts[n] * len(views) for n, views in work), "views") as line:
        for row in pipeline.iter_rows():
            raise_failure(row["failure"])
            line.advance(int(row["done"]))


class _ViewCacher:
    """Holds the backbone for the life of an actor."""

    def __init__(self, plan: _Plan, cache: ViewCache) -> None:
        torch.set_num_threads(plan.num_threads)
        cv2.setNumThreads(1)
        self.plan, self.cache = plan, cache
        self.device = torch.device("cuda" if plan.use_gpu else "cpu")

    @functools.cached_property
    def extract(self) -> FeatureExtractor:
        """The frozen backbone; not built by the constructor, for what fails there reaches the driver as text only."""
        with local_weights(self.plan.backbone.weights) as weights:
            encoder = new_encoder(EncoderSpec(self.plan.backbone, (8,)), seed=self.plan.weights_seed, weights=weights)
        return feature_extractor(
            encoder.eval().to(self.device), precision=self.plan.precision, compiled=self.plan.compiled
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Computes the views named in a batch of rows `number`, `shard` (JSON), `views` (JSON).

        Returns:
            Columns `done`, the number of views computed, and `failure`.
        """
        done, failures = [], []
        for number, shard, views in zip(batch["number"], batch["shard"], batch["views"], strict=True):
            try:
                done.append(self._cache(int(number), TarShard(**json.loads(shard)), json.loads(views)))
                failures.append("")
            except CIBHashError as error:
                done.append(0)
                failures.append(described(error))
        return {"done": np.array(done), "failure": np.array(failures, dtype=object)}

    def _cache(self, number: int, shard: TarShard, views: list[int]) -> int:
        plan, found = self.plan, dict[int, list[npt.NDArray[np.floating[Any]]]]()
        dtype = np.float16 if plan.precision == "bfloat16" else np.float32
        samples = shard_samples(plan.dataset_uri, shard)
        while batch := list(itertools.islice(samples, _BATCH)):
            images = [decoded(plan.dataset_uri, sample) for sample in batch]
            ids = [sample.id for sample in batch]
            for view in views:
                made = make_views(images, ids, plan.views, plan.backbone.image_size, seed=plan.seed, epoch=0, view=view)
                found.setdefault(view, []).append(self.extract(made.on(self.device)).cpu().numpy().astype(dtype))
        for view, blocks in found.items():
            features = np.concatenate(blocks)
            content, uri = safetensors.numpy.save({"features": features}), self.cache.uri(number, view)
            storage.write_bytes(uri, content)
            record = _Record(sha256=hashlib.sha256(content).hexdigest(), rows=len(features))
            storage.write_bytes(_record_uri(uri), record.model_dump_json().encode())
        return shard.count * len(views)


def _record_uri(uri: str) -> str:
    return f"{uri}.json"


def _read_record(uri: str) -> _Record | None:
    try:
        return _Record.model_validate_json(storage.read_bytes(_record_uri(uri)))
    except (NotFound, ValidationError):
        return None


def _is_complete(uri: str, rows: int) -> bool:
    """Whether the file is there and is the one its record tells of."""
    record = _read_record(uri)
    if record is None or record.rows != rows:
        return False
    try:
        return storage.sha256_of(uri)[0] == record.sha256
    except NotFound:
        return False
