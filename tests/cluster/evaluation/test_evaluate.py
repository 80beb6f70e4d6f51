"""The evaluate job against brute force, and that no split of the work changes a number."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cibhash import asymmetric, metrics
from cibhash.baselines import fit_itq, fit_random_hyperplanes
from cibhash.binary import pack_bits, prefix
from cibhash.errors import ConfigError, DataError, ManifestMismatch, NotFound
from cibhash.hamming import histogram
from cibhash.metric_terms import QueryMetrics
from cluster.evaluation.evaluate import evaluate
from cluster.evaluation.examples import choose_queries, find_examples
from cluster.evaluation.exclusions import Exclusions
from cluster.evaluation.plan import plan_evaluation
from cluster.evaluation.surveys import survey_tables
from cluster.evaluation.tasks import Scored, fit_all, score_all
from cluster.evaluation_config import EvaluateConfig
from tests import oracles
from tests.tables import make_code_table

NUM_QUERIES, NUM_DATABASE, BITS, FEATURES = 23, 210, 64, 32
LENGTHS = (16, 32, 64)


class Corpus:
    """Clustered features, noisy codes of them, and labels, the same in every test."""

    def __init__(self, *, several: bool = False) -> None:
        generator = np.random.default_rng(7)
        count = NUM_QUERIES + NUM_DATABASE
        classes = generator.integers(5, size=count)
        noise = generator.standard_normal((count, FEATURES))
        self.features = (2 * generator.standard_normal((5, FEATURES))[classes] + noise).astype(np.float32)
        flips = generator.random((count, BITS)) < 0.3
        bits = (generator.random((5, BITS)) < 0.5)[classes] ^ flips
        self.codes = pack_bits(bits)
        self.labels = [[int(one)] for one in classes]
        if several:
            self.labels = [sorted({label, *extra.tolist()}) for (label,), extra in zip(
                self.labels, generator.integers(8, size=(count, 2)), strict=True)]  # fmt: skip

        sizes = np.random.default_rng(8).gamma(np.where(flips, 1.0, 4.0))  # flipped bits are less sure
        self.logits = np.where(bits, sizes, -sizes).astype(np.float32)

    def tables(
        self, folder: Path, rows_per_part: int = 1000, *, logits: tuple[str, ...] = (), **fields: Any
    ) -> dict[str, str]:
        """Writes the code tables `queries` and `database`, those named in `logits` with that column."""
        sides = {"queries": slice(0, NUM_QUERIES), "database": slice(NUM_QUERIES, None)}
        return {
            name: make_code_table(
                folder / name,
                self.codes[rows],
                labels=self.labels[rows],
                features=self.features[rows],
                logits=self.logits[rows] if name in logits else None,
                rows_per_part=rows_per_part,
                prefixes=LENGTHS,
                **fields,
            )
            for name, rows in sides.items()
        }

    def expected(self, bits: int, k: int) -> metrics.RetrievalMetrics:
        """Metrics from one pass over all pairs, counted by the slow twin."""
        codes = np.unpackbits(self.codes[:, : bits // 8], axis=1, bitorder="little")
        total = np.zeros((NUM_QUERIES, bits + 1), np.int64)
        relevant = np.zeros_like(total)
        for query in range(NUM_QUERIES):
            for row in range(NUM_QUERIES, len(codes)):
                distance = int((codes[query] != codes[row]).sum())
                total[query, distance] += 1
                relevant[query, distance] += bool({*self.labels[query]} & {*self.labels[row]})
        return metrics.from_histogram(total, relevant, k=k)


def run(tables: dict[str, str], output: Path, **fields: Any) -> tuple[Any, dict[str, Any]]:
    """The result and the content of metrics.json."""
    result = evaluate(EvaluateConfig(**tables, output=str(output), **fields))
    return result, json.loads(Path(result.metrics_uri).read_bytes())


def scored(tables: dict[str, str], block_rows: int) -> Scored:
    config = EvaluateConfig(**tables, output="unused", k=40, baseline_fit=tables["database"])
    plan = plan_evaluation(config)
    return score_all(plan, survey_tables(plan).form, fit_all(plan), block_rows=block_rows)


@pytest.mark.ray
@pytest.mark.parametrize("several", [False, True])
def test_equals_brute_force(tmp_path: Path, ray_local: None, several: bool) -> None:
    corpus = Corpus(several=several)
    result, record = run(corpus.tables(tmp_path, rows_per_part=50), tmp_path / "out", k=40, example_queries=0)
    assert list(result.map_at_k) == ["16", "32", "64"]
    for series in record["series"]:
        expected = corpus.expected(series["bits"], 40)
        assert result.map_at_k[str(series["bits"])] == pytest.approx(expected.map_at_k, abs=1e-12)
        for name in ("map_best", "map_worst", "precision_at_k", "recall_at_k", "median_tie_block"):
            assert series[name] == pytest.approx(getattr(expected, name), abs=1e-12)
        assert series["empty_ball_share"] == pytest.approx(expected.empty_ball_share[2])
        np.testing.assert_allclose(series["recall_by_radius"], expected.recall_by_radius)
        assert series["interval"]["low"] < series["map_at_k"] < series["interval"]["high"]
        assert series["ranks"][0] == 1
        assert series["ranks"][-1] == NUM_DATABASE
        assert series["recall_by_rank"][-1] == pytest.approx(1)
    assert (record["k"], record["queries"], record["database"]) == (40, NUM_QUERIES, NUM_DATABASE)
    assert result.baselines == {}
    assert result.beats_itq is None


@pytest.mark.ray
@pytest.mark.parametrize("several", [False, True])
def test_stored_order_equals_a_stable_sort_as_published_code_ranks(
    tmp_path: Path, ray_local: None, several: bool
) -> None:
    corpus = Corpus(several=several)
    tables = corpus.tables(tmp_path, rows_per_part=50, logits=("queries",))
    settings: dict[str, Any] = {"k": 40, "bits": (16, 64), "example_queries": 0}
    _, record = run(tables, tmp_path / "out", **settings, stored_order=True, baseline_fit=tables["database"])
    _, plain = run(tables, tmp_path / "plain", **settings)
    for series in record["series"]:
        if series["method"] == "cibhash":
            expected = _published_map(corpus, series["bits"], 40)
            assert series["map_stored_order"] == pytest.approx(expected, abs=1e-12)
            assert series["map_worst"] - 1e-12 <= series["map_stored_order"] <= series["map_best"] + 1e-12
            assert series["float_agreement"] == pytest.approx(_agreement(corpus, series["bits"], 40))
        else:
            assert (series["map_stored_order"] is None) == (series["method"] == "cibhash-asymmetric")
    assert {series["map_stored_order"] for series in plain["series"]} == {None}
    assert {series["float_agreement"] for series in plain["series"]} == {None}
    assert "| like features |" in (tmp_path / "out" / "metrics.md").read_text()
    assert "| stored order |" in (tmp_path / "out" / "metrics.md").read_text()


def _agreement(corpus: Corpus, bits: int, k: int) -> float:
    """Share of the k most similar features that are among the k nearest codes."""
    codes = np.unpackbits(corpus.codes[:, : bits // 8], axis=1, bitorder="little").astype(np.int64)
    unit = corpus.features / np.linalg.norm(corpus.features, axis=1, keepdims=True)
    shares = []
    for query in range(NUM_QUERIES):
        distances = np.abs(codes[NUM_QUERIES:] - codes[query]).sum(axis=1)
        nearest = np.argsort(distances, kind="stable")[:k]
        similar = np.argsort(-(unit[NUM_QUERIES:] @ unit[query]), kind="stable")[:k]
        shares.append(len({*nearest.tolist()} & {*similar.tolist()}) / k)
    return float(np.mean(shares))


def _published_map(corpus: Corpus, bits: int, k: int) -> float:
    """As released code computes it, except that the sort is stable."""
    signs = 2.0 * np.unpackbits(corpus.codes[:, : bits // 8], axis=1, bitorder="little") - 1
    labels = np.zeros((len(signs), 9))
    for row, own in enumerate(corpus.labels):
        labels[row, own] = 1
    found = []
    for query in range(NUM_QUERIES):
        relevant = labels[NUM_QUERIES:] @ labels[query] > 0
        hamming = 0.5 * (bits - signs[NUM_QUERIES:] @ signs[query])
        places = np.flatnonzero(relevant[np.argsort(hamming, kind="stable")][:k]) + 1.0
        found.append((np.arange(1, len(places) + 1) / places).mean() if len(places) else 0.0)
    return float(np.mean(found))


@pytest.mark.ray
@pytest.mark.parametrize("several", [False, True])
def test_classes_and_single_queries_equal_brute_force(tmp_path: Path, ray_local: None, several: bool) -> None:
    corpus = Corpus(several=several)
    corpus.labels[3] = []
    tables = corpus.tables(tmp_path, rows_per_part=50, dataset_uri=str(tmp_path / "data" / "some"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "classes.json").write_text(json.dumps({"0": "wren", "2": "finch"}))
    _, record = run(tables, tmp_path / "out", k=40, example_queries=0)
    content = (tmp_path / "out" / "queries.parquet").read_bytes()
    listed = record["query_table"]
    assert listed["sha256"] == hashlib.sha256(content).hexdigest()
    assert (listed["path"], listed["rows"]) == ("queries.parquet", NUM_QUERIES * len(LENGTHS))
    rows = pq.read_table(io.BytesIO(content)).to_pylist()
    own = corpus.labels[:NUM_QUERIES]
    labels = sorted({label for labels in own for label in labels})
    assert [(one["label"], one["queries"]) for one in record["classes"]] == [
        (label, sum(label in labels for labels in own)) for label in labels
    ]
    names = {one["label"]: one["name"] for one in record["classes"]}
    assert (names[0], names[1], names[2]) == ("wren", "", "finch")
    for series in record["series"]:
        expected = corpus.expected(series["bits"], 40)
        found = [row for row in rows if row["bits"] == series["bits"]]
        assert [row["key"] for row in found] == [f"image-{one}" for one in range(NUM_QUERIES)]
        assert [row["average_precision"] for row in found] == pytest.approx(expected.average_precision)
        assert [row["relevant"] for row in found] == expected.per_query.num_relevant.tolist()
        for name, values in (
            ("map_by_class", expected.average_precision),
            ("precision_by_class", expected.per_query.precision),
        ):
            means = [np.mean([values[query] for query in range(NUM_QUERIES) if one in own[query]]) for one in labels]
            assert series[name] == pytest.approx(means)
        for name in ("map_all", "ndcg_at_k", "ramap", "map_at_k_r", "map_at_k_min_kr", "map_by_radius"):
            assert series[name] == pytest.approx(getattr(expected, name), abs=1e-12)
        for name in ("map_all", "ndcg_at_k", "recall_at_k"):
            assert series["intervals"][name]["low"] < series[name] < series["intervals"][name]["high"]
    assert any("1 of 23 queries have no relevant image in the database" in note for note in record["notes"])


@pytest.mark.ray
@pytest.mark.parametrize("several", [False, True])
def test_queries_with_logits_add_asymmetric_series(tmp_path: Path, ray_local: None, several: bool) -> None:
    """Against loops over all pairs; the codes' own series and the comparison with ITQ stay as they were."""
    corpus = Corpus(several=several)
    tables = corpus.tables(tmp_path, rows_per_part=50, logits=("queries",))
    plain = corpus.tables(tmp_path / "plain")
    settings: dict[str, Any] = {"k": 40, "example_queries": 0, "title": "Same"}
    result, record = run(tables, tmp_path / "out", **settings, baseline_fit=tables["database"])
    before, record_before = run(plain, tmp_path / "before", **settings, baseline_fit=plain["database"])
    assert (before.map_at_k_asymmetric, list(result.map_at_k_asymmetric)) == ({}, ["16", "32", "64"])
    assert [one for one in record["series"] if one["method"] != "cibhash-asymmetric"] == record_before["series"]
    for name in ("margins", "verdict", "health", "float_cosine"):
        assert record[name] == record_before[name]
    assert (result.map_at_k, result.baselines) == (before.map_at_k, before.baselines)

    methods = [series["method"] for series in record["series"]]
    assert methods[:7] == ["cibhash"] * 3 + ["cibhash-asymmetric"] * 3 + ["itq"]
    for series in record["series"][3:6]:
        expected = _asymmetric_metrics(corpus, series["bits"], 40)
        assert result.map_at_k_asymmetric[str(series["bits"])] == series["map_at_k"]
        for name in ("map_at_k", "map_best", "map_worst", "precision_at_k", "recall_at_k", "median_tie_block"):
            assert series[name] == pytest.approx(getattr(expected, name), abs=1e-12)
        assert series["map_at_k"] > result.map_at_k[str(series["bits"])]
        assert series["interval"]["low"] < series["map_at_k"] < series["interval"]["high"]
        assert (series["empty_ball_share"], series["precision_by_radius"], series["recall_by_radius"]) == (None, [], [])
        assert series["recall_by_rank"][-1] == pytest.approx(1)


