"""CIFAR-10 in its published forms, small and of random pixels, and as the tar shards."""

import io
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.packing.cifar10_files import DATABASE_SHARDS, QUERY_SHARDS

PIXELS = 3 * 32 * 32
PYTHON_NAMES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


class Batch:
    """Labels and pixels, uint8 (N, 3072)."""

    def __init__(self, number: int, labels: Sequence[int]) -> None:
        self.labels = list(labels)
        self.pixels = np.random.default_rng([3, number]).integers(0, 256, (len(labels), PIXELS), dtype=np.uint8)


def batches(per_batch: int = 25) -> list[Batch]:
    """Five training batches and the test batch, all ten classes in each, in an order of its own."""
    labels = [np.random.default_rng([4, n]).permutation(np.arange(per_batch) % 10).tolist() for n in range(6)]
    return [Batch(number, of) for number, of in enumerate(labels)]


def python2_pickle(batch: Batch) -> bytes:
    """What Python 2's cPickle wrote at protocol 2: text without an encoding, arrays by `_reconstruct` and a state."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    raw = batch.pixels.tobytes()
    dtype = b"cnumpy\ndtype\nq\n" + text(b"u1") + b"K\x00K\x01\x87Rq\x0b(K\x03" + text(b"|") + b"NNN"
    dtype += number(-1) + number(-1) + b"K\x00tb"
    shape = number(len(batch.labels)) + number(PIXELS) + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85" + text(b"b") + b"\x87Rq\t"
    array += b"(K\x01" + shape + dtype + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in batch.labels) + b"e"
    names = b"](" + b"".join(text(b"file_%d.png" % n) for n in range(len(batch.labels))) + b"e"
    fields = text(b"batch_label") + text(b"training batch 1 of 5") + text(b"labels") + labels
    return b"\x80\x02}q\x01(" + fields + text(b"data") + array + text(b"filenames") + names + b"u."


def python3_pickle(batch: Batch, protocol: int) -> bytes:
    """What people write who save a batch anew."""
    content: dict[Any, Any] = {b"data": batch.pixels, b"labels": batch.labels, b"batch_label": b"again"}
    return pickle.dumps(content, protocol)


def write_python_batches(folder: Path, made: Sequence[Batch]) -> Path:
    """`cifar-10-batches-py` below the folder."""
    place = folder / "cifar-10-batches-py"
    place.mkdir(parents=True)
    for name, batch in zip(PYTHON_NAMES, made, strict=True):
        (place / name).write_bytes(python2_pickle(batch))
    (place / "batches.meta").write_bytes(b"not read")
    return folder


def write_binary_batches(folder: Path, made: Sequence[Batch]) -> Path:
    """`cifar-10-batches-bin` below the folder."""
    place = folder / "cifar-10-batches-bin"
    place.mkdir(parents=True)
    for name, batch in zip(PYTHON_NAMES, made, strict=True):
        rows = np.concatenate([np.array(batch.labels, np.uint8)[:, None], batch.pixels], axis=1)
        (place / f"{name}.bin").write_bytes(rows.tobytes())
    return folder


def archived(folder: Path, name: str) -> Path:
    """The one folder below `folder` as the archive `name`, in place of it."""
    (inner,) = folder.iterdir()
    with tarfile.open(folder / name, "w:gz") as tar:
        tar.add(inner, inner.name)
    for path in inner.iterdir():
        path.unlink()
    inner.rmdir()
    return folder


def write_shards(folder: Path, broken: str = "") -> Path:
    """The twelve tar shards with two images each; in `broken` the labels are missing."""
    for name in (*DATABASE_SHARDS, *QUERY_SHARDS):
        with tarfile.open(folder / name, "w") as tar:
            for number in range(2):
                key = f"{name[:-4]}-{number}"
                members = {"jpg": f"jpeg of {key}".encode(), "cls": b"%d" % number}
                for suffix, data in members.items():
                    if name == broken and suffix == "cls":
                        continue
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder
