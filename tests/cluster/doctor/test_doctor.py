"""The whole check: findings over datasets, the same however shards are cut, with the exit code that they deserve."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cibhash.errors import AlreadyExists, ConfigError, DataError, NotFound
from cibhash.shards import SourceImage
from cibhash.types import Sample
from cluster import storage
from cluster.datasets import open_dataset, shard_samples
from cluster.doctor.doctor import DoctorResult, doctor
from cluster.doctor.results import BriefFinding, DoctorReport
from cluster.doctor.tables import format_table
from cluster.doctor_config import DoctorConfig
from cluster.manifests import DatasetManifest
from jobs.doctor import main
from tests.datasets import make_dataset, png, raw_dataset, shape_image, shape_sources, tar_bytes
from tests.s3 import s3_bucket as s3_bucket

pytestmark = pytest.mark.ray


def check(*datasets: object, **fields: Any) -> DoctorResult:
    return doctor(DoctorConfig.model_validate({"datasets": tuple(map(str, datasets)), **fields}))


def counts(result: DoctorResult) -> dict[str, int]:
    return {kind: finding.count for kind, finding in result.findings.items()}


def names(finding: BriefFinding) -> list[str]:
    return [one.name for one in finding.offenders]


def broken_members() -> list[tuple[str, bytes]]:
    """Nine samples and fragments, of which two samples are good and two can be mended."""
    image = [png(shape_image(n)) for n in range(8)]
    return [
        *[("good.png", image[0]), ("good.cls", b"1"), ("apart.png", image[1]), ("twice.png", image[2])],
        *[("twice.cls", b"2"), ("apart.cls", b"0"), ("twice.png", image[3]), ("twice.cls", b"3")],
        *[("good.png", image[0]), ("good.cls", b"1"), ("named.png", image[4]), ("named.cls", b"cat")],
        *[("lonely.cls", b"2"), ("half.png", image[5][:300]), ("half.cls", b"1"), ("half.txt", b"hello")],
        *[("both.png", image[6]), ("both.jpg", image[7]), ("both.cls", b"0"), ("plain.png", image[7])],
    ]


def labeled(sources: list[SourceImage]) -> dict[str, tuple[bytes, tuple[int, ...]]]:
    return {source.key: (source.image, source.labels) for source in sources}


def samples_of(uri: str) -> list[Sample]:
    return [sample for shard in open_dataset(uri).shards for sample in shard_samples(uri, shard)]


def test_a_healthy_dataset_has_no_findings(ray_local: None, tmp_path: Path) -> None:
    uri = make_dataset(tmp_path / "data", [shape_sources(5), shape_sources(4, 5)])
    result = check(uri, output=str(tmp_path / "report"), strict=True)
    assert (counts(result), result.problem) == ({}, "")
    assert result.verdict == "9 images in 2 shards: 0 errors, 0 warnings, 0 notes."
    report = DoctorReport.model_validate_json((tmp_path / "report" / "doctor.json").read_bytes())
    summary = report.datasets["all"]
    assert (summary.samples, summary.shards, summary.refused, summary.formats) == (9, 2, 0, {"PNG": 9})
    assert summary.labels == {"0": 3, "1": 2, "2": 2, "3": 2}
    assert summary.sides[:3] == (0, 0, 9)
    page = (tmp_path / "report" / "doctor.html").read_text()
    assert "9 images in 2 shards" in page
    for outside in ("http:", "https:", "<script", ' src="/'):
        assert outside not in page


def test_splits_are_compared(ray_local: None, tmp_path: Path) -> None:
    """Three queries are in the database, one of them in train too; all of train is in the database."""
    shapes = shape_sources(12)
    make_dataset(tmp_path / "data" / "query", [[replace_key(shapes[n], f"q{n}") for n in (0, 5, 9)]], split="query")
    make_dataset(tmp_path / "data" / "database", [shapes[:5], shapes[5:]], split="database")
    make_dataset(tmp_path / "data" / "train", [shapes[4:8]], split="train")
    (tmp_path / "data" / "classes.json").write_text(json.dumps({"0": "disc", "1": "box", "2": "line", "7": "<b>"}))
    result = check(tmp_path / "data", output=str(tmp_path / "report"))
    assert list(result.datasets) == ["database", "query", "train"]
    assert {kind: finding.by_dataset for kind, finding in result.findings.items()} == {
        "split_leak": {"query": 4},
        "absent_label": {"database": 1, "query": 2, "train": 1},
        "unnamed_label": {"database": 1, "train": 1},
        "shared_training_image": {"train": 4},
    }
    leaks = result.findings["split_leak"].offenders
    assert [(one.name, one.detail.split(" (")[0]) for one in leaks] == [
        ("q0", "also in shape-00000"),
        ("q5", "also in shape-00005"),
        ("q9", "also in shape-00009"),
        ("q5", "also in shape-00005"),
    ]
    report = DoctorReport.model_validate_json((tmp_path / "report" / "doctor.json").read_bytes())
    overlaps = {(one.dataset, one.other): (one.images, one.share) for one in report.overlaps}
    assert overlaps == {
        ("query", "database"): (3, 1.0),
        ("query", "train"): (1, 1 / 3),
        ("train", "database"): (4, 1.0),
    }
    page = (tmp_path / "report" / "doctor.html").read_text()
    assert "7 &lt;b&gt;" not in page, "a label without images has no bar"
    assert page.count('<img class="picture" src="data:image/png;base64,') >= 4
    assert (result.problem, check(tmp_path / "data", strict=True).problem != "") == ("", True)


def test_of_equal_splits_the_training_images_are_counted(ray_local: None, tmp_path: Path) -> None:
    """Two queries that are in a test split of the same size are counted once, by the first named."""
    for split, start in (("database", 0), ("train", 0), ("query", 40), ("test", 40)):
        make_dataset(tmp_path / split, [shape_sources(2, start)], split=split)
    result = check(*(tmp_path / split for split in ("database", "train", "query", "test")))
    assert {kind: finding.by_dataset for kind, finding in result.findings.items()} == {
        "shared_training_image": {"train": 2},
        "split_leak": {"query": 2},
    }


def replace_key(source: SourceImage, key: str) -> SourceImage:
    return source._replace(key=key)


def test_repeats_within_a_dataset_and_labels(ray_local: None, tmp_path: Path) -> None:
    shapes = [source._replace(labels=(0,)) for source in shape_sources(24)]
    shapes[23] = shapes[23]._replace(labels=(1,))
    again = [
        shapes[0]._replace(key="again"),
        shapes[1]._replace(key="other", labels=(1,)),
        shape_sources(1, 50)[0]._replace(key=shapes[2].key, labels=()),
    ]
    result = check(make_dataset(tmp_path / "data", [shapes, again]))
    assert counts(result) == {
        "duplicate_image": 2,
        "duplicate_conflict": 1,
        "duplicate_key_across_shards": 1,
        "partly_labeled": 1,
        "unbalanced_labels": 1,
    }
    found = result.findings
    assert names(found["duplicate_image"]) == ["again", "other"]
    assert names(found["duplicate_conflict"]) == ["other"]
    assert names(found["duplicate_key_across_shards"]) == names(found["partly_labeled"]) == [shapes[2].key]
    assert found["unbalanced_labels"].offenders[0].detail == "label 0: 24 images, label 1: 2"
    assert found["duplicate_image"].offenders[0].detail.startswith(f"equals {shapes[0].key} (")
    assert (result.errors, result.warnings, result.notes) == (0, 5, 1)


def test_the_findings_do_not_depend_on_how_shards_are_cut(ray_local: None, tmp_path: Path) -> None:
    gray = [SourceImage(f"gray-{n}", "jpg", png(shape_image(n).convert("L")), (9,)) for n in range(4)]
    sources = [*shape_sources(10), *gray, SourceImage("bad", "png", b"<html>", ()), *shape_sources(4, 40)]
    sources.append(sources[3]._replace(key="copy"))
    whole = check(make_dataset(tmp_path / "whole", [sources]))
    cut = check(make_dataset(tmp_path / "cut", [sources[n : n + 3] for n in range(0, len(sources), 3)]))
    assert (
        counts(whole)
        == counts(cut)
        == {
            "undecodable": 1,
            "duplicate_image": 1,
            "partly_labeled": 1,
            "grayscale": 4,
            "other_format": 4,
        }
    )
    assert {kind: names(one) for kind, one in whole.findings.items()} == {
        kind: names(one) for kind, one in cut.findings.items()
    }


def test_broken_shards_cost_what_is_broken_alone(ray_local: None, tmp_path: Path) -> None:
    uri = make_dataset(tmp_path / "data", [shape_sources(3), shape_sources(3, 3), shape_sources(3, 6)])
    first, second, third = sorted(Path(uri).glob("*.tar"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:7000])
    third.write_bytes(b"<!DOCTYPE html><html></html>")
    result = check(uri)
    assert counts(result) == {
        "missing_shard": 1,
        "not_a_tar": 1,
        "truncated_tar": 1,
        "altered_shard": 2,
        "wrong_count": 2,
    }
    assert result.datasets["all"].samples == 1
    assert "missing_shard 1" in result.problem
    assert str(first) in result.problem
    assert result.findings["not_a_tar"].offenders[0].detail == "it is an HTML or XML page"


def test_exit_codes_and_the_last_line(ray_local: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = make_dataset(tmp_path / "good", [shape_sources(3)])
    warned = make_dataset(tmp_path / "warned", [[*shape_sources(3), shape_sources(1)[0]._replace(key="again")]])
    bad = make_dataset(tmp_path / "bad", [[*shape_sources(3), SourceImage("e\x1b[31m", "png", b"no", (1,))]])
    lines = []
    for argv, code in (
        ([good, "--strict"], 0),
        ([warned], 0),
        ([warned, "--strict"], 3),
        ([bad, "--output", str(tmp_path / "report")], 3),
        ([bad, "--fix", str(tmp_path / "fixed")], 0),
        ([bad, "--fix", str(tmp_path / "other"), "--no-decode"], 2),
        ([str(tmp_path / "nowhere")], 4),
    ):
        assert main(argv) == code, argv
        out, err = capfd.readouterr()
        assert "\x1b[31m" not in err
        lines.append(json.loads(out.splitlines()[-1]))
        assert lines[-1]["job"] == "doctor"
        assert lines[-1].get("exit_code", 0) == code
    _, _, strict, failed, fixed, *_ = lines
    assert strict["error"].startswith("duplicate_image 1; first: ")
    assert (failed["status"], failed["error_type"], failed["errors"]) == ("error", "DataError", 1)
    assert failed["findings"]["undecodable"]["offenders"][0]["name"] == "e\x1b[31m"
    report = json.loads((tmp_path / "report" / "run_report.json").read_text())
    assert (report["exit_code"], report["result"]["errors"]) == (3, 1)
    assert (fixed["status"], fixed["errors"], fixed["fixed"]["all"]["samples"]) == ("ok", 1, 3)
    assert not (tmp_path / "other").exists()


def test_a_cleaned_copy_keeps_all_that_is_good(ray_local: None, tmp_path: Path) -> None:
    members = broken_members()
    unfinished = tar_bytes(members).rstrip(b"\0")
    uri = raw_dataset(tmp_path / "data", unfinished + bytes(-len(unfinished) % 512), 10)
    found = counts(check(uri))
    assert found == {
        "no_end_marker": 1,
        "missing_image": 1,
        "split_sample": 1,
        "duplicate_key": 2,
        "several_images": 1,
        "bad_label": 1,
        "undecodable": 1,
        "ignored_member": 1,
        "duplicate_image": 1,
        "partly_labeled": 3,
    }
    result = check(uri, fix=str(tmp_path / "fixed"))
    data = dict(members)
    image = {key: png(shape_image(n)) for n, key in enumerate(["good", "apart", "twice", "twice~2"])}
    samples = samples_of(str(tmp_path / "fixed"))
    assert {sample.key: (sample.image, sample.labels) for sample in samples} == {
        "good": (image["good"], (1,)),
        "apart": (image["apart"], (0,)),
        "twice": (image["twice"], (2,)),
        "twice~2": (image["twice~2"], (3,)),
        "both": (data["both.png"], (0,)),
        "plain": (data["plain.png"], ()),
    }
    assert [sample.id for sample in samples] == list(range(6))
    lines = [json.loads(line) for line in (tmp_path / "fixed" / "left_out.jsonl").read_text().splitlines()]
    assert sorted((line["key"], line["kind"], line.get("renamed_to", "")) for line in lines) == [
        ("both", "several_images", ""),
        ("good", "duplicate_key", ""),
        ("half", "undecodable", ""),
        ("lonely", "missing_image", ""),
        ("named", "bad_label", ""),
        ("twice", "duplicate_key", "twice~2"),
    ]
    assert all(line["reason"] and line["shard"].endswith("shard-000000.tar") for line in lines)
    copy = result.fixed["all"]
    assert (copy.samples, copy.shards, copy.left_out, copy.renamed) == (6, 1, 5, 1)
    assert check(tmp_path / "fixed").errors == 0


def test_copies_are_the_same_twice_and_never_overwrite(ray_local: None, tmp_path: Path) -> None:
    bad = SourceImage("bad", "png", b"<html>", ())
    query = make_dataset(tmp_path / "in" / "query", [[*shape_sources(2), bad]], split="query")
    database = make_dataset(tmp_path / "in" / "database", [[bad], shape_sources(3, 2), [bad]], split="database")
    (tmp_path / "in" / "classes.json").write_text('{"0": "disc"}')
    for out in ("a", "b"):
        result = check(query, database, fix=str(tmp_path / out))
        assert {name: (one.samples, one.shards) for name, one in result.fixed.items()} == {
            "query": (2, 1),
            "database": (3, 1),
        }
    trees = [
        {str(path.relative_to(tmp_path / out)): path.read_bytes() for path in (tmp_path / out).rglob("*.*")}
        for out in ("a", "b")
    ]
    assert trees[0].keys() == trees[1].keys() >= {"classes.json", "query/dataset.json", "query/left_out.jsonl"}
    assert trees[0]["database/shard-000001.tar"] == trees[1]["database/shard-000001.tar"]
    assert trees[0]["database/dataset.json"] == trees[1]["database/dataset.json"]
    assert check(query, database, fix=str(tmp_path / "a")).fixed["query"].digest == result.fixed["query"].digest

    with pytest.raises(AlreadyExists, match="holds another dataset"):
        check(query, fix=str(tmp_path / "a" / "database"))
    with pytest.raises(ConfigError, match="lie there"):
        check(query, fix=query)
    with pytest.raises(DataError, match="no good sample"):
        check(make_dataset(tmp_path / "none", [[bad]]), fix=str(tmp_path / "c"))
    assert not (tmp_path / "c" / "dataset.json").exists()


def test_a_truncated_tar_is_kept_up_to_the_cut(ray_local: None, tmp_path: Path) -> None:
    sources = shape_sources(6)
    uri = make_dataset(tmp_path / "data", [sources])
    (shard,) = Path(uri).glob("*.tar")
    whole = samples_of(uri)
    shard.write_bytes(shard.read_bytes()[: whole[4].offset + 100])
    result = check(uri, fix=str(tmp_path / "fixed"))
    assert {"truncated_tar", "altered_shard", "wrong_count"} == {
        kind for kind, one in result.findings.items() if one.severity == "error"
    }
    kept = samples_of(str(tmp_path / "fixed"))
    assert {one.key: (one.image, one.labels) for one in kept} == labeled(sources[:4])
    line = json.loads((tmp_path / "fixed" / "left_out.jsonl").read_text())
    assert (line["kind"], line["key"]) == ("truncated_tar", f"{sources[4].key}.png")


def test_folders_without_a_manifest_and_single_tars(ray_local: None, tmp_path: Path) -> None:
    uri = Path(make_dataset(tmp_path / "data", [shape_sources(3), shape_sources(2, 3)]))
    (uri / "dataset.json").unlink()
    result = check(uri)
    assert counts(result) == {"no_manifest": 1}
    assert {name: (one.shards, one.samples) for name, one in result.datasets.items()} == {"data": (2, 5)}
    single = check(uri / "shard-000001.tar")
    assert {name: one.samples for name, one in single.datasets.items()} == {"shard-000001": 2}
    assert "cibhash adopt" in format_table(result)
    with pytest.raises(ConfigError, match="lie there"):
        check(uri, fix=str(uri))
    check(uri, fix=str(tmp_path / "fixed"))
    assert labeled(shape_sources(5)) == {s.key: (s.image, s.labels) for s in samples_of(str(tmp_path / "fixed"))}


def test_names_of_datasets_are_safe_and_differ(tmp_path: Path) -> None:
    a = make_dataset(tmp_path / "a", [shape_sources(1)], split="../../x")
    b = make_dataset(tmp_path / "b", [shape_sources(1)], split="../../x")
    assert list(check(a, dry_run=True).datasets) == ["x"]
    assert list(check(a, b, a, dry_run=True).datasets) == ["a", "b"]


def test_what_is_not_there_and_what_is_broken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in ("empty", "gone", "gone.tar"):
        with pytest.raises(NotFound, match=place):
            check(tmp_path / place)
    (tmp_path / "empty" / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="broken dataset manifest"):
        check(tmp_path / "empty")


def test_dry_run_reads_manifests_alone(tmp_path: Path) -> None:
    uri = make_dataset(tmp_path / "data", [shape_sources(3)])
    for shard in Path(uri).glob("*.tar"):
        shard.unlink()
    result = check(uri, output=str(tmp_path / "report"), fix=str(tmp_path / "fixed"), dry_run=True)
    assert {name: (one.shards, one.samples) for name, one in result.datasets.items()} == {"all": (1, 3)}
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_an_empty_dataset_is_an_error(ray_local: None, tmp_path: Path) -> None:
    assert counts(check(make_dataset(tmp_path / "data", [[]]))) == {"empty_dataset": 1}


def test_from_s3_to_s3(s3_bucket: str) -> None:
    """In its own process, whose private Ray has the credentials."""
    make_dataset(f"{s3_bucket}/data/query", [shape_sources(2)], split="query")
    bad = SourceImage("bad", "png", b"<html>", ())
    make_dataset(f"{s3_bucket}/data/database", [[*shape_sources(3), bad]], split="database")
    argv = [f"{s3_bucket}/data", "--output", f"{s3_bucket}/report", "--fix", f"{s3_bucket}/fixed"]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.doctor", *argv], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert {kind: one["count"] for kind, one in line["findings"].items()} == {
        "undecodable": 1,
        "split_leak": 2,
        "partly_labeled": 1,
    }
    assert line["fixed"]["database"]["samples"] == 3
    assert storage.read_bytes(f"{s3_bucket}/fixed/query/left_out.jsonl") == b""
    manifest = open_dataset(f"{s3_bucket}/fixed/database")
    assert isinstance(manifest, DatasetManifest)
    assert [sample.key for sample in samples_of(f"{s3_bucket}/fixed/database")] == [s.key for s in shape_sources(3)]
    assert json.loads(storage.read_bytes(f"{s3_bucket}/report/doctor.json"))["datasets"]["query"]["samples"] == 2
