"""The source `cifar10`, dealt to splits by one of the protocols of the hashing literature.

Knows nothing of the files that the images come from (`cluster.packing.cifar10_files`). The names of splits: `query`,
`database`, `train`, and `validation` where a protocol has one; training images are part of the database.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import resources

import numpy as np

from cibhash.errors import ConfigError, DataError
from cluster.packing.cifar10_files import CLASSES, DATABASE_SHARDS, Cifar10, read_cifar10
from cluster.packing.source_items import Source, SourceItem, seeded_rank
from cluster.packing_config import PackConfig

TRAIN_PER_CLASS = 500
QUERIES_PER_CLASS = 100
"""Of the protocol `deephash`."""
OFFICIAL_VALIDATION = 5000
_TRAIN_LIST = "cifar10_train.txt"


def cifar10(config: PackConfig) -> Source:
    """CIFAR-10, its images dealt to splits by `config.protocol`.

    Raises:
        ConfigError: an unknown protocol, or one that these files cannot give.
        NotFound, DataError: as `cluster.packing.cifar10_files.read_cifar10`; or too few images for the protocol.
    """
    protocol = config.protocol or "cibhash"
    if protocol not in _PROTOCOLS:
        raise ConfigError(f"protocol {protocol!r} of cifar10: expected {', '.join(_PROTOCOLS)}")
    images = read_cifar10(config.data, download=config.download and not config.dry_run)
    items = tuple(deal(images, protocol, config.seed))
    return Source(
        "cifar10",
        items,
        CLASSES,
        split_name=f"cifar10/{protocol}",
        seeded=protocol == "deephash",
        published=PUBLISHED.get(protocol, {}),
        warnings=images.warnings,
    )


def deal(images: Cifar10, protocol: str, seed: int) -> Iterator[SourceItem]:
    """The items of all splits of a protocol; one for each split that an image belongs to.

    Raises:
        ConfigError: the protocol needs the order of the batches, and these images come without it.
        DataError: too few images for the protocol.
    """
    return _PROTOCOLS[protocol](images, seed)


def _cibhash(images: Cifar10, seed: int) -> Iterator[SourceItem]:
    """10,000 queries (all test images), 50,000 database, 5,000 of them for training: the sizes of the paper."""
    if images.in_batch_order:
        listed = _listed_train_keys()
        chosen = [item for item in images.train if item.key in listed]
    else:
        chosen = [item for item in images.train if item.uri.endswith(f"/{DATABASE_SHARDS[0]}")]
    yield from _dealt(query=images.test, database=images.train, train=chosen)


def _official_seed0(images: Cifar10, seed: int) -> Iterator[SourceItem]:
    """The released code's: NumPy's generator, seeded with 0, permutes every class, then shuffles the test batch.

    Source: utils/data.py:125-155 and utils/gaussian_blur.py:3 of github.com/zexuanqiu/CIBHash at 4c3b273d.
    """
    if not images.in_batch_order:
        raise ConfigError(
            "protocol official_seed0 shuffles the test images in the order of their batch, which tar shards do not "
            "keep: give cifar-10-batches-py or cifar-10-batches-bin as data"
        )
    generator = np.random.RandomState(0)
    chosen: list[SourceItem] = []
    for of_class in _by_class(images.train, TRAIN_PER_CLASS):
        chosen += [of_class[number] for number in generator.permutation(len(of_class))[:TRAIN_PER_CLASS]]
    numbers = list(range(len(images.test)))
    if len(numbers) <= OFFICIAL_VALIDATION:
        raise DataError(f"official_seed0: {len(numbers)} test images, expected more than {OFFICIAL_VALIDATION}")
    generator.shuffle(numbers)
    yield from _dealt(
        validation=[images.test[number] for number in numbers[:OFFICIAL_VALIDATION]],
        query=[images.test[number] for number in numbers[OFFICIAL_VALIDATION:]],
        database=images.train,
        train=chosen,
    )


def _mecoq_i(images: Cifar10, seed: int) -> Iterator[SourceItem]:
    """10,000 queries, and all 50,000 others for database and training: "CIFAR-10 (I)" of MeCoQ and Bi-half."""
    yield from _dealt(query=images.test, database=images.train, train=images.train)


def _deephash(images: Cifar10, seed: int) -> Iterator[SourceItem]:
    """100 queries of every class, the other 59,000 as database, 500 of every class of them for training; seeded."""
    query: list[SourceItem] = []
    database: list[SourceItem] = []
    chosen: list[SourceItem] = []
    for of_class in _by_class((*images.train, *images.test), QUERIES_PER_CLASS + TRAIN_PER_CLASS):
        ordered = sorted(of_class, key=lambda item: seeded_rank(seed, "deephash", item.key))
        query += ordered[:QUERIES_PER_CLASS]
        database += ordered[QUERIES_PER_CLASS:]
        chosen += ordered[QUERIES_PER_CLASS : QUERIES_PER_CLASS + TRAIN_PER_CLASS]
    yield from _dealt(query=query, database=database, train=chosen)


def _dealt(**splits: Iterable[SourceItem]) -> Iterator[SourceItem]:
    for name, items in splits.items():
        yield from (replace(item, split=name) for item in items)


def _by_class(items: Sequence[SourceItem], needed: int) -> list[list[SourceItem]]:
    """The items of each class, in order.

    Raises:
        DataError: a class has fewer than `needed`.
    """
    found: dict[int, list[SourceItem]] = defaultdict(list)
    for item in items:
        found[item.labels[0]].append(item)
    for label, name in enumerate(CLASSES):
        if len(found[label]) < needed:
            raise DataError(f"class {name}: {len(found[label])} images, the protocol needs {needed}")
    return [found[label] for label in range(len(CLASSES))]


def _listed_train_keys() -> frozenset[str]:
    text = resources.files("cluster.packing").joinpath("published", _TRAIN_LIST).read_text()
    lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return frozenset(f"train-{name}-{int(number):04d}" for name, *numbers in lines for number in numbers)


_PROTOCOLS: dict[str, Callable[[Cifar10, int], Iterator[SourceItem]]] = {
    "cibhash": _cibhash,
    "official_seed0": _official_seed0,
    "mecoq_i": _mecoq_i,
    "deephash": _deephash,
}
_QUERY = "c284319e8c9ff4341674fd6c7a3779f491adae8276c36d3aa2829a33bb884885"
_DATABASE = "9331dbbbd0f306c5b5482438392aba8500595b17505d6544df2cf80a7a637c47"
_TRAIN = "35c29456293a72429ec713eff1440003e310d369bbe53b046f3a93aae97aef82"
_OFFICIAL_TRAIN = "f40cd58214415470e595e60ccbbfdc8fa8e26870af01a9048c49b2a8d957448b"
PUBLISHED = {
    "cibhash": {"query": _QUERY, "database": _DATABASE, "train": _TRAIN},
    "official_seed0": {"database": _DATABASE, "train": _OFFICIAL_TRAIN},
    "mecoq_i": {"query": _QUERY, "database": _DATABASE, "train": _DATABASE},
}
"""By protocol and split, the checksum of the keys and labels; `official_seed0` deals the test images by the order of
their batch, which could not be had to compute the other two."""
