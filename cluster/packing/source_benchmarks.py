"""Sources by name: scikit-learn's handwritten digits and CIFAR-10, each with its retrieval protocol.

Knows nothing of the person's own files. Both follow the hashing literature: the training images are part of the
database.
"""

import io
import tarfile
from dataclasses import replace

import numpy as np
from PIL import Image

from cibhash.errors import ConfigError, DataError, NotFound
from cibhash.shards import IMAGE_SUFFIXES
from cluster import storage
from cluster.config import PackConfig
from cluster.packing.source_items import Source, SourceItem, safe_key, seeded_rank

DIGIT_QUERIES_PER_CLASS = 30
DIGIT_SIDE = 32
CIFAR10_DATABASE = tuple(f"cifar10-database-{number:06d}.tar" for number in range(10))
CIFAR10_QUERY = tuple(f"cifar10-query-{number:06d}.tar" for number in range(2))
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def digits(config: PackConfig) -> Source:
    """1,797 handwritten digits: 30 seeded queries per class; the others are database and training set alike.

    The 8 x 8 gray images become 32 x 32 RGB PNGs, bilinear.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ConfigError("digits come with scikit-learn: pip install 'cibhash[demo]'") from None
    bunch = load_digits()
    images, labels = bunch.images, bunch.target
    items = [
        SourceItem(f"digit-{number:04d}", "png", (int(label),), "", f"digits/{number}", data=_digit_png(image))
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    queries: set[str] = set()
    for label in range(10):
        keys = [item.key for item in items if item.labels == (label,)]
        queries.update(sorted(keys, key=lambda key: seeded_rank(config.seed, "query", key))[:DIGIT_QUERIES_PER_CLASS])
    dealt = [
        replace(item, split=split)
        for item in items
        for split in (("query",) if item.key in queries else ("database", "train"))
    ]
    return Source("digits", tuple(dealt), tuple(map(str, range(10))))


def cifar10(config: PackConfig) -> Source:
    """CIFAR-10 from its shards at `config.data`: 10,000 queries, a database of 50,000, 5,000 of them for training.

    Raises:
        ConfigError: no `data` folder is given.
        NotFound: shards are missing from it.
        DataError: a shard is broken.
    """
    names = f"{CIFAR10_DATABASE[0]} to {CIFAR10_DATABASE[-1]}, {CIFAR10_QUERY[0]} and {CIFAR10_QUERY[-1]}"
    if not config.data:
        raise ConfigError(f"cifar10 needs data: the folder that holds {names}")
    folder = storage.absolute(config.data)
    missing = [name for name in (*CIFAR10_DATABASE, *CIFAR10_QUERY) if not storage.exists(storage.join(folder, name))]
    if missing:
        raise NotFound(f"{folder}: {missing[0]} is missing ({len(missing)} of 12); expected {names}")
    items: list[SourceItem] = []
    for name in (*CIFAR10_DATABASE, *CIFAR10_QUERY):
        found = _tar_items(storage.join(folder, name))
        items += [replace(item, split="query" if name in CIFAR10_QUERY else "database") for item in found]
        if name == CIFAR10_DATABASE[0]:
            items += [replace(item, split="train") for item in found]
    return Source("cifar10", tuple(items), CIFAR10_CLASSES)


def _digit_png(image: np.ndarray) -> bytes:
    gray = np.round(image * 255 / 16).astype(np.uint8)
    large = Image.fromarray(gray).resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    large.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def _tar_items(uri: str) -> list[SourceItem]:
    """Images of a tar shard with their `.cls` labels, in order; the images stay where they are."""
    images: dict[str, SourceItem] = {}
    labels: dict[str, int] = {}
    try:
        with storage.open_stream(uri) as stream, tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as tar:
            for info in tar:
                name, _, suffix = info.name.rpartition(".")
                if suffix in IMAGE_SUFFIXES:
                    images[name] = SourceItem(safe_key(name), suffix, (), "", uri, info.offset_data, info.size)
                elif suffix == "cls" and (member := tar.extractfile(info)) is not None:
                    labels[name] = int(member.read(16))
    except (tarfile.TarError, ValueError) as error:
        raise DataError(f"{uri}: not a readable shard: {error}") from None
    for name in images.keys() ^ labels.keys():
        raise DataError(f"{uri}: {name!r} has an image or a label, expected both")
    return [replace(item, labels=(labels[name],)) for name, item in images.items()]
