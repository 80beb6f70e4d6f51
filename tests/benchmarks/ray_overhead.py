"""What Ray Train adds to a step: the same head training as a Ray job and as a plain call, steps in steady state.

    python tests/benchmarks/ray_overhead.py [--images 2000] [--epochs 20] [--threads 1]

Both train on the same cached features with the same checkpoints, looks and rows of statistics; the plain call runs in
this process while Ray idles. What is compared are the rows of kind `step` of their metrics without the first `--drop`,
so the start of workers does not count. Every round begins with the other one. Goal: under 10 percent.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.encoder import encoder_digest
from cibhash.specs import CONVNET_SMALL, BackboneSpec
from cluster.config import MonitorConfig, RayConfig, TrainConfig
from cluster.datasets import open_dataset
from cluster.encoders import open_encoder
from cluster.runtime import ray_session
from cluster.training.checkpoints import CheckpointStore
from cluster.training.metrics_log import MetricsLog, read_rows
from cluster.training.preparation import cached_source, fill_rotation, held_out_slice
from cluster.training.run import Surroundings, train_run, trained_part
from cluster.training.trainer import train
from cluster.training.view_batches import Share
from cluster.training.worker import checkpoint_store, new_monitor, untrained_encoder
from tests.benchmarks import measuring
from tests.datasets import shape_dataset

BARE, RAY = "train_run", "Ray Train"


def main() -> None:
    """Checks, measures and prints."""
    options = _options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="cibhash-overhead-") as folder, ray_session(RayConfig()):
        dataset = shape_dataset(f"{folder}/data", [options.images // 2, options.images - options.images // 2])
        step_s: dict[str, list[list[float]]] = {BARE: [], RAY: []}
        weights = []
        for number in range(options.rounds):
            order = [(BARE, _bare), (RAY, _by_ray)]
            for name, way in order if number % 2 == 0 else order[::-1]:
                config = _config(dataset, folder, f"{name.split()[0]}-{number}", options)
                weights.append(way(config))
                rows = [row for row in read_rows(config.output) if row["kind"] == "step"][options.drop :]
                step_s[name].append([row["step_s"] for row in rows])
        checks = _check(weights, step_s)
    rows = []
    base = [float(np.mean(seconds)) for seconds in step_s[BARE]]
    for name, rounds in step_s.items():
        means = [float(np.mean(seconds)) for seconds in rounds]
        times = measuring.Times(tuple(means))
        rows.append(
            {
                "candidate": name,
                "ms_per_step": 1000 * times.median,
                "ms_per_step_best": 1000 * times.best,
                "ms_of_median_row": 1000 * float(np.median(np.concatenate(rounds))),
                "ratio": float(np.median(base)) / times.median,
                "ratio_best": min(base) / times.best,
                "overhead_percent": 100 * float(np.median([m / b - 1 for m, b in zip(means, base, strict=True)])),
            }
        )
    measuring.report("ray_overhead", options, checks, rows, step_s=step_s)


def _options() -> argparse.Namespace:
    parser = measuring.parser(__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--drop", type=int, default=5, help="rows of metrics before the steady state (default 5)")
    options = parser.parse_args()
    if options.quick:
        options.images, options.epochs, options.rounds, options.drop = 80, 4, 1, 1
    return options


def _config(dataset: str, folder: str, name: str, options: argparse.Namespace) -> TrainConfig:
    """The same for both but for the output; the cached views are shared."""
    return TrainConfig(
        dataset=dataset,
        output=f"{folder}/{name}",
        bits=(16, 32, 64),
        backbone=BackboneSpec(CONVNET_SMALL, "none", 32),
        num_cached_views=4,
        view_cache=f"{folder}/views",
        epochs=options.epochs,
        batch_size=16 if options.quick else 64,
        threads_per_worker=options.threads,
        metrics_every=2 if options.quick else 20,
        seed=options.seed,
        use_gpu=torch.device(options.device).type == "cuda",
        monitor=MonitorConfig(on_collapse="warn"),
    )


def _by_ray(config: TrainConfig) -> str:
    """Trains as the train job does; returns the digest of the last checkpoint's weights."""
    train(config)
    return _last_weights(config)


def _bare(config: TrainConfig) -> str:
    """Trains as a worker of the job does, in this process; returns the digest of the last checkpoint's weights."""
    dataset = open_dataset(config.dataset)
    ...


def _last_weights(config: TrainConfig) -> str: ...
