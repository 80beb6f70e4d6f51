"""A tiny corpus for tests of search and service: real images in tar shards, a real encoder, an index of any split."""

import io
import itertools
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from cibhash.encoder import EncoderSpec, HashEncoder, encode, new_encoder, save_encoder
from cibhash.images import decode_image
from cibhash.shards import SourceImage, read_samples, write_shard
from cibhash.specs import CONVNET_SMALL, BackboneSpec
from cibhash.types import Codes, Neighbors, Sample
from cibhash.views import eval_view
from cluster.code_tables import packed_array
from cluster.index.shard_files import write_shard_files
from cluster.index.versions import publish
from cluster.manifests import CodeTableRef, IndexManifest

BITS = 32
FIRST_IDS = (0, 1000)
"""Of the two tar shards, so that ids have a gap."""


@dataclass(frozen=True)
class Corpus:
    """What the tests know of it, without asking the code under test."""

    folder: Path
    encoder_uri: str
    encoder: HashEncoder
    samples: tuple[Sample, ...]
    shards: tuple[str, ...]
    """Per sample the tar that holds it."""
    codes: Codes

    @property
    def ids(self) -> list[int]:
        return [sample.id for sample in self.samples]

    def nearest(self, codes: Codes, k: int) -> Neighbors:
        """Brute force, bit by bit."""
        ids = np.array(self.ids)
        bits = [np.unpackbits(part, axis=1).astype(np.int64) for part in (codes, self.codes)]
        distances = np.abs(bits[0][:, None, :] - bits[1][None, :, :]).sum(axis=2)
        order = np.array([sorted(range(len(ids)), key=lambda i: (row[i], ids[i]))[:k] for row in distances])
        return Neighbors(ids[order], np.take_along_axis(distances, order, axis=1).astype(np.int32))

    def within(self, codes: Codes, radius: int) -> list[list[tuple[int, int]]]:
        """Brute force: (id, distance) of all codes within the inclusive radius, per query."""
        nearest = self.nearest(codes, len(self.samples))
        rows = zip(nearest.ids.tolist(), nearest.distances.tolist(), strict=True)
        return [[(i, d) for i, d in zip(ids, distances, strict=True) if d <= radius] for ids, distances in rows]


def make_corpus(folder: Path, num_images: int = 90, seed: int = 0, encoder_seed: int | None = None) -> Corpus:
    """Two tar shards of small color images, and an untrained encoder with which they are encoded."""
    sources = [
        SourceImage(
            f"set{i % 3}/picture {i:03d}",
            ("png", "jpg", "webp")[i % 3],
            picture(i, seed),
            ((), (i % 5,), (1, 7))[i % 3],
        )
        for i in range(num_images)
    ]
    half = num_images // 2
    samples: list[Sample] = []
    shards: list[str] = []
    for number, part in enumerate((sources[:half], sources[half:])):
        path = folder / f"shard-{number:06d}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        shard = write_shard(path, str(path), part, first_id=FIRST_IDS[number])
        with open(path, "rb") as stream:
            samples += read_samples(stream, shard)
        shards += [str(path)] * len(part)
    spec = EncoderSpec(BackboneSpec(name=CONVNET_SMALL, weights="none", image_size=32), prefixes=(BITS,), hidden=64)
    encoder = new_encoder(spec, seed=seed if encoder_seed is None else encoder_seed)
    save_encoder(encoder, folder / "encoder")
    views = np.stack([eval_view(decode_image(sample.image), 32) for sample in samples])
    features = encode(encoder, torch.from_numpy(views)).features
    with torch.no_grad():  # centered, so that the codes of an untrained head differ
        logits = encoder.head(torch.from_numpy(features))
        encoder.head[-1].bias -= logits.mean(dim=0)
    save_encoder(encoder, folder / "encoder")
    codes = encode(encoder, torch.from_numpy(views)).codes
    return Corpus(folder, str(folder / "encoder"), encoder, tuple(samples), tuple(shards), codes)


def picture(number: int, seed: int = 0, format: str = "") -> bytes:
    """A small picture of a few colored boxes, in one of three formats."""
    generator = np.random.default_rng([seed, number])
    pixels = np.full((40, 40, 3), generator.integers(256, size=3), np.uint8)
    for _ in range(4):
        top, left = generator.integers(30, size=2)
        pixels[top : top + 14, left : left + 14] = generator.integers(256, size=3)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format or ("PNG", "JPEG", "WEBP")[number % 3])
    return sink.getvalue()


def make_index(
    corpus: Corpus,
    num_shards: int,
    folder: Path | None = None,
    encoder_digest: str = "",
    version: str = "v000001",
    count: int | None = None,
    bare: bool = False,
    bits: int = BITS,
) -> str:
    """Publishes an index of the first bits of the first samples, ids split into contiguous ranges; returns its URI."""
    uri = str(folder or corpus.folder / f"index-{num_shards}")
    table = pa.table(
        {
            "id": pa.array(corpus.ids, pa.int64()),
            "key": [sample.key for sample in corpus.samples],
            "code": packed_array(corpus.codes),
            "labels": pa.array([list(sample.labels) for sample in corpus.samples], pa.list_(pa.int32())),
            "shard": list(corpus.shards),
            "offset": pa.array([sample.offset for sample in corpus.samples], pa.int64()),
            "size": pa.array([len(sample.image) for sample in corpus.samples], pa.int32()),
        }
    )
    bounds = np.linspace(0, table.num_rows if count is None else count, num_shards + 1).astype(int).tolist()
    entries = [
        write_shard_files(f"{uri}/{version}", number, table.slice(start, stop - start), bits, with_rows=not bare)
        for number, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]
    manifest = IndexManifest(
        version=version,
        encoder_digest=encoder_digest or corpus.encoder.digest,
        encoder_uri=corpus.encoder_uri,
        code_tables=(CodeTableRef(uri="nowhere/codes", digest="c" * 64),),
        bits=bits,
        prefixes=(BITS,),
        bare=bare,
        shards=tuple(entries),
    )
    publish(uri, manifest)
    return uri


def free_port() -> int:
    """A free port outside Ray's worker range 10002-19999.

    Another suite on this machine looks elsewhere first: a service takes its port seconds later, and Serve's proxies
    would share it.
    """
    first = os.getpid() % 1000
    for port in (23000 + (first + step) % 1000 for step in range(1000)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port from 23000 to 23999")