def _asymmetric_metrics(corpus: Corpus, bits: int, k: int) -> metrics.RetrievalMetrics:
    """From one pass over all pairs."""
    weights = asymmetric.query_weights(corpus.logits[:NUM_QUERIES], bits).tolist()
    codes = np.unpackbits(corpus.codes, axis=1, bitorder="little")[:, :bits].tolist()
    total = np.zeros((NUM_QUERIES, asymmetric.LEVELS + 1), np.int64)
    relevant = np.zeros_like(total)
    for query in range(NUM_QUERIES):
        for row in range(NUM_QUERIES, len(codes)):
            differs = zip(weights[query], codes[query], codes[row], strict=True)
            distance = sum(weight for weight, a, b in differs if a != b)
            total[query, distance] += 1
            relevant[query, distance] += bool({*corpus.labels[query]} & {*corpus.labels[row]})
    return metrics.from_histogram(total, relevant, k=k)


def test_logits_of_the_queries_alone_decide(tmp_path: Path) -> None:
    for name, logits, expected in (
        ("both", ("queries", "database"), True),
        ("queries", ("queries",), True),
        ("database", ("database",), False),
    ):
        tables = Corpus().tables(tmp_path / name, logits=logits)
        assert plan_evaluation(EvaluateConfig(**tables, output="unused")).with_asymmetric is expected


