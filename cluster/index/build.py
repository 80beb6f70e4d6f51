"""The index job: publishes a new version built from code tables, or one that follows from the current version.

Knows nothing of encoders and search. Fresh shards hold the rows ordered by id, in contiguous ranges. How a version
follows changed tables is in `append`; compacting is a fresh build from the table versions that the index records.
"""

from collections.abc import Mapping

from cibhash.errors import ConfigError, DataError
from cluster import storage
from cluster.code_versions import open_codes
from cluster.config import RayConfig
from cluster.drift.left_beside import findings_of
from cluster.index.append import append_to_index
from cluster.index.index_result import IndexResult, planned, published
from cluster.index.kinds import KindSpec
from cluster.index.recorded_tables import recorded_tables
from cluster.index.shard_plans import plan_shards, rows_per_shard
from cluster.index.shard_writing import write_shards
from cluster.index.sources import check_tables, sources_of, table_uris
from cluster.index.versions import open_current, open_index, publish, switch
from cluster.index_config import IndexConfig
from cluster.manifests import CodeManifest, CodeTableRef, IndexManifest
from cluster.runtime import ray_session
from cluster.telemetry import log
from cluster.versions import next_version


def build_index(config: IndexConfig) -> IndexResult:
    """Publishes a new version; a job that dies leaves the current version as it was.

    Tables without a row make an index of one empty shard, whatever `shards` is.

    Raises:
        ConfigError: no code table is named, one is named twice, there are more shards than rows or fewer bits than are
            to be indexed, or the kind cannot hold codes of this length; with `append` and `compact`, the index is of
            another kind.
        ManifestMismatch: tables of different encoders or code lengths, or a part that is not what its manifest says.
        DataError: an id occurs twice, or the rows are not as many as the manifests say.
        NotFound: with `append` and `compact`, there is no index, or a table version that it was built from is gone;
            with `switch`, there is no such version.
        AlreadyExists: another job published the same version first, or moved CURRENT while this one followed it.
    """
    if config.switch:
        _say_drift(config.output, config.switch)
        opened = open_index(config.output, config.switch) if config.dry_run else switch(config.output, config.switch)
        return published(opened.uri, opened.manifest)
    if config.append:
        return append_to_index(config)
    return _compact(config) if config.compact else _build(config)


def _say_drift(output: str, version: str) -> None:
    """Logs what is known of the encoders of the current version and of another one, where they differ."""
    before, after = (open_index(output, name).manifest.encoder_digest for name in ("", version))
    found = findings_of(storage.absolute(output), before, after)
    if found is not None:
        log(f"switch: {found.verdict}", old=before[:16], new=after[:16])
    elif before != after:
        log(
            "switch: to another encoder; `cibhash drift` would say what changes",
            old=before[:16],
            new=after[:16],
        )


def _build(config: IndexConfig) -> IndexResult:
    uri = storage.absolute(config.output)
    tables = {table_uri: open_codes(table_uri) for table_uri in table_uris(config.codes)}
    check_tables(tables)
    first = next(iter(tables.values()))
    count, bits = _rows(tables), _length(config, first)
    manifest = IndexManifest(
        version="",
        encoder_digest=first.encoder_digest,
        encoder_uri=first.encoder_uri,
        code_tables=(),
        bits=bits,
        prefixes=first.prefixes,
        kind=config.kind,
        parameters=config.parameters,
        bare=not config.rows,
        shards=(),
    )
    manifest.spec.check(next(iter(tables)), bits)
    num_shards = _num_shards(config, count, bits) or 1
    if config.dry_run:
        return planned(uri, manifest, count, num_shards)
    return _publish_fresh(uri, manifest, tables, num_shards, config.ray)


def _compact(config: IndexConfig) -> IndexResult:
    uri = storage.absolute(config.output)
    index, pointer = open_current(uri)
    manifest, tables = index.manifest, recorded_tables(index)
    manifest.spec.check_kept(uri, KindSpec(config.kind, config.parameters))
    check_tables(tables, like=(index.base_uri, manifest.encoder_digest, manifest.code_bits))
    count = _rows(tables)
    if count != manifest.count:
        raise DataError(f"{index.base_uri}: has {manifest.count} rows, its code tables {count}: build the index anew")
    largest = max((entry.stored for entry in manifest.shards), default=0)
    num_shards = _num_shards(config, count, manifest.bits) or -(-count // max(largest, 1)) or 1
    is_fresh = not any(entry.version or entry.hidden for entry in manifest.shards)
    if is_fresh and num_shards == len(manifest.shards):
        log("index: already compact", index=uri, version=manifest.version)
        return published(uri, manifest)
    if config.dry_run:
        return planned(uri, manifest, count, num_shards)
    return _publish_fresh(uri, manifest, tables, num_shards, config.ray, pointer)


def _length(config: IndexConfig, table: CodeManifest) -> int:
    """How many bits of the codes are indexed."""
    bits = config.bits or table.bits
    if bits > table.bits:
        raise ConfigError(f"{bits} bits: the codes of {config.codes} have {table.bits}")
    if bits not in table.prefixes:
        log(f"index: the encoder was not trained for prefixes of {bits} bits", codes=config.codes)
    return bits


def _num_shards(config: IndexConfig, count: int, bits: int) -> int:
    """The number of shards that the config asks for; 0 where it leaves that open."""
    if not count:
        return 1
    if config.bytes_per_shard:
        return -(-count // rows_per_shard(config.shard_bytes, bits))
    if config.shards is not None and config.shards > count:
        raise ConfigError(
            f"{config.shards} shards for {count} rows of {config.codes or config.output}: at most one shard per row"
        )
    return config.shards or 0


def _publish_fresh(
    uri: str,
    manifest: IndexManifest,
    tables: Mapping[str, CodeManifest],
    num_shards: int,
    ray: RayConfig,
    pointer: bytes | None = None,
) -> IndexResult:
    """Publishes a version like `manifest` with all rows of the tables in shards of its own."""
    version = next_version(uri, IndexManifest.file_name)
    with ray_session(ray):
        plans = plan_shards(sources_of(tables), num_shards)
        entries = write_shards(storage.join(uri, version), plans, manifest)
    written, count = sum(entry.count for entry in entries), _rows(tables)
    if written != count:
        raise DataError(f"{', '.join(tables)}: {written} rows reached the index, the manifests say {count}")
    refs = tuple(CodeTableRef(uri=name, digest=table.digest, version=table.version) for name, table in tables.items())
    manifest = manifest.model_copy(update={"version": version, "code_tables": refs, "shards": tuple(entries)})
    publish(uri, manifest, pointer)
    return published(uri, manifest)


def _rows(tables: Mapping[str, CodeManifest]) -> int:
    return sum(table.rows_out for table in tables.values())
