"""Sources that are files of the person's own: a folder of images, and a list of images.

Knows nothing of splits by share and of tar shards; `cluster.packing.source_items` has the rules for keys.
"""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cibhash.errors import ConfigError, DataError, NotFound
from cibhash.shards import MAX_KEY_BYTES
from cluster import storage
from cluster.packing.source_items import Source, SourceItem, image_suffix, path_item, safe_key
from cluster.packing_config import PackConfig
from cluster.telemetry import log

LIST_SUFFIXES = (".csv", ".parquet", ".jsonl")
_COLUMNS = ("path", "key", "labels", "split")


def image_folder(config: PackConfig) -> Source:
    """A folder of images without labels, or of class folders: label i is the i-th folder by name.

    Class folders may have folders of their own. Hidden files are left out; any other file must be an image.

    Raises:
        DataError: images both in class folders and beside them, or a file that is no image.
    """
    root = os.path.abspath(config.source)
    paths = sorted(_walk(root))
    loose = [path for path in paths if "/" not in path]
    classes = tuple(sorted({path.split("/", 1)[0] for path in paths if "/" in path}))
    if loose and classes:
        raise DataError(f"{root}: {loose[0]} lies beside the class folder {classes[0]}: expected the one or the other")
    labels = {name: (number,) for number, name in enumerate(classes)}
    items = tuple(
        path_item(path, root, uri=os.path.join(root, path), labels=labels.get(path.split("/", 1)[0], ()))
        for path in paths
    )
    return Source(os.path.basename(root), items, classes)


def image_list(config: PackConfig) -> Source:
    """A CSV, Parquet or JSONL list with `path` and optionally `key`, `labels`, `split` for every image.

    A path is absolute, an s3:// URI, or relative to the folder of the list. Labels are an integer, a list of them, or
    text as in `3` and `1;5`. Other columns are left out, with a line in the log.

    Raises:
        NotFound: no such list.
        DataError: a row that cannot be understood; names it.
    """
    uri = storage.absolute(config.source)
    if not storage.exists(uri):
        raise NotFound(f"{uri}: no such list")
    rows = _READERS[Path(uri.lower()).suffix](uri)
    folder = uri.rpartition("/")[0]
    items: list[SourceItem] = []
    others: set[str] = set()
    for number, row in rows:
        items.append(_row_item(row, f"{uri} row {number}", folder))
        others.update(name for name in row if name not in _COLUMNS)
    if others:
        log("pack: columns left out", columns=",".join(sorted(map(str, others))))
    if 0 < sum(bool(item.split) for item in items) < len(items):
        empty = next(item for item in items if not item.split)
        raise DataError(f"{uri}: {empty.key!r} has no split, but others do")
    return Source(Path(uri).stem, tuple(items))


def _walk(root: str) -> Iterator[str]:
    """Files below the root, relative, without hidden ones."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: {error.strerror}") from error

    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        if folder != root and f"{os.path.realpath(os.path.dirname(folder))}/".startswith(
            f"{os.path.realpath(folder)}/"
        ):
            raise DataError(f"{folder}: a link to a folder that holds it")
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(folder, name), root)


def _row_item(row: dict[str, Any], where: str, folder: str) -> SourceItem:
    path = row.get("path")
    if not isinstance(path, str) or not path:
        raise DataError(f"{where}: path {path!r}, expected the path of an image (columns: {', '.join(map(str, row))})")
    labels, split = _labels(row.get("labels"), where), str(row.get("split") or "")
    uri = storage.join(folder, path)
    storage.is_s3(uri)
    given = row.get("key")
    if given is None or given == "":
        return path_item(path.removeprefix("./"), where, uri=uri, labels=labels, split=split)
    key = safe_key(str(given))
    if len(key.encode()) > MAX_KEY_BYTES:
        raise DataError(f"{where}: key {key[:40]!r}... has {len(key.encode())} bytes, the limit is {MAX_KEY_BYTES}")
    return SourceItem(key, image_suffix(path, where), labels, split, uri)


def _labels(value: Any, where: str) -> tuple[int, ...]:
    if value is None or value == "":
        return ()
    values = value.split(";") if isinstance(value, str) else value if isinstance(value, list) else [value]
    try:
        if any(isinstance(item, bool) or (isinstance(item, float) and item != int(item)) for item in values):
            raise ValueError(value)
        labels = tuple(sorted({int(item) for item in values}))
        if any(not 0 <= label < 2**31 for label in labels):
            raise ValueError(value)
        return labels
    except (TypeError, ValueError):
        raise DataError(f"{where}: labels {value!r}, expected integers from 0 to 2147483647 as in 3 or 1;5") from None


def _read_csv(uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{uri}: not UTF-8 at byte {error.start}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for number, row in enumerate(reader, 1):
        if None in row or None in row.values():
            raise DataError(f"{uri} row {number}: not as many fields as the header's {len(reader.fieldnames or ())}")
        yield number, row


def _read_jsonl(uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(storage.read_bytes(uri).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{uri} row {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{uri} row {number}: {type(row).__name__}, expected an object")
        yield number, row


def _read_parquet(uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
    except pa.ArrowException as error:
        raise DataError(f"{uri}: not readable as Parquet: {' '.join(str(error).split())}") from None
    if "path" not in table.column_names:
        raise ConfigError(f"{uri}: no column path (columns: {', '.join(table.column_names)})")
    yield from enumerate(table.to_pylist(), 1)


_READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