@pytest.mark.ray
def test_no_split_changes_a_number(tmp_path: Path, ray_local: None) -> None:
    corpus = Corpus()
    logits = ("queries", "database")
    whole = scored(corpus.tables(tmp_path / "whole", logits=logits), block_rows=1000)
    split = scored(corpus.tables(tmp_path / "split", rows_per_part=45, logits=logits), block_rows=6)
    assert len(whole.counts) == 5 * len(LENGTHS) - 2  # 32 features have no 64 principal components
    assert whole.counts.keys() == split.counts.keys()
    for series, counts in whole.counts.items():
        np.testing.assert_array_equal(counts.total, split.counts[series].total)
        np.testing.assert_array_equal(counts.relevant, split.counts[series].relevant)
        assert (counts.total.sum(axis=1) == NUM_DATABASE).all()
    np.testing.assert_array_equal(whole.cosine, split.cosine)
    np.testing.assert_array_equal(whole.statistics.both, split.statistics.both)
    for bits in LENGTHS:
        for found, other in (
            (whole.statistics.ties[bits], split.statistics.ties[bits]),
            (whole.statistics.labeled[bits], split.statistics.labeled[bits]),
        ):
            for name, value in vars(found).items():
                np.testing.assert_array_equal(value, getattr(other, name))


