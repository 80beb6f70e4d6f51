"""Example queries with their nearest neighbors, for people to look at.

Knows nothing of how they are shown. They are the queries with the highest and those with the lowest average precision,
of those that have a relevant image in the database; equal evaluations give equal examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from cibhash.binary import prefix
from cibhash.hamming import search
from cibhash.metric_terms import QueryMetrics
from cibhash.types import PADDING_ID, Codes, Ids, Neighbors
from cluster import storage
from cluster.code_tables import codes_of, ids_of, read_part
from cluster.evaluation.exclusions import Exclusions
from cluster.evaluation.plan import EvaluationPlan, Table
from cluster.in_flight import completed, default_limit, named_call
from cluster.index.merge import merge_neighbors
from cluster.index.shard_index import Row
from cluster.manifests import CodePart

NUM_NEIGHBORS = 10
_COLUMNS = ("id", "code", "key", "labels", "shard", "offset", "size")


@dataclass(frozen=True)
class ExampleNeighbor:
    """One neighbor of an example query."""

    row: Row
    distance: int
    relevant: bool


@dataclass(frozen=True)
class Example:
    """One query and its neighbors, in the order of (distance, id)."""

    query: Row
    bits: int
    average_precision: float
    is_best: bool
    """Of the best queries; else of the worst."""
    neighbors: tuple[ExampleNeighbor, ...]


@dataclass(frozen=True)
class _Found:
    neighbors: Neighbors
    rows: Mapping[int, Row]


def choose_queries(found: QueryMetrics, labels: Ids, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions of the best queries, best first, and of the worst, worst first; of an odd count one more is worst.

    Only queries with a relevant image count, and none is chosen twice. Among equal ones labels take turns, then
    positions decide.

    Args:
        found: Of all queries.
        labels: A label of each query, int64 (Q,).
        count: Queries at most.
    """
    able = np.flatnonzero(found.num_relevant)
    order = able[_in_turns(-found.average_precision[able], labels[able])]
    best = order[: min(count, len(order)) // 2]
    order = able[_in_turns(found.average_precision[able], labels[able])]
    worst = order[~np.isin(order, best)][: count - count // 2]
    return best, worst


def _in_turns(values: npt.NDArray[np.float64], labels: Ids) -> npt.NDArray[np.int64]:
    """Positions in the order of values; of equal ones the first of every label, then the second of every label, ..."""
    together = np.lexsort((labels, values))
    starts = np.ones(len(values), bool)
    starts[1:] = (np.diff(values[together]) != 0) | (np.diff(labels[together]) != 0)
    places = np.arange(len(values))
    turns = np.empty(len(values), np.int64)
    turns[together] = places - np.maximum.accumulate(np.where(starts, places, 0))
    return np.lexsort((places, turns, values))


def find_examples(
    plan: EvaluationPlan, scores: QueryMetrics, labels: Ids, bits: int, count: int, exclusions: Exclusions
) -> tuple[Example, ...]:
    """Chooses example queries and searches the database for their neighbors, exactly.

    Args:
        plan: The tables.
        scores: Of the queries at this code length.
        labels: A label of each query, int64 (Q,).
        bits: Code length of the search.
        count: Example queries at most.
        exclusions: Pairs that do not count, and are not shown either.
    """
    best, worst = choose_queries(scores, labels, count)
    positions = np.concatenate([best, worst])
    if not len(positions):
        return ()
    queries, codes = _query_rows(plan.queries, positions, bits)
    hidden = {(int(query), int(one)) for query, one in exclusions.of_queries(np.array([row.id for row in queries]))}
    found = _search(plan.database, codes, min(NUM_NEIGHBORS + len(hidden), plan.database.rows))
    examples = []
    for place, (query, position, ids, distances) in enumerate(zip(queries, positions, *found.neighbors, strict=True)):
        neighbors = [
            ExampleNeighbor(found.rows[int(one)], int(distance), bool({*query.labels} & {*found.rows[int(one)].labels}))
            for one, distance in zip(ids, distances, strict=True)
            if one != PADDING_ID and (place, int(one)) not in hidden
        ]
        score = float(scores.average_precision[position])
        examples.append(Example(query, bits, score, place < len(best), tuple(neighbors[:NUM_NEIGHBORS])))
    return tuple(examples)


def _query_rows(table: Table, positions: npt.NDArray[np.int64], bits: int) -> tuple[list[Row], Codes]:
    """Rows and codes of the queries at these positions of the table, in their order."""
    starts = np.cumsum([0, *(part.rows for part in table.parts)])
    numbers = np.searchsorted(starts, positions, side="right") - 1
    calls = []
    for number in np.unique(numbers).tolist():
        part, inside = table.parts[number], np.flatnonzero(numbers == number)
        arguments = (table.uri, part, table.manifest.dataset_uri, positions[inside] - starts[number])
        calls.append((inside, named_call(_pick, f"example queries {part.path}", *arguments)))
    rows: dict[int, Row] = {}
    codes = np.empty((len(positions), bits // 8), np.uint8)
    for inside, (picked, picked_codes) in completed(calls, default_limit()):
        rows.update(zip(inside.tolist(), picked, strict=True))
        codes[inside] = prefix(picked_codes, bits)
    return [rows[place] for place in range(len(positions))], codes


def _search(table: Table, codes: Codes, k: int) -> _Found:
    """The k nearest rows of the whole table, searched part by part."""
    shared, base = ray.put(codes), table.manifest.dataset_uri
    calls = [
        (None, named_call(_search_part, f"example neighbors {part.path}", shared, table.uri, part, base, k))
        for part in table.parts
    ]
    best: _Found | None = None
    for _, found in completed(calls, default_limit()):
        best = found if best is None else _merge(best, found, k)
    assert best is not None
    return best


def _merge(first: _Found, second: _Found, k: int) -> _Found:
    neighbors = merge_neighbors([first.neighbors, second.neighbors], k)
    rows = {**first.rows, **second.rows}
    return _Found(neighbors, {one: rows[one] for one in _distinct(neighbors.ids)})


def _distinct(ids: Ids) -> list[int]:
    return [one for one in np.unique(ids).tolist() if one != PADDING_ID]


def _rows(table: pa.Table, base: str) -> list[Row]:
    """The rows of a small table, their shards as absolute URIs."""
    return [
        Row(one["id"], one["key"], tuple(one["labels"]), storage.join(base, one["shard"]), one["offset"], one["size"])
        for one in table.select([name for name in _COLUMNS if name != "code"]).to_pylist()
    ]


@ray.remote
def _pick(uri: str, part: CodePart, base: str, offsets: npt.NDArray[np.int64]) -> tuple[list[Row], Codes]:
    table = read_part(uri, part, _COLUMNS).take(pa.array(offsets))
    return _rows(table, base), codes_of(table)


@ray.remote
def _search_part(codes: Codes, uri: str, part: CodePart, base: str, k: int) -> _Found:
    table = read_part(uri, part, _COLUMNS)
    ids = ids_of(table)
    neighbors = search(codes, codes_of(table, 8 * codes.shape[1]), k, ids=ids)
    taken = table.take(pa.array(np.flatnonzero(np.isin(ids, neighbors.ids))))
    return _Found(neighbors, {row.id: row for row in _rows(taken, base)})
