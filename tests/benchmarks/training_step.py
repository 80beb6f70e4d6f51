"""Images per second of whole training steps, from compressed images to the optimizer: the released code's and ours.

    python tests/benchmarks/training_step.py [--backbone vgg16.tv_in1k --image-size 224 --source 500x375]
        [--threads 1 --loaders 1] [--device cuda]

Released: loader processes with PIL views per sample, float32, broadcast loss, Adam. Ours: loader processes with OpenCV
views, channels last, bfloat16, a compiled backbone, the product's loop; `ours, eager` without the compiler. The same
images, random weights, batch, number of loader processes and of threads for both; every turn starts its own loader,
and its first steps are not counted. `step alone` has its batch ready: what is left is the loader's. Goal: 3 times.
"""

import argparse
import copy
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.encoder import EncoderSpec, HashEncoder, new_encoder
from cibhash.frozen_features import FeatureExtractor, feature_extractor
from cibhash.images import decode_image
from cibhash.loop import Objective, train_epoch
from cibhash.specs import BackboneSpec, ViewSpec
from cibhash.types import ViewBatch
from cluster.training.view_making import Views, make_views
from tests.benchmarks import measuring, pictures, released

RELEASED, OURS, EAGER = "released", "ours", "ours, eager"
_PREFETCH = 2


@dataclass(frozen=True)
class _Setting:
    """What both sides are given."""

    encoder: HashEncoder
    data: list[bytes]
    size: int
    batch_size: int
    loaders: int
    device: torch.device
    engine: str


@dataclass(frozen=True)
class _Side:
    """How one side is fed and steps."""

    batches: Callable[[_Setting], Iterator[Any]]
    steps: Callable[[_Setting, Iterable[Any]], Iterator[None]]
    """Yields after every finished step."""


class Batches(Dataset[tuple[Views, Views]]):
    """Our side's input: item i is the i-th batch's two views, as `cluster.training.fresh_views` makes them."""

    def __init__(self, setting: _Setting) -> None:
        self.data, self.size, self.batch_size = setting.data, setting.size, setting.batch_size
        self.spec = ViewSpec(engine=setting.engine)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.data) // self.batch_size

    def __getitem__(self, number: int) -> tuple[Views, Views]:
        if number >= len(self):
            raise IndexError(number)
        cv2.setNumThreads(1)
        ids = list(range(number * self.batch_size, (number + 1) * self.batch_size))
        images = [decode_image(self.data[i]) for i in ids]
        a, b = (make_views(images, ids, self.spec, self.size, seed=0, epoch=0, view=v) for v in (0, 1))
        return a, b


def main() -> None:
    """Checks, measures and prints."""
    options = _options()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(options.seed)
    setting = _setting(options)
    extract = {
        EAGER: feature_extractor(setting.encoder, precision="bfloat16"),
        OURS: feature_extractor(setting.encoder, precision="bfloat16", compiled=not options.no_compile),
    }
    checks = _check(setting, extract)
    sides = {RELEASED: _Side(_released_batches, _released_steps)}
    sides |= {name: _Side(_our_batches, functools.partial(_our_steps, features)) for name, features in extract.items()}
    candidates: dict[str, Callable[[], float]] = {}
    for name, side in sides.items():
        candidates[name] = functools.partial(_whole, side, setting, options)
        candidates[f"{name}, step alone"] = functools.partial(
            _alone, side, next(side.batches(setting)), setting, options
        )
    times = measuring.interleaved(candidates, options.rounds)
    images = options.steps * options.batch_size
    rows = [
        {
            "candidate": name,
            "images_per_s": images / row["median_s"],
            "images_per_s_best": images / row["best_s"],
            "ms_per_step": 1000 * row["median_s"] / options.steps,
            "ratio": row["ratio"],
            "ratio_best": row["ratio_best"],
        }
        for name, row in measuring.compared(times, RELEASED).items()
    ]
    measuring.report("training_step", options, checks, rows, cores_per_side=options.threads + options.loaders)


def _options() -> argparse.Namespace:
    parser = measuring.parser(__doc__, one_process=False)
    parser.add_argument("--backbone", default="mobilenetv2_100", help="a timm model, or convnet-small")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--source", default="32x32", help="of the compressed images (default 32x32)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--loaders", type=int, default=1, help="loader processes per side (default 1)")
    parser.add_argument("--engine", choices=["opencv", "device"], default="opencv", help="of our views")
    parser.add_argument("--no-compile", action="store_true", help="leave our backbone uncompiled")
    parser.add_argument("--steps", type=int, default=8, help="timed per turn (default 8)")
    parser.add_argument("--warm-steps", type=int, default=6, help="before them (default 6)")
    options = parser.parse_args()
    if options.quick:
        options.backbone, options.image_size, options.batch_size, options.no_compile = "convnet-small", 32, 8, True
        options.steps, options.warm_steps, options.rounds = 2, 1, 2
    return options


