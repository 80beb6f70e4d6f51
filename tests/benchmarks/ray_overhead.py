"""What Ray Train adds to a step: the same head training as a Ray job and as a plain call, steps in steady state.

    python tests/benchmarks/ray_overhead.py [--images 2000] [--epochs 20] [--threads 1]

Both train on the same cached features with the same checkpoints and looks; the plain call runs in this process while
Ray idles. What is compared are the rows of kind `step` of their metrics without the first `--drop`, so the start of
workers does not count. Every round begins with the other one. Goal: under 10 percent.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.specs import CONVNET_SMALL, BackboneSpec
from cluster.config import RayConfig
from cluster.datasets import open_dataset
from cluster.runtime import ray_session
from cluster.training.assembly import assemble, checkpoint_store
from cluster.training.metrics_log import read_rows
from cluster.training.preparation import prepare
from cluster.training.run import Surroundings, train_run
from cluster.training.trainer import train
from cluster.training_config import MonitorConfig, TrainConfig
from tests.benchmarks import measuring
from tests.datasets import shape_dataset

BARE, RAY = "train_run", "Ray Train"


def main() -> None:
    """Measures, checks that both trained the same, and prints."""
    options = _options()
    torch.set_num_threads(options.threads)
    found: dict[str, list[list[measuring.Row]]] = {BARE: [], RAY: []}
    ways = [(BARE, _bare), (RAY, _by_ray)]
    with tempfile.TemporaryDirectory(prefix="cibhash-overhead-") as folder, ray_session(RayConfig()):
        dataset = shape_dataset(f"{folder}/data", [options.images // 2, options.images - options.images // 2])
        prepare(_config(dataset, folder, "prepared", options), open_dataset(dataset))
        for number in range(options.rounds):
            for name, way in ways if number % 2 == 0 else ways[::-1]:
                config = _config(dataset, folder, f"run-{number}-{ways.index((name, way))}", options)
                found[name].append(way(config))
    checks = _check(found)
    step_s = {name: [_steady(rows, options.drop) for rows in rounds] for name, rounds in found.items()}
    times = {name: measuring.Times(tuple(float(np.mean(r)) for r in rounds)) for name, rounds in step_s.items()}
    rows = [
        {
            "candidate": name,
            "ms_per_step": 1000 * row["median_s"],
            "ms_per_step_best": 1000 * row["best_s"],
            "ms_of_median_row": 1000 * float(np.median(np.concatenate(step_s[name]))),
            "ratio": row["ratio"],
            "ratio_best": row["ratio_best"],
            "overhead_percent": 100 * (1 / row["ratio"] - 1),
        }
        for name, row in measuring.compared(times, BARE).items()
    ]
    measuring.report("ray_overhead", options, checks, rows, step_s=step_s)


def _options() -> argparse.Namespace:
    parser = measuring.parser(__doc__, one_process=False)
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


def _by_ray(config: TrainConfig) -> list[measuring.Row]:
    """Trains as the train job does; returns the rows of its metrics."""
    train(config)
    return read_rows(config.output)


def _bare(config: TrainConfig) -> list[measuring.Row]:
    """Trains as a worker of the job does, in this process; returns the rows of its metrics."""
    device, rows = torch.device("cuda" if config.use_gpu else "cpu"), list[measuring.Row]()
    parts = assemble(config, rank=0, world_size=1, device=device)
    train_run(
        config,
        parts.encoder,
        parts.source,
        parts.share,
        store=checkpoint_store(config),
        monitor=parts.monitor,
        surroundings=Surroundings(device=device, emit=rows.extend),
    )
    return rows


def _check(found: dict[str, list[list[measuring.Row]]]) -> measuring.Row:
    """All runs of both have the same steps and, but for rounding, the same losses."""
    losses = np.array(
        [[row["loss"] for row in rows if row["kind"] == "epoch"] for rounds in found.values() for rows in rounds]
    )
    off = float(np.ptp(losses, axis=0).max())
    measuring.require(off < 0.02, f"all runs have the same losses, not {off} off")
    return {"losses of epochs off by": off}


def _steady(rows: list[measuring.Row], drop: int) -> list[float]:
    """Seconds per step of every row of steps but the first ones."""
    return [row["step_s"] for row in rows if row["kind"] == "step"][drop:]


if __name__ == "__main__":
    main()
