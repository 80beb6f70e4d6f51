"""What a new version of a code table no longer has, so that an index of an earlier one can hide it.

Knows nothing of why rows went: a shard that is gone or was written anew takes all its rows along.
"""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.code_tables import TOMBSTONE_SCHEMA, read_part
from cluster.manifests import CodeManifest, CodePart, read_verified

DELETED = "deleted"
REPLACED = "replaced"


def tombstones(uri: str, before: CodeManifest, parts: Iterable[CodePart]) -> pa.Table:
    """Tombstones of the rows that `before` has and a version with these parts has not.

    Args:
        uri: The code table.
        before: The version that the new one follows.
        parts: Of the new version; those with a path of `before` are its parts unchanged.

    Returns:
        Rows of `TOMBSTONE_SCHEMA`: `replaced` where the key lives on, in another row or with another image, else
        `deleted`. In memory: keys and ids of the parts that differ.
    """
    now = {part.path: part for part in parts}
    old = {part.path: part for part in before.parts}
    living: set[str] = set()
    for path in sorted(now.keys() - old.keys()):
        living.update(read_part(uri, now[path], ["key"])["key"].to_pylist())
    tables = [TOMBSTONE_SCHEMA.empty_table()]
    for path in sorted(old.keys() - now.keys()):
        gone = read_part(uri, old[path], ["id", "key"])
        reasons = [REPLACED if key in living else DELETED for key in gone["key"].to_pylist()]
        columns = [gone["id"], gone["key"], [before.version] * len(reasons), reasons]
        tables.append(pa.table(columns, schema=TOMBSTONE_SCHEMA))
    return pa.concat_tables(tables).combine_chunks()


def read_tombstones(uri: str, manifest: CodeManifest) -> pa.Table:
    """The tombstones that a version lists, of all versions before it; no rows where it lists none."""
    if manifest.tombstones is None:
        return TOMBSTONE_SCHEMA.empty_table()
    return pq.read_table(pa.BufferReader(read_verified(uri, manifest.tombstones)), schema=TOMBSTONE_SCHEMA)
