"""Writes new index shards, one Ray task each.

Knows nothing of versions and manifests. A shard's files depend on its rows alone, so a task may run twice, and an index
does not depend on tables, parts or tasks.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import ray

from cibhash.errors import DataError
from cluster.code_tables import code_schema, codes_of, ids_of
from cluster.in_flight import completed, default_limit, named_call
from cluster.index.hidden_ids import ascending, some
from cluster.index.kinds import KindSpec
from cluster.index.shard_files import write_shard_files
from cluster.index.shard_plans import ShardPlan
from cluster.index.sources import BARE_COLUMNS, read_bare_rows, read_rows
from cluster.index.structure_files import write_structure
from cluster.manifests import IndexManifest, IndexShardEntry
from cluster.telemetry import progress


def write_shards(base_uri: str, plans: Sequence[ShardPlan], like: IndexManifest) -> list[IndexShardEntry]:
    """Writes the planned shards below the version's directory; returns the manifest's entries in the same order.

    Args:
        base_uri: Directory of the index version.
        plans: Which rows go where.
        like: Manifest of the index, which says code length, kind, and whether there are rows.

    Raises:
        DataError: an id occurs twice, or the rows are not as many as planned.
        ManifestMismatch: a part is not what its manifest says.
    """
    task, made_by = ray.remote(_write_shard), (like.bits, like.spec, like.bare)
    calls = (
        (plan.number, named_call(task, f"index-shard-{plan.number:05d}", base_uri, plan, *made_by)) for plan in plans
    )
    entries: dict[int, IndexShardEntry] = {}
    with progress("index", sum(plan.count for plan in plans), "rows") as line:
        for number, entry in completed(calls, default_limit()):
            entries[number] = entry
            line.advance(entry.count)
    return [entries[plan.number] for plan in plans]


def _write_shard(base_uri: str, plan: ShardPlan, bits: int, spec: KindSpec, bare: bool) -> IndexShardEntry:
    """Runs as a Ray task: reads the rows of one shard, checks and orders them, writes its files."""
    read, columns = (read_bare_rows, BARE_COLUMNS) if bare else (read_rows, code_schema(bits).names)
    pieces = [read(source, plan.first_id, plan.end_id) for source in plan.sources]
    table = _ordered(pa.concat_tables(pieces or [code_schema(bits).empty_table().select(columns)]), plan)
    if len(table) != plan.count:
        raise DataError(
            f"index shard {plan.number}: {len(table)} rows with ids {plan.first_id} to {plan.end_id - 1}, "
            f"the manifests of its code tables say {plan.count}"
        )
    entry = write_shard_files(base_uri, plan.number, table, bits, with_rows=not bare)
    structure = write_structure(base_uri, plan.number, codes_of(table, bits), spec)
    return entry.model_copy(update={"structure": structure})


def _ordered(table: pa.Table, plan: ShardPlan) -> pa.Table:
    """The rows by ascending id; nothing is copied where they are so."""
    ids = ids_of(table)
    if ascending(ids):
        return table
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    repeated = np.unique(ids[1:][ids[1:] == ids[:-1]])
    if len(repeated):
        tables = ", ".join(sorted({source.table_uri for source in plan.sources}))
        raise DataError(f"{len(repeated)} ids occur more than once ({some(repeated)}) in {tables}")
    return table.take(pa.array(order))
