"""Neighbor tables in Parquet: the schema, the manifest, and parts with a record that lets a rerun keep them.

Knows nothing of Ray and of how neighbors are found. Layout, movable as a whole:

    parts/part-000000.parquet   one per query part, rows in its order: query_id, query_key, ids, distances
    parts/part-000000.json      what the part was made from, and its digest
    neighbors.json              the manifest, written last and create-only
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from cibhash.errors import NotFound
from cibhash.types import Neighbors
from cluster import storage
from cluster.code_tables import parquet_bytes, write_listed
from cluster.manifests import ListedFile, Manifest
from cluster.telemetry import log

NEIGHBOR_SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.int64(), nullable=False),
        pa.field("query_key", pa.string(), nullable=False),
        pa.field("ids", pa.list_(pa.int64()), nullable=False),
        pa.field("distances", pa.list_(pa.int32()), nullable=False),
    ]
)


class NeighborPart(ListedFile):
    """One Parquet file of neighbors, made from one query part."""

    rows: int


class NeighborManifest(Manifest):
    """`neighbors.json`: the neighbors of all rows of a code table, complete."""

    file_name: ClassVar[str] = "neighbors.json"
    noun: ClassVar[str] = "neighbor table"
    format: Literal["cibhash-neighbors-1"] = "cibhash-neighbors-1"
    encoder_digest: str
    queries_uri: str
    queries_digest: str
    """Digest of the query code table."""
    index_uri: str
    index_version: str
    index_digest: str
    k: int
    """Neighbors asked for; every query has min(k, codes in the index)."""
    rows: int
    """Queries."""
    parts: tuple[NeighborPart, ...]


class PartInputs(BaseModel):
    """What decides the content of a part."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    query_sha256: str
    """Digest of the query part."""
    index_version: str
    index_digest: str
    k: int


class PartRecord(BaseModel):
    """A finished part."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    inputs: PartInputs
    part: NeighborPart


def neighbor_table(queries: pa.Table, blocks: Sequence[Neighbors]) -> pa.Table:
    """The rows of a part.

    Args:
        queries: Code-table rows with the columns `id` and `key`.
        blocks: Neighbors of consecutive queries, together those of all; a block is one chunk of the lists.
    """
    ids, distances = [], []
    for block in blocks:
        num_queries, k = block.ids.shape
        limits = pa.array(np.arange(num_queries + 1, dtype=np.int32) * np.int32(k))
        ids.append(pa.ListArray.from_arrays(limits, pa.array(block.ids.reshape(-1))))
        distances.append(pa.ListArray.from_arrays(limits, pa.array(block.distances.reshape(-1))))
    lists = [
        pa.chunked_array(chunks, NEIGHBOR_SCHEMA.field(name).type)
        for name, chunks in (("ids", ids), ("distances", distances))
    ]
    return pa.table([queries["id"], queries["key"], *lists], schema=NEIGHBOR_SCHEMA)


def write_part(uri: str, number: int, inputs: PartInputs, table: pa.Table) -> NeighborPart:
    """Writes a part and then its record; both may be written twice."""
    listed = write_listed(uri, _path(number, "parquet"), parquet_bytes(table))
    part = NeighborPart(**listed.model_dump(), rows=table.num_rows)
    record = PartRecord(inputs=inputs, part=part)
    storage.write_bytes(storage.join(uri, _path(number, "json")), f"{record.model_dump_json(indent=1)}\n".encode())
    return part


def finished_part(uri: str, number: int, inputs: PartInputs) -> NeighborPart | None:
    """A part that an earlier run made from the same inputs, if it is still as it was written."""
    location = storage.join(uri, _path(number, "json"))
    try:
        record = PartRecord.model_validate_json(storage.read_bytes(location))
        found = storage.sha256_of(storage.join(uri, record.part.path))
    except NotFound:
        return None
    except ValidationError:
        log("part is made again: its record is broken", record=location)
        return None
    if record.inputs != inputs or found != (record.part.sha256, record.part.bytes):
        log("part is made again: its inputs or content differ from its record", record=location)
        return None
    return record.part


def _path(number: int, suffix: str) -> str:
    return f"parts/part-{number:06d}.{suffix}"
