"""The hashing field's list files, `database.txt`, `test.txt` and `train.txt`, and the images that they name.

Knows nothing of any one benchmark. A line is the path of an image and a 0 or 1 per label, as HashNet published them;
the paths are those of their authors' disks, so an image is found by its file name, and by the folders before it where
a name comes twice.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from cibhash.errors import DataError
from cluster import storage
from cluster.listing import list_uris
from cluster.packing.source_items import Source, SourceItem, path_item
from cluster.packing_config import PackConfig

LIST_FILES = {"database": "database.txt", "query": "test.txt", "train": "train.txt"}
"""By split; the lists for training may be missing."""


class ListedImage(NamedTuple):
    """One line of a list."""

    path: str
    labels: tuple[int, ...]
    split: str


class ImageFinder:
    """Finds images below a folder by how a list names them."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._by_name: dict[str, list[str]] = {}
        for uri in list_uris(folder):
            self._by_name.setdefault(uri.rpartition("/")[2], []).append(uri)

    def find(self, path: str) -> str | None:
        """The URI of the image, or None where there is none.

        Raises:
            DataError: several files fit the path equally well.
        """
        parts = path.replace("\\", "/").split("/")
        candidates = self._by_name.get(parts[-1], [])
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        best = sorted(candidates, key=lambda uri: -_common_tail(uri.split("/"), parts))
        if _common_tail(best[0].split("/"), parts) == _common_tail(best[1].split("/"), parts):
            raise DataError(f"{self._folder}: {path} may be {best[0]} or {best[1]}")
        return best[0]


def has_lists(folder: str) -> bool:
    """Whether there are lists of queries and of a database."""
    return all(storage.exists(storage.join(folder, LIST_FILES[split])) for split in ("database", "query"))


def listed_source(name: str, config: PackConfig, num_labels: Collection[int]) -> Source:
    """The images and splits of the list files.

    Args:
        name: Of the benchmark.
        config: With the folder of the images, and that of the lists.
        num_labels: How many labels a line may tell of.

    Raises:
        NotFound: a list of queries or of the database is missing.
        DataError: a line that cannot be understood, or lists that contradict each other.
    """
    folder = storage.absolute(config.lists or config.data)
    listed = [line for split in LIST_FILES for line in _read_list(folder, split, num_labels)]
    once = dict.fromkeys(listed)
    items, missing = find_images(once, config.data)
    warnings = _check_items(folder, items)
    if len(once) < len(listed):
        warnings.append(f"{folder}: {len(listed) - len(once)} lines repeat an earlier one of their list: left out")
    return Source(name, items, split_name=f"{name}/lists", missing=missing, may_miss=True, warnings=tuple(warnings))


def find_images(listed: Collection[ListedImage], folder: str) -> tuple[tuple[SourceItem, ...], tuple[str, ...]]:
    """The images of a list as items, keyed by file name, and the paths of those that are not there."""
    finder = ImageFinder(storage.absolute(folder))
    uris: dict[str, str | None] = {}
    items: list[SourceItem] = []
    for path, labels, split in listed:
        if path not in uris:
            uris[path] = finder.find(path)
        uri = uris[path]
        if uri is not None:
            items.append(path_item(uri.rpartition("/")[2], folder, uri=uri, labels=labels, split=split))
    return tuple(items), tuple(path for path, uri in uris.items() if uri is None)


def _read_list(folder: str, split: str, num_labels: Collection[int]) -> Iterator[ListedImage]:
    uri = storage.join(folder, LIST_FILES[split])
    if split == "train" and not storage.exists(uri):
        return
    width = 0
    for number, line in enumerate(storage.read_bytes(uri).decode(errors="surrogateescape").splitlines(), 1):
        if not line.strip():
            continue
        path, *flags = line.split()
        width = width or len(flags)
        if len(flags) not in num_labels or len(flags) != width or not set(flags) <= {"0", "1"}:
            expected = " or ".join(map(str, sorted(num_labels)))
            raise DataError(f"{uri} line {number}: {line[:60]!r}, expected a path and {expected} times 0 or 1")
        yield ListedImage(path, tuple(label for label, flag in enumerate(flags) if flag == "1"), split)


def _check_items(folder: str, items: Collection[SourceItem]) -> list[str]:
    """What is odd in the lists but no error.

    Raises:
        DataError: an image has other labels in another place.
    """
    labels: dict[str, tuple[int, ...]] = {}
    splits: dict[str, set[str]] = {split: set() for split in LIST_FILES}
    for item in items:
        if labels.setdefault(item.key, item.labels) != item.labels:
            raise DataError(f"{folder}: {item.key!r} has labels {labels[item.key]} and {item.labels}")
        splits[item.split].add(item.key)
    leaked = len(splits["query"] & (splits["database"] | splits["train"]))
    return [f"{folder}: {leaked} queries are in the database or the training set too"] if leaked else []


def _common_tail(parts: list[str], others: list[str]) -> int:
    """Path components that are the same, from the last one on."""
    count = 0
    for one, other in zip(reversed(parts), reversed(others), strict=False):
        if one != other:
            break
        count += 1
    return count
