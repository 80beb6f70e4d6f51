"""Seconds of head training on cached features: 60 epochs of 5,000 images, 16, 32, 64 and 128 bits as one nested code.

    python tests/benchmarks/head_training.py [--threads 2] [--device cuda] [--profile]

A round trains a fresh head for some of the epochs, so that all rounds together are `--epochs` of them; `epochs_s` is
what all take at the rate of the median round. Candidates: `train_run`, the product without Ray; `train_epoch`, its
loop alone; `released`, the released loss, once per length, in a plain loop, for `--released-steps` steps of a round.
Goal: train_run under 60 s.
"""

import argparse
import cProfile
import functools
import itertools
import pstats
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.encoder import EncoderSpec, HashEncoder
from cibhash.loop import Objective, train_epoch
from cibhash.specs import IMAGENET_MEAN, IMAGENET_STD, BackboneSpec
from cluster.training.view_batches import CachedViews, Share
from tests.benchmarks import measuring, released

RUN, LOOP, RELEASED = "train_run", "train_epoch", "released"
_GROUPS = 100
Way = Callable[[int], list[float]]
"""Trains so many epochs of a fresh head; returns the mean loss of every epoch."""


class _Given(nn.Module):
    """Stands where the backbone is, which cached features leave unused: only its width counts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), self.width)


def main() -> None:
    """Checks, measures and prints."""
    options = _options()
    torch.set_num_threads(options.threads)
    source, share = _features(options), Share(0, 1, 1, options.batch_size, options.seed)
    steps = source.steps(share)
    ways: dict[str, Way] = {
        RUN: lambda epochs: _by_run(source, share, epochs, options),
        LOOP: lambda epochs: _by_loop(source, share, epochs, options),
    }
    if options.without_run:
        del ways[RUN]
    checks = _check({**ways, RELEASED: lambda _: _by_release(source, share, steps, options)})
    if options.profile:
        _profile(next(iter(ways.values())), options.device)
    epochs = max(1, options.epochs // options.rounds)
    candidates = {
        name: measuring.clocked(functools.partial(way, epochs), options, epochs * steps) for name, way in ways.items()
    }
    short = functools.partial(_by_release, source, share, options.released_steps, options)
    candidates[RELEASED] = measuring.clocked(short, options, options.released_steps)
    times = measuring.interleaved(candidates, options.rounds, warmup=0)
    rows = [
        {
            "candidate": name,
            "epochs_s": row["median_s"] * steps * options.epochs,
            "epochs_s_best": row["best_s"] * steps * options.epochs,
            "ms_per_step": 1000 * row["median_s"],
            "ms_per_step_best": 1000 * row["best_s"],
            "ratio": row["ratio"],
            "ratio_best": row["ratio_best"],
        }
        for name, row in measuring.compared(times, RELEASED).items()
    ]
    measuring.report("head_training", options, checks, rows, epochs_per_round=epochs, steps_per_epoch=steps)


def _options() -> argparse.Namespace:
    parser = measuring.parser(__doc__)
    parser.set_defaults(threads=2)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--features", type=int, default=1280, help="of the backbone (default 1280)")
    parser.add_argument("--views", type=int, default=8, help="cached per image (default 8)")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--released-steps", type=int, default=20, help="of the released loss per round (default 20)")
    parser.add_argument("--profile", action="store_true", help="write two profiles of two epochs to stderr first")
    parser.add_argument("--without-run", action="store_true", help="no train_run, which needs pydantic")
    options = parser.parse_args()
    if options.quick:
        options.images, options.features, options.epochs, options.rounds = 128, 32, 2, 2
        options.released_steps = 2
    return options


def _features(options: argparse.Namespace) -> CachedViews:
    """Views are noisy copies of their image, images of their group."""
    draws = np.random.default_rng(options.seed)
    groups = draws.standard_normal((_GROUPS, options.features), np.float32)
    images = groups[np.arange(options.images) % _GROUPS]
    images = images + 0.7 * draws.standard_normal(images.shape, np.float32)
    views = [images + 0.4 * draws.standard_normal(images.shape, np.float32) for _ in range(options.views)]
    return CachedViews(np.maximum(np.stack(views), 0), np.arange(options.images))


def _encoder(options: argparse.Namespace) -> HashEncoder:
    """A fresh head behind no backbone, the same every time."""
    spec = EncoderSpec(BackboneSpec("given", "none", 8, IMAGENET_MEAN, IMAGENET_STD), tuple(options.bits))
    torch.manual_seed(options.seed)
    return HashEncoder(spec, _Given(options.features)).to(options.device)


def _by_run(source: CachedViews, share: Share, epochs: int, options: argparse.Namespace) -> list[float]:
    """Trains as a Ray worker does; returns the mean loss of every epoch."""
    from cluster.training.run import Surroundings, train_run
    from cluster.training_config import TrainConfig

    rows: list[measuring.Row] = []
    config = TrainConfig(
        dataset="unused",
        output="unused",
        bits=tuple(options.bits),
        num_cached_views=options.views,
        epochs=epochs,
        batch_size=options.batch_size,
        num_streams=1,
        seed=options.seed,
    )
    around = Surroundings(device=torch.device(options.device), emit=rows.extend)
    train_run(config, _encoder(options), source, share, store=None, monitor=None, surroundings=around)
    return [row["loss"] for row in rows if row["kind"] == "epoch"]


def _by_loop(source: CachedViews, share: Share, epochs: int, options: argparse.Namespace) -> list[float]:
    """Trains by the library's loop alone; returns the mean loss of every epoch."""
    head = _encoder(options).learned_head
    optimizer = torch.optim.Adam(head.parameters(), lr=0.001, fused=True)
    losses = []
    for epoch, batches in enumerate(source.epochs(0, epochs, share)):
        on_device = (
            b._replace(view_a=b.view_a.to(options.device), view_b=b.view_b.to(options.device)) for b in batches
        )
        losses.append(
            train_epoch(head, optimizer, on_device, Objective(tuple(options.bits)), epoch=epoch, seed=options.seed).loss
        )
    return losses


def _by_release(source: CachedViews, share: Share, steps: int, options: argparse.Namespace) -> list[float]:
    """Trains so many steps by the released loss; returns the mean loss of them all."""
    head = _encoder(options).learned_head
    optimizer = torch.optim.Adam(head.parameters(), lr=0.001)
    losses: list[Tensor] = []
    for batches in source.epochs(0, -(-steps // source.steps(share)), share):
        for batch in itertools.islice(batches, steps - len(losses)):
            p_i, p_j = (torch.sigmoid(head(view.to(options.device))) for view in batch[:2])
            value = torch.stack([released.loss(p_i[:, :bits], p_j[:, :bits]) for bits in options.bits]).mean()
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(value.detach())
    return [torch.stack(losses).mean().item()]


def _check(ways: dict[str, Way]) -> measuring.Row:
    """The first epoch's mean loss is the same however it is trained; this is the warm-up too."""
    losses = {name: way(1)[0] for name, way in ways.items()}
    for name, loss in losses.items():
        off = abs(loss - losses[RELEASED])
        measuring.require(off < 0.02, f"the first epoch's loss of {name} is the released one's, not {off} off")
    return {f"loss of {name} in epoch 0": loss for name, loss in losses.items()}


def _profile(way: Way, device: str) -> None:
    """Where Python and where torch spend the time of two epochs, to stderr."""
    profiler = cProfile.Profile()
    profiler.runcall(way, 2)
    pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(30)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.device(device).type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        way(2)
    sys.stderr.write(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=30) + "\n")


if __name__ == "__main__":
    main()
