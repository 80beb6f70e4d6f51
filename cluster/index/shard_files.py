"""The files of an index shard, written and read: codes with ids as safetensors, the rows as Arrow IPC.

Knows nothing of search. Ids that are contiguous are a range and take no room; a shard may be without rows. What a
version hides of a shard is left out here, so that nothing else has to know of it (see `hidden_ids`). Nothing parses a
file before its size and SHA-256 were found to be those of the manifest. File names carry the content's digest, so a
file is never replaced by a different one.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cibhash.errors import DataError, ManifestMismatch, NotFound
from cibhash.types import Codes, Ids
from cluster import storage
from cluster.code_tables import codes_of, ids_of
from cluster.index.hidden_ids import ascending, read_hidden
from cluster.index.shard_ids import AscendingIds, as_array, compact, positions_of
from cluster.manifests import IndexShardEntry, ListedFile, check_digest
from cluster.versions import beside

ROW_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int32(), nullable=False),
    ]
)
_ROWS_PER_BATCH = 2**16
_DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "I64": np.dtype("<i8")}
_LEAST_RUN = 64
"""Visible rows between hidden ones, on average, from which on a batch is cut into slices instead of copied."""


def write_shard_files(
    base_uri: str, number: int, table: pa.Table, bits: int, *, with_rows: bool = True
) -> IndexShardEntry:
    """Writes the files of an index shard below `base_uri`; equal tables give equal files and names.

    Args:
        base_uri: Directory of the index version.
        number: Of the shard; part of the file names, beside the digest of the content.
        table: Rows of a code table by ascending id, with absolute URIs in the column `shard`.
        bits: Code length.
        with_rows: Whether the rows are written too; if not, the table needs no more than ids and codes.

    Returns:
        The manifest's entry; an empty shard has `min_id` 0 and `max_id` -1.

    Raises:
        ValueError: the ids do not ascend or one is negative.
    """
    ids, codes = ids_of(table), codes_of(table, bits)
    if not ascending(ids):
        raise ValueError(f"ids of index shard {number} are not ascending, unique and at least 0")
    with tempfile.TemporaryDirectory(prefix="cibhash-index-") as folder:
        codes_path, rows_path = Path(folder, "codes.safetensors"), Path(folder, "rows.arrow")
        kept = compact(ids)
        named = {"first_id": np.array([kept.start])} if isinstance(kept, range) else {"ids": np.ascontiguousarray(ids)}
        save_file({"codes": np.ascontiguousarray(codes), **named}, codes_path)
        if with_rows:
            _write_rows(rows_path, table)
        return IndexShardEntry(
            codes=put_named(base_uri, number, codes_path),
            rows=put_named(base_uri, number, rows_path) if with_rows else None,
            count=len(ids),
            min_id=int(ids[0]) if len(ids) else 0,
            max_id=int(ids[-1]) if len(ids) else -1,
        )


def _write_rows(path: Path, table: pa.Table) -> None:
    rows = table.select(ROW_SCHEMA.names).cast(ROW_SCHEMA)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, ROW_SCHEMA) as writer:
        for start in range(0, len(rows), _ROWS_PER_BATCH):
            writer.write_table(rows.slice(start, _ROWS_PER_BATCH).combine_chunks(), _ROWS_PER_BATCH)


def read_shard_files(
    base_uri: str, entry: IndexShardEntry, bits: int
) -> tuple[Codes, AscendingIds, list[pa.RecordBatch] | None]:
    """Reads a shard after all its files were verified; those of a remote shard pass through a temporary folder.

    Args:
        base_uri: Directory of the index version; those of other versions lie beside it.
        entry: What the version's manifest says of the shard.
        bits: Code length of the index.

    Returns:
        Of the rows that are not hidden: packed codes uint8 (N, B/8); ids int64 (N,), ascending and unique, or their
        range; batches of `ROW_SCHEMA`, in the order of the ids, memory-mapped unless hidden rows are strewn among them,
        and None where the index has no rows.

    Raises:
        ManifestMismatch: a file differs from its digest, or its content from what the manifest says.
        DataError: a file cannot be read although its digest is right.
    """
    folder = beside(base_uri, entry.version)
    codes, ids, hidden = _read_stored(base_uri, entry, bits)
    rows: list[pa.RecordBatch] | None = None
    if entry.rows is not None:
        with _verified_file(folder, entry.rows) as path:
            rows = _read_rows(path, storage.join(folder, entry.rows.path), ids)
    if not len(hidden):
        return codes, ids, rows
    visible = np.ones(len(ids), np.bool_)
    visible[hidden] = False
    return codes[visible], compact(as_array(ids)[visible]), rows and _visible_rows(rows, visible)


def read_shard_ids(base_uri: str, entry: IndexShardEntry, bits: int) -> tuple[Ids, Ids]:
    """The ids of a shard that are visible, and those that are hidden, both ascending; rows are not read.

    Raises:
        ManifestMismatch, DataError: as `read_shard_files`.
    """
    _, ids, hidden = _read_stored(base_uri, entry, bits)
    every = as_array(ids)
    return np.delete(every, hidden), every[hidden]


def read_shard_codes(base_uri: str, entry: IndexShardEntry, bits: int) -> Codes:
    """The packed codes uint8 (N, B/8) of a shard that are not hidden; rows are not read.

    Raises:
        ManifestMismatch, DataError: as `read_shard_files`.
    """
    codes, _, hidden = _read_stored(base_uri, entry, bits)
    return np.delete(codes, hidden, axis=0)


def _read_stored(base_uri: str, entry: IndexShardEntry, bits: int) -> tuple[Codes, AscendingIds, Ids]:
    """All codes and ids in the files, and the positions that are hidden; the three agree with the manifest."""
    folder = beside(base_uri, entry.version)
    location = storage.join(folder, entry.codes.path)
    with _verified_file(folder, entry.codes) as path:
        codes, ids = _read_codes(path, location, entry, bits)
    hidden = np.empty(0, np.int64)
    if entry.hidden:
        hidden = positions_of(ids, read_hidden(base_uri, entry.hidden, as_array(ids)))
    visible = np.delete(as_array(ids), hidden) if len(hidden) else ids
    if len(visible) and (visible[0], visible[-1]) != (entry.min_id, entry.max_id):
        raise ManifestMismatch(
            f"{location}: ids {visible[0]} to {visible[-1]}, its manifest says {entry.min_id} to {entry.max_id}"
        )
    return codes, ids, hidden


def put_named(base_uri: str, number: int, path: Path) -> ListedFile:
    """Copies a file of an index shard below the version's directory, named after the shard, its content and suffix."""
    sha256, size = storage.sha256_of(str(path))
    name = f"data/shard-{number:05d}-{sha256[:16]}{path.suffix}"
    storage.put_file(path, storage.join(base_uri, name))
    return ListedFile(path=name, bytes=size, sha256=sha256)


