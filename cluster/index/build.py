"""Builds a new index version from code tables: rows ordered by id, dealt to shards, published.

Knows nothing of encoders and search. One Ray task writes one index shard, from the parts whose ids reach into it. A
shard's files depend on its rows alone, so a task may run twice, and the index does not depend on tables, parts or
tasks.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray

from cibhash.errors import ConfigError, DataError, ManifestMismatch
from cibhash.types import Ids
from cluster import storage
from cluster.code_tables import code_schema, ids_of, read_part
from cluster.code_versions import open_codes
from cluster.config import IndexConfig
from cluster.index.shard_files import write_shard_files
from cluster.index.versions import publish
from cluster.manifests import CodeManifest, CodePart, CodeTableRef, IndexManifest, IndexShardEntry, same_encoder
from cluster.runtime import ray_session
from cluster.telemetry import progress
from cluster.versions import next_version

_NAMED_IDS = 5


@dataclass(frozen=True)
class IndexResult:
    """What an index build made; after a dry run, what it would make."""

    index_uri: str
    version: str
    """Name of the published version; "" after a dry run."""
    encoder_digest: str
    bits: int
    count: int
    """Codes over all shards."""
    shards: int
    bytes: int
    """Size of all shard files; 0 after a dry run."""


@dataclass(frozen=True)
class _Source:
    """A part of a code table, with what its rows need."""

    table_uri: str
    dataset_uri: str
    part: CodePart


@dataclass(frozen=True)
class _ShardPlan:
    """The rows with `first_id <= id < end_id`, and the parts they lie in."""

    number: int
    first_id: int
    end_id: int
    count: int
    sources: tuple[_Source, ...]


def build_index(config: IndexConfig) -> IndexResult:
    """Builds and publishes a new version; a build that dies leaves the current version as it was.

    Tables without a row make an index of one empty shard, whatever `shards` is.

    Raises:
        ConfigError: no code table is named, one is named twice, or there are more shards than rows.
        ManifestMismatch: tables of different encoders or code lengths, or a part that is not what its manifest says.
        DataError: an id occurs twice, or the rows are not as many as the manifests say.
        AlreadyExists: another build published the same version first.
    """
    tables = _open_tables(config.codes)
    uri, first = storage.absolute(config.output), next(iter(tables.values()))
    count = sum(table.rows_out for table in tables.values())
    num_shards = config.shards if count else 1
    if num_shards > max(count, 1):
        raise ConfigError(f"{config.shards} shards for {count} rows of {config.codes}: at most one shard per row")
    if config.dry_run:
        return IndexResult(uri, "", first.encoder_digest, first.bits, count, num_shards, 0)
    version = next_version(uri, IndexManifest.file_name)
    with ray_session(config.ray):
        entries = _write_shards(storage.join(uri, version), _plan(tables, num_shards), first.bits)
    written = sum(entry.count for entry in entries)
    if written != count:
        raise DataError(f"{config.codes}: {written} rows reached the index, the manifests say {count}")
    manifest = IndexManifest(
        version=version,
        encoder_digest=first.encoder_digest,
        encoder_uri=first.encoder_uri,
        code_tables=tuple(CodeTableRef(uri=uri, digest=table.digest) for uri, table in tables.items()),
        bits=first.bits,
        prefixes=first.prefixes,
        kind=config.kind,
        shards=tuple(entries),
    )
    publish(uri, manifest)
    num_bytes = sum(entry.codes.bytes + entry.rows.bytes for entry in entries)
    return IndexResult(uri, version, first.encoder_digest, first.bits, count, num_shards, num_bytes)


def _open_tables(names: str) -> dict[str, CodeManifest]:
    """The manifests by URI, of one encoder and code length, whose parts add up."""
    uris = [storage.absolute(name.strip()) for name in names.split(",") if name.strip()]
    if not uris:
        raise ConfigError("codes: at least one code table is needed")
    if len(set(uris)) < len(uris):
        raise ConfigError(f"codes: {names}: a code table is named twice")
    tables = {uri: open_codes(uri) for uri in uris}
    same_encoder(*((uri, table.encoder_digest) for uri, table in tables.items()))
    for uri, table in tables.items():
        if table.bits != tables[uris[0]].bits:
            raise ManifestMismatch(f"{uri} has codes of {table.bits} bits, but {uris[0]} of {tables[uris[0]].bits}")
        rows = sum(part.rows for part in table.parts)
        if rows != table.rows_out:
            raise DataError(f"{uri}: its parts have {rows} rows, but it has {table.rows_out}")
    return tables


def _plan(tables: dict[str, CodeManifest], num_shards: int) -> list[_ShardPlan]:
    """Contiguous ranges of ids whose numbers of rows differ by at most one."""
    sources = sorted(
        (
            _Source(uri, storage.absolute(table.dataset_uri), part)
            for uri, table in tables.items()
            for part in table.parts
            if part.rows
        ),
        key=lambda source: source.part.min_id,
    )
    if not sources:
        return [_ShardPlan(0, 0, 0, 0, ())]
    count = sum(source.part.rows for source in sources)
    ranks = [count * number // num_shards for number in range(num_shards + 1)]
    cuts = [sources[0].part.min_id, *_ids_at(sources, ranks[1:-1]), max(source.part.max_id for source in sources) + 1]
    return [
        _ShardPlan(
            number,
            cuts[number],
            cuts[number + 1],
            ranks[number + 1] - ranks[number],
            tuple(s for s in sources if s.part.min_id < cuts[number + 1] and s.part.max_id >= cuts[number]),
        )
        for number in range(num_shards)
    ]


def _ids_at(sources: list[_Source], ranks: list[int]) -> Iterable[int]:
    """The ids at some ascending ranks in the order of all ids; reads only parts whose manifest does not tell."""
    start, remaining = 0, list(ranks)
    for group in _overlapping(sources):
        rows = sum(source.part.rows for source in group)
        inside = [rank - start for rank in remaining if rank < start + rows]
        first = group[0].part
        if len(group) == 1 and first.max_id - first.min_id + 1 == rows:
            yield from (first.min_id + rank for rank in inside)
        elif inside:
            ids = np.sort(np.concatenate([ids_of(read_part(s.table_uri, s.part, ["id"])) for s in group]))
            yield from ids[inside].tolist()
        start, remaining = start + rows, remaining[len(inside) :]


def _overlapping(sources: list[_Source]) -> list[list[_Source]]:
    """Groups of parts, in the order of their ids, such that parts of different groups share no range of ids."""
    groups: list[list[_Source]] = []
    end = -1
    for source in sources:
        if not groups or source.part.min_id > end:
            groups.append([])
        groups[-1].append(source)
        end = max(end, source.part.max_id)
    return groups


def _write_shards(base_uri: str, plans: list[_ShardPlan], bits: int) -> list[IndexShardEntry]:
    task = ray.remote(_write_shard)
    entries: dict[int, IndexShardEntry] = {}
    with progress("index", sum(plan.count for plan in plans), "rows") as line:
        running = {
            task.options(name=f"index-shard-{plan.number:05d}").remote(base_uri, plan, bits): plan.number
            for plan in plans
        }
        while running:
            ready, _ = ray.wait(list(running), num_returns=1)
            entry = ray.get(ready[0])
            entries[running.pop(ready[0])] = entry
            line.advance(entry.count)
    return [entries[plan.number] for plan in plans]


def _write_shard(base_uri: str, plan: _ShardPlan, bits: int) -> IndexShardEntry:
    """Runs as a Ray task: reads the rows of one shard, checks and orders them, writes its files."""
    pieces = [_read_rows(source, plan.first_id, plan.end_id) for source in plan.sources]
    table = pa.concat_tables([code_schema(bits).empty_table(), *pieces])
    ids = ids_of(table)
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    _refuse_repeated(ids, plan)
    if len(ids) != plan.count:
        raise DataError(
            f"index shard {plan.number}: {len(ids)} rows with ids {plan.first_id} to {plan.end_id - 1}, "
            f"the manifests of its code tables say {plan.count}"
        )
    if not np.array_equal(order, np.arange(len(order))):
        table = table.take(pa.array(order))
    return write_shard_files(base_uri, plan.number, table, bits)


def _refuse_repeated(ids: Ids, plan: _ShardPlan) -> None:
    repeated = np.unique(ids[1:][ids[1:] == ids[:-1]])
    if len(repeated):
        named = ", ".join(map(str, repeated[:_NAMED_IDS])) + (", ..." if len(repeated) > _NAMED_IDS else "")
        tables = ", ".join(sorted({source.table_uri for source in plan.sources}))
        raise DataError(f"{len(repeated)} ids occur more than once ({named}) in {tables}")


def _read_rows(source: _Source, first_id: int, end_id: int) -> pa.Table:
    """The rows of a part with `first_id <= id < end_id`, their tar shards as absolute URIs."""
    part = source.part
    table = read_part(source.table_uri, part, code_schema(8).names)
    ids = ids_of(table)
    if (int(ids.min()), int(ids.max())) != (part.min_id, part.max_id):
        raise ManifestMismatch(
            f"{storage.join(source.table_uri, part.path)}: ids {ids.min()} to {ids.max()}, "
            f"its manifest says {part.min_id} to {part.max_id}"
        )
    table = table.filter(pa.array((ids >= first_id) & (ids < end_id)))
    shards = table["shard"].combine_chunks().dictionary_encode()
    uris = [storage.join(source.dataset_uri, shard) for shard in shards.dictionary.to_pylist()]
    column = table.schema.get_field_index("shard")
    return table.set_column(column, table.schema.field("shard"), pa.array(uris, pa.string()).take(shards.indices))
