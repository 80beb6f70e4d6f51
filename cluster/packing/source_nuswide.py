"""The source `nuswide`: photos of Flickr with several of the 21 most frequent of 81 concepts each.

Knows nothing of list files beyond calling `cluster.packing.list_files`. Without lists, the official ground truth gives
the labels, and queries and training images are drawn by the config's seed: 100 and 500 of every concept.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cibhash.errors import ConfigError, DataError, NotFound
from cluster import storage
from cluster.listing import list_uris
from cluster.packing.list_files import ListedImage, find_images, has_lists, listed_source
from cluster.packing.source_items import Source, SourceItem, seeded_rank
from cluster.packing_config import PackConfig

NUM_CONCEPTS = 21
QUERIES_PER_CONCEPT = 100
TRAIN_PER_CONCEPT = 500
IMAGE_LIST = "ImageList/Imagelist.txt"
LABELS = "Groundtruth/AllLabels"
_LIST_WIDTHS = (NUM_CONCEPTS, 81)


def nuswide(config: PackConfig) -> Source:
    """NUS-WIDE from its image folder and the field's lists, or else its official ground truth.

    Raises:
        ConfigError: no `data` folder is given, or an unknown protocol.
        NotFound: neither lists nor ground truth.
        DataError: they cannot be understood, or there are too few images of a concept.
    """
    protocol = chosen_protocol("nuswide", config)
    if protocol == "lists":
        return listed_source("nuswide", config, _LIST_WIDTHS)
    folder = storage.absolute(config.data)
    if not storage.exists(storage.join(folder, IMAGE_LIST)):
        raise NotFound(f"{folder}: neither database.txt and test.txt nor {IMAGE_LIST} and {LABELS}/Labels_*.txt")
    concepts, listed = _official(folder)
    found, missing = find_images(listed, folder)
    items = tuple(deal_per_concept(found, concepts, config.seed))
    return Source("nuswide", items, concepts, split_name="nuswide/seeded", seeded=True, missing=missing, may_miss=True)


def chosen_protocol(benchmark: str, config: PackConfig) -> str:
    """`lists` or `seeded`, as asked for or as the files that are there allow.

    Raises:
        ConfigError: no `data` folder, or another protocol.
    """
    if not config.data:
        raise ConfigError(f"{benchmark} needs data: the folder of its images")
    if config.protocol not in ("", "lists", "seeded"):
        raise ConfigError(f"protocol {config.protocol!r} of {benchmark}: expected lists or seeded")
    there = has_lists(storage.absolute(config.lists or config.data))
    return config.protocol or ("lists" if there or config.lists else "seeded")


def deal_per_concept(
    items: Sequence[SourceItem],
    concepts: Sequence[str],
    seed: int,
    *,
    queries: int = QUERIES_PER_CONCEPT,
    train: int = TRAIN_PER_CONCEPT,
) -> Iterator[SourceItem]:
    """Draws queries and training images of every concept, none twice; all but the queries are the database.

    Raises:
        DataError: too few images of a concept are left to draw from.
    """
    ordered = sorted(items, key=lambda item: seeded_rank(seed, "nuswide", item.key))
    drawn: dict[str, str] = {}
    for split, count in (("query", queries), ("train", train)):
        for label, concept in enumerate(concepts):
            free = [item.key for item in ordered if label in item.labels and item.key not in drawn][:count]
            if len(free) < count:
                raise DataError(f"concept {concept}: {len(free)} images left to draw {count} of the {split} split from")
            drawn.update(dict.fromkeys(free, split))
    for item in items:
        split = drawn.get(item.key, "")
        if split != "query":
            yield replace(item, split="database")
        if split:
            yield replace(item, split=split)


def _official(folder: str) -> tuple[tuple[str, ...], list[ListedImage]]:
    """The most frequent concepts, in alphabetical order, and the images that have any of them."""
    paths = storage.read_bytes(storage.join(folder, IMAGE_LIST)).decode(errors="surrogateescape").split()
    flags: dict[str, list[str]] = {}
    for uri in list_uris(storage.join(folder, LABELS)):
        concept = uri.rpartition("/")[2].removeprefix("Labels_").removesuffix(".txt")
        flags[concept] = storage.read_bytes(uri).decode(errors="replace").split()
        if len(flags[concept]) != len(paths) or not set(flags[concept]) <= {"0", "1"}:
            raise DataError(f"{uri}: {len(flags[concept])} lines, expected 0 or 1 for {len(paths)} images")
    if len(flags) < NUM_CONCEPTS:
        raise DataError(f"{folder}/{LABELS}: {len(flags)} concepts, expected at least {NUM_CONCEPTS}")
    counts = Counter({concept: of.count("1") for concept, of in flags.items()})
    frequent = sorted(counts, key=lambda concept: (-counts[concept], concept))[:NUM_CONCEPTS]
    concepts = tuple(sorted(frequent))
    rows = zip(*(flags[concept] for concept in concepts), strict=True)
    labels = (tuple(label for label, flag in enumerate(row) if flag == "1") for row in rows)
    return concepts, [ListedImage(path, of, "") for path, of in zip(paths, labels, strict=True) if of]
