"""Pairs that do not count: a query that is in the database too, and lists of pairs; no split changes a number."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from cibhash import asymmetric, metrics
from cibhash.errors import DataError, NotFound
from cluster.evaluation.exclusions import Exclusions, pairs_in
from tests.changing_tables import ChangingTable
from tests.cluster.evaluation.test_evaluate import LENGTHS, NUM_QUERIES, Corpus, run
from tests.tables import make_code_table

SETTINGS: dict[str, Any] = {"k": 40, "example_queries": 2, "title": "Same"}


def whole_table(folder: Path, corpus: Corpus, rows: slice | np.ndarray, **fields: Any) -> str:
    places = np.arange(len(corpus.codes))[rows]
    return make_code_table(
        folder,
        corpus.codes[places],
        labels=[corpus.labels[one] for one in places],
        features=corpus.features[places],
        logits=corpus.logits[places],
        prefixes=LENGTHS,
        **{"ids": places, "keys": [f"key-{one}" for one in places]} | fields,
    )


def expected(corpus: Corpus, queries: list[int], pairs: set[tuple[int, int]], method: str, bits: int) -> Any:
    """By one pass over all pairs that count; the whole corpus is the database."""
    codes = np.unpackbits(corpus.codes, axis=1, bitorder="little")[:, :bits]
    weights = np.ones((len(codes), bits), int) if method == "cibhash" else asymmetric.query_weights(corpus.logits, bits)
    total = np.zeros((len(queries), (bits if method == "cibhash" else asymmetric.LEVELS) + 1), np.int64)
    relevant = np.zeros_like(total)
    for place, query in enumerate(queries):
        for row in range(len(codes)):
            if (query, row) not in pairs:
                distance = int(weights[query][codes[query] != codes[row]].sum())
                total[place, distance] += 1
                relevant[place, distance] += bool({*corpus.labels[query]} & {*corpus.labels[row]})
    return metrics.from_histogram(total, relevant, k=40)


@pytest.mark.ray
@pytest.mark.parametrize("several", [False, True])
def test_a_query_does_not_count_for_itself_by_id_or_by_key(tmp_path: Path, ray_local: None, several: bool) -> None:
    corpus = Corpus(several=several)
    corpus.labels[4], corpus.labels[6] = [], []
    queries = list(range(0, 60, 3))
    every = slice(None)
    by_id = {
        "queries": whole_table(tmp_path / "q", corpus, np.array(queries), rows_per_part=7),
        "database": whole_table(tmp_path / "d", corpus, every, rows_per_part=50),
    }
    keys = [f"key-{one}" for one in range(len(corpus.codes))]
    other = {"dataset_digest": "c" * 64, "ids": np.arange(len(keys)) + 500, "keys": keys}
    by_key = {"queries": by_id["queries"], "database": whole_table(tmp_path / "k", corpus, every, **other)}
    settings = {**SETTINGS, "exclude_self": True, "stored_order": True, "baseline_fit": by_id["database"]}
    _, record = run(by_id, tmp_path / "out", **settings)
    _, keyed = run(by_key, tmp_path / "keyed", **{**settings, "baseline_fit": by_key["database"]})
    assert keyed["series"] == record["series"]
    assert keyed["float_cosine"] == record["float_cosine"]
    assert "20 of 20 queries are in the database too (by id) and do not count for themselves." in record["notes"]
    assert "20 of 20 queries are in the database too (by key) and do not count for themselves." in keyed["notes"]
    pairs = {(query, query) for query in queries}
    for series in record["series"]:
        if series["method"] in ("cibhash", "cibhash-asymmetric"):
            twin = expected(corpus, queries, pairs, series["method"], series["bits"])
            for name in ("map_at_k", "map_all", "map_best", "ndcg_at_k", "precision_at_k", "recall_at_k"):
                assert series[name] == pytest.approx(getattr(twin, name), abs=1e-12)
        if series["method"] == "cibhash":
            assert series["map_worst"] - 1e-12 <= series["map_stored_order"] <= series["map_best"] + 1e-12
    _, counted = run(by_id, tmp_path / "counted", **SETTINGS, baseline_fit=by_id["database"])
    assert counted["float_cosine"]["map_at_k"] > record["float_cosine"]["map_at_k"]
    assert counted["series"][0]["map_at_k"] > record["series"][0]["map_at_k"]


@pytest.mark.ray
def test_listed_pairs_do_not_count_and_unknown_ids_are_named(tmp_path: Path, ray_local: None) -> None:
    corpus = Corpus()
    tables = corpus.tables(tmp_path, rows_per_part=45)
    generator = np.random.default_rng(1)
    listed = np.stack([generator.integers(NUM_QUERIES, size=200), generator.integers(210, size=200)], axis=1)
    columns = {"query_id": listed[:, 0], "database_id": listed[:, 1]}
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    pyarrow.csv.write_csv(pa.table(columns), tmp_path / "pairs.csv")
    records = [
        run(tables, tmp_path / "out", **SETTINGS, exclude=str(tmp_path / name))[1]
        for name in ("pairs.parquet", "pairs.csv")
    ]
    assert records[0]["series"] == records[1]["series"]
    gone = {(int(query), int(row) + NUM_QUERIES) for query, row in listed}
    gone |= {(query, other) for query in range(NUM_QUERIES) for other in range(NUM_QUERIES)}
    for series in records[0]["series"]:
        twin = expected(corpus, list(range(NUM_QUERIES)), gone, "cibhash", series["bits"])
        assert series["map_at_k"] == pytest.approx(twin.map_at_k, abs=1e-12)

    for name, content, message in (
        ("a.csv", "query_id,database_id\n0,5\n99,6\n98,6\n", r"a\.csv: 2 of 3 ids in query_id \(98, 99\) not in"),
        ("b.csv", "query_id,database_id\n0,5\n1,210\n", r"b\.csv: 1 of 2 ids in database_id \(210\) not in"),
        ("c.csv", "query,database\n0,5\n", r"c\.csv: not a list of pairs: .*expected Parquet or CSV"),
        ("d.csv", "query_id,database_id\n0,five\n", r"d\.csv: not a list of pairs: .*expected Parquet or CSV"),
        ("f.csv", "query_id,database_id\n0,5\n1,\n", r"f\.csv: not a list of pairs: 1 values are missing; expected"),
        ("e.csv", "", r"e\.csv: not a list of pairs: .*expected Parquet or CSV"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=message):
            run(tables, tmp_path / "none", **SETTINGS, exclude=str(tmp_path / name))
    with pytest.raises(NotFound, match="missing"):
        run(tables, tmp_path / "none", **SETTINGS, exclude=str(tmp_path / "missing"))
    assert not (tmp_path / "none").exists()


@pytest.mark.ray
def test_rows_that_a_version_no_longer_has_do_not_count(tmp_path: Path, ray_local: None) -> None:
    """An image that is gone, replaced or refused is in older parts, but in no result."""
    changing = ChangingTable(tmp_path / "changing")
    changing.shards = [changing.new_images(30) for _ in range(3)]
    changing.publish()
    generator = np.random.default_rng(2)
    for change in (changing.remove, changing.recode, changing.replace_key, changing.refuse):
        change(generator)
        changing.publish()
    fresh = ChangingTable(tmp_path / "fresh", shards=changing.shards)
    fresh.publish()
    queries = ChangingTable(tmp_path / "queries", first_id=1000)
    queries.shards = [queries.new_images(12)]
    queries.publish()
    records = []
    for database in (changing, fresh):
        tables = {"queries": str(queries.folder), "database": str(database.folder)}
        records.append(run(tables, tmp_path / "out", k=10, title="Same", example_queries=0)[1])
    assert records[0]["database"] == 59
    for name in ("series", "health", "bit_health", "classes"):
        assert records[0][name] == records[1][name]


def test_pairs_of_a_block_and_of_a_part() -> None:
    pairs = np.array([[3, 8], [3, 9], [5, 8], [7, 1]])
    found = Exclusions(pairs).of_queries(np.array([5, 4, 3]))
    assert found.tolist() == [[2, 8], [2, 9], [0, 8]]
    part = pairs_in(found, np.array([10, 8, 2]))
    assert (part.queries.tolist(), part.rows.tolist()) == ([2, 0], [1, 1])
