"""The report page: self-contained, escaped, honest about what it could not read."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.evaluation.evaluate import EvaluateResult
from cluster.evaluation.examples import Example, ExampleNeighbor, choose_queries
from cluster.evaluation.measures import measure, verdict
from cluster.evaluation.plots import curves_by_radius, curves_by_rank, inline_svg, map_bars
from cluster.evaluation.report import report_html
from cluster.evaluation.result_tables import format_table, markdown
from cluster.evaluation.results import Evaluation, Health, TableRecord
from cluster.evaluation.scoring import Counts, Series
from cluster.index.shard_index import Row

HOSTILE = '<script>alert("x")</script>&\'"'
VOID = {"meta", "img", "br", "link", "input", "hr"}
URIS = {"queries": "/data/q", "database": f"/data/{HOSTILE}", "encoder": "s3://bucket/encoder"}


class Page(HTMLParser):
    """Parses a page, checks that tags close in order, and keeps what the tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def evaluation(title: str = "Birds", notes: tuple[str, ...] = ()) -> Evaluation:
    """An evaluation of random histograms with one baseline, and with logits of the queries."""
    generator = np.random.default_rng(0)
    counts = {}
    for series in (Series(method, bits) for method in ("cibhash", "cibhash-asymmetric", "itq") for bits in (16, 32)):
        total = generator.multinomial(50, np.full(series.num_distances, 1 / series.num_distances), size=12)
        counts[series] = Counts(total, generator.binomial(total, 0.3))
    measured, _ = measure(counts, generator.random(12), k=10, seed=0)
    beats_itq, sentence = verdict(measured.margins)
    return Evaluation(
        title=title,
        k=10,
        k_asked=10,
        queries=12,
        database=50,
        encoder_digest="e" * 64,
        tables=tuple(
            TableRecord(role=role, digest="a" * 64, dataset_digest="d" * 64, rows=50)
            for role in ("queries", "database")
        ),
        seed=0,
        bootstrap_resamples=1000,
        series=measured.series,
        float_cosine=measured.float_cosine,
        health=(Health(bits=16, distinct_share=0.5, least_balanced=0.1, mean_imbalance=0.2, constant_bits=0),),
        margins=measured.margins,
        beats_itq=beats_itq,
        verdict=sentence,
        notes=notes,
        versions={"cibhash": "0"},
    )


def example(shard: str, key: str = "bird-1", size: int = 0, offset: int = 0) -> Example:
    rows = [Row(number, key, (number % 2,), shard, offset, size) for number in range(3)]
    neighbors = tuple(ExampleNeighbor(row, row.id, row.labels == (0,)) for row in rows[1:])
    return Example(rows[0], 32, 0.5, neighbors)


@pytest.fixture
def shard(tmp_path: Path) -> tuple[str, int, int]:
    """A file with a red image somewhere inside: path, offset, size."""
    sink = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 30, 30)).save(sink, "png")
    (tmp_path / "a.tar").write_bytes(b"x" * 700 + sink.getvalue() + b"y" * 100)
    return str(tmp_path / "a.tar"), 700, len(sink.getvalue())


def test_page_stands_alone_and_parses(shard: tuple[str, int, int]) -> None:
    path, offset, size = shard
    html = report_html(evaluation(), [example(path, offset=offset, size=size)], URIS)
    page = Page(html)
    assert re.search(r"https?://|//cdn|@import|url\((?!#)", html) is None
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/")
        assert not any(name.startswith("on") for name in attributes)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 100
    targets = set(re.findall(r'(?:href="|url\()#([^")]+)', html))
    assert targets
    assert targets <= set(ids)
    assert sum(tag == "svg" for tag, _ in page.tags) == 3


def test_page_shows_every_number_and_where_it_comes_from() -> None:
    found = evaluation(notes=("Only twelve queries.",))
    page = Page(report_html(found, [], URIS))
    for one in found.series:
        assert f"{one.map_at_k:.4f}" in page.text
    assert found.float_cosine is not None
    for text in (f"{found.float_cosine.map_at_k:.4f}", found.verdict, "Only twelve queries.", "e" * 64, "a" * 64):
        assert text in page.text
    assert "s3://bucket/encoder" in page.text
    assert "Examples" not in page.text


def test_asymmetric_distance_has_no_curve_by_radius() -> None:
    found = evaluation()
    assert "CIBHash, asymmetric 32" in curves_by_rank(found)
    by_radius = curves_by_radius(found)
    assert "asymmetric" not in by_radius
    assert "PCA-ITQ 32" in by_radius
    assert "CIBHash, asymmetric" in map_bars(found)
    about = "over the bits that differ"
    assert about in Page(report_html(found, [], URIS)).text
    others = tuple(one for one in found.series if one.method != "cibhash-asymmetric")
    plain = found.model_copy(update={"series": others})
    assert about not in Page(report_html(plain, [], URIS)).text
    assert about in markdown(found)
    assert about not in markdown(plain)


