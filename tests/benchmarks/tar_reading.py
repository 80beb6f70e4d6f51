"""Samples per second out of a tar shard, and what reading takes of the time of one decoding worker.

    python tests/benchmarks/tar_reading.py [--shards tiny,tiny-times,photos] [--clock cpu]

Shards: `tiny`, 32 x 32 PNGs with a label each; `tiny-times`, the same as webdataset's own writer leaves them, with a
PAX header before each member for the fraction of a second; `photos`, JPEGs of about 40 KB. Readers: `webdataset`, its
own pipeline, undecoded; `tarfile`, members without grouping; `read_samples`, what training and encoding read with;
`unhashed`, the same without size and SHA-256; `scan_samples`, what doctor reads with. `decode_image` and `eval_view`
are what a worker does with each image afterwards; `share` is of the three together. Goal: 5 times for `tiny`.
"""

import functools
import sys
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import torch
import webdataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.images import decode_image
from cibhash.shard_scan import ScannedSample, scan_samples
from cibhash.shards import SourceImage, read_samples, unlisted_samples, write_shard
from cibhash.types import Sample, TarShard
from cibhash.views import eval_view
from tests.benchmarks import measuring
from tests.benchmarks.pictures import compressed, photo, size_of
from tests.datasets import listed_shard

_SHARDS = {"tiny": ("32x32", 5000), "tiny-times": ("32x32", 5000), "photos": ("500x375", 500)}
_PICTURES = 50
"""Different images; they come again and again."""
_VIEW_SIZE = 96
_WORKER = ("read_samples", "decode_image", "eval_view")


def main() -> None:
    """Checks, measures and prints."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--shards", default=",".join(_SHARDS), help=f"some of {', '.join(_SHARDS)} (default all)")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 2
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    rows: list[measuring.Row] = []
    checks: measuring.Row = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.shards.split(","):
            sides, count = _SHARDS[name]
            shard = _written(Path(folder, f"{name}.tar"), sides, 20 if options.quick else count, name == "tiny-times")
            checks[f"{name}_bytes_per_sample"] = shard.bytes / shard.count
            rows += _compare(name, shard, options)
    measuring.report("tar_reading", options, checks, rows)


def _written(path: Path, sides: str, count: int, with_times: bool) -> TarShard:
    """A shard of labeled pictures; `uri` is its path."""
    pictures = [compressed(photo(*size_of(sides), number)) for number in range(min(count, _PICTURES))]
    suffix = "png" if pictures[0].startswith(b"\x89PNG") else "jpg"
    sources = [
        SourceImage(f"{number:08d}", suffix, pictures[number % len(pictures)], (number % 10,))
        for number in range(count)
    ]
    if not with_times:
        return write_shard(path, str(path), sources, 0)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for source in sources:
            label = str(source.labels[0]).encode()
            writer.write({"__key__": source.key, source.suffix: source.image, "cls": label})
    return listed_shard(path.read_bytes(), count, str(path))


def _compare(name: str, shard: TarShard, options: Any) -> list[measuring.Row]:
    """The rows of one shard, all readers having been found to read the same."""
    readers: dict[str, Callable[[TarShard], Iterable[Any]]] = {
        "webdataset": lambda shard: webdataset.WebDataset(shard.uri, shardshuffle=False),
        "tarfile": _by_tarfile,
        "read_samples": _by_read_samples,
        "unhashed": _unhashed,
        "scan_samples": _by_scan_samples,
    }
    samples = list(_by_read_samples(shard))
    _check_readers(shard, samples, readers)
    images = [decode_image(sample.image) for sample in samples[:_PICTURES]]
    work: dict[str, tuple[Callable[[], object], int]] = {
        reader: (functools.partial(_exhaust, read, shard), shard.count) for reader, read in readers.items()
    }
    work["decode_image"] = (lambda: [decode_image(sample.image) for sample in samples[:_PICTURES]], len(images))
    work["eval_view"] = (lambda: [eval_view(image, _VIEW_SIZE) for image in images], len(images))
    candidates = {who: measuring.clocked(run, options, count) for who, (run, count) in work.items()}
    found = measuring.compared(measuring.interleaved(candidates, options.rounds), "webdataset")
    whole = sum(found[who]["median_s"] for who in _WORKER)
    return [
        {
            "shard": name,
            "candidate": who,
            "samples_per_s": 1 / row["median_s"],
            "samples_per_s_best": 1 / row["best_s"],
            "us_per_sample": 1e6 * row["median_s"],
            "ratio": row["ratio"],
            "ratio_best": row["ratio_best"],
            "share": row["median_s"] / whole if who in _WORKER else "",
        }
        for who, row in found.items()
    ]


def _check_readers(
    shard: TarShard, samples: list[Sample], readers: dict[str, Callable[[TarShard], Iterable[Any]]]
) -> None:
    expected = [(sample.key, sample.image) for sample in samples]
    by_webdataset = [(raw["__key__"], raw.get("png") or raw["jpg"]) for raw in readers["webdataset"](shard)]
    measuring.require(by_webdataset == expected, "webdataset reads other samples")
    measuring.require([*readers["unhashed"](shard)] == samples, "without hashing other samples are read")
    scanned = [(sample.key, sample.image) for sample in readers["scan_samples"](shard)]
    measuring.require(scanned == expected, "the scan finds other samples")
    contents = [content for content in readers["tarfile"](shard) if len(content) > 1]
    measuring.require(contents == [image for _, image in expected], "tarfile reads other images")


def _exhaust(read: Callable[[TarShard], Iterable[Any]], shard: TarShard) -> None:
    deque(read(shard), maxlen=0)


def _by_tarfile(shard: TarShard) -> Iterator[bytes]:
    with tarfile.open(shard.uri, mode="r|") as tar:
        for member in tar:
            file = tar.extractfile(member)
            yield file.read() if file else b""


def _by_read_samples(shard: TarShard) -> Iterator[Sample]:
    with open(shard.uri, "rb") as stream:
        yield from read_samples(stream, shard)


def _unhashed(shard: TarShard) -> Iterator[Sample]:
    with open(shard.uri, "rb") as stream:
        yield from unlisted_samples(stream, shard.uri)


def _by_scan_samples(shard: TarShard) -> Iterator[ScannedSample]:
    with open(shard.uri, "rb") as stream:
        for entry in scan_samples(stream):
            measuring.require(isinstance(entry, ScannedSample), "the scan finds a problem")
            if isinstance(entry, ScannedSample):
                yield entry


if __name__ == "__main__":
    main()
