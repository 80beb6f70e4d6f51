"""The images of all splits as rows, in the order of (split, id), and their other columns on demand.

Knows nothing of pairs. The driver holds ids and codes of all rows: B/8 + 20 bytes each, three times that while they are
sorted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray

from cibhash.errors import DataError
from cibhash.types import Codes, Ids
from cluster import storage
from cluster.code_tables import codes_of, ids_of, read_part
from cluster.dedup.plan import DedupPlan, Split
from cluster.in_flight import completed, default_limit, named_call
from cluster.manifests import CodePart
from cluster.originals import Original


@dataclass(frozen=True)
class Rows:
    """All images; row numbers are positions in these arrays."""

    ids: Ids
    """int64 (N,)."""
    splits: Ids
    """Number of the split of each row."""
    codes: Codes
    places: Ids
    """Where each row is among the rows of all parts of all tables, one after the other."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)


def read_rows(plan: DedupPlan) -> Rows:
    """Reads ids and codes of all tables.

    Raises:
        ManifestMismatch: a part is not the one that was committed.
        DataError: an id comes twice in a table, or codes are not as long as the manifest says.
    """
    parts = _parts(plan)
    calls = [
        (number, named_call(_read, f"codes {part.path}", split.table.uri, part, plan.bits))
        for number, (split, part) in enumerate(parts)
    ]
    found = dict(completed(calls, default_limit()))
    ids = np.concatenate([found[number][0] for number in range(len(parts))])
    codes = np.concatenate([found[number][1] for number in range(len(parts))])
    split_numbers = {split.name: number for number, split in enumerate(plan.splits)}
    splits = np.repeat([split_numbers[split.name] for split, _ in parts], [part.rows for _, part in parts])
    order = np.lexsort((ids, splits))
    ids, splits = ids[order], splits[order]
    again = np.flatnonzero((ids[1:] == ids[:-1]) & (splits[1:] == splits[:-1]))
    if len(again):
        split = plan.splits[splits[again[0]]]
        raise DataError(f"{split.table.uri}: id {ids[again[0]]} comes twice ({len(again):,} such rows)")
    return Rows(ids, splits, codes[order], order)


def look_up(plan: DedupPlan, rows: Rows, positions: Ids, columns: Sequence[str]) -> pa.Table:
    """Further columns of some rows, in the order of `positions`; `shard` as an absolute URI."""
    wanted, back = np.unique(rows.places[positions], return_inverse=True)
    parts = _parts(plan)
    starts = np.cumsum([0, *(part.rows for _, part in parts)])
    limits = np.searchsorted(wanted, starts)
    calls = []
    for number, (split, part) in enumerate(parts):
        inside = wanted[limits[number] : limits[number + 1]] - starts[number]
        if len(inside):
            base = split.table.manifest.dataset_uri
            calls.append(
                (number, named_call(_pick, f"rows of {part.path}", split.table.uri, part, columns, inside, base))
            )
    found = dict(completed(calls, default_limit()))
    if not found:
        return read_part(parts[0][0].table.uri, parts[0][1], columns).slice(0, 0)
    return pa.concat_tables([found[number] for number in sorted(found)]).take(pa.array(back))


def originals_of(table: pa.Table) -> list[Original]:
    """Where the images lie, from the columns `shard`, `offset` and `size`."""
    columns = (table[name].to_pylist() for name in ("shard", "offset", "size"))
    return [Original(*place) for place in zip(*columns, strict=True)]


def _parts(plan: DedupPlan) -> list[tuple[Split, CodePart]]:
    return [(split, part) for split in plan.splits for part in split.table.parts]


@ray.remote
def _read(uri: str, part: CodePart, bits: int) -> tuple[Ids, Codes]:
    table = read_part(uri, part, ["id", "code"])
    codes = codes_of(table)
    if 8 * codes.shape[1] != bits:
        raise DataError(f"{storage.join(uri, part.path)}: codes of {8 * codes.shape[1]} bits, its manifest says {bits}")
    return ids_of(table), codes


@ray.remote
def _pick(uri: str, part: CodePart, columns: Sequence[str], inside: Ids, base: str) -> pa.Table:
    table = read_part(uri, part, columns).take(pa.array(inside))
    if "shard" in columns:
        shards = [storage.join(base, shard) for shard in table["shard"].to_pylist()]
        table = table.set_column(table.column_names.index("shard"), "shard", pa.array(shards, pa.string()))
    return table