def test_texts_from_outside_are_escaped(shard: tuple[str, int, int]) -> None:
    path, offset, size = shard
    rows = [example(path, HOSTILE, size, offset), example(f"/nowhere/{HOSTILE}.tar", HOSTILE)]
    html = report_html(evaluation(HOSTILE, (HOSTILE,)), rows, URIS)
    assert "<script" not in html
    page = Page(html)
    assert page.text.count(HOSTILE) >= 5
    assert f"{HOSTILE}, label 0" in {attributes.get("alt") for tag, attributes in page.tags if tag == "img"}


def test_examples_carry_the_pictures_distances_and_marks(shard: tuple[str, int, int]) -> None:
    path, offset, size = shard
    page = Page(report_html(evaluation(), [example(path, offset=offset, size=size)], URIS))
    sources = [str(attributes["src"]) for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 3
    picture = Image.open(io.BytesIO(base64.b64decode(sources[0].split(",", 1)[1])))
    assert picture.size == (20, 10)
    assert picture.convert("RGB").getpixel((5, 5)) == (200, 30, 30)
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "li"] == [None, "relevant"]
    assert "✗ 1" in page.text
    assert "✓ 2" in page.text


def test_originals_that_cannot_be_read_are_named_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "noise.tar").write_bytes(b"z" * 5000)
    broken = example(str(tmp_path / "noise.tar"), size=40, offset=9)
    page = Page(report_html(evaluation(), [example("/gone/a.tar"), broken], URIS))
    assert "2 of 2 originals could not be read" in page.text
    assert "/gone/a.tar: no such file" in page.text
    assert "noise.tar at offset 9: not a JPEG" in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_losing_to_itq_is_said_loudly() -> None:
    found = evaluation()
    lost = found.margins[0].model_copy(update={"difference": -0.01})
    won = found.margins[1].model_copy(update={"difference": 0.02})
    beats_itq, sentence = verdict((lost, won))
    assert beats_itq is False
    assert "DOES NOT BEAT ITQ" in sentence
    assert "-0.0100 at 16 bits" in sentence
    assert "32 bits" not in sentence
    page = Page(report_html(found.model_copy(update={"beats_itq": beats_itq, "verdict": sentence}), [], URIS))
    assert ("p", {"class": "verdict lost", "role": "status"}) in page.tags
    assert verdict((won,))[0] is True
    assert verdict(()) == (None, "")


def test_svg_loses_its_addresses_and_shared_ids() -> None:
    document = (
        '<?xml version="1.0"?><!DOCTYPE svg PUBLIC "x" "http://www.w3.org/x.dtd">\n'
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9">'
        '<metadata>http://a</metadata><path id="p" clip-path="url(#c)"/><use xlink:href="#p"/></svg>'
    )
    assert inline_svg(document, "one", "A chart") == (
        '<svg role="img" aria-label="A chart" width="9">'
        '<path id="one-p" clip-path="url(#one-c)"/><use xlink:href="#one-p"/></svg>'
    )


def test_tables_of_text_hold_the_numbers() -> None:
    found = evaluation()
    text = markdown(found)
    ours = found.find("cibhash", 16)
    assert ours is not None
    assert f"{ours.map_at_k:.4f} [{ours.interval.low:.4f}, {ours.interval.high:.4f}]" in text
    assert found.verdict in text
    weighted = found.find("cibhash-asymmetric", 32)
    assert weighted is not None
    assert f"| CIBHash, asymmetric | 32 | {weighted.map_worst:.4f}" in text
    assert f"{weighted.map_at_k:.4f} [{weighted.interval.low:.4f}, {weighted.interval.high:.4f}]" in text
    assert "| – |" in next(line for line in text.splitlines() if line.startswith("| CIBHash, asymmetric | 32"))
    result = EvaluateResult(
        report_uri="r",
        metrics_uri="m",
        map_at_k={"16": 0.5, "32": 0.625},
        map_at_k_asymmetric={"16": 0.5625, "32": 0.6875},
        intervals={},
        baselines={"itq": {"16": 0.25}},
        float_cosine=0.75,
        k=10,
        queries=12,
        database=50,
        encoder_digest="e",
        beats_itq=True,
        verdict="Beats ITQ [really].",
    )
    lines = format_table(result).splitlines()
    assert "mAP@10" in lines[0]
    assert any("CIBHash" in line and "0.5000" in line and "0.6250" in line for line in lines)
    assert any("CIBHash, asymmetric" in line and "0.5625" in line and "0.6875" in line for line in lines)
    without = format_table(dataclasses.replace(result, map_at_k_asymmetric={}))
    assert "asymmetric" not in without
    assert any("PCA-ITQ" in line and "0.2500" in line and "–" in line for line in lines)
    assert lines[-1] == "Beats ITQ [really]."


def test_example_queries_spread_over_the_quantiles() -> None:
    precision = np.array([0.1, 0.9, 0.5, 0.9, 0.3])
    assert choose_queries(precision, 3).tolist() == [1, 2, 0]
    assert choose_queries(precision, 9).tolist() == [1, 3, 2, 4, 0]
    assert choose_queries(precision, 1).tolist() == [1]
