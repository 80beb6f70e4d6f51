"""Images per second of the encoder's forward pass, and how many bits half precision and compiling change.

    python tests/benchmarks/encode_speed.py [--threads 2] [--encoder RUN/encoder] [--images TAR]

Candidates: `eager`, the encoder as it is in float32; `compiled`; `bfloat16`; `bfloat16, compiled`, each as
`cluster.encoding` runs it. `changed_bits` is the share of code bits that differ from those of `eager`, `changed_codes`
the share of images with such a bit; without `--encoder` the head is untrained, and they are only bounds. Goal: 2.5
times for MobileNetV2.
"""

import functools
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.encoder import EncoderSpec, HashEncoder, load_encoder, new_encoder
from cibhash.images import decode_image
from cibhash.shards import IMAGE_SUFFIXES
from cibhash.specs import BackboneSpec
from cibhash.views import Pixels, eval_view
from cluster.encoding.forward import Forward
from tests.benchmarks import measuring
from tests.benchmarks.pictures import photo

_WAYS = {
    "eager": ("float32", False),
    "compiled": ("float32", True),
    "bfloat16": ("bfloat16", False),
    "bfloat16, compiled": ("bfloat16", True),
}


def main() -> None:
    """Checks, measures and prints."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--encoder", default="", help="a trained encoder's folder; default: an untrained MobileNetV2")
    parser.add_argument("--images", default="", help="a tar shard; default: made-up photos")
    parser.add_argument("--count", type=int, default=1024, help="images (default 1024)")
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
    if options.quick:
        options.count, options.batch_size, options.rounds = 8, 4, 2
    torch.set_num_threads(options.threads)
    encoder = _encoder(options.encoder, options.quick).to(options.device)
    views = _views(options.images, options.count, encoder.spec.image_size)
    ways = {
        name: Forward(encoder, options.batch_size, precision, compiled=compiled)  # type: ignore[arg-type]
        for name, (precision, compiled) in _WAYS.items()
        if not (options.quick and compiled)
    }
    found = {name: way(views) for name, way in ways.items()}
    expected = np.unpackbits(found["eager"].codes, axis=1)
    candidates = {
        name: measuring.clocked(functools.partial(way, views[: options.batch_size]), options)
        for name, way in ways.items()
    }
    times = measuring.interleaved(candidates, options.rounds)
    rows = []
    for name, row in measuring.compared(times, "eager").items():
        changed = np.unpackbits(found[name].codes, axis=1) != expected
        rows.append(
            {
                "candidate": name,
                "images_per_s": options.batch_size / row["median_s"],
                "images_per_s_best": options.batch_size / row["best_s"],
                "ratio": row["ratio"],
                "ratio_best": row["ratio_best"],
                "changed_bits": float(changed.mean()),
                "changed_codes": float(changed.any(axis=1).mean()),
            }
        )
    checks = {"images": len(views), "bits": encoder.spec.bits}
    measuring.report("encode_speed", options, checks, rows)


def _encoder(folder: str, quick: bool) -> HashEncoder:
    if folder:
        return load_encoder(Path(folder))
    name = "test_resnet" if quick else "mobilenetv2_100"
    return new_encoder(EncoderSpec(BackboneSpec(name, "none", 96), (16, 32, 64)), seed=0).eval()


def _views(tar: str, count: int, size: int) -> Pixels:
    if not tar:
        return np.stack([eval_view(photo(120, 100, number), size) for number in range(count)])
    views = []
    with tarfile.open(tar) as shard:
        for member in shard:
            file = shard.extractfile(member) if member.name.rpartition(".")[2] in IMAGE_SUFFIXES else None
            if file and len(views) < count:
                views.append(eval_view(decode_image(file.read()), size))
    return np.stack(views)


if __name__ == "__main__":
    main()
