"""The page and the terminal show names from outside as text, and nothing but."""

from pathlib import Path

from cibhash.shards import SourceImage
from cluster.doctor.report import MAX_BARS, report_html
from cluster.doctor.results import DatasetSummary, DoctorReport, Finding, NamedOffender, Overlap
from cluster.doctor.tables import percent, place
from tests.datasets import make_dataset, png, shape_image

HOSTILE = "<script>alert(1)</script>\x1b[31m"


def _report(shard: str, labels: dict[str, int]) -> DoctorReport:
    where = {"dataset": HOSTILE, "shard": shard, "name": HOSTILE, "detail": HOSTILE}
    finding = Finding(
        kind="undecodable",
        severity="error",
        unit="images",
        meaning="no",
        consequence="none",
        count=3,
        share=0.5,
        by_dataset={HOSTILE: 3},
        offenders=(NamedOffender(**where, offset=512, size=10**6), NamedOffender(**where, offset=-1, size=0)),
    )
    summary = DatasetSummary(
        uri=HOSTILE,
        split=HOSTILE,
        shards=1,
        samples=6,
        refused=3,
        bytes=9,
        unlabeled=0,
        labels=labels,
        formats={"PNG": 3},
        sides=(0, 3, *[0] * 8),
    )
    return DoctorReport(
        decoded=False,
        datasets={HOSTILE: summary},
        class_names={"0": HOSTILE},
        findings={"undecodable": finding},
        overlaps=(Overlap(dataset=HOSTILE, other=HOSTILE, images=1, share=1.0),),
    )


def test_nothing_from_outside_is_markup(tmp_path: Path) -> None:
    uri = make_dataset(tmp_path / "data", [[SourceImage("a", "png", png(shape_image(0)), ())]])
    page = report_html(_report(f"{uri}/shard-000000.tar", {"0": 2}))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8
    assert "headers alone were read" in page
    assert "no image" in page, "an original that cannot be read leaves a gap"


def test_of_many_labels_the_most_and_least_frequent_are_shown(tmp_path: Path) -> None:
    page = report_html(_report(str(tmp_path / "gone.tar"), {str(n): 1000 - n for n in range(500)}))
    assert page.count("<i style=") == MAX_BARS + 1
    assert "440 in between are not shown" in page
    assert "<span>499</span>" in page


def test_a_terminal_gets_no_control_characters() -> None:
    line = place(_report("s.tar", {}).findings["undecodable"].offenders[0])
    assert line.isprintable()
    assert "\\x1b[31m" in line


def test_shares_are_never_rounded_to_nothing() -> None:
    assert [percent(share) for share in (0.0, 1e-9, 0.0123, 1.0)] == ["0.00 %", "< 0.01 %", "1.23 %", "100.00 %"]
