"""Tiny images, tar shards, datasets and encoders made in code."""

import hashlib
import io
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cibhash.encoder import EncoderSpec, HashEncoder, new_encoder
from cibhash.shards import SourceImage, write_shard
from cibhash.specs import CONVNET_SMALL, BackboneSpec
from cibhash.types import TarShard
from cluster import storage
from cluster.encoders import publish_encoder
from cluster.manifests import DatasetManifest, create_manifest

NUM_CLASSES = 4


def png(image: Image.Image, **options: Any) -> bytes:
    """The image as PNG."""
    return encoded(image, "PNG", **options)


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """The image in one of Pillow's formats."""
    sink = io.BytesIO()
    image.save(sink, image_format, **options)
    return sink.getvalue()


def shape_image(number: int, side: int = 36) -> Image.Image:
    """A colored shape on a noisy ground; the shape is the class, number % NUM_CLASSES."""
    draws = np.random.default_rng([7, number])
    ground = draws.integers(0, 60, (side, side + 4, 3), dtype=np.uint8)
    image = Image.fromarray(ground)
    pen, color = ImageDraw.Draw(image), tuple(int(c) for c in draws.integers(120, 256, 3))
    left, top = (int(v) for v in draws.integers(2, 10, 2))
    box = (left, top, left + side // 2, top + side // 2)
    match number % NUM_CLASSES:
        case 0:
            pen.ellipse(box, fill=color)
        case 1:
            pen.rectangle(box, fill=color)
        case 2:
            pen.line(box, fill=color, width=4)
        case _:
            pen.polygon([(box[0], box[3]), (box[2], box[3]), (box[0], box[1])], fill=color)
    return image


def plain_image(number: int, side: int = 12) -> Image.Image:
    """One color that tells the number: red + 256 * green."""
    return Image.new("RGB", (side, side), (number % 256, number // 256, 0))


def shape_sources(count: int, start: int = 0) -> list[SourceImage]:
    """Shapes as PNG with their class as label."""
    numbers = range(start, start + count)
    return [SourceImage(f"shape-{n:05d}", "png", png(shape_image(n)), (n % NUM_CLASSES,)) for n in numbers]


def plain_sources(count: int, start: int = 0) -> list[SourceImage]:
    """Images of one color each as PNG, without labels."""
    return [SourceImage(f"plain-{n:05d}", "png", png(plain_image(n)), ()) for n in range(start, start + count)]


def make_dataset(
    folder: Path | str, shards: Sequence[Sequence[SourceImage]], name: str = "tiny", split: str = "all"
) -> str:
    """Writes tar shards and their manifest below a path or S3 URI, and returns it."""
    uri, entries, first_id = str(folder), [], 0
    for number, sources in enumerate(shards):
        file_name = f"shard-{number:06d}.tar"
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary, file_name)
            entries.append(write_shard(path, file_name, sources, first_id))
            storage.put_file(path, storage.join(uri, file_name))
        first_id += len(sources)
    create_manifest(uri, DatasetManifest(name=name, split=split, shards=tuple(entries)))
    return uri


def shape_dataset(folder: Path | str, counts: Sequence[int]) -> str:
    """A dataset of shapes with so many images per shard."""
    starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
    return make_dataset(folder, [shape_sources(n, start) for n, start in zip(counts, starts, strict=False)], "shapes")


def tar_bytes(members: Sequence[tuple[str, bytes] | tarfile.TarInfo], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """An uncompressed tar with these members as they are, however broken the sample layout."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tar_format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return sink.getvalue()


def listed_shard(data: bytes, count: int, uri: str = "shard-000000.tar", first_id: int = 0) -> TarShard:
    """What a manifest says of a tar with these bytes."""
    return TarShard(uri, len(data), hashlib.sha256(data).hexdigest(), count, first_id)


def raw_dataset(folder: Path, data: bytes, count: int) -> str:
    """A dataset of one shard with these bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shard-000000.tar").write_bytes(data)
    manifest = DatasetManifest(name="raw", split="all", shards=(listed_shard(data, count),))
    create_manifest(str(folder), manifest)
    return str(folder)


def tiny_spec(bits: Sequence[int] = (16,), **backbone: Any) -> EncoderSpec:
    """A small encoder over 32 x 32 images."""
    settings = {"name": CONVNET_SMALL, "weights": "none", "image_size": 32, **backbone}
    return EncoderSpec(BackboneSpec(**settings), tuple(bits), hidden=32)


def tiny_encoder(bits: Sequence[int] = (16,), seed: int = 0, **backbone: Any) -> HashEncoder:
    """A small encoder with random weights."""
    return new_encoder(tiny_spec(bits, **backbone), seed=seed).eval()


def published_encoder(uri: Path | str, bits: Sequence[int] = (16,), seed: int = 0) -> str:
    """Writes a small encoder and returns its URI."""
    publish_encoder(tiny_encoder(bits, seed), str(uri))
    return str(uri)
