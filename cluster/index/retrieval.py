"""Neighbors of every row of a code table, Parquet to Parquet, through the index shards and without the service.

Knows nothing of images and HTTP. One Ray actor holds each index shard; one task per query part asks all of them,
merges and writes a part of the neighbor table. Every query has min(k, codes in the index) neighbors, ordered by
(distance, id); an approximate kind of index may miss some of the nearest. A task that runs twice writes the same bytes;
an actor that dies is started again and loads its shard anew; a run that dies is continued by the next one.
"""

import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from cibhash.errors import AlreadyExists, DataError, ManifestMismatch, NotFound
from cibhash.types import Codes, Neighbors
from cluster import storage
from cluster.code_tables import codes_of, read_part
from cluster.code_versions import open_codes
from cluster.index.kinds import IndexKind
from cluster.index.merge import merge_neighbors
from cluster.index.neighbor_tables import (
    NeighborManifest,
    NeighborPart,
    PartInputs,
    finished_part,
    neighbor_table,
    write_part,
)
from cluster.index.shard_index import ShardIndex
from cluster.index.versions import OpenIndex, open_index
from cluster.index_config import RetrieveConfig
from cluster.manifests import CodeManifest, CodePart, IndexShardEntry, create_manifest, load_manifest, same_encoder
from cluster.runtime import ray_session, require_gpu, require_resources
from cluster.telemetry import progress

_PARTS_IN_FLIGHT = 4
_NEIGHBORS_PER_CALL = 2**20
_RESTARTS = 3


@dataclass(frozen=True)
class RetrieveResult:
    """What a retrieval wrote; after a dry run, what it would write."""

    neighbors_uri: str
    """The output directory."""
    rows: int
    """Queries."""
    k: int
    """Neighbors asked for; a query has fewer where the index has."""
    parts: int
    parts_reused: int
    """Parts that an earlier run had finished; 0 after a dry run that found none complete."""
    index_version: str
    encoder_digest: str


@dataclass(frozen=True)
class _Request:
    """All that the tasks of one retrieval need to know."""

    output_uri: str
    queries_uri: str
    bits: int
    k: int
    kept: int
    """Neighbors that every query gets: min(k, codes in the index)."""
    index_version: str
    index_digest: str

    def part_inputs(self, source: CodePart) -> PartInputs:
        return PartInputs(
            query_sha256=source.sha256, index_version=self.index_version, index_digest=self.index_digest, k=self.k
        )


def retrieve(config: RetrieveConfig) -> RetrieveResult:
    """Writes the neighbors of all queries; parts that an earlier run finished are verified and kept.

    A neighbor table that is complete and of the same inputs is returned as it is.

    Raises:
        ConfigError: there are no GPUs for the shards, or the index is not of a kind that is searched on them.
        ManifestMismatch: queries and index are of different encoders, or OUTPUT has neighbors of other inputs.
        DataError: the query parts do not add up, or a file is broken.
    """
    index, queries_uri = open_index(config.index), storage.absolute(config.queries)
    queries = _open_queries(queries_uri, index)
    request = _Request(
        output_uri=storage.absolute(config.output),
        queries_uri=queries_uri,
        bits=index.manifest.bits,
        k=config.k,
        kept=min(config.k, index.manifest.count),
        index_version=index.manifest.version,
        index_digest=index.digest,
    )
    is_finished = _is_finished(request, queries.digest)
    reused = len(queries.parts) if is_finished else 0
    if not is_finished and config.use_gpu:
        index.manifest.spec.check_device(index.uri, config.device)
        require_gpu(config.ray)
    if not is_finished and not config.dry_run:
        with ray_session(config.ray):
            parts, reused = _retrieve_parts(request, queries.parts, index, config)
        _commit(request, queries, index, parts)
    return RetrieveResult(
        neighbors_uri=request.output_uri,
        rows=queries.rows_out,
        k=request.k,
        parts=len(queries.parts),
        parts_reused=reused,
        index_version=request.index_version,
        encoder_digest=queries.encoder_digest,
    )


def _open_queries(uri: str, index: OpenIndex) -> CodeManifest:
    queries = open_codes(uri)
    same_encoder((index.base_uri, index.manifest.encoder_digest), (uri, queries.encoder_digest))
    if queries.bits != (bits := index.manifest.code_bits):
        raise ManifestMismatch(f"{uri} has codes of {queries.bits} bits, but {index.base_uri} is of codes of {bits}")
    rows = sum(part.rows for part in queries.parts)
    if rows != queries.rows_out:
        raise DataError(f"{uri}: its parts have {rows} rows, but it has {queries.rows_out}")
    return queries


