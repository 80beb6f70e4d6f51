"""The report page: self-contained, escaped, honest about what it could not read."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cluster.evaluation.charts.classes import MAX_BARS, class_bars
from cluster.evaluation.charts.code_health import MAX_CELLS, information_map, tie_block_bars
from cluster.evaluation.charts.retrieval import curves_by_radius, curves_by_rank, map_bars, within_radius
from cluster.evaluation.classes import query_classes
from cluster.evaluation.code_health import code_statistics
from cluster.evaluation.evaluate import EvaluateResult
from cluster.evaluation.examples import Example, ExampleNeighbor
from cluster.evaluation.health import bit_health, health
from cluster.evaluation.measures import measure
from cluster.evaluation.report import report_html
from cluster.evaluation.result_tables import format_table, markdown
from cluster.evaluation.results import ComparedEncoder, Evaluation, QueryClass, TableRecord
from cluster.evaluation.scoring import Counts, Series
from cluster.evaluation.sections.code_health import code_health
from cluster.evaluation.sections.details import classes, details
from cluster.evaluation.sections.examples import examples_section
from cluster.evaluation.sections.headline import differences, head, headline
from cluster.evaluation.sections.provenance import Origin
from cluster.evaluation.verdicts import verdict
from cluster.index.shard_index import Row
from cluster.reports.svg import inline_svg

HOSTILE = '<script>alert("x")</script>&\'"'
VOID = {"meta", "img", "br", "link", "input", "hr"}
TABLES = {"queries": "/data/q", "database": f"/data/{HOSTILE}", "encoder": "s3://bucket/encoder"}
URIS = Origin("cibhash evaluate --k 10", TABLES, {})
NAMES = {"0": "sparrow", "1": HOSTILE}


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


def random_counts(series: Series, generator: np.random.Generator) -> Counts:
    total = generator.multinomial(50, np.full(series.num_distances, 1 / series.num_distances), size=12)
    return Counts(total, generator.binomial(total, 0.3))


def evaluation(title: str = "Birds", notes: tuple[str, ...] = ()) -> Evaluation:
    """An evaluation of random histograms with one baseline, and with logits of the queries."""
    generator = np.random.default_rng(0)
    series = [Series(method, bits) for method in ("cibhash", "cibhash-asymmetric", "itq") for bits in (16, 32)]
    counts = {one: random_counts(one, generator) for one in series}
    labels = [[number % 3] if number % 4 else [0, 7] for number in range(12)]
    queried = query_classes(pa.table({"labels": pa.array(labels, pa.list_(pa.int32()))}))
    measured = measure(counts, generator.random(12), k=10, seed=0, classes=queried)
    codes = generator.integers(256, size=(50, 4), dtype=np.uint8)
    statistics = code_statistics(codes, generator.integers(2, size=50), np.arange(50), (16, 32))
    beats_itq, sentence = verdict(measured.margins)
    return Evaluation(
        title=title,
        name="CIBHash",
        k=10,
        k_asked=10,
        queries=12,
        database=50,
        encoder_digest="e" * 64,
        tables=tuple(
            TableRecord(
                role=role, digest="a" * 64, dataset_digest="d" * 64, dataset="finches", split=f"{role}-split", rows=50
            )
            for role in ("queries", "database")
        ),
        seed=0,
        bootstrap_resamples=1000,
        classes=queried.records(NAMES),
        query_table=None,
        series=measured.series,
        float_cosine=measured.float_cosine,
        health=health(statistics, (16, 32)),
        bit_health=bit_health(statistics, 32),
        margins=measured.margins,
        beats_itq=beats_itq,
        verdict=sentence,
        compared=(),
        notes=notes,
        versions={"cibhash": "0"},
    )


def compared_evaluation(name: str = "CIBHash", others: tuple[str, ...] = ("Paper",)) -> Evaluation:
    """The same beside other encoders, the first with codes of 32 bits only and with logits of its queries."""
    generator, alone = np.random.default_rng(0), evaluation()
    series = [Series(method, bits) for method in ("cibhash", "cibhash-asymmetric") for bits in (16, 32)]
    series += [Series(method, 32, others[0]) for method in ("cibhash", "cibhash-asymmetric")]
    series += [Series("cibhash", bits, other) for other in others[1:] for bits in (16, 32)]
    series += [Series("itq", bits) for bits in (16, 32)]
    measured = measure({one: random_counts(one, generator) for one in series}, None, k=10, seed=0)
    compared = []
    for other, margins in measured.compared.items():
        beats_itq, sentence = verdict(margins.over_itq, other)
        compared.append(
            ComparedEncoder(
                name=other,
                encoder_digest="f" * 64,
                tables=tuple(one.model_copy(update={"digest": "b" * 64}) for one in alone.tables),
                margins=margins.behind,
                margins_over_itq=margins.over_itq,
                beats_itq=beats_itq,
                verdict=sentence,
            )
        )
    fields = {
        "name": name,
        "classes": (),
        "series": measured.series,
        "margins": measured.margins,
        "compared": tuple(compared),
    }
    return alone.model_copy(update=fields)


def origin(found: Evaluation) -> Origin:
    return Origin(URIS.command, TABLES, {one.name: TABLES | {"encoder": "/other/encoder"} for one in found.compared})


def example(shard: str, key: str = "bird-1", size: int = 0, offset: int = 0, is_best: bool = True) -> Example:
    rows = [Row(number, key, (number % 2,), shard, offset, size) for number in range(3)]
    neighbors = tuple(ExampleNeighbor(row, row.id, row.labels == (0,)) for row in rows[1:])
    return Example(rows[0], 32, 0.5, is_best, neighbors)


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
    assert sum(tag == "svg" for tag, _ in page.tags) == 11


def test_page_shows_every_number_and_where_it_comes_from() -> None:
    found = evaluation(notes=("Only twelve queries.",))
    page = Page(report_html(found, [], URIS))
    for one in found.series:
        assert f"{one.map_at_k:.4f}" in page.text
    assert found.float_cosine is not None
    for text in (f"{found.float_cosine.map_at_k:.4f}", found.verdict, "Only twelve queries.", "e" * 64, "a" * 64):
        assert text in page.text
    assert "s3://bucket/encoder" in page.text
    assert "Best and worst" not in page.text
    for text in ("cibhash evaluate --k 10", "dataset finches, split queries-split", "1,000 resamples"):
        assert text in page.text


def test_asymmetric_distance_has_no_curve_by_radius() -> None:
    found = evaluation()
    assert "CIBHash, asymmetric 32" in curves_by_rank(found)
    by_radius = curves_by_radius(found)
    assert "asymmetric" not in by_radius
    assert "PCA-ITQ 32" in by_radius
    assert "CIBHash, asymmetric" in map_bars(found)
    about = "over the bits that differ"
    assert about in Page(headline(found)).text
    others = tuple(one for one in found.series if one.method != "cibhash-asymmetric")
    plain = found.model_copy(update={"series": others})
    assert about not in Page(headline(plain)).text
    assert about in markdown(found)
    assert about not in markdown(plain)


def test_texts_from_outside_are_escaped(shard: tuple[str, int, int]) -> None:
    path, offset, size = shard
    rows = [example(path, HOSTILE, size, offset), example(f"/nowhere/{HOSTILE}.tar", HOSTILE)]
    html = report_html(evaluation(HOSTILE, (HOSTILE,)), rows, URIS)
    assert "<script" not in html
    page = Page(html)
    assert page.text.count(HOSTILE) >= 5
    assert f"{HOSTILE}, label 0 (sparrow)" in {attributes.get("alt") for tag, attributes in page.tags if tag == "img"}


def test_examples_carry_the_pictures_distances_and_marks(shard: tuple[str, int, int]) -> None:
    path, offset, size = shard
    page = Page(examples_section(evaluation(), [example(path, offset=offset, size=size)]))
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
    page = Page(examples_section(evaluation(), [example("/gone/a.tar"), broken]))
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
    page = Page(head(found.model_copy(update={"beats_itq": beats_itq, "verdict": sentence})))
    assert ("p", {"class": "verdict lost", "role": "status"}) in page.tags
    assert verdict((won,))[0] is True
    assert verdict(()) == (None, "")


def test_losing_to_random_hyperplanes_is_said_more_loudly() -> None:
    lost, won = (evaluation().margins[0].model_copy(update={"difference": difference}) for difference in (-0.01, 0.02))
    assert verdict((won,), over_hyperplanes=(won,)) == verdict((won,))
    for over_itq in ((won,), (lost,), ()):
        beats, sentence = verdict(over_itq, over_hyperplanes=(won, lost))
        assert beats is False
        assert "THIS ENCODER DOES NOT BEAT RANDOM HYPERPLANES: mAP -0.0100 at 16 bits." in sentence
    assert "DOES NOT BEAT ITQ" in verdict((lost,), over_hyperplanes=(lost,))[1]
    assert verdict((won,), "Paper", over_hyperplanes=(lost,))[1].count("Paper") == 2


def test_page_shows_compared_encoders_with_differences_and_sources() -> None:
    found = compared_evaluation("Neighbour", ("Paper", "Ours, again"))
    page = Page(report_html(found, [], origin(found)))
    methods = ("cibhash", "cibhash-asymmetric", "Paper", "Paper, asymmetric", "Ours, again", "itq")
    assert found.methods == methods
    for one in found.series:
        assert f"{one.map_at_k:.4f}" in page.text
    paper, again = found.compared
    assert [margin.bits for margin in paper.margins] == [32]
    assert [margin.bits for margin in again.margins] == [16, 32]
    for text in ("Neighbour", "Neighbour, asymmetric", "Paper, asymmetric 32", "Ours, again 16", "/other/encoder"):
        assert text in page.text
    assert "CIBHash" not in page.text
    for margin in (*paper.margins, *again.margins):
        assert f"{margin.difference:+.4f}{margin.interval.low:+.4f} to {margin.interval.high:+.4f}" in page.text
    assert "f" * 64 in page.text
    assert page.text.count("b" * 64) == 4
    bars = map_bars(found)
    for label in ("Neighbour", "Paper", "Paper, asymmetric", "Ours, again", "PCA-ITQ"):
        assert f">{label}</text>" in bars
    assert "Paper 32" in curves_by_radius(found)
    text = markdown(found)
    assert f"| Paper | – | {paper.margins[0].difference:+.4f} [" in text
    assert "over the bits that differ" in text
    alone = evaluation()
    assert differences(alone) == ""
    assert "difference" not in markdown(alone)


def test_a_compared_encoder_that_loses_to_itq_is_said_in_its_own_sentence() -> None:
    found = compared_evaluation()
    margin = found.compared[0].margins_over_itq[0]
    lost = verdict((margin.model_copy(update={"difference": -0.01}),), "Paper")
    won = verdict((margin.model_copy(update={"difference": 0.02}),), "Paper")
    assert lost == (False, "Paper DOES NOT BEAT ITQ: mAP -0.0100 at 32 bits.")
    assert won[0] is True
    assert won[1].startswith("Paper beats ITQ at every length, by at least 0.0200 mAP (32 bits)")
    other = found.compared[0].model_copy(update={"beats_itq": lost[0], "verdict": lost[1]})
    both = found.model_copy(update={"compared": (other,), "beats_itq": True, "verdict": "Beats ITQ."})
    page = Page(head(both))
    classes = [attributes.get("class") for tag, attributes in page.tags if attributes.get("role") == "status"]
    assert classes == ["verdict", "verdict lost"]
    assert lost[1] in page.text
    assert f"**{lost[1]}**" in markdown(both)


def test_names_of_encoders_are_shown_as_they_are_written() -> None:
    name, other = '<b>$x$ & "a|b"', "_[red]$\\q{"
    found = compared_evaluation(name, (other,))
    html = report_html(found, [example("/gone/a.tar")], origin(found))
    page = Page(html)
    assert "<b>$x$" not in html
    assert page.text.count(name) >= 6
    assert page.text.count(other) >= 6
    for chart in (map_bars(found), curves_by_rank(found), curves_by_radius(found)):
        shown = Page(chart).text
        assert name in shown
        assert other in shown
    assert '| <b>$x$ & "a\\|b" | 16 |' in markdown(found)


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
    assert text.count("| CIBHash, asymmetric | 32") == 1, "weighted distances have no radius"
    assert text.count("| CIBHash | 32 |") == 2
    result = EvaluateResult(
        report_uri="r",
        metrics_uri="m",
        name="CIBHash",
        map_at_k={"16": 0.5, "32": 0.625},
        map_at_k_asymmetric={"16": 0.5625, "32": 0.6875},
        intervals={},
        baselines={"itq": {"16": 0.25}},
        compared={},
        float_cosine=0.75,
        k=10,
        queries=12,
        database=50,
        encoder_digest="e",
        beats_itq=True,
        verdict="Beats ITQ [really].",
        compared_verdicts={},
    )
    lines = format_table(result).splitlines()
    assert "mAP@10" in lines[0]
    assert any("CIBHash" in line and "0.5000" in line and "0.6250" in line for line in lines)
    assert any("CIBHash, asymmetric" in line and "0.5625" in line and "0.6875" in line for line in lines)
    without = format_table(dataclasses.replace(result, map_at_k_asymmetric={}))
    assert "asymmetric" not in without
    assert any("PCA-ITQ" in line and "0.2500" in line and "–" in line for line in lines)
    assert lines[-1] == "Beats ITQ [really]."
    others = {"[red]Paper": {"32": 0.4375}, "[red]Paper, asymmetric": {"32": 0.46875}}
    sentences = {"[red]Paper": "[red]Paper DOES NOT BEAT ITQ."}
    beside = dataclasses.replace(result, name="[b]Ours", compared=others, compared_verdicts=sentences)
    lines = format_table(beside).splitlines()
    rows = [line for line in lines if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == [
        "[b]Ours",
        "[b]Ours, asymmetric",
        "[red]Paper",
        "[red]Paper, asymmetric",
        "PCA-ITQ",
        "Float features, cosine",
    ]
    assert "–" in rows[2]
    assert "0.4375" in rows[2]
    assert lines[-2:] == ["Beats ITQ [really].", "[red]Paper DOES NOT BEAT ITQ."]


def middle(found: Evaluation) -> str:
    """The text of the sections that are tables."""
    return Page("".join(section(found) for section in (details, classes, code_health))).text


def test_page_shows_every_metric_and_class() -> None:
    found = evaluation()
    stored = [one.model_copy(update={"map_stored_order": 0.4321 if one.ramap else None}) for one in found.series]
    for one in (found, found.model_copy(update={"series": tuple(stored)})):
        page, text = middle(one), markdown(one)
        for shown in (page, text):
            for series in one.series:
                for value in (series.map_all, series.ndcg_at_k, series.map_at_k_r, series.map_at_k_min_kr):
                    assert f"{value:.4f}" in shown
                if series.ramap is not None:
                    assert f"{series.ramap:.4f}" in shown
                    assert f"{series.map_by_radius[2]:.4f}" in shown
            for health_of_length in one.health:
                assert f"{health_of_length.max_mutual_information:.4f}" in shown
                assert f"{health_of_length.collision_share:.1%}" in shown
            assert ("0.4321" in shown) == ("stored order" in shown) == (one is not found)
        for name in ("sparrow (6)", f"{HOSTILE[:21]}… (3)", "2 (3)", "7 (3)"):
            assert name in page
    assert "| sparrow | 6 |" in text
    assert "of a random" not in page
    sampled = found.health[1].model_copy(update={"tie_blocks_sampled": True, "collisions_sampled": True})
    other = found.model_copy(update={"health": (found.health[0], sampled)})
    for shown in (middle(other), markdown(other)):
        assert "Tie blocks at 32 bits: of a random million" in shown
        assert "Collisions at 32 bits: of a random choice" in shown


def test_every_class_is_a_bar_or_the_best_and_worst_of_many() -> None:
    one = evaluation().find("cibhash", 32)
    assert one is not None
    for count in (3, MAX_BARS, 3 * MAX_BARS):
        values = tuple(np.random.default_rng(count).permutation(count) / count)
        many = one.model_copy(update={"map_by_class": values, "precision_by_class": values})
        every = tuple(QueryClass(label=place, name=f"c{place:03d}", queries=9) for place in range(count))
        shown = re.findall(r">(c\d+) \(9\)<", class_bars(every, many, 10))
        order = [f"c{place:03d}" for place in sorted(range(count), key=lambda place: -values[place])]
        half = MAX_BARS // 2
        assert shown == (order if count <= MAX_BARS else order[:half] + order[-half:])


def test_heat_map_has_a_cell_per_pair_and_few_bytes() -> None:
    for bits, size in ((8, 8), (MAX_CELLS, MAX_CELLS), (512, 128)):
        generator = np.random.default_rng(bits)
        codes = generator.integers(256, size=(300, bits // 8), dtype=np.uint8)
        statistics = code_statistics(codes, np.zeros(300, np.int64), np.arange(300), (bits,))
        svg = information_map(bit_health(statistics, bits))
        assert svg.count("h1v1h-1z") == size * (size - 1)
        assert len(svg) < 400_000
    constant = code_statistics(np.zeros((5, 1), np.uint8), np.zeros(5, np.int64), np.arange(5), (8,))
    assert information_map(bit_health(constant, 8)).count("h1v1h-1z") == 56
    assert "<svg" in tie_block_bars(health(constant, (8,)))


def test_chart_within_a_radius_is_of_our_codes() -> None:
    shown = Page(within_radius(evaluation())).text
    for label in ("mAP", "precision", "recall", "empty balls"):
        assert label in shown


def test_best_and_worst_queries_stand_under_their_names(shard: tuple[str, int, int]) -> None:
    path, offset, size = shard
    rows = [example(path, key, size, offset, is_best) for key, is_best in (("bird-one", True), ("bird-two", False))]
    text = Page(examples_section(evaluation(), rows)).text
    places = [text.index(word) for word in ("Best and worst queries", "bird-one", "Worst", "bird-two")]
    assert places == sorted(places)
    assert "Worst" not in Page(examples_section(evaluation(), rows[:1])).text
