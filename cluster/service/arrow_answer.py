"""Bulk answers as Arrow IPC streams: one row per neighbor, the coverage in the schema's metadata.

Knows nothing of HTTP and Ray. Columns: query int32, id int64, distance int32, ordered by (query, distance, id).
"""

import numpy as np
import pyarrow as pa

from cibhash.types import RangeNeighbors
from cluster.service.schema import Coverage

METADATA = b"cibhash"
_QUERIES = b"queries"


def code_stream(codes: pa.Array) -> bytes:
    """The request table: packed codes as the fixed-size binary column `code`."""
    return _stream(pa.table({"code": codes}))


def write_answer(found: RangeNeighbors, coverage: Coverage) -> bytes:
    """The answer table of all neighbors found, as an Arrow IPC stream."""
    num_queries = len(found.limits) - 1
    queries = np.repeat(np.arange(num_queries, dtype=np.int32), np.diff(found.limits))
    table = pa.table({"query": queries, "id": found.ids, "distance": found.distances.astype(np.int32, copy=False)})
    metadata = {METADATA: coverage.model_dump_json().encode(), _QUERIES: str(num_queries).encode()}
    return _stream(table.replace_schema_metadata(metadata))


def read_answer(body: bytes) -> tuple[RangeNeighbors, Coverage]:
    """What `write_answer` wrote.

    Raises:
        ValueError: not such a stream.
    """
    try:
        table = pa.ipc.open_stream(body).read_all()
        metadata = table.schema.metadata or {}
        coverage = Coverage.model_validate_json(metadata[METADATA])
        queries, ids, distances = (table[name].to_numpy() for name in ("query", "id", "distance"))
        limits = np.searchsorted(queries, np.arange(int(metadata[_QUERIES]) + 1)).astype(np.int64)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"not an Arrow answer: {' '.join(str(error).split())[:200]}") from None
    return RangeNeighbors(limits, ids.astype(np.int64), distances.astype(np.int32)), coverage


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())
