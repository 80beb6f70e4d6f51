"""CIFAR-10 in the forms that people have it: Python batches, binary batches, their archives, or tar shards.

Knows nothing of splits. Every form gives the same keys, `train-frog-0000` for the first frog of the training batches,
so that a split means the same images whatever they were read from. The tar shards hold JPEGs, the others pixels, which
become PNGs. Python batches are read without unpickling.
"""

import hashlib
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cibhash.errors import ConfigError, DataError, NotFound, StorageError
from cibhash.shards import IMAGE_SUFFIXES
from cluster import storage
from cluster.packing.plain_pickle import PlainArray, read_plain
from cluster.packing.source_items import SourceItem, safe_key
from cluster.telemetry import log

DATABASE_SHARDS = tuple(f"cifar10-database-{number:06d}.tar" for number in range(10))
QUERY_SHARDS = tuple(f"cifar10-query-{number:06d}.tar" for number in range(2))
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
_PIXELS = 3 * SIDE * SIDE
_MAX_BATCH_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Cifar10:
    """All images, not yet dealt to splits."""

    train: tuple[SourceItem, ...]
    """Of the training batches, in their order."""
    test: tuple[SourceItem, ...]
    in_batch_order: bool
    """Whether the items are in the order of the original batches; tar shards keep it within a class only."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Form:
    """One of the two forms in which CIFAR-10 is published."""

    folder: str
    archive: str
    archive_md5: str
    """As the data set's page lists it."""
    batches: dict[str, str]
    """Files in order, the test batch last, and the MD5 that torchvision knows of each; empty: it knows none."""
    parse: Callable[[bytes, str], tuple[list[int], bytes]]
    """Labels and pixels of a batch."""


def read_cifar10(location: str, *, download: bool = False) -> Cifar10:
    """All images of the first form that `location` holds.

    Args:
        location: The folder, or one of the two archives.
        download: Fetch the archive of Python batches where none is there.

    Raises:
        ConfigError: no location.
        NotFound: nothing is there, or files are missing.
        DataError: a file is not what it should be.
    """
    if not location:
        raise ConfigError(f"cifar10 needs data: the folder that holds {_EXPECTED}")
    folder = storage.absolute(location)
    shards = [name for name in (*DATABASE_SHARDS, *QUERY_SHARDS) if storage.exists(storage.join(folder, name))]
    if shards:
        return _from_shards(folder, set(shards))
    found = next((batches for form in _FORMS if (batches := _find(folder, form)) is not None), None)
    if found is None and download:
        _download(folder)
        found = _find(folder, _FORMS[0])
    if found is None:
        raise NotFound(f"{folder}: no CIFAR-10 there, expected {_EXPECTED} (or --download)")
    return found


def _find(folder: str, form: _Form) -> Cifar10 | None:
    """The images of a form, from its archive or its batches, or None if there is neither."""
    if folder.endswith(".tar.gz"):
        return _from_archive(folder, form) if folder.endswith(form.archive) and storage.exists(folder) else None
    for place in (storage.join(folder, form.folder), folder):
        there = [name for name in form.batches if storage.exists(storage.join(place, name))]
        if there:
            missing = [name for name in form.batches if name not in there]
            if missing:
                raise NotFound(f"{place}: {missing[0]} is missing ({len(missing)} of {len(form.batches)})")
            return _from_batches(form, ((name, _read_batch(storage.join(place, name))) for name in form.batches), place)
    archive = storage.join(folder, form.archive)
    return _from_archive(archive, form) if storage.exists(archive) else None


def _read_batch(uri: str) -> bytes:
    with storage.open_stream(uri) as stream:
        content = stream.read(_MAX_BATCH_BYTES + 1)
    if len(content) > _MAX_BATCH_BYTES:
        raise DataError(f"{uri}: above {_MAX_BATCH_BYTES} bytes, not a batch of CIFAR-10")
    return content


def _from_archive(uri: str, form: _Form) -> Cifar10:
    found: dict[str, bytes] = {}
    try:
        with storage.open_stream(uri) as stream, tarfile.open(fileobj=stream, mode="r|gz") as tar:
            for info in tar:
                name = info.name.removeprefix("./").removeprefix(f"{form.folder}/")
                if name in form.batches and info.isreg() and not info.issparse():
                    if info.size > _MAX_BATCH_BYTES:
                        raise DataError(f"{uri}: {info.name} has {info.size} bytes, limit {_MAX_BATCH_BYTES}")
                    file = tar.extractfile(info)
                    found[name] = file.read() if file else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{uri}: not a readable archive: {error}") from None
    missing = [name for name in form.batches if name not in found]
    if missing:
        raise DataError(f"{uri}: {missing[0]} is missing ({len(missing)} of {len(form.batches)})")
    images = _from_batches(form, ((name, found.pop(name)) for name in form.batches), uri)
    if any(form.batches.values()):
        return images
    digest = hashlib.md5(usedforsecurity=False)
    with storage.open_stream(uri) as stream:
        while chunk := stream.read(storage.CHUNK_BYTES):
            digest.update(chunk)
    return replace(images, warnings=_unlike_published(uri, digest.hexdigest(), form.archive_md5))


