"""Publishes an index version that follows the code tables of the current one to where they are now.

Knows nothing of encoders and search. Parts of tables are the unit: shards of earlier versions are listed as they are,
rows of parts that are gone are hidden in them, and all rows of new parts go into new shards. What is compared are
manifests; only parts that are gone or new are read, by Ray tasks.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from cibhash.errors import DataError
from cluster import storage
from cluster.code_versions import open_codes
from cluster.index.index_result import IndexResult, own_bytes, planned, published
from cluster.index.kinds import KindSpec
from cluster.index.recorded_tables import current_tables, recorded_tables
from cluster.index.shard_hiding import keep_shards
from cluster.index.shard_plans import plan_shards, rows_per_shard
from cluster.index.shard_writing import write_shards
from cluster.index.sources import Source, check_tables, rows_in, sources_of, table_uris
from cluster.index.versions import OpenIndex, open_current, publish
from cluster.index_config import IndexConfig
from cluster.manifests import CodeManifest, CodeTableRef, IndexManifest, IndexShardEntry
from cluster.runtime import ray_session
from cluster.telemetry import log
from cluster.versions import next_version


@dataclass(frozen=True)
class _Change:
    """What became of the tables since the index was built."""

    tables: dict[str, CodeManifest]
    """As they are now, by URI."""
    gone: tuple[Source, ...]
    new: tuple[Source, ...]
    num_new_shards: int

    @property
    def count(self) -> int:
        """Rows of all tables."""
        return sum(table.rows_out for table in self.tables.values())


def append_to_index(config: IndexConfig) -> IndexResult:
    """Publishes the version that follows; where nothing changed, says so and publishes none.

    Raises:
        ConfigError: a code table is named twice, or the index is of another kind.
        ManifestMismatch: a table of another encoder or code length, or a file that is not what its manifest says.
        DataError: a new row has the id of one that stays, or the counts do not add up.
        NotFound: there is no index, or a table version that it was built from is gone.
        AlreadyExists: another job made a version current meanwhile.
    """
    uri = storage.absolute(config.output)
    index, pointer = open_current(uri)
    index.manifest.spec.check_kept(uri, KindSpec(config.kind, config.parameters))
    change, num_kept = _change(index, config), len(index.manifest.shards)
    if not change.gone and not change.new and len(change.tables) == len(index.manifest.code_tables):
        log("index: already up to date", index=uri, version=index.manifest.version)
        return _counted(change, published(uri, index.manifest), num_kept, 0)
    if config.dry_run:
        plan = planned(uri, index.manifest, change.count, num_kept + change.num_new_shards)
        return _counted(change, plan, num_kept, change.num_new_shards)
    version = next_version(uri, IndexManifest.file_name)
    base_uri = storage.join(uri, version)
    with ray_session(config.ray):
        kept = keep_shards(index, base_uri, change.gone, change.new)
        new = _write_new(base_uri, change, kept, index.manifest)
    count = sum(entry.count for entry in (*kept, *new))
    if count != change.count:
        raise DataError(f"{base_uri}: {count} rows reached the index, the manifests say {change.count}")
    tables = change.tables.items()
    refs = tuple(CodeTableRef(uri=name, digest=table.digest, version=table.version) for name, table in tables)
    manifest = index.manifest.model_copy(update={"version": version, "code_tables": refs, "shards": (*kept, *new)})
    publish(uri, manifest, pointer)
    result = dataclasses.replace(published(uri, manifest), bytes_written=own_bytes(manifest))
    return _counted(change, result, len(kept), len(new))


def _change(index: OpenIndex, config: IndexConfig) -> _Change:
    manifest = index.manifest
    tables = current_tables(index)
    if config.codes:
        tables.update({uri: open_codes(uri) for uri in table_uris(config.codes)})
    check_tables(tables, like=(index.base_uri, manifest.encoder_digest, manifest.code_bits))
    before = {source.content: source for source in sources_of(recorded_tables(index))}
    now = {source.content: source for source in sources_of(tables)}
    new = tuple(source for content, source in now.items() if content not in before)
    largest = max((entry.stored for entry in manifest.shards), default=0) or rows_in(new) or 1
    limit = rows_per_shard(config.shard_bytes, manifest.bits) if config.bytes_per_shard else largest
    return _Change(
        tables=tables,
        gone=tuple(source for content, source in before.items() if content not in now),
        new=new,
        num_new_shards=-(-rows_in(new) // limit),
    )


def _write_new(
    base_uri: str, change: _Change, kept: Sequence[IndexShardEntry], like: IndexManifest
) -> list[IndexShardEntry]:
    """Shards of the new rows; an index of which nothing is left has one empty shard."""
    if kept and not change.new:
        return []
    return write_shards(base_uri, plan_shards(change.new, change.num_new_shards, len(kept)), like)


def _counted(change: _Change, result: IndexResult, num_kept: int, num_new: int) -> IndexResult:
    return dataclasses.replace(
        result,
        rows_added=rows_in(change.new),
        rows_hidden=rows_in(change.gone),
        shards_kept=num_kept,
        shards_new=num_new,
    )
