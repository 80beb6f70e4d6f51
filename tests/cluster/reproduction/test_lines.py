"""The tables: our numbers beside published ones, as Markdown, on a terminal and as a page; and what is not compared."""

import numpy as np
import pytest

from cluster.evaluation.results import Interval
from cluster.reproduction.lines import TableSection, table_sections
from cluster.reproduction.measured import Baseline, Measurement
from cluster.reproduction.outcomes import Outcome
from cluster.reproduction.page import page_html
from cluster.reproduction.paper_table import PaperTable
from cluster.reproduction.text_tables import listing, markdown, terminal
from tests.cluster.evaluation.test_report import Page

HOSTILE = '<script>alert("x")</script> [red]| &'
PACK = "cibhash pack x"
PROTOCOL = {"title": "Birds", "k": 10, "about": "all", "evidence": "unverified", "splits": ["s"], "sizes": {}}
SHARED = {"protocol": "birds", "backbone": "Net", "recipes": ["paper"], "bits": [16, 32], "training": "nested"}
BAND = {"low": {16: 0.5, 32: 0.6}, "high": {16: 0.7}, "source": "a record"}
TABLE = PaperTable.model_validate(
    {
        "protocols": {"birds": {**PROTOCOL, "pack": PACK}},
        "published": [
            {
                "name": name,
                "method": method,
                "protocols": ["birds"],
                "backbone": "VGG",
                "map": {16: 0.6, 32: 0.7},
                "source": HOSTILE,
                "evidence": "quoted",
            }
            for name, method in (("ours", "Hash"), ("other", "Other"))
        ],
        "rows": [
            {**SHARED, "name": "main", "method": "Hash", "published": "ours", "expect": BAND},
            {**SHARED, "name": "variant", "method": "without", "ablation_of": "main"},
            {**SHARED, "name": "absent", "method": "Absent", "backbone": "VGG", "published": "ours"},
        ],
    }
)


def measurement(value: float, seeds: tuple[int, ...] = (0, 1)) -> Measurement:
    spread = np.linspace(-0.1, 0.1, 200)
    return Measurement(value, Interval(low=value - 0.01, high=value + 0.01), 0.004, seeds, value + spread)


def outcomes(*, deviations: tuple[str, ...] = (), main: float = 0.65) -> list[Outcome]:
    rows = {row.name: (row, TABLE.protocols["birds"], TABLE.published_of(row)) for row in TABLE.rows}
    interval = Interval(low=0.2, high=0.3)
    return [
        Outcome(
            *rows["main"],
            deviations=deviations,
            runs_planned=2,
            runs_complete=2,
            measured={16: measurement(main), 32: measurement(0.62)},
            baselines=(Baseline("PCA-ITQ", {16: (0.25, interval)}),),
        ),
        Outcome(*rows["variant"], runs_planned=2, runs_complete=1, measured={16: measurement(0.64, (0,))},
                failures=(f"DataError variant, seed 1: {HOSTILE}",)),
        Outcome(*rows["absent"], missing=(f"no data: {HOSTILE}", "no weights")),
    ]  # fmt: skip


def lines(section: TableSection) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(line.kind, line.method, tuple(cell.main for cell in line.cells)) for line in section.lines]


def test_ours_stand_beside_the_published() -> None:
    first, second = table_sections(TABLE, outcomes())
    assert (first.title, second.title) == ("Birds", "Birds: ablations")
    assert lines(first) == [
        ("ours", "Hash", ("0.6500", "0.6200")),
        ("published", "published", ("0.600", "0.700")),
        ("difference", "difference", ("+0.050", "-0.080")),
        ("expected", "expected", ("0.500 – 0.700", "≥ 0.600")),
        ("ours", "Absent", ("–", "–")),
        ("published", "published", ("0.600", "0.700")),
        ("baseline", "PCA-ITQ", ("0.2500", "–")),
        ("published", "Other", ("0.600", "0.700")),
    ]
    ours, published, difference, expected = first.lines[:4]
    assert ours.cells[0].small == "0.640 – 0.660; ±0.004"
    assert ours.origin == "one nested code, seeds 0, 1"
    assert published.origin == f"{HOSTILE} (quoted)"
    assert difference.backbone == "other backbone"
    assert [cell.small for cell in expected.cells] == ["met", "met"]
    assert expected.is_good is True
    assert "unverified" in first.about
    assert first.remarks == (f"Not run: absent: no data: {HOSTILE}", "Not run: absent: no weights")


def test_ablations_are_paired_with_the_row_they_are_of() -> None:
    _, section = table_sections(TABLE, outcomes())
    assert lines(section) == [
        ("ours", "Hash", ("0.6500", "0.6200")),
        ("ours", "without", ("0.6400", "–")),
        ("difference", "difference to Hash", ("-0.0100", "–")),
    ]
    paired = section.lines[2].cells[0].small
    assert paired == "-0.010 – -0.010", "equal spread over queries cancels in pairs"
    assert section.lines[1].cells[0].small == "0.630 – 0.650"
    assert section.remarks == (f"FAILED: DataError variant, seed 1: {HOSTILE}",)


def test_numbers_of_another_protocol_are_not_held_against_published_ones() -> None:
    first, _ = table_sections(TABLE, outcomes(deviations=("trained for 2 epochs only",)))
    kinds = [line.kind for line in first.lines]
    assert kinds[:3] == ["ours", "published", "expected"]
    assert first.lines[2].is_good is None
    assert [cell.small for cell in first.lines[2].cells] == ["", ""]
    assert "main is not held against published numbers: trained for 2 epochs only" in first.remarks
    one = outcomes(deviations=("x",))[0]
    assert (one.gain(16), one.in_band(16)) == (None, None)


@pytest.mark.parametrize("value", [0.49, 0.71])
def test_a_band_that_is_missed_is_said(value: float) -> None:
    first, _ = table_sections(TABLE, outcomes(main=value))
    expected = next(line for line in first.lines if line.kind == "expected")
    assert expected.is_good is False
    assert [cell.small for cell in expected.cells] == ["NOT MET", "met"]
    assert "missed" in page_html("t", "l", [first], {})


def test_markdown_is_a_table_whatever_the_texts() -> None:
    text = markdown("Title", table_sections(TABLE, outcomes()))
    assert "| **Hash** | Net | 0.6500 (0.640 – 0.660; ±0.004) | 0.6200 (0.610 – 0.630; ±0.004) |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {6}
    assert "- Not run: absent: no weights" in text


def test_a_terminal_shows_every_line() -> None:
    text = terminal(table_sections(TABLE, outcomes()))
    for expected in ("Birds: ablations", "0.6500", "+0.050", "met", "FAILED: DataError", "[red]"):
        assert expected in text
    assert max(map(len, text.splitlines()[:20])) <= 140
    shown = listing(outcomes())
    assert "not at hand [1, 2]" in shown
    assert "2 of 2 runs complete" in shown
    assert f"[1] no data: {HOSTILE}" in shown


def test_the_page_needs_nothing_and_trusts_nobody() -> None:
    html = page_html(f"Title {HOSTILE}", "3 rows", table_sections(TABLE, outcomes()), {"command": HOSTILE})
    page = Page(html)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert "http" not in html
    assert HOSTILE in page.text
    for expected in (
        "0.6500",
        "0.640 – 0.660; ±0.004",
        "+0.050",
        "Not run: absent: no weights",
        "Where this comes from",
    ):
        assert expected in page.text
