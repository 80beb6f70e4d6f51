"""Opens the code tables of a search for duplicates and checks that they belong together.

Knows nothing of Ray. Whatever cannot be compared is refused here, by name.
"""

from dataclasses import dataclass

from cibhash.errors import ConfigError, DataError, ManifestMismatch
from cluster import storage
from cluster.dedup_config import DedupConfig
from cluster.evaluation.plan import Table, open_table
from cluster.manifests import same_encoder


@dataclass(frozen=True)
class Split:
    """One code table and what it is called."""

    name: str
    table: Table


@dataclass(frozen=True)
class DedupPlan:
    """The tables to compare, in the order named."""

    splits: tuple[Split, ...]
    bits: int
    encoder_digest: str
    encoder_uri: str
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What the splits are called."""
        return tuple(split.name for split in self.splits)

    @property
    def rows(self) -> int:
        """Images of all splits."""
        return sum(split.table.rows for split in self.splits)


def plan_dedup(config: DedupConfig) -> DedupPlan:
    """Opens the manifests.

    Raises:
        NotFound: a table is missing or not complete.
        ManifestMismatch: two tables come from different encoders or have codes of different lengths; names both.
        ConfigError: a table is named twice, or the radius is as long as the codes.
        DataError: a table has no rows, or a manifest of another layout.
    """
    tables = [open_table(uri) for uri in config.codes]
    first = tables[0]
    for number, table in enumerate(tables):
        if table.uri in [other.uri for other in tables[:number]]:
            raise ConfigError(f"codes: {table.uri} is named twice")
        if table.manifest.bits != first.manifest.bits:
            raise ManifestMismatch(
                f"{table.uri} has codes of {table.manifest.bits} bits, but {first.uri} of {first.manifest.bits}"
            )
        if not table.rows:
            raise DataError(f"{table.uri}: the code table has no rows")
    digest = same_encoder(*((table.uri, table.manifest.encoder_digest) for table in tables))
    bits = first.manifest.bits
    if config.fixed_radius is not None and config.fixed_radius >= bits:
        raise ConfigError(f"radius {config.fixed_radius}: the codes of {first.uri} have {bits} bits: all pairs count")
    return DedupPlan(
        splits=tuple(Split(name, table) for name, table in zip(_names(tables), tables, strict=True)),
        bits=bits,
        encoder_digest=digest,
        encoder_uri=storage.absolute(config.encoder) if config.encoder else first.manifest.encoder_uri,
        notes=tuple(_notes(tables)),
    )


def _names(tables: list[Table]) -> list[str]:
    """The last folders, or the whole URIs where these are not different."""
    short = [table.uri.rsplit("/", 1)[-1] for table in tables]
    return short if len(set(short)) == len(short) else [table.uri for table in tables]


def _notes(tables: list[Table]) -> list[str]:
    notes = []
    if len({(table.manifest.precision, table.manifest.compiled) for table in tables}) > 1:
        notes.append(
            "The tables were encoded in different precisions: codes of one image can differ by a bit between them."
        )
    for table in tables:
        if table.manifest.quarantined:
            notes.append(f"{table.manifest.quarantined:,} images of {table.uri} were quarantined and take no part.")
    return notes
