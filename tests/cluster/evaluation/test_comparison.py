"""Encoders side by side: equal to separate evaluations, paired by query, and refused where the images differ."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cibhash import metrics
from cibhash.errors import ConfigError, ManifestMismatch, NotFound
from cluster.evaluation.comparison import match_rows, plan_comparisons
from cluster.evaluation.evaluate import evaluate
from cluster.evaluation.plan import plan_evaluation
from cluster.evaluation_config import EvaluateConfig
from tests.cluster.evaluation.test_evaluate import LENGTHS, NUM_DATABASE, NUM_QUERIES, Corpus, run
from tests.tables import make_code_table

SETTINGS: dict[str, Any] = {"k": 40, "example_queries": 0, "title": "Same", "seed": 3, "stored_order": True}
DATABASE = slice(NUM_QUERIES, None)


def named(name: str, tables: dict[str, str]) -> str:
    return f"{name}={tables['queries']},{tables['database']}"


def other_corpus(*, several: bool = False) -> Corpus:
    """The same images coded by a worse encoder."""
    corpus = Corpus(several=several)
    noise = np.random.default_rng(9).integers(256, size=corpus.codes.shape, dtype=np.uint8)
    corpus.codes ^= noise & np.random.default_rng(10).integers(256, size=noise.shape, dtype=np.uint8)
    corpus.logits = corpus.logits[:, ::-1].copy()
    return corpus


def other_tables(folder: Path, corpus: Corpus, order: np.ndarray, **fields: Any) -> dict[str, str]:
    """Code tables of `corpus` by another encoder, trained for 32 and 64 bits; the queries lie in this order."""
    shared: dict[str, Any] = {"encoder_digest": "f" * 64, "encoder_uri": "nowhere/other", "prefixes": (32, 64)}
    queries = make_code_table(
        folder / "queries",
        corpus.codes[:NUM_QUERIES][order],
        ids=order.astype(np.int64),
        labels=[corpus.labels[one] for one in order],
        logits=corpus.logits[:NUM_QUERIES][order],
        rows_per_part=9,
        **shared | fields,
    )
    labels = corpus.labels[DATABASE]
    database = make_code_table(folder / "database", corpus.codes[DATABASE], labels=labels, rows_per_part=70, **shared)
    return {"queries": queries, "database": database}


@pytest.mark.ray
def test_an_encoder_beside_itself_is_equal_and_changes_nothing_else(tmp_path: Path, ray_local: None) -> None:
    tables = Corpus().tables(tmp_path, rows_per_part=50, logits=("queries",))
    fields = {**SETTINGS, "baseline_fit": tables["database"], "exclude_self": True}
    alone, record_alone = run(tables, tmp_path / "alone", **fields)
    result, record = run(tables, tmp_path / "out", **fields, compare=(named("Again", tables),), name="Neighbour")
    assert result.compared == {"Again": result.map_at_k, "Again, asymmetric": result.map_at_k_asymmetric}
    (again,) = record["compared"]
    assert [margin["bits"] for margin in again["margins"]] == list(LENGTHS)
    for margin in again["margins"]:
        assert margin["difference"] == 0
        assert margin["interval"] == {"low": 0, "high": 0}
    assert again["margins_over_itq"] == record["margins"]
    assert again["tables"] == [table for table in record["tables"] if table["role"] != "baseline_fit"]
    series = {(one.pop("method"), one["bits"]): one for one in record["series"]}
    for bits in LENGTHS:
        assert series[("Again", bits)] == series[("cibhash", bits)] | {"float_agreement": None}
        assert series[("Again, asymmetric", bits)] == series[("cibhash-asymmetric", bits)]
    names = list(dict.fromkeys(method for method, _ in series))
    assert names[:4] == ["cibhash", "cibhash-asymmetric", "Again", "Again, asymmetric"]

    before = {(one.pop("method"), one["bits"]): one for one in record_alone["series"]}
    assert {key: one for key, one in series.items() if not key[0].startswith("Again")} == before
    for name in ("margins", "verdict", "health", "float_cosine", "notes", "encoder_digest", "tables"):
        assert record[name] == record_alone[name]
    assert (result.map_at_k, result.baselines) == (alone.map_at_k, alone.baselines)
    assert (alone.compared, record_alone["compared"], alone.name, result.name) == ({}, [], "CIBHash", "Neighbour")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Neighbour, asymmetric" in page
    assert "Again, asymmetric" in page
    assert "| Again | +0.0000 [+0.0000, +0.0000] |" in (tmp_path / "out" / "metrics.md").read_text()


@pytest.mark.ray
@pytest.mark.parametrize("several", [False, True])
def test_two_encoders_give_what_two_evaluations_give(tmp_path: Path, ray_local: None, several: bool) -> None:
    """Also where the other table has its queries in another order and its rows in other parts."""
    corpus, other = Corpus(several=several), other_corpus(several=several)
    tables = corpus.tables(tmp_path, rows_per_part=50)
    order = np.random.default_rng(1).permutation(NUM_QUERIES)
    kept, mixed = (other_tables(tmp_path / name, other, rows) for name, rows in (("a", np.sort(order)), ("b", order)))
    compare = (named("Paper", kept), named("Mixed", mixed))
    result, record = run(tables, tmp_path / "out", **SETTINGS, compare=compare)
    separate, separate_record = run(kept, tmp_path / "separate", **SETTINGS)
    main, main_record = run(tables, tmp_path / "main", **SETTINGS)
    assert result.map_at_k == main.map_at_k
    assert result.compared["Paper"] == separate.map_at_k
    assert result.compared["Paper, asymmetric"] == separate.map_at_k_asymmetric
    assert list(result.compared["Paper"]) == ["32", "64"]
    assert [one for one in record["series"] if one["method"] == "cibhash"] == main_record["series"]
    methods = {"Paper": "cibhash", "Paper, asymmetric": "cibhash-asymmetric"}
    paper = [one for one in record["series"] if one["method"] in methods]
    assert [{**one, "method": methods[one["method"]]} for one in paper] == separate_record["series"]
    for one in paper:
        name = one["method"].replace("Paper", "Mixed")
        twin = next(two for two in record["series"] if (two["method"], two["bits"]) == (name, one["bits"]))
        assert twin == {**one, "method": name}
    assert record["compared"][1]["margins"] == record["compared"][0]["margins"]

    assert [margin["bits"] for margin in record["compared"][0]["margins"]] == [32, 64]
    for margin in record["compared"][0]["margins"]:
        ours, theirs = (one.expected(margin["bits"], 40) for one in (corpus, other))
        assert margin["difference"] == pytest.approx(ours.map_at_k - theirs.map_at_k, abs=1e-12)
        low, high = _paired_interval(ours, theirs, seed=3)
        assert (margin["interval"]["low"], margin["interval"]["high"]) == pytest.approx((low, high), abs=1e-12)
        assert low > 0, "the other encoder is the worse one"
    assert record["notes"][0] == "Paper was not trained for 16 bits and is not shown there."
    assert record["compared"][0]["encoder_digest"] == "f" * 64
    assert (result.compared_verdicts, record["compared"][0]["margins_over_itq"]) == ({}, [])


def _paired_interval(
    ours: metrics.RetrievalMetrics, theirs: metrics.RetrievalMetrics, seed: int
) -> tuple[float, float]:
    """Of the mean difference over as many queries drawn with replacement, 1000 times."""
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(1000):
        drawn = generator.integers(NUM_QUERIES, size=NUM_QUERIES).tolist()
        differences = [ours.average_precision[one] - theirs.average_precision[one] for one in drawn]
        means.append(sum(differences) / NUM_QUERIES)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


@pytest.mark.ray
def test_a_comparison_that_loses_to_itq_is_said_beside_the_main_verdict(tmp_path: Path, ray_local: None) -> None:
    tables = Corpus().tables(tmp_path)
    random = other_corpus()
    random.codes = np.random.default_rng(2).integers(256, size=random.codes.shape, dtype=np.uint8)
    paper = other_tables(tmp_path / "paper", random, np.arange(NUM_QUERIES))
    fields = {**SETTINGS, "baseline_fit": tables["database"]}
    main, _ = run(tables, tmp_path / "main", **fields)
    result, record = run(tables, tmp_path / "out", **fields, compare=(named("Paper", paper),))
    assert (result.verdict, result.beats_itq) == (main.verdict, main.beats_itq)
    itq = result.baselines["itq"]
    assert result.compared["Paper"]["32"] < itq["32"]
    (compared,) = record["compared"]
    assert compared["beats_itq"] is False
    lost = result.compared["Paper"]["32"] - itq["32"]
    assert compared["verdict"].startswith(f"Paper DOES NOT BEAT ITQ: mAP {lost:+.4f} at 32 bits")
    assert result.compared_verdicts == {"Paper": compared["verdict"]}
    assert compared["verdict"] in (tmp_path / "out" / "report.html").read_text()
    assert compared["verdict"] in (tmp_path / "out" / "metrics.md").read_text()


def test_tables_of_other_images_are_refused_before_any_work(tmp_path: Path) -> None:
    corpus, order = Corpus(), np.arange(NUM_QUERIES)
    tables = corpus.tables(tmp_path)
    good = other_tables(tmp_path / "good", corpus, order)
    shared: dict[str, Any] = {"encoder_digest": "f" * 64}

    def refuse(database: str | None = None, queries: str | None = None) -> str:
        other = {"queries": queries or good["queries"], "database": database or good["database"]}
        with pytest.raises(ManifestMismatch) as caught:
            evaluate(EvaluateConfig(**tables, output=str(tmp_path / "out"), compare=(named("Paper", other),)))
        return str(caught.value)

    codes = corpus.codes[DATABASE]
    elsewhere = make_code_table(tmp_path / "elsewhere", codes, dataset_digest="c" * 64, **shared)
    message = refuse(elsewhere)
    assert message.startswith(f"compare Paper: {elsewhere} has codes of dataset cccccccccccccccc..., but ")
    assert "dddddddddddddddd..." in message
    queries = other_tables(tmp_path / "queries", corpus, order, dataset_digest="c" * 64)["queries"]
    assert "queries/queries has codes of dataset cccc" in refuse(queries=queries)

    one_less = make_code_table(tmp_path / "less", codes[:-1], quarantined=(NUM_DATABASE - 1,), **shared)
    assert (
        f"less has 209 images (ids 0 to 208), 1 quarantined (ids 209), but {tables['database']} has 210 images "
        "(ids 0 to 209), 0 quarantined: both encoders must have coded the same images"
    ) in refuse(one_less)
    shifted = make_code_table(tmp_path / "shifted", codes, ids=np.arange(1, NUM_DATABASE + 1), **shared)
    assert "shifted has 210 images (ids 1 to 210), 0 quarantined, but" in refuse(shifted)
    mixed = make_code_table(tmp_path / "mixed", codes)
    assert "was made by encoder" in refuse(mixed)
    with pytest.raises(NotFound, match="nothing"):
        refuse(str(tmp_path / "nothing"))
    assert not (tmp_path / "out").exists()


def test_equally_many_but_other_quarantined_images_are_refused(tmp_path: Path) -> None:
    codes, fields = Corpus().codes[:20], {"labels": [[0]] * 20}
    kept = {refused: np.setdiff1d(np.arange(21), [refused]) for refused in (4, 9)}
    four, nine, same = (
        make_code_table(tmp_path / name, codes, ids=kept[refused], quarantined=(refused,), **fields)
        for name, refused in (("four", 4), ("nine", 9), ("same", 4))
    )
    config = EvaluateConfig(queries=four, database=four, output="unused", compare=(f"Paper={same},{nine}",))
    with pytest.raises(ManifestMismatch, match=r"1 quarantined \(ids 9\), but .* 1 quarantined \(ids 4\): both"):
        plan_comparisons(config, plan_evaluation(config))
    allowed = config.model_copy(update={"compare": (f"Paper={same},{same}",)})
    (comparison,) = plan_comparisons(allowed, plan_evaluation(allowed))
    assert (comparison.name, comparison.plan.database.uri, comparison.notes) == ("Paper", same, ())


@pytest.mark.ray
def test_queries_with_other_ids_are_refused_before_scoring(tmp_path: Path, ray_local: None) -> None:
    codes, labels = Corpus().codes[:12], [[0]] * 12
    ids = 2 * np.arange(12)
    tables = [
        make_code_table(tmp_path / name, codes, ids=found, labels=labels)
        for name, found in (("main", ids), ("other", np.where(ids == 6, 7, ids)))
    ]
    config = EvaluateConfig(
        queries=tables[0], database=tables[0], output=str(tmp_path / "out"), compare=(f"Paper={tables[1]},{tables[0]}",)
    )
    with pytest.raises(ManifestMismatch, match=r"compare Paper: 1 of 12 ids of .*main are not in .*other"):
        evaluate(config)
    assert not (tmp_path / "out").exists()


def test_lengths_are_those_that_both_encoders_have(tmp_path: Path) -> None:
    corpus, order = Corpus(), np.arange(NUM_QUERIES)
    tables, paper = corpus.tables(tmp_path), other_tables(tmp_path / "paper", corpus, order)
    config = EvaluateConfig(**tables, output="unused", bits=(16, 32), compare=(named("Paper", paper),))
    (comparison,) = plan_comparisons(config, plan_evaluation(config))
    assert comparison.plan.lengths == (32,)
    assert comparison.notes == (
        "Paper was not trained for 16 bits and is not shown there.",
        "Paper was trained for 64 bits too, which are not evaluated here.",
    )
    config = config.model_copy(update={"bits": (8, 16)})
    with pytest.raises(ConfigError, match=r"paper/database has codes of 32, 64 bits, none of .* evaluated: 8, 16"):
        plan_comparisons(config, plan_evaluation(config))


def test_rows_are_matched_by_id() -> None:
    ids, others = np.array([5, 1, 9]), np.array([9, 5, 1])
    places = match_rows(ids, others)
    assert places is not None
    assert others[places].tolist() == ids.tolist()
    assert match_rows(ids, np.array([9, 5, 2])) is None
    assert match_rows(ids, np.array([9, 5])) is None
