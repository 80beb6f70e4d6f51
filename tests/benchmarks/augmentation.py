"""Images per second and core of the released code's augmentation and of ours, two views of every image.

    python tests/benchmarks/augmentation.py [--threads 1] [--cases 32x32:96 256x256:224 500x375:224]

The released pipeline gives normalized floats, ours uint8, which the encoder normalizes as a batch where it is; `opencv,
normalized` does that here too. Goal: opencv at least 5 times the released pipeline.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.images import decode_image
from cibhash.specs import IMAGENET_MEAN, IMAGENET_STD, ViewEngine, ViewSpec
from cibhash.view_draws import draw_view, view_generator
from cibhash.views import random_view
from cluster.training.view_making import Views, make_views
from tests.benchmarks import measuring, pictures, released

RELEASED = "released"
_ENGINES: tuple[ViewEngine, ...] = ("pillow", "opencv", "device")


def main() -> None:
    """Checks, measures and prints."""
    options = _options()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)
    checks, rows = {}, []
    for case in options.cases:
        source, _, size = case.partition(":")
        width, height = pictures.size_of(source)
        data = [pictures.compressed(pictures.photo(width, height, n)) for n in range(options.images)]
        checks |= {f"{name} at {case}": value for name, value in _check(data, int(size)).items()}
        for decoding in (False, True):
            rows += _measured(case, data, int(size), decoding, options)
        checks[f"bytes per image at {case}"] = sum(map(len, data)) // len(data)
    measuring.report("augmentation", options, checks, rows)


def _options() -> argparse.Namespace:
    parser = measuring.parser(__doc__)
    parser.add_argument("--cases", nargs="+", default=["32x32:96", "256x256:224", "500x375:224"])
    parser.add_argument("--images", type=int, default=32, help="per round (default 32)")
    options = parser.parse_args()
    if options.quick:
        options.cases, options.images, options.rounds = ["32x32:96"], 4, 2
    return options


def _check(data: list[bytes], size: int) -> dict[str, float]:
    """Compares all engines on the same draws; values are differences in gray levels."""
    images = [decode_image(content) for content in data]
    for content, image in zip(data, images, strict=True):
        same = np.array_equal(np.asarray(released.opened(content)), np.asarray(image))
        measuring.require(same, "both decode the same pixels")
    ids, spec = list(range(len(images))), ViewSpec()
    exact = []
    for image, number in zip(images, ids, strict=True):
        expected = released.view_of_draw(image, draw_view(*image.size, spec, view_generator(0, 0, number, 0)), size)
        found = random_view(image, spec, size, view_generator(0, 0, number, 0))
        exact.append(int(np.abs(found.astype(int) - expected).max()))
    measuring.require(max(exact) <= 1, f"pillow's views are the released ones to a gray level, not {max(exact)}")
    without_hue = [_plain(images, ids, ViewSpec(engine=engine, hue=0), size) for engine in _ENGINES[:2]]
    pillow, opencv, device = (_plain(images, ids, ViewSpec(engine=engine), size) for engine in _ENGINES)
    off, far = ((b - a).abs().float().mean().item() for a, b in (without_hue, (pillow, opencv)))
    near = (device - opencv).abs().max().item()
    measuring.require(off < 3, f"but for hue, opencv's views are near pillow's, not {off} gray levels off")
    measuring.require(far < 10, f"opencv's views are near pillow's, not {far} gray levels off")
    measuring.require(near <= 2, f"device's views are opencv's to two gray levels, not {near}")
    view = released.augmentation(size)(images[0])
    measuring.require(view.shape == (3, size, size) and view.dtype == torch.float32, "a released view is float32")
    return {
        "pillow - released, max": max(exact),
        "opencv - pillow, mean": far,
        "the same without hue": off,
        "device - opencv, max": near,
    }


def _plain(images: list[Image.Image], ids: list[int], spec: ViewSpec, size: int) -> torch.Tensor:
    """The finished views of one engine, int32 (N, 3, size, size)."""
    return _ours(images, ids, spec, size).on(torch.device("cpu")).int()


def _ours(images: list[Image.Image], ids: list[int], spec: ViewSpec, size: int, view: int = 0) -> Views:
    return make_views(images, ids, spec, size, seed=0, epoch=0, view=view)


def _measured(
    case: str, data: list[bytes], size: int, decoding: bool, options: argparse.Namespace
) -> list[measuring.Row]:
    device, ids = torch.device(options.device), list(range(len(data)))
    decoded = [decode_image(content) for content in data]
    transform = released.augmentation(size)
    mean, std = (255 * torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))

    def by_release() -> None:
        for side in zip(*((transform(i), transform(i)) for i in _images(released.opened)), strict=True):
            torch.stack(side).to(device)

    def by_us(engine: ViewEngine, finish: Callable[[Views], object]) -> Callable[[], None]:
        spec = ViewSpec(engine=engine)

        def work() -> None:
            images = _images(decode_image)
            for view in (0, 1):
                finish(_ours(images, ids, spec, size, view))

        return work

    def _images(decode: Callable[[bytes], Image.Image]) -> list[Image.Image]:
        return [decode(content) for content in data] if decoding else decoded

    candidates = {
        RELEASED: by_release,
        "pillow": by_us("pillow", lambda views: views.on(device)),
        "opencv": by_us("opencv", lambda views: views.on(device)),
        "opencv, normalized": by_us("opencv", lambda views: (views.on(device).float() - mean) / std),
        "device": by_us("device", lambda views: views.on(device)),
        "device, loader's part": by_us("device", lambda views: views),
    }
    times = measuring.interleaved(
        {name: measuring.clocked(work, options) for name, work in candidates.items()}, options.rounds
    )
    rows = measuring.compared(times, RELEASED)
    head = {"case": case, "decoding": "included" if decoding else "excluded"}
    return [
        {
            **head,
            "candidate": name,
            "images_per_s": len(data) / row["median_s"],
            "images_per_s_best": len(data) / row["best_s"],
            "ms_per_pair": 1000 * row["median_s"] / len(data),
            "ratio": row["ratio"],
            "ratio_best": row["ratio_best"],
        }
        for name, row in rows.items()
    ]


if __name__ == "__main__":
    main()
