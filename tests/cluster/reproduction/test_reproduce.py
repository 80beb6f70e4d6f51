"""The job from packed shapes to the tables: what is kept, what fails alone, what is not at hand, and the exit code."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.manifests import create_manifest
from cluster.packing.split_identity import SplitManifest, SplitPart
from jobs.reproduce import main
from tests.datasets import make_dataset, shape_sources

RECIPE = {
    "backbone": {"name": "test_resnet", "weights": "none", "image_size": 32},
    "rotation": 16,
    "hidden": 24,
    "epochs": 2,
    "batch_size": 16,
    "num_cached_views": 2,
    "checkpoint_every": 1,
}
SIZES = {"train": 48, "query": 12, "database": 40}
ROW = {"method": "Hash", "protocol": "shapes", "backbone": "Net", "bits": [8, 16], "training": "nested"}


def benchmark(folder: Path) -> None:
    """Shapes in three splits, as `cibhash pack` leaves them."""
    start = 0
    for split, count in SIZES.items():
        make_dataset(folder / split, [shape_sources(count, start)], "shapes", split)
        start += count
    parts = {split: SplitPart(count=count, sha256="0" * 64) for split, count in SIZES.items()}
    create_manifest(str(folder), SplitManifest(name="shapes/all", seed=None, parts=parts))


def table(folder: Path) -> str:
    """Rows: one good one, its ablation with a model per length, one that cannot be trained, one without data."""
    recipes = {name: folder / f"{name}.yaml" for name in ("good", "no_kl", "broken")}
    settings: dict[str, dict[str, Any]] = {"good": RECIPE, "no_kl": {"beta": 0.0}, "broken": {"batch_size": 64}}
    for name, path in recipes.items():
        path.write_text(yaml.safe_dump(settings[name]))
    good, no_kl, broken = (str(path) for path in recipes.values())
    protocol = {
        "title": "Shapes",
        "k": 10,
        "about": "all of them",
        "evidence": "source",
        "splits": ["shapes/all"],
        "sizes": SIZES,
        "pack": "cibhash pack shapes",
    }
    published = {
        "name": "hash",
        "method": "Hash",
        "protocols": ["shapes"],
        "backbone": "Net",
        "map": {8: 0.25, 16: 0.5},
        "source": "A. Author",
        "evidence": "quoted",
    }
    band = {"low": {8: 0.01}, "source": "chance"}
    rows = [
        {**ROW, "name": "broken", "recipes": [good, broken]},
        {**ROW, "name": "good", "recipes": [good], "seeds": [0, 1], "published": "hash", "baselines": True,
         "expect": band},
        {**ROW, "name": "no-kl", "recipes": [good, no_kl], "training": "per_length", "ablation_of": "good"},
        {**ROW, "name": "absent", "recipes": [good], "protocol": "elsewhere"},
    ]  # fmt: skip
    content = {
        "protocols": {"shapes": protocol, "elsewhere": protocol},
        "published": [published],
        "rows": rows,
    }
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


class Job:
    """Runs the command and keeps what it says."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self.output = folder / "out"
        self._fixed = ["--data", str(folder / "data"), "--output", str(self.output), "--table", table(folder)]
        self._fixed += ["--threads-per-worker", "1"]

    def __call__(self, *arguments: str) -> tuple[int, dict[str, Any], str]:
        self._capfd.readouterr()
        code = main([*self._fixed, *arguments])
        out, err = self._capfd.readouterr()
        return code, json.loads(out), err


def test_nothing_at_hand_is_a_mistake_and_a_list_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path, capfd)
    code, line, err = job("--list")
    assert (code, line["status"], line["counts"]) == (0, "dry-run", {"not at hand": 4})
    assert f"[1] no data at {tmp_path}/data/shapes: cibhash pack shapes --output {tmp_path}/data/shapes" in err
    assert not job.output.exists()
    code, line, err = job("--rows", "go*")
    assert code == 2
    assert err.splitlines()[-1].startswith("cibhash reproduce: error: none of the 1 rows can run: good: no data at ")
    assert line["rows"][0]["reason"] in (job.output / "table.md").read_text()
    code, _, err = job("--rows", "god")
    assert (code, err) == (2, "cibhash reproduce: error: rows 'god': no such row: did you mean good?\n")


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train looks after its workers more often."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


@pytest.mark.ray
def test_rows_are_run_kept_and_fail_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], ray_local: None, quick_looks: None
) -> None:
    benchmark(tmp_path / "data" / "shapes")
    job = Job(tmp_path, capfd)
    code, line, err = job()
    assert code == 2, err
    assert line["error"].startswith("broken, 8, 16 bits, seed 0: ")
    assert line["counts"] == {"failed": 1, "complete": 2, "not at hand": 1}
    assert (line["runs_kept"], line["runs_done"], line["runs_failed"]) == (0, 4, 1)
    rows = {row["name"]: row for row in line["rows"]}

    good = rows["good"]
    reports = [json.loads(Path(uri).with_name("metrics.json").read_text()) for uri in good["reports"]]
    for bits in ("8", "16"):
        by_seed = [
            one["map_at_k"]
            for report in reports
            for one in report["series"]
            if (one["method"], one["bits"]) == ("cibhash", int(bits))
        ]
        assert good["map_at_k"][bits] == pytest.approx(sum(by_seed) / 2)
        low, high = good["intervals"][bits]
        assert low <= good["map_at_k"][bits] <= high
        assert good["differences"][bits] == pytest.approx(good["map_at_k"][bits] - good["published"][bits])
    assert (good["seeds"], good["as_expected"], good["evidence"]) == ([0, 1], True, "quoted")
    methods = [{one["method"] for one in report["series"]} for report in reports]
    assert methods == [{"cibhash", "itq", "pca_sign", "random_hyperplanes"}, {"cibhash"}]
    assert len(rows["no-kl"]["reports"]) == 2, "a model for every length"
    assert rows["absent"]["reason"].startswith("no data at ")

    text = (job.output / "table.md").read_text()
    for expected in (
        "| **Hash** | Net | ",
        "A. Author (quoted)",
        "Shapes: ablations",
        "PCA-sign",
        "FAILED: ConfigError",
    ):
        assert expected in text
    assert "A. Author (quoted)" in (job.output / "table.html").read_text()

    code, again, err = job("--rows", "good,no-kl,absent")
    assert code == 0, err
    assert (again["runs_kept"], again["runs_done"]) == (4, 0)
    assert {row["name"]: row["map_at_k"] for row in again["rows"]} == {
        name: row["map_at_k"] for name, row in rows.items() if name != "broken"
    }
    _, listed, _ = job("--rows", "good", "--list", "--epochs", "1")
    assert (listed["counts"], listed["rows"][0]["reason"]) == ({"incomplete": 1}, "trained for 1 epochs only")

    (run,) = (job.output / "runs" / "good").glob("*-seed0-*")
    encoder = (run / "encoder" / "encoder.json").stat().st_mtime_ns
    (run / "run.json").unlink()
    (run / "report" / "metrics.json").unlink()
    code, resumed, err = job("--rows", "good")
    assert (code, resumed["runs_kept"], resumed["runs_done"]) == (0, 1, 1), err
    assert "train: already complete" in err
    assert (run / "encoder" / "encoder.json").stat().st_mtime_ns == encoder
    assert resumed["rows"][0]["map_at_k"] == good["map_at_k"]
