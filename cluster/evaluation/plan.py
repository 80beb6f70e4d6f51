"""Opens the tables of an evaluation and settles, before any work, what will be compared.

Knows nothing of Ray. Whatever cannot work is refused here: tables of different encoders, lengths that are not stored,
baselines without features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cibhash.errors import ConfigError, DataError, ManifestMismatch
from cluster import storage
from cluster.code_versions import open_codes
from cluster.evaluation_config import EvaluateConfig
from cluster.manifests import CodeManifest, CodePart, same_encoder

Role = Literal["queries", "database", "baseline_fit"]


@dataclass(frozen=True)
class Table:
    """A code table that takes part."""

    uri: str
    manifest: CodeManifest

    @property
    def parts(self) -> tuple[CodePart, ...]:
        """The parts that have rows."""
        return tuple(part for part in self.manifest.parts if part.rows)

    @property
    def rows(self) -> int:
        """Rows over all parts."""
        return self.manifest.rows_out


@dataclass(frozen=True)
class EvaluationPlan:
    """What is compared with what."""

    queries: Table
    database: Table
    fit: Table | None
    """Where the baselines are fitted."""
    lengths: tuple[int, ...]
    k: int
    k_asked: int
    seed: int
    with_cosine: bool
    """Both tables have features, so the float upper bound can be computed."""
    with_asymmetric: bool
    """The queries have logits, so the asymmetric distance to the database's codes can be computed."""
    notes: tuple[str, ...]
    stored_order: bool = False
    """Rank the codes too, equal distances in the order of ids."""

    @property
    def tables(self) -> dict[Role, Table]:
        """The tables by what they are for."""
        optional: dict[Role, Table] = {} if self.fit is None else {"baseline_fit": self.fit}
        return {"queries": self.queries, "database": self.database, **optional}


def plan_evaluation(config: EvaluateConfig) -> EvaluationPlan:
    """Opens the manifests and checks that they belong together.

    Raises:
        NotFound: a table is missing or not complete.
        ManifestMismatch: two tables come from different encoders (names both digests), or have codes or features of
            different lengths.
        ConfigError: a length is longer than the stored codes, or a table lacks features for the baselines.
        DataError: queries or database have no rows.
    """
    queries, database = open_table(config.queries), open_table(config.database)
    fit = open_table(config.baseline_fit) if config.baseline_fit else None
    tables = [table for table in (queries, database, fit) if table is not None]
    same_encoder(*((table.uri, table.manifest.encoder_digest) for table in tables))
    for table in tables:
        if not table.rows:
            raise DataError(f"{table.uri}: the code table has no rows")
        if fit is not None and not table.manifest.features:
            raise ConfigError(f"{table.uri}: has no features, which --baseline-fit needs: encode it with --features")
    _check_layout(tables)
    lengths = config.bits or database.manifest.prefixes
    if max(lengths) > database.manifest.bits:
        raise ConfigError(f"{max(lengths)} bits: the codes of {database.uri} have {database.manifest.bits}")
    return EvaluationPlan(
        queries=queries,
        database=database,
        fit=fit,
        lengths=lengths,
        k=min(config.k, database.rows),
        k_asked=config.k,
        seed=config.seed,
        with_cosine=bool(queries.manifest.features and database.manifest.features),
        with_asymmetric=queries.manifest.logits,
        notes=tuple(_notes(config, queries, database, lengths)),
        stored_order=config.stored_order,
    )


def open_table(uri: str) -> Table:
    """A code table that is complete.

    Raises:
        NotFound: it is missing or not complete.
    """
    return Table(storage.absolute(uri), open_codes(uri))


def _check_layout(tables: Sequence[Table]) -> None:
    """Refuses codes or features of different lengths, which one encoder cannot have made."""
    for what in ("bits", "features"):
        sizes = [(getattr(table.manifest, what), table.uri) for table in tables]
        sizes = [one for one in sizes if one[0]]
        for size, uri in sizes[1:]:
            if size != sizes[0][0]:
                raise ManifestMismatch(f"{uri} has {size} {what} per image, but {sizes[0][1]} has {sizes[0][0]}")


def _notes(config: EvaluateConfig, queries: Table, database: Table, lengths: tuple[int, ...]) -> list[str]:
    notes = []
    if config.k > database.rows:
        notes.append(f"k = {config.k} is more than the database holds: all metrics are at k = {database.rows}.")
    if queries.manifest.digest == database.manifest.digest and not config.exclude_self:
        notes.append("Queries and database are the same table: every query finds itself first (see --exclude-self).")
    untrained = [str(bits) for bits in lengths if bits not in database.manifest.prefixes]
    if untrained:
        notes.append(f"The encoder was not trained for prefixes of {', '.join(untrained)} bits.")
    if queries.manifest.precision != database.manifest.precision:
        notes.append(
            f"The queries were coded in {queries.manifest.precision}, the database in {database.manifest.precision}."
        )
    for role, table in (("queries", queries), ("database", database)):
        if table.manifest.quarantined:
            notes.append(f"{table.manifest.quarantined} images of the {role} were quarantined and take no part.")
    return notes
