"""Pairs of a query and a database image that do not count, above all a query that is in the database itself.

Knows nothing of codes. Pairs are found before anything is scored, by one pass over ids or keys, and taken out of the
histograms where they fell: exact for any split of the work.
"""

import io
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import ray

from cibhash.errors import DataError
from cibhash.types import Ids
from cluster import storage
from cluster.code_tables import ids_of, read_part
from cluster.evaluation.plan import EvaluationPlan, Table
from cluster.evaluation.rankings import Pairs
from cluster.evaluation.table_columns import part_calls, read_columns
from cluster.evaluation_config import EvaluateConfig
from cluster.in_flight import completed, default_limit
from cluster.manifests import CodePart

_COLUMNS = ("query_id", "database_id")
_NAMED = 3


@dataclass(frozen=True)
class Exclusions:
    """What does not count."""

    pairs: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    """Ids of query and database image, int64 (P, 2), ascending, each pair once."""
    notes: tuple[str, ...] = ()

    def of_queries(self, ids: Ids) -> npt.NDArray[np.int64]:
        """The pairs of these queries, int64 (p, 2), each query by its position among `ids`."""
        order = np.argsort(ids, kind="stable")
        places = np.searchsorted(ids, self.pairs[:, 0], sorter=order)
        known = places < len(ids)
        places = order[np.minimum(places, len(ids) - 1)]
        known &= ids[places] == self.pairs[:, 0]
        return np.stack([places[known], self.pairs[known, 1]], axis=1)


NO_EXCLUSIONS = Exclusions()


def pairs_in(excluded: npt.NDArray[np.int64], ids: Ids) -> Pairs:
    """Those of the pairs (position of the query, id of the image) whose image is among `ids`, by its position."""
    order = np.argsort(ids, kind="stable")
    places = order[np.minimum(np.searchsorted(ids, excluded[:, 1], sorter=order), len(ids) - 1)]
    found = ids[places] == excluded[:, 1]
    return Pairs(excluded[found, 0], places[found])


def find_exclusions(config: EvaluateConfig, plan: EvaluationPlan) -> Exclusions:
    """Settles which pairs do not count, as `exclude_self` and `exclude` ask.

    Raises:
        DataError: the file of pairs has other columns, or ids that are not in the tables.
        NotFound: there is no such file.
    """
    found, notes = [np.empty((0, 2), np.int64)], []
    if config.exclude_self:
        same = plan.queries.manifest.dataset_digest == plan.database.manifest.dataset_digest
        own = _same_ids(plan) if same else _same_keys(plan)
        count = len(np.unique(own[:, 0]))
        notes.append(
            f"{count:,} of {plan.queries.rows:,} queries are in the database too (by {'id' if same else 'key'}) and do "
            "not count for themselves."
        )
        found.append(own)
    if config.exclude:
        listed = _listed_pairs(storage.absolute(config.exclude))
        _check_known(config.exclude, plan, listed)
        notes.append(f"{len(listed):,} pairs of a query and an image do not count, as a list says.")
        found.append(listed)
    return Exclusions(np.unique(np.concatenate(found), axis=0), tuple(notes))


def _same_ids(plan: EvaluationPlan) -> npt.NDArray[np.int64]:
    both = _known_ids(plan.database, ids_of(read_columns(plan.queries, ["id"])))
    return np.stack([both, both], axis=1)


def _same_keys(plan: EvaluationPlan) -> npt.NDArray[np.int64]:
    """Pairs of rows with equal keys."""
    queries = read_columns(plan.queries, ["id", "key"]).rename_columns(["query_id", "key"])
    calls = part_calls(plan.database, _rows_of_keys, "keys", ray.put(queries["key"]))
    database = pa.concat_tables([rows for _, rows in completed(calls, default_limit())])
    joined = queries.join(database, "key", join_type="inner")
    return np.stack([np.asarray(joined[name].to_numpy(), np.int64) for name in ("query_id", "id")], axis=1)


def _listed_pairs(uri: str) -> npt.NDArray[np.int64]:
    content = storage.read_bytes(uri)
    try:
        if content.startswith(b"PAR1"):
            table = pq.read_table(pa.BufferReader(content))
        else:
            table = pyarrow.csv.read_csv(io.BytesIO(content))
        columns = [table[name].cast(pa.int64()) for name in _COLUMNS]
        if missing := sum(column.null_count for column in columns):
            raise pa.ArrowInvalid(f"{missing} values are missing")
        pairs = np.stack([column.to_numpy() for column in columns], axis=1)
    except (pa.ArrowException, KeyError) as error:
        expected = "expected Parquet or CSV with the columns query_id and database_id, integers"
        raise DataError(f"{uri}: not a list of pairs: {str(error).splitlines()[0]}; {expected}") from None
    return np.unique(pairs.astype(np.int64), axis=0)


def _check_known(uri: str, plan: EvaluationPlan, pairs: npt.NDArray[np.int64]) -> None:
    for column, table in enumerate((plan.queries, plan.database)):
        ids = np.unique(pairs[:, column])
        unknown = np.setdiff1d(ids, _known_ids(table, ids))
        if len(unknown):
            named = ", ".join(map(str, unknown[:_NAMED])) + ", ..." * (len(unknown) > _NAMED)
            raise DataError(
                f"{uri}: {len(unknown)} of {len(ids)} ids in {_COLUMNS[column]} ({named}) not in {table.uri}"
            )


def _known_ids(table: Table, ids: Ids) -> Ids:
    """Those of `ids` that are in the table, ascending."""
    calls = part_calls(table, _ids_among, "ids", ray.put(ids))
    return np.sort(np.concatenate([found for _, found in completed(calls, default_limit())]))


@ray.remote
def _ids_among(uri: str, part: CodePart, ids: Ids) -> Ids:
    return np.intersect1d(ids_of(read_part(uri, part, ["id"])), ids)


@ray.remote
def _rows_of_keys(uri: str, part: CodePart, keys: pa.ChunkedArray) -> pa.Table:
    table = read_part(uri, part, ["id", "key"])
    return table.filter(pc.is_in(table["key"], value_set=keys.combine_chunks()))
