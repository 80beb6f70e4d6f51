"""What an index is made from: the parts of code tables, of one encoder and code length, whose counts add up.

Knows nothing of index shards and Ray.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from cibhash.errors import ConfigError, DataError, ManifestMismatch
from cibhash.types import Ids
from cluster import storage
from cluster.code_tables import code_schema, ids_of, read_part
from cluster.manifests import CodeManifest, CodePart, same_encoder

BARE_COLUMNS = ("id", "code")
"""What an index without rows needs of a code table."""


@dataclass(frozen=True)
class Source:
    """A part of a code table, with what its rows need."""

    table_uri: str
    dataset_uri: str
    part: CodePart

    @property
    def content(self) -> tuple[str, str, str]:
        """What its rows in an index depend on: the table, the part's digest, and where its tar shard lies."""
        return self.table_uri, self.part.sha256, storage.join(self.dataset_uri, self.part.shard)


def table_uris(names: str) -> list[str]:
    """The code tables in a list separated by commas.

    Raises:
        ConfigError: none is named, or one twice.
    """
    uris = [storage.absolute(name.strip()) for name in names.split(",") if name.strip()]
    if not uris:
        raise ConfigError("codes: at least one code table is needed")
    if len(set(uris)) < len(uris):
        raise ConfigError(f"codes: {names}: a code table is named twice")
    return uris


def check_tables(tables: Mapping[str, CodeManifest], *, like: tuple[str, str, int] | None = None) -> None:
    """Refuses tables, by URI, that do not go together, or whose parts do not add up.

    Args:
        tables: At least one.
        like: URI, encoder digest and bits of what they must go with; default: the first of them.

    Raises:
        ManifestMismatch: different encoders or code lengths.
        DataError: the rows of the parts are not as many as the table says.
    """
    uri, digest, bits = like or next((uri, table.encoder_digest, table.bits) for uri, table in tables.items())
    same_encoder((uri, digest), *((uri, table.encoder_digest) for uri, table in tables.items()))
    for table_uri, table in tables.items():
        if table.bits != bits:
            raise ManifestMismatch(f"{table_uri} has codes of {table.bits} bits, but {uri} of {bits}")
        rows = sum(part.rows for part in table.parts)
        if rows != table.rows_out:
            raise DataError(f"{table_uri}: its parts have {rows} rows, but it has {table.rows_out}")


def sources_of(tables: Mapping[str, CodeManifest]) -> Iterator[Source]:
    """The parts of the tables that have rows."""
    for uri, table in tables.items():
        dataset_uri = storage.absolute(table.dataset_uri)
        yield from (Source(uri, dataset_uri, part) for part in table.parts if part.rows)


def reaching(sources: Iterable[Source], first_id: int, end_id: int) -> tuple[Source, ...]:
    """Those that may have a row with `first_id <= id < end_id`."""
    return tuple(source for source in sources if source.part.min_id < end_id and source.part.max_id >= first_id)


def rows_in(sources: Iterable[Source]) -> int:
    """How many rows the sources have, by the manifests of their tables."""
    return sum(source.part.rows for source in sources)


def read_ids(source: Source) -> Ids:
    """The ids of a part, in its order, verified.

    Raises:
        ManifestMismatch: the file, or the range of its ids, is not what the manifest says.
    """
    return _checked_ids(source, read_part(source.table_uri, source.part, ["id"]))


def read_bare_rows(source: Source, first_id: int, end_id: int) -> pa.Table:
    """The ids and codes of a part with `first_id <= id < end_id`, and no more of its columns.

    Raises:
        ManifestMismatch: the file, or the range of its ids, is not what the manifest says.
    """
    return _within(source, read_part(source.table_uri, source.part, BARE_COLUMNS), first_id, end_id)


def read_rows(source: Source, first_id: int, end_id: int) -> pa.Table:
    """The rows of a part with `first_id <= id < end_id`, their tar shards as absolute URIs.

    Raises:
        ManifestMismatch: the file, or the range of its ids, is not what the manifest says.
    """
    table = _within(source, read_part(source.table_uri, source.part, code_schema(8).names), first_id, end_id)
    shards = table["shard"].combine_chunks().dictionary_encode()
    uris = [storage.join(source.dataset_uri, shard) for shard in shards.dictionary.to_pylist()]
    column = table.schema.get_field_index("shard")
    return table.set_column(column, table.schema.field("shard"), pa.array(uris, pa.string()).take(shards.indices))


def _within(source: Source, table: pa.Table, first_id: int, end_id: int) -> pa.Table:
    ids, part = _checked_ids(source, table), source.part
    if first_id <= part.min_id and part.max_id < end_id:
        return table
    return table.filter(pa.array((ids >= first_id) & (ids < end_id)))


def _checked_ids(source: Source, table: pa.Table) -> Ids:
    part, ids = source.part, ids_of(table)
    if (int(ids.min()), int(ids.max())) != (part.min_id, part.max_id):
        raise ManifestMismatch(
            f"{storage.join(source.table_uri, part.path)}: ids {ids.min()} to {ids.max()}, "
            f"its manifest says {part.min_id} to {part.max_id}"
        )
    return ids