def _from_batches(form: _Form, batches: Iterator[tuple[str, bytes]], place: str) -> Cifar10:
    train: list[SourceItem] = []
    test: list[SourceItem] = []
    warnings: list[str] = []
    counts: Counter[str] = Counter()
    last = list(form.batches)[-1]
    for name, content in batches:
        uri = storage.join(place, name)
        if form.batches[name]:
            md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
            warnings += _unlike_published(uri, md5, form.batches[name])
        kind, items = ("test", test) if name == last else ("train", train)
        labels, pixels = form.parse(content, uri)
        for number, label in enumerate(labels):
            if type(label) is not int or not 0 <= label < len(CLASSES):
                raise DataError(f"{uri}: image {number} has label {label!r}, expected 0 to {len(CLASSES) - 1}")
            prefix = f"{kind}-{CLASSES[label]}"
            start = number * _PIXELS
            planes = pixels[start : start + _PIXELS]
            key = f"{prefix}-{counts[prefix]:04d}"
            items.append(SourceItem(key, "png", (label,), "", uri, start, data=planes, planes=SIDE))
            counts[prefix] += 1
    return Cifar10(tuple(train), tuple(test), in_batch_order=True, warnings=tuple(warnings))


def _unlike_published(uri: str, found: str, published: str) -> tuple[str, ...]:
    return () if found == published else (f"{uri}: not the published file, MD5 {found}, expected {published}",)


def _parse_python(content: bytes, uri: str) -> tuple[list[int], bytes]:
    batch = read_plain(content, uri)
    if not isinstance(batch, dict):
        raise DataError(f"{uri}: holds a {type(batch).__name__}, expected a dict with data and labels")
    fields = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    labels, data = fields.get("labels"), fields.get("data")
    if not isinstance(labels, list) or not isinstance(data, PlainArray):
        raise DataError(f"{uri}: fields {', '.join(map(str, fields))[:80]}, expected a list labels and an array data")
    if data.dtype != "u1" or data.shape != (len(labels), _PIXELS) or len(data.data) != len(labels) * _PIXELS:
        raise DataError(
            f"{uri}: data is {data.dtype} {data.shape} in {len(data.data)} bytes for {len(labels)} labels, "
            f"expected u1 ({len(labels)}, {_PIXELS})"
        )
    return labels, data.data


def _parse_binary(content: bytes, uri: str) -> tuple[list[int], bytes]:
    record = 1 + _PIXELS
    if not content or len(content) % record:
        raise DataError(f"{uri}: {len(content)} bytes, expected a multiple of {record}")
    starts = range(0, len(content), record)
    return [content[start] for start in starts], b"".join(content[start + 1 : start + record] for start in starts)


def _from_shards(folder: str, there: set[str]) -> Cifar10:
    missing = [name for name in (*DATABASE_SHARDS, *QUERY_SHARDS) if name not in there]
    if missing:
        raise NotFound(f"{folder}: {missing[0]} is missing ({len(missing)} of 12); expected {_SHARDS}")
    train, test = (
        tuple(item for name in names for item in _tar_items(storage.join(folder, name)))
        for names in (DATABASE_SHARDS, QUERY_SHARDS)
    )
    return Cifar10(train, test, in_batch_order=False)


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


def _download(folder: str) -> None:
    """Fetches the archive of Python batches; torchvision compares its MD5 and is kept from unpickling it."""
    if storage.is_s3(folder) or folder.endswith(".tar.gz"):
        raise ConfigError(f"download goes to a local folder, not to {folder}")
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url

    log("pack: downloading CIFAR-10", url=CIFAR10.url, folder=folder)
    try:
        download_url(CIFAR10.url, folder, filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"{CIFAR10.url}: {' '.join(str(error).split())}") from error


_FORMS = (
    _Form(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        _parse_python,
    ),
    _Form(
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        dict.fromkeys((*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"), ""),
        _parse_binary,
    ),
)
_SHARDS = f"{DATABASE_SHARDS[0]} to {DATABASE_SHARDS[-1]}, {QUERY_SHARDS[0]} and {QUERY_SHARDS[-1]}"
_EXPECTED = f"{', '.join(f'{form.folder} or {form.archive}' for form in _FORMS)}, or {_SHARDS}"
