"""Code tables in Parquet: the schema, parts written from and read into arrays, labels as arrays.

Knows nothing of encoders and Ray. Parts are read only through a `CodeManifest` and verified before use.
"""

import hashlib
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cibhash.binary import prefix
from cibhash.errors import DataError
from cibhash.types import Codes, Ids, Labels
from cluster import storage
from cluster.manifests import CodePart, ListedFile, read_verified

QUARANTINE_SCHEMA = pa.schema(
    [("id", pa.int64()), ("key", pa.string()), ("shard", pa.string()), ("stage", pa.string()), ("reason", pa.string())]
)


TOMBSTONE_SCHEMA = pa.schema(
    [("id", pa.int64()), ("key", pa.string()), ("last_version", pa.string()), ("reason", pa.string())]
)


def code_schema(bits: int, features: int = 0, *, logits: bool = False) -> pa.Schema:
    """The columns of a part; `features` > 0 adds that many float32 values per row, `logits` one per bit."""
    fields = [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("code", pa.binary(bits // 8), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int32(), nullable=False),
    ]
    if features:
        fields.append(pa.field("features", pa.list_(pa.float32(), features), nullable=False))
    if logits:
        fields.append(pa.field("logits", pa.list_(pa.float32(), bits), nullable=False))
    return pa.schema(fields)


def packed_array(codes: Codes) -> pa.Array:
    """Packed codes uint8 (N, B/8) as a fixed-size binary array, without a copy per row."""
    codes = np.ascontiguousarray(codes)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(codes.shape[1]), len(codes), [None, pa.py_buffer(codes)])


def vector_array(vectors: npt.NDArray[np.float32]) -> pa.Array:
    """Features or logits, float32 (N, D), as a fixed-size list array."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as one Parquet file; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, use_dictionary=["shard"])
    return sink.getvalue()


def write_listed(base: str, path: str, content: bytes) -> ListedFile:
    """Writes a file below `base` and returns what a manifest says of it."""
    storage.write_bytes(storage.join(base, path), content)
    return ListedFile(path=path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def read_part(uri: str, part: CodePart, columns: Sequence[str] | None = None) -> pa.Table:
    """One part of the code table at `uri`, verified against its digest.

    Raises:
        ManifestMismatch: the file is not the one that was committed.
        DataError: the file is not Parquet, or its rows are not as many as listed.
    """
    location = storage.join(uri, part.path)
    content = read_verified(uri, part)
    try:
        table = pq.read_table(
            pa.BufferReader(content), columns=list(columns) if columns else None, page_checksum_verification=True
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{location}: not a readable Parquet part: {error}") from None
    if table.num_rows != part.rows:
        raise DataError(f"{location}: {table.num_rows} rows, its manifest says {part.rows}")
    return table


def ids_of(table: pa.Table) -> Ids:
    """The column `id` as int64 (N,)."""
    return np.asarray(table["id"].to_numpy(), dtype=np.int64)


def codes_of(table: pa.Table, bits: int = 0) -> Codes:
    """The column `code` as packed uint8 (N, bits/8); `bits` takes a prefix, 0 the whole code."""
    column = table["code"].combine_chunks()
    width = column.type.byte_width
    buffer = column.buffers()[1]
    if not len(column) or buffer is None:
        return np.empty((0, (bits or width * 8) // 8), np.uint8)
    flat = np.frombuffer(buffer, np.uint8)[column.offset * width :][: len(column) * width]
    codes = flat.reshape(-1, width)
    return prefix(codes, bits) if bits else codes


def features_of(table: pa.Table) -> npt.NDArray[np.float32]:
    """The column `features` as float32 (N, D)."""
    return _vectors_of(table, "features")


def logits_of(table: pa.Table) -> npt.NDArray[np.float32]:
    """The column `logits` as float32 (N, B)."""
    return _vectors_of(table, "logits")


def label_lists(table: pa.Table) -> tuple[Ids, Ids]:
    """The column `labels` as (limits int64 (N + 1,), values int64): image i has `values[limits[i]:limits[i + 1]]`."""
    column = table["labels"].combine_chunks()
    lengths = np.asarray(column.value_lengths().to_numpy(zero_copy_only=False), np.int64)
    limits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return limits, np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.int64)


def label_arrays(*lists: tuple[Ids, Ids]) -> list[Labels]:
    """Label lists of several tables in one common form.

    Returns:
        Per table int64 (N,), -1 for none, where no image of any table has two labels; else bool (N, C) over the
        labels that occur.
    """
    if all(np.diff(limits).max(initial=0) <= 1 for limits, _ in lists):
        singles: list[Labels] = []
        for limits, values in lists:
            single = np.full(len(limits) - 1, -1, np.int64)
            single[np.diff(limits) == 1] = values
            singles.append(single)
        return singles
    vocabulary = np.unique(np.concatenate([values for _, values in lists]))
    several: list[Labels] = []
    for limits, values in lists:
        matrix = np.zeros((len(limits) - 1, len(vocabulary)), np.bool_)
        matrix[np.repeat(np.arange(len(limits) - 1), np.diff(limits)), np.searchsorted(vocabulary, values)] = True
        several.append(matrix)
    return several


def _vectors_of(table: pa.Table, name: str) -> npt.NDArray[np.float32]:
    column = table[name].combine_chunks()
    return np.asarray(column.flatten().to_numpy(), dtype=np.float32).reshape(len(column), column.type.list_size)
