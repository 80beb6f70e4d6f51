"""Images per second from compressed bytes to the view that is encoded, and of its resize alone.

    python tests/benchmarks/decode_resize.py [--cases 500x375:224 1600x1200:224 120x100:96 32x32:96]

Candidates: `pillow`, what anyone writes with Pillow; `ours`, `eval_view` of `decode_image`; `ours, portable`, its
resize without SIMD. The pixels of all are equal. A case is PNG up to 64 pixels, JPEG above. Goal: decoding and
resizing at least 1.1 times Pillow's.
"""

import argparse
import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.images import decode_image
from cibhash.native.library import Level, library
from cibhash.native.resize import resize
from cibhash.views import Pixels, eval_view
from tests.benchmarks import measuring, pictures

PILLOW = "pillow"
_Way = tuple[Callable[[bytes], Image.Image], Callable[[Image.Image, int], Pixels | None]]
"""How a candidate decodes and how it resizes."""


def main() -> None:
    """Checks, measures and prints."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--cases", nargs="+", default=["500x375:224", "1600x1200:224", "120x100:96", "32x32:96"])
    parser.add_argument("--images", type=int, default=32, help="per round (default 32)")
    options = parser.parse_args()
    if options.quick:
        options.cases, options.images, options.rounds = ["120x100:96", "32x32:96"], 4, 2
    native = library()
    ways: dict[str, _Way] = {PILLOW: (_decoded_by_pillow, _resized_by_pillow), "ours": (decode_image, eval_view)}
    if native is not None:
        ways["ours, portable"] = (decode_image, partial(resize, level=Level.PORTABLE))
    rows = []
    for case in options.cases:
        source, _, side = case.partition(":")
        data = [pictures.compressed(pictures.photo(*pictures.size_of(source), n)) for n in range(options.images)]
        _check(data, int(side), ways, case)
        rows += _measured(case, data, int(side), ways, options)
    level = "none" if native is None else Level(native.cibhash_level()).name
    measuring.report("decode_resize", options, {"views compared": "equal", "library": level}, rows)


def _decoded_by_pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _resized_by_pillow(image: Image.Image, size: int) -> Pixels:
    view = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(view.transpose(2, 0, 1))


def _check(data: list[bytes], size: int, ways: dict[str, _Way], case: str) -> None:
    for content in data:
        expected = _resized_by_pillow(_decoded_by_pillow(content), size)
        for name, (decode, shrink) in ways.items():
            found = shrink(decode(content), size)
            same = found is not None and np.array_equal(found, expected)
            measuring.require(same, f"{name} gives pillow's pixels at {case}")


def _measured(
    case: str, data: list[bytes], size: int, ways: dict[str, _Way], options: argparse.Namespace
) -> list[measuring.Row]:
    images = [decode_image(content) for content in data]

    def both(way: _Way) -> None:
        decode, shrink = way
        for content in data:
            shrink(decode(content), size)

    def alone(way: _Way) -> None:
        for image in images:
            way[1](image, size)

    rows = []
    for work, run in {"decode and resize": both, "resize": alone}.items():
        candidates = {name: measuring.clocked(partial(run, way), options) for name, way in ways.items()}
        times = measuring.interleaved(candidates, options.rounds)
        rows += [
            {
                "case": case,
                "work": work,
                "candidate": name,
                "images_per_s": len(data) / row["median_s"],
                "images_per_s_best": len(data) / row["best_s"],
                "ratio": row["ratio"],
                "ratio_best": row["ratio_best"],
            }
            for name, row in measuring.compared(times, PILLOW).items()
        ]
    return rows


if __name__ == "__main__":
    main()