@contextlib.contextmanager
def _verified_file(base_uri: str, listed: ListedFile) -> Iterator[Path]:
    """A local path with the content of a listed file; nothing has parsed it yet."""
    location = storage.join(base_uri, listed.path)
    with contextlib.ExitStack() as stack:
        path = Path(location)
        if storage.is_s3(location):
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cibhash-index-")), path.name)
            storage.get_file(location, path)
        try:
            sha256, size = storage.sha256_of(str(path))
        except NotFound:
            raise NotFound(f"{location}: no such file, but the index manifest lists it") from None
        check_digest(location, listed.bytes, listed.sha256, size, sha256)
        yield path


def _read_codes(path: Path, location: str, entry: IndexShardEntry, bits: int) -> tuple[Codes, AscendingIds]:
    try:
        tensors = _mapped(path)
        codes = tensors["codes"]
        ids = tensors["ids"] if "ids" in tensors else tensors["first_id"]
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{location}: not a readable index shard: {error}") from None
    if codes.dtype != np.uint8 or codes.ndim != 2 or ids.dtype != np.int64 or ids.ndim != 1:
        raise DataError(
            f"{location}: codes {codes.dtype} {codes.shape}, ids {ids.dtype} {ids.shape}: not an index shard"
        )
    if 8 * codes.shape[1] != bits:
        raise ManifestMismatch(f"{location}: codes of {8 * codes.shape[1]} bits, its manifest says {bits}")
    num_ids = len(ids) if "ids" in tensors else len(codes)
    if not len(codes) == num_ids == entry.stored:
        raise ManifestMismatch(f"{location}: {len(codes)} codes and {num_ids} ids, its manifest says {entry.stored}")
    if not ascending(ids):
        raise DataError(f"{location}: ids are not ascending, unique and at least 0")
    if "ids" in tensors:
        return codes, compact(ids)
    if len(ids) != 1:
        raise DataError(f"{location}: {len(ids)} first ids: not an index shard")
    return codes, range(int(ids[0]), int(ids[0]) + len(codes))