@pytest.mark.ray
def test_baselines_and_cosine_equal_a_direct_computation(tmp_path: Path, ray_local: None) -> None:
    corpus = Corpus()
    tables = corpus.tables(tmp_path, rows_per_part=60)
    result, record = run(tables, tmp_path / "out", k=40, bits=(16, 32), baseline_fit=tables["database"], seed=3)
    labels = np.array(corpus.labels)[:, 0]
    queries, database = corpus.features[:NUM_QUERIES], corpus.features[NUM_QUERIES:]
    for bits in (16, 32):
        fitted = {
            "itq": fit_itq(database, bits, seed=3),
            "random_hyperplanes": fit_random_hyperplanes(database, bits, 3),
        }
        for method, linear in fitted.items():
            counts = histogram(
                linear.encode(queries), linear.encode(database), labels[:NUM_QUERIES], labels[NUM_QUERIES:]
            )
            expected = metrics.from_histogram(*counts, k=40).map_at_k
            assert result.baselines[method][str(bits)] == pytest.approx(expected, abs=1e-12)
    unit = corpus.features / np.linalg.norm(corpus.features, axis=1, keepdims=True)
    rankings = np.argsort(-(unit[:NUM_QUERIES] @ unit[NUM_QUERIES:].T), axis=1)
    precision = [
        float(oracles.average_precision((labels[NUM_QUERIES:][ranking] == label).astype(int).tolist(), 40, "hashing"))
        for ranking, label in zip(rankings, labels[:NUM_QUERIES], strict=True)
    ]
    assert result.float_cosine == pytest.approx(np.mean(precision), abs=1e-9)
    margins = {margin["bits"]: margin["difference"] for margin in record["margins"]}
    assert margins[16] == pytest.approx(result.map_at_k["16"] - result.baselines["itq"]["16"])
    assert result.beats_itq == all(difference > 0 for difference in margins.values())
    assert result.verdict == record["verdict"] != ""