def _is_finished(request: _Request, queries_digest: str) -> bool:
    """Whether an earlier run with the same inputs committed its neighbor table."""
    try:
        found = load_manifest(NeighborManifest, request.output_uri)
    except NotFound:
        return False
    was = (found.queries_digest, found.index_version, found.index_digest, found.k)
    wanted = (queries_digest, request.index_version, request.index_digest, request.k)
    if was != wanted:
        raise ManifestMismatch(
            f"{request.output_uri} already has the neighbors of other inputs: {_inputs(*was)}; "
            f"asked for: {_inputs(*wanted)}; choose another output"
        )
    return True


def _inputs(queries_digest: str, index_version: str, index_digest: str, k: int) -> str:
    return f"queries {queries_digest[:16]}..., index {index_version} {index_digest[:16]}..., k {k}"


def _commit(request: _Request, queries: CodeManifest, index: OpenIndex, parts: list[NeighborPart]) -> None:
    rows = sum(part.rows for part in parts)
    if rows != queries.rows_out:
        raise DataError(f"{request.output_uri}: neighbors of {rows} queries, expected {queries.rows_out}")
    manifest = NeighborManifest(
        encoder_digest=queries.encoder_digest,
        queries_uri=request.queries_uri,
        queries_digest=queries.digest,
        index_uri=index.uri,
        index_version=request.index_version,
        index_digest=request.index_digest,
        k=request.k,
        rows=rows,
        parts=tuple(parts),
    )
    try:
        create_manifest(request.output_uri, manifest)
    except AlreadyExists:
        if not _is_finished(request, queries.digest):
            raise


def _retrieve_parts(
    request: _Request, sources: tuple[CodePart, ...], index: OpenIndex, config: RetrieveConfig
) -> tuple[list[NeighborPart], int]:
    """All parts in the order of the query parts, and how many of them were there already."""
    with progress("retrieve", sum(source.rows for source in sources), "queries") as line:
        done: dict[int, NeighborPart] = {}
        for number, source in enumerate(sources):
            if part := finished_part(request.output_uri, number, request.part_inputs(source)):
                done[number] = part
                line.advance(part.rows)
        reused = len(done)
        todo = [number for number in range(len(sources)) if number not in done]
        actors = _start_shards(index, config) if todo and request.kept else []
        task, running = ray.remote(_retrieve_part), dict[Any, int]()
        try:
            while todo or running:
                while todo and len(running) < _PARTS_IN_FLIGHT:
                    number = todo.pop(0)
                    named = task.options(name=f"retrieve-{number:06d}")
                    running[named.remote(request, number, sources[number], actors)] = number
                ready, _ = ray.wait(list(running), num_returns=1)
                part = ray.get(ready[0])
                done[running.pop(ready[0])] = part
                line.advance(part.rows)
        finally:
            for actor in actors:
                ray.kill(actor)
    return [done[number] for number in range(len(sources))], reused


class _ShardActor:
    """One index shard, loaded once; by a method, so that a caller sees why it cannot be loaded."""

    def __init__(self, base_uri: str, entry: IndexShardEntry, bits: int, kind: IndexKind, device: str) -> None:
        self._source, self._kind, self._device = (base_uri, entry, bits), kind, device
        self._index: ShardIndex | None = None

    def search(self, codes: Codes, k: int) -> Neighbors:
        if self._index is None:
            self._index = ShardIndex.load(*self._source, kind=self._kind, device=self._device)
        return self._index.search(codes, k)


def _start_shards(index: OpenIndex, config: RetrieveConfig) -> list[Any]:
    """One actor per index shard; they reserve no CPU, so that more shards than CPUs cannot block the tasks."""
    if config.use_gpu:
        require_resources(config.ray, "index shards", len(index.manifest.shards), cpus=0.0, gpus=config.num_gpus)
    actor, run = ray.remote(_ShardActor), uuid.uuid4().hex[:8]
    return [
        actor.options(
            name=f"index-shard-{number:05d}-{run}",
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
            scheduling_strategy="SPREAD",
            num_gpus=config.num_gpus,
        ).remote(index.base_uri, entry, index.manifest.bits, index.manifest.kind, config.device)
        for number, entry in enumerate(index.manifest.shards)
    ]


def _retrieve_part(request: _Request, number: int, source: CodePart, actors: list[Any]) -> NeighborPart:
    """Runs as a Ray task: the neighbors of one query part, written and recorded."""
    queries = read_part(request.queries_uri, source, ["id", "key", "code"])
    codes = codes_of(queries, request.bits)
    step = max(1, _NEIGHBORS_PER_CALL // max(request.kept, 1))
    blocks = [_nearest(codes[start : start + step], request.kept, actors) for start in range(0, len(codes), step)]
    table = neighbor_table(queries, blocks)
    return write_part(request.output_uri, number, request.part_inputs(source), table)


def _nearest(codes: Codes, kept: int, actors: list[Any]) -> Neighbors:
    if not kept:
        return Neighbors(np.empty((len(codes), 0), np.int64), np.empty((len(codes), 0), np.int32))
    return merge_neighbors(ray.get([actor.search.remote(codes, kept) for actor in actors]), kept)
