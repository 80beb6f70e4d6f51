"""Lists the shards of an index version in the next one, hiding rows that are gone; one Ray task per shard affected.

Knows nothing of manifests of code tables and of where new rows go. Files of the earlier version are not touched; a
task reads codes and ids only and may run twice. Where rows are hidden, an approximate kind has its structure built
anew from the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray

from cibhash.errors import DataError
from cluster.in_flight import completed, default_limit, named_call
from cluster.index.hidden_ids import some, write_hidden
from cluster.index.kinds import KindSpec
from cluster.index.shard_files import read_shard_codes, read_shard_ids
from cluster.index.sources import Source, reaching, read_ids, rows_in
from cluster.index.structure_files import write_structure
from cluster.index.versions import OpenIndex
from cluster.manifests import IndexShardEntry
from cluster.telemetry import progress


@dataclass(frozen=True)
class _Affected:
    """A shard with ids in the range of parts that are gone or new."""

    number: int
    entry: IndexShardEntry
    gone: tuple[Source, ...]
    new: tuple[Source, ...]


def keep_shards(
    index: OpenIndex, base_uri: str, gone: Sequence[Source], new: Sequence[Source]
) -> list[IndexShardEntry]:
    """The entries of the index's shards in a version that follows it, without those that are left without a row.

    Args:
        index: The version before.
        base_uri: Directory of the new version, for its files of hidden ids.
        gone: Parts whose rows the new version does not show.
        new: Parts whose rows it has in shards of its own.

    Raises:
        DataError: a new row has the id of one that stays, or the index does not have all rows that are gone.
        ManifestMismatch: a shard or a part is not what its manifest says.
    """
    entries = [_followed(entry, index.manifest.version) for entry in index.manifest.shards]
    affected = []
    for number, entry in enumerate(entries):
        parts = [reaching(sources, entry.min_id, entry.max_id + 1) for sources in (gone, new)]
        if entry.count and any(parts):
            affected.append(_Affected(number, entry, *parts))
    task, before = ray.remote(_hide), sum(entry.count for entry in entries)
    made_by = index.manifest.bits, index.manifest.spec
    calls = (
        (shard.number, named_call(task, f"index-hide-{shard.number:05d}", base_uri, shard, *made_by))
        for shard in affected
    )
    with progress("follow", len(affected), "index shards") as line:
        for number, entry in completed(calls, default_limit()):
            entries[number] = entry
            line.advance()
    hidden = before - sum(entry.count for entry in entries)
    if hidden != rows_in(gone):
        raise DataError(f"{index.base_uri}: has {hidden} of {rows_in(gone)} rows that are gone: build the index anew")
    return [entry for entry in entries if entry.count]


def _followed(entry: IndexShardEntry, version: str) -> IndexShardEntry:
    """The same files, as a manifest of a later version lists them."""
    hidden, structure = entry.hidden, entry.structure
    if hidden is not None:
        hidden = hidden.model_copy(update={"version": hidden.version or version})
    if structure is not None:
        structure = structure.model_copy(update={"version": structure.version or version})
    update = {"version": entry.version or version, "hidden": hidden, "structure": structure}
    return entry.model_copy(update=update)


def _hide(base_uri: str, shard: _Affected, bits: int, spec: KindSpec) -> IndexShardEntry:
    """Runs as a Ray task: the entry of one shard with the rows that are gone hidden."""
    visible, hidden = read_shard_ids(base_uri, shard.entry, bits)
    gone = np.intersect1d(visible, _ids(shard.gone))
    visible = np.setdiff1d(visible, gone, assume_unique=True)
    repeated = np.intersect1d(visible, _ids(shard.new))
    if len(repeated):
        tables = ", ".join(sorted({source.table_uri for source in shard.new}))
        raise DataError(f"{len(repeated)} ids of {tables} are in the index already: {some(repeated)}")
    if not len(gone):
        return shard.entry
    if not len(visible):
        return shard.entry.model_copy(update={"count": 0})
    listed = write_hidden(base_uri, shard.number, np.union1d(hidden, gone))
    update = {"count": len(visible), "min_id": int(visible[0]), "max_id": int(visible[-1]), "hidden": listed}
    entry = shard.entry.model_copy(update=update)
    if not spec.is_approximate:
        return entry
    structure = write_structure(base_uri, shard.number, read_shard_codes(base_uri, entry, bits), spec)
    return entry.model_copy(update={"structure": structure})


def _ids(sources: Sequence[Source]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *(read_ids(source) for source in sources)])
