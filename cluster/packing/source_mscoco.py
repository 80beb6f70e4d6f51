"""The source `mscoco`: photos with several of 80 categories each.

Knows nothing of list files beyond calling `cluster.packing.list_files`. Without lists, the official annotations give
the labels, images without any are left out, and queries and training images are drawn by the config's seed.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cibhash.errors import DataError, NotFound
from cluster import storage
from cluster.packing.list_files import ListedImage, find_images, listed_source
from cluster.packing.source_items import Source, SourceItem, seeded_rank
from cluster.packing.source_nuswide import chosen_protocol
from cluster.packing_config import PackConfig

NUM_CATEGORIES = 80
NUM_QUERIES = 5000
NUM_TRAIN = 10_000
YEARS = ("2014", "2017")
_DECODER = json.JSONDecoder()


def mscoco(config: PackConfig) -> Source:
    """MSCOCO from its image folders and the field's lists, or else its official annotations.

    Raises:
        ConfigError: no `data` folder is given, or an unknown protocol.
        NotFound: neither lists nor annotations.
        DataError: they cannot be understood, or there are too few images.
    """
    if chosen_protocol("mscoco", config) == "lists":
        return listed_source("mscoco", config, (NUM_CATEGORIES,))
    folder = storage.absolute(config.data)
    categories, listed = _official(folder)
    found, missing = find_images(listed, folder)
    items = tuple(deal(found, config.seed))
    return Source("mscoco", items, categories, split_name="mscoco/seeded", seeded=True, missing=missing, may_miss=True)


def deal(
    items: Sequence[SourceItem], seed: int, *, queries: int = NUM_QUERIES, train: int = NUM_TRAIN
) -> Iterator[SourceItem]:
    """Draws queries, and training images from the others, which are the database.

    Raises:
        DataError: too few images.
    """
    if len(items) <= queries + train:
        raise DataError(f"mscoco: {len(items)} labeled images, too few for {queries} queries and {train} to train on")
    ordered = sorted(items, key=lambda item: seeded_rank(seed, "mscoco", item.key))
    yield from (replace(item, split="query") for item in ordered[:queries])
    yield from (replace(item, split="database") for item in ordered[queries:])
    yield from (replace(item, split="train") for item in ordered[queries : queries + train])


def _official(folder: str) -> tuple[tuple[str, ...], list[ListedImage]]:
    """Names of the categories by ascending id, and all images that have any."""
    names: dict[int, str] = {}
    files: dict[int, str] = {}
    found: dict[int, set[int]] = {}
    for part in _annotated(folder):
        uri = storage.join(folder, f"annotations/instances_{part}.json")
        try:
            for field, element in _elements(storage.read_bytes(uri).decode()):
                if field == "images":
                    files[element["id"]] = f"{part}/{element['file_name']}"
                elif field == "annotations":
                    found.setdefault(element["image_id"], set()).add(element["category_id"])
                elif field == "categories":
                    names[element["id"]] = element["name"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"{uri}: not COCO annotations: {type(error).__name__} {str(error)[:80]}") from None
    numbers = {category: number for number, category in enumerate(sorted(names))}
    unknown = sorted({category for of in found.values() for category in of} - numbers.keys())
    if unknown or found.keys() - files.keys():
        raise DataError(f"{folder}/annotations: annotations of categories or images that are not listed: {unknown[:5]}")
    listed = [
        ListedImage(path, tuple(sorted(numbers[category] for category in found[image])), "")
        for image, path in files.items()
        if image in found
    ]
    return tuple(names[category] for category in sorted(names)), listed


def _annotated(folder: str) -> tuple[str, ...]:
    """The parts, train and val of one year, whose annotations are there."""
    for year in YEARS:
        parts = (f"train{year}", f"val{year}")
        there = [p for p in parts if storage.exists(storage.join(folder, f"annotations/instances_{p}.json"))]
        if len(there) == len(parts):
            return parts
        if there:
            other = next(part for part in parts if part not in there)
            raise NotFound(f"{folder}: annotations/instances_{other}.json is missing")
    raise NotFound(
        f"{folder}: neither database.txt and test.txt nor annotations/instances_train2014.json and "
        "instances_val2014.json, or those of 2017"
    )


def _elements(text: str) -> Iterator[tuple[str, Any]]:
    """The elements of every list of a JSON object, one at a time: all annotations at once take several GB."""
    at = _after(text, 0, "{")
    while text[at] != "}":
        field, at = _DECODER.raw_decode(text, _after(text, at, ""))
        at = _after(text, at, ":")
        if text[at] != "[":
            _, at = _DECODER.raw_decode(text, at)
        else:
            at = _after(text, at, "[")
            while text[at] != "]":
                element, at = _DECODER.raw_decode(text, at)
                yield field, element
                at = _separated(text, at)
            at += 1
        at = _separated(text, at)


def _after(text: str, at: int, token: str) -> int:
    """Where the next token starts, behind white space, `token`, and white space."""
    at = _skip_space(text, at)
    if not text.startswith(token, at):
        raise ValueError(f"{text[at : at + 20]!r}, expected {token!r}")
    return _skip_space(text, at + len(token))


def _separated(text: str, at: int) -> int:
    at = _skip_space(text, at)
    return _skip_space(text, at + 1) if text[at] == "," else at


def _skip_space(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at