@pytest.mark.ray
def test_rerun_writes_the_same_numbers_and_the_report_last(tmp_path: Path, ray_local: None) -> None:
    tables = Corpus().tables(tmp_path, rows_per_part=90)
    first, _ = run(tables, tmp_path / "out", k=40, title="Twice")
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert max(files, key=lambda name: files[name]) == "report.html"
    second, _ = run(tables, tmp_path / "again", k=40, title="Twice")
    assert Path(first.metrics_uri).read_bytes() == Path(second.metrics_uri).read_bytes()
    tables_of_queries = [(tmp_path / name / "queries.parquet").read_bytes() for name in ("out", "again")]
    assert tables_of_queries[0] == tables_of_queries[1]
    assert {"metrics.json", "metrics.md", "queries.parquet", "report.html"} == set(files)


@pytest.mark.ray
def test_k_above_the_database_means_all(tmp_path: Path, ray_local: None) -> None:
    corpus = Corpus()
    result, record = run(corpus.tables(tmp_path), tmp_path / "out", k=5000, bits=32, example_queries=0)
    assert (record["k"], record["k_asked"], result.k) == (NUM_DATABASE, 5000, NUM_DATABASE)
    assert result.map_at_k["32"] == pytest.approx(corpus.expected(32, NUM_DATABASE).map_at_k, abs=1e-12)
    assert any("5000" in note for note in record["notes"])