def _mapped(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors where they lie in a verified file, read-only; the maps outlive its path.

    Processes of one machine that hold the same shard share its memory.
    """
    with safe_open(path, framework="numpy"):  # which refuses whatever is not such a file
        pass
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {name: _tensor(path, 8 + size, described) for name, described in header.items() if name != "__metadata__"}


def _tensor(path: Path, start: int, described: dict[str, Any]) -> npt.NDArray[Any]:
    dtype: np.dtype[Any] | None = _DTYPES.get(described["dtype"])
    if dtype is None:
        raise ValueError(f"values of {described['dtype']}, expected {' or '.join(_DTYPES)}")
    if not all(described["shape"]):
        return np.empty(described["shape"], dtype)
    offset = start + described["data_offsets"][0]
    return np.memmap(path, dtype, "r", offset, tuple(described["shape"]))


def _read_rows(path: Path, location: str, ids: AscendingIds) -> list[pa.RecordBatch]:
    """The batches of a verified rows file, memory-mapped: the map outlives the path."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{location}: not a readable Arrow file: {error}") from None
    if not reader.schema.equals(ROW_SCHEMA):
        raise DataError(f"{location}: columns {', '.join(reader.schema.names)}, expected {', '.join(ROW_SCHEMA.names)}")
    found = sum(batch.num_rows for batch in batches)
    if found != len(ids):
        raise ManifestMismatch(f"{location}: {found} rows, its codes file has {len(ids)}")
    if not _has_ids(path, ids):
        raise ManifestMismatch(f"{location}: ids differ from those of its codes file")
    return batches


def _has_ids(path: Path, ids: AscendingIds) -> bool:
    """Whether the rows have these ids; read beside the map, of which a column once looked at would stay in memory."""
    start = 0
    with pa.OSFile(str(path)) as source:
        reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=[0]))
        for number in range(reader.num_record_batches):
            found = reader.get_batch(number)["id"].to_numpy()
            if not np.array_equal(found, as_array(ids, start, start + len(found))):
                return False
            start += len(found)
    return True


def _visible_rows(batches: list[pa.RecordBatch], visible: npt.NDArray[np.bool_]) -> list[pa.RecordBatch]:
    """The visible rows: slices of the mapped batches, so nothing is copied but what would be in too many pieces."""
    kept, start = [], 0
    for batch in batches:
        mask = visible[start : start + batch.num_rows]
        start += batch.num_rows
        turns = np.flatnonzero(np.diff(mask, prepend=False, append=False))
        if np.count_nonzero(mask) < _LEAST_RUN * (len(turns) // 2):
            kept.append(batch.filter(pa.array(mask)))
        else:
            kept += [batch.slice(first, end - first) for first, end in turns.reshape(-1, 2).tolist()]
    return kept
