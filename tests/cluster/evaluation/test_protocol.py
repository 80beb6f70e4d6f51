"""Numbers published under the protocol of an evaluation, and evaluations that are of another one."""

import dataclasses
import json
from pathlib import Path

import pytest

from cibhash.errors import ConfigError
from cluster.evaluation.evaluate import EvaluateResult
from cluster.evaluation.published_cells import published_head, published_rows
from cluster.evaluation.report import report_html
from cluster.evaluation.result_tables import format_table, markdown
from cluster.evaluation.results import Evaluation, NamedProtocol
from cluster.reproduction.paper_table import load_table
from jobs.runner import plain
from tests.cluster.evaluation.test_evaluate import Corpus, run
from tests.cluster.evaluation.test_report import URIS, Page, evaluation

TABLE = load_table()


def named(name: str) -> NamedProtocol:
    protocol = TABLE.protocols[name]
    return NamedProtocol(
        name=name, title=protocol.title, about=protocol.about, k=protocol.k, published=TABLE.published_for(name)
    )


def with_protocol() -> Evaluation:
    return evaluation().model_copy(update={"protocol": named("cifar10-deephash")})


def test_methods_that_have_one_of_the_lengths_are_shown() -> None:
    protocol = named("cifar10-deephash")
    assert published_head((16, 64))[2:] == ["16 bits", "64 bits", "from (evidence)"]
    rows = published_rows(protocol, (16, 32))
    assert ["ITQ", "VGG-16", "0.468", "0.513", "SDC's comparison, run by its authors (quoted)"] in rows
    assert "CIBHash, run again with SDC's code" not in [row[0] for row in rows]
    assert published_rows(protocol, (64,))[-2][2:3] == ["0.614"]
    assert published_rows(protocol, (48,)) == []


def test_page_and_markdown_hold_them_with_their_evidence() -> None:
    found = with_protocol()
    text = markdown(found)
    assert "| SDC | VGG-16 | 0.598 | 0.640 | SDC's comparison, run by its authors (quoted) |" in text
    page = Page(report_html(found, [], URIS)).text
    for expected in ("Published, CIFAR-10, 100 queries per class", "GreedyHash", "0.449", "(quoted)"):
        assert expected in page
    assert "Published" not in Page(report_html(evaluation(), [], URIS)).text
    assert Evaluation.model_validate_json(found.to_json()) == found


@pytest.mark.ray
def test_evaluate_reports_them_beside_its_own(tmp_path: Path, ray_local: None) -> None:
    tables = Corpus().tables(tmp_path)
    settings = {"example_queries": 0, "k": 1000, "bits": (16, 32)}
    result, record = run(tables, tmp_path / "out", protocol="cifar10", baseline_fit=tables["database"], **settings)
    assert isinstance(result, EvaluateResult)
    assert record["protocol"]["published"][0]["map"] == {"16": 0.59, "32": 0.622, "64": 0.641}
    assert record["protocol"]["published"][0]["evidence"] == "quoted"
    deviation = "23 images in query, the protocol has 10,000"
    assert record["protocol"]["deviations"][0] == deviation
    assert f"NOT COMPARABLE: {deviation}; " in (tmp_path / "out" / "metrics.md").read_text()
    text = format_table(result)
    for expected in (
        "Published, CIFAR-10, not comparable",
        deviation,
        "0.590",
        "0.622",
        "(quoted)",
        "PCA-sign",
        "Random hyperplanes",
    ):
        assert expected in text
    assert "Published" not in format_table(dataclasses.replace(result, protocol=None))
    assert json.loads(json.dumps(plain(result)))["protocol"]["name"] == "cifar10"
    for method in ("itq", "pca_sign", "random_hyperplanes"):
        assert set(result.baselines[method]) == {"16", "32"}
    for fields, message in (
        ({"protocol": "cifar", "k": 1000}, "protocol 'cifar': did you mean cifar10"),
        ({"protocol": "mscoco", "k": 1000}, "k 1000: protocol mscoco is mAP@5000: give --k 5000"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(tables, tmp_path / "refused", **fields)
    assert not (tmp_path / "refused").exists()