@pytest.mark.ray
def test_one_image_with_two_labels_far_away_changes_the_form_everywhere(tmp_path: Path, ray_local: None) -> None:
    corpus = Corpus()
    corpus.labels[-1] = [3, 4]
    corpus.labels[0] = []
    result, record = run(corpus.tables(tmp_path, rows_per_part=30), tmp_path / "out", k=40, bits=16, example_queries=0)
    assert result.map_at_k["16"] == pytest.approx(corpus.expected(16, 40).map_at_k, abs=1e-12)
    assert any("1 of 23 images of the queries have no label" in note for note in record["notes"])


@pytest.mark.ray
@pytest.mark.parametrize("side", ["queries", "database"])
def test_a_table_without_labels_is_named(tmp_path: Path, ray_local: None, side: str) -> None:
    corpus = Corpus()
    tables = corpus.tables(tmp_path)
    tables[side] = make_code_table(tmp_path / "bare", corpus.codes)
    with pytest.raises(DataError, match="bare: none of the 233 images has a label"):
        run(tables, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_a_part_that_was_changed_is_refused(tmp_path: Path, ray_local: None) -> None:
    tables = Corpus().tables(tmp_path, rows_per_part=100)
    part = tmp_path / "database" / "parts" / "part-000001.parquet"
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(content)
    with pytest.raises(ManifestMismatch, match="part-000001"):
        run(tables, tmp_path / "out")


def query_metrics(precision: np.ndarray, num_relevant: np.ndarray | None = None) -> QueryMetrics:
    """Of queries of which only the average precision matters."""
    fields = dict.fromkeys(QueryMetrics._fields, precision)
    found = np.ones(len(precision)) if num_relevant is None else num_relevant
    return QueryMetrics(**fields | {"average_precision": precision, "num_relevant": found})


@pytest.mark.ray
@pytest.mark.parametrize("exclude", [False, True])
def test_examples_are_the_exact_neighbors(tmp_path: Path, ray_local: None, exclude: bool) -> None:
    corpus = Corpus()
    plan = plan_evaluation(EvaluateConfig(**corpus.tables(tmp_path, rows_per_part=33), output="unused"))
    precision = np.random.default_rng(0).permutation(NUM_QUERIES) / NUM_QUERIES
    scores = query_metrics(precision)
    excluded = Exclusions(np.array([[one, one] for one in range(0, NUM_QUERIES, 2)])) if exclude else Exclusions()
    examples = find_examples(plan, scores, np.zeros(NUM_QUERIES, np.int64), 16, 5, excluded)
    ranked = np.sort(precision)
    assert [one.average_precision for one in examples] == [*ranked[::-1][:2], *ranked[:3]]
    assert [one.is_best for one in examples] == [True, True, False, False, False]
    codes = prefix(corpus.codes, 16)
    for example in examples:
        query = int(example.query.id)
        expected = oracles.search(codes[query], codes[NUM_QUERIES:], range(NUM_DATABASE))
        expected = [one for one in expected if [query, one[1]] not in excluded.pairs.tolist()][:10]
        assert [(one.distance, one.row.id) for one in example.neighbors] == expected
        for one in example.neighbors:
            assert one.relevant == (corpus.labels[query] == corpus.labels[NUM_QUERIES + one.row.id])
            assert one.row.shard == "nowhere/dataset/shard-000000.tar"
            assert one.row.offset == one.row.id * 1024 + 512


def test_example_queries_are_the_best_and_the_worst_that_have_something_to_find() -> None:
    scores = query_metrics(np.array([0.1, 0.9, 0.5, 0.9, 0.0, 0.3]), np.array([3, 1, 2, 9, 0, 1]))
    for count, best, worst in (
        (4, [1, 3], [0, 5]),
        (3, [1], [0, 5]),
        (1, [], [0]),
        (99, [1, 3], [0, 5, 2]),
        (0, [], []),
    ):
        found = choose_queries(scores, np.zeros(6, np.int64), count)
        assert [one.tolist() for one in found] == [best, worst], count


def test_among_equal_queries_labels_take_turns() -> None:
    scores = query_metrics(np.array([1, 1, 1, 1, 1, 0.5, 0.5, 0.5]))
    best, worst = choose_queries(scores, np.array([4, 4, 4, 2, 2, 9, 9, 1]), 8)
    assert (best.tolist(), worst.tolist()) == ([0, 3, 1, 4], [5, 7, 6, 2])


def test_tables_of_two_encoders_are_refused_with_both_digests(tmp_path: Path) -> None:
    corpus = Corpus()
    tables = corpus.tables(tmp_path)
    tables["queries"] = make_code_table(tmp_path / "other", corpus.codes, encoder_digest="f" * 64)
    with pytest.raises(ManifestMismatch) as caught:
        run(tables, tmp_path / "out")
    assert "f" * 16 in str(caught.value)
    assert "e" * 16 in str(caught.value)
    assert caught.value.exit_code == 3


def test_codes_or_features_of_other_lengths_are_refused(tmp_path: Path) -> None:
    corpus = Corpus()
    tables = corpus.tables(tmp_path)
    short = make_code_table(tmp_path / "short", corpus.codes[:, :4], labels=corpus.labels, features=corpus.features)
    narrow = make_code_table(tmp_path / "narrow", corpus.codes, labels=corpus.labels, features=corpus.features[:, :9])
    for uri, message in ((short, "has 64 bits per image, but .*short has 32"), (narrow, "32 features .* narrow has 9")):
        with pytest.raises(ManifestMismatch, match=message.replace(" narrow", ".*narrow")):
            run(tables | {"queries": uri}, tmp_path / "out")


def test_an_empty_query_set_is_refused(tmp_path: Path) -> None:
    tables = Corpus().tables(tmp_path)
    manifest_path = tmp_path / "queries" / "codes.json"
    manifest = json.loads(manifest_path.read_bytes())
    manifest |= {"parts": [], "rows_in": 0, "rows_out": 0}
    manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="queries: the code table has no rows"):
        run(tables, tmp_path / "out")


