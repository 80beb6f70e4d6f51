"""Classes of queries, names of labels, the table of every query, and the command of the report."""

import io
import json
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cibhash.metrics import from_histogram
from cluster.class_names import class_names
from cluster.config import RayConfig
from cluster.evaluation.classes import QueryClasses, query_classes
from cluster.evaluation.command import command_line
from cluster.evaluation.query_table import SCHEMA, queries_parquet
from cluster.evaluation.scoring import Series
from cluster.evaluation_config import EvaluateConfig

LABELS = [[3], [], [9, 3], [9, 9], [40]]


def table(labels: list[list[int]]) -> pa.Table:
    return pa.table({"labels": pa.array(labels, pa.list_(pa.int32()))})


def test_a_query_counts_once_for_each_of_its_labels() -> None:
    classes = query_classes(table(LABELS))
    values = np.array([1.0, 100.0, 0.5, 0.25, 0.75])
    expected = {
        label: [value for value, own in zip(values, LABELS, strict=True) if label in own] for label in (3, 9, 40)
    }
    assert classes.means(values) == pytest.approx([np.mean(found) for found in expected.values()])
    assert classes.first_label(5).tolist() == [3, -1, 3, 9, 40]
    records = classes.records({"9": "owl"})
    assert [(one.label, one.name, one.queries) for one in records] == [(3, "", 2), (9, "owl", 2), (40, "", 1)]


def test_too_many_classes_are_not_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.evaluation.classes.MAX_CLASSES", 2)
    classes: QueryClasses = query_classes(table(LABELS))
    assert (classes.means(np.ones(5)), classes.records({})) == ((), ())


def test_names_are_those_in_or_beside_the_first_dataset_that_has_some(tmp_path: Path) -> None:
    uris = [str(tmp_path / name) for name in ("one/query", "two/query")]
    assert class_names(uris) == {}
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "classes.json").write_text(json.dumps({"0": "cat"}))
    assert class_names(uris) == {"0": "cat"}
    (tmp_path / "one" / "query").mkdir(parents=True)
    (tmp_path / "one" / "query" / "classes.json").write_text("[1]")
    assert class_names(uris) == {"0": "cat"}


def test_every_query_has_a_row_per_series_with_its_own_numbers() -> None:
    rng = np.random.default_rng(0)
    queries = table(LABELS).append_column("id", pa.array([7, 3, 5, 1, 2])).append_column("key", pa.array(list("abcde")))
    found = {}
    for series in (Series("cibhash", 16), Series("cibhash", 32, "Paper"), Series("cibhash-asymmetric", 32, "Paper")):
        total = rng.integers(0, 9, (5, series.num_distances))
        found[series] = from_histogram(total, rng.binomial(total, 0.3), k=10).per_query
    content = queries_parquet(queries, found)
    assert content == queries_parquet(queries, found)
    written = pq.read_table(io.BytesIO(content))
    assert written.schema == SCHEMA
    assert list(dict.fromkeys(written["method"].to_pylist())) == ["cibhash", "Paper", "Paper, asymmetric"]
    rows = written.to_pylist()
    for place, (series, metrics) in enumerate(found.items()):
        for query, row in enumerate(rows[5 * place : 5 * place + 5]):
            assert (row["bits"], row["id"], row["key"], row["labels"]) == (
                series.bits,
                [7, 3, 5, 1, 2][query],
                "abcde"[query],
                LABELS[query],
            )
            for name in ("average_precision", "average_precision_all", "ndcg", "precision", "recall", "tie_block"):
                assert row[name] == getattr(metrics, name)[query]
            assert row["relevant"] == metrics.num_relevant[query]


def test_command_has_what_is_not_default_and_parses_to_the_same() -> None:
    from jobs.config_loader import load_config

    config = EvaluateConfig(
        queries="a b/queries",
        database="it's",
        output="out",
        bits=(16, 32),
        exclude_self=True,
        name="Ours",
        compare=("Paper=q,d", "Other one=q,e"),
        ray=RayConfig(num_cpus=3),
    )
    words = shlex.split(command_line(config))
    assert words[:2] == ["cibhash", "evaluate"]
    assert "--k" not in words
    assert load_config(EvaluateConfig, words[2:], "cibhash evaluate") == config


def test_command_shows_no_credentials() -> None:
    secret = "s3://AKIAABCDEFGHIJKLMNOP:topsecretkey@bucket/codes"
    line = command_line(EvaluateConfig(queries=secret, database="d", output="o"))
    assert "topsecretkey" not in line
    assert "AKIA" not in line