def _setting(options: argparse.Namespace) -> _Setting:
    spec = EncoderSpec(BackboneSpec(options.backbone, "none", options.image_size), (options.bits,))
    # One turn's images: the loaders decode them all once, and no batch comes twice.
    count = options.batch_size * (options.warm_steps + options.steps + _PREFETCH * options.loaders)
    width, height = pictures.size_of(options.source)
    distinct = [pictures.compressed(pictures.photo(width, height, n)) for n in range(min(count, 256))]
    device = torch.device(options.device)
    return _Setting(
        new_encoder(spec, seed=options.seed).eval().to(device),
        [distinct[n % len(distinct)] for n in range(count)],
        options.image_size,
        options.batch_size,
        options.loaders,
        device,
        options.engine,
    )


def _released_batches(setting: _Setting) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalized float views on the device."""
    loader: Any = DataLoader(
        released.Pairs(setting.data, setting.size),
        batch_size=setting.batch_size,
        shuffle=True,
        **_loading(setting),
    )
    for a, b in loader:
        yield a.to(setting.device), b.to(setting.device)


def _our_batches(setting: _Setting) -> Iterator[ViewBatch]:
    """uint8 views on the device."""
    loader: Any = DataLoader(Batches(setting), batch_size=None, **_loading(setting))
    for a, b in loader:
        views = a.on(setting.device), b.on(setting.device)
        yield ViewBatch(*views, np.arange(len(views[0])))


def _loading(setting: _Setting) -> dict[str, Any]:
    """The same processes for both sides."""
    return {
        "num_workers": setting.loaders,
        "prefetch_factor": _PREFETCH if setting.loaders else None,
        "multiprocessing_context": "fork" if setting.loaders else None,
        "pin_memory": setting.device.type == "cuda",
    }


def _released_steps(setting: _Setting, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Finished steps of the released code."""
    backbone = copy.deepcopy(setting.encoder.backbone).to(memory_format=torch.contiguous_format)
    head = copy.deepcopy(setting.encoder.head)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.001)
    for views in batches:
        released.step(backbone, head, optimizer, views)
        yield


def _our_steps(features: FeatureExtractor, setting: _Setting, batches: Iterable[ViewBatch]) -> Iterator[None]:
    """Finished steps of the product's loop."""
    head = copy.deepcopy(setting.encoder.head)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.001, fused=True)
    objective = Objective(setting.encoder.spec.prefixes)
    for batch in batches:
        train_epoch(lambda views: head(features(views)), optimizer, [batch], objective, epoch=0)
        yield


def _whole(side: _Side, setting: _Setting, options: argparse.Namespace) -> float:
    """Seconds of steps behind a loader of their own."""
    return _seconds(side.steps(setting, side.batches(setting)), options.warm_steps, options.steps, setting)


def _alone(side: _Side, ready: object, setting: _Setting, options: argparse.Namespace) -> float:
    """Seconds of steps over one batch that is ready."""
    return _seconds(side.steps(setting, itertools.repeat(ready)), 1, options.steps, setting)


def _seconds(finished: Iterator[None], warm: int, steps: int, setting: _Setting) -> float:
    """Of `steps` steps after the first `warm`; closes the loader."""
    for _ in range(warm):
        next(finished)
    measuring.synchronize(str(setting.device))
    begun = time.perf_counter()
    for _ in range(steps):
        next(finished)
    measuring.synchronize(str(setting.device))
    return time.perf_counter() - begun


def _check(setting: _Setting, extract: dict[str, FeatureExtractor]) -> measuring.Row:
    """The same images through both sides: features, the loss of one step and the weights after it."""
    batch = next(_our_batches(setting))
    encoder = setting.encoder
    with torch.no_grad():
        exact = encoder.backbone((batch.view_a - encoder.mean) / encoder.std)
    checks: measuring.Row = {}
    for name, features in extract.items():
        cosine = nn.functional.cosine_similarity(exact, features(batch.view_a)).min().item()
        measuring.require(cosine > 0.995, f"features of {name} are the float32 ones, not at cosine {cosine}")
        checks[f"{name}: least cosine of features"] = cosine
    expected = _one_released_step(setting, [(v - encoder.mean) / encoder.std for v in batch[:2]])
    head = copy.deepcopy(encoder.head)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.001, fused=True)
    float32 = feature_extractor(encoder)
    objective = Objective(encoder.spec.prefixes)
    found = train_epoch(lambda views: head(float32(views)), optimizer, [batch], objective, epoch=0).loss
    measuring.require(abs(found - expected) < 1e-3, f"the float32 losses are equal, not {found} and {expected}")
    return checks | {"float32 loss, difference": abs(found - expected)}


def _one_released_step(setting: _Setting, views: Sequence[Tensor]) -> float:
    head = copy.deepcopy(setting.encoder.head)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.001)
    a, b = views
    return float(released.step(setting.encoder.backbone, head, optimizer, (a, b)))


if __name__ == "__main__":
    main()