def test_what_cannot_work_is_refused_before_any_work(tmp_path: Path) -> None:
    corpus = Corpus()
    tables = corpus.tables(tmp_path)
    with pytest.raises(ConfigError, match=r"128 bits: the codes of .*database have 64"):
        run(tables, tmp_path / "out", bits=(16, 128))
    bare = make_code_table(tmp_path / "bare", corpus.codes, labels=corpus.labels)
    with pytest.raises(ConfigError, match="bare: has no features"):
        run(tables, tmp_path / "out", baseline_fit=bare)
    with pytest.raises(NotFound, match=r"codes\.json is missing"):
        run(tables | {"database": str(tmp_path / "nothing")}, tmp_path / "out")


def test_parts_without_rows_are_never_opened(tmp_path: Path) -> None:
    table = plan_evaluation(EvaluateConfig(**Corpus().tables(tmp_path, rows_per_part=100), output="unused")).database
    empty = table.manifest.parts[1].model_copy(update={"rows": 0, "quarantined": 100, "path": "parts/none.parquet"})
    parts = (table.manifest.parts[0], empty, *table.manifest.parts[2:])
    left = dataclasses.replace(table, manifest=table.manifest.model_copy(update={"parts": parts}))
    assert [part.path for part in left.parts] == ["parts/part-000000.parquet", "parts/part-000002.parquet"]


def test_dry_run_touches_nothing(tmp_path: Path) -> None:
    result = evaluate(EvaluateConfig(**Corpus().tables(tmp_path), output=str(tmp_path / "out"), dry_run=True))
    assert result.map_at_k == {}
    assert (result.queries, result.database, result.k) == (NUM_QUERIES, NUM_DATABASE, NUM_DATABASE)
    assert not (tmp_path / "out").exists()
