"""The whole job: a sample in, a plan out; verified on small sizes by memory and recall. No clock is asserted."""

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.planning.verification import Compared
from jobs.plan import main
from tests.benchmarks.clustered_codes import make_data
from tests.tables import make_code_table

ROWS = 3000
SLACK_BYTES = 4 * 2**20
"""What the allocator may keep or have had to spare: much for a small index."""
QUICK = ("--calibration-seconds", "0.01", "--k", "10")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A table of nested codes without labels."""
    codes = make_data(64, ROWS, 1, 0).database
    return make_code_table(tmp_path_factory.mktemp("codes"), codes, prefixes=(16, 32, 64))


def run(capture: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, object], str]:
    code = main(list(argv))
    captured = capture.readouterr()
    return code, json.loads(captured.out), captured.err


def test_a_plan_with_its_commands(sample: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "plan")
    asked = ("--items", "1000000", "--kinds", "flat", "unique", "table", "--output", output)
    code, line, err = run(capfd, "--codes", sample, *asked, *QUICK)
    assert code == 0, err
    assert (line["job"], line["status"], line["quality_is"], line["sample_rows"]) == ("plan", "ok", "agreement", ROWS)
    chosen, candidates = line["chosen"], line["candidates"]
    assert isinstance(chosen, dict)
    assert isinstance(candidates, list)
    assert chosen["bits"] == 64
    assert [one["shortfalls"] == [] for one in candidates] == sorted(
        (one["shortfalls"] == [] for one in candidates), reverse=True
    )
    refused = [one for one in candidates if one["bits"] < 64]
    assert {one["shortfalls"][0][0] for one in refused} == {"quality"}
    assert line["commands"] == [
        f"cibhash index --codes CODES --output INDEX --kind {chosen['kind']} --shards {chosen['shards']}",
        f"cibhash serve --index INDEX --replicas {chosen['replicas']}",
    ]
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert plan["chosen"] == chosen
    assert len(plan["models"]) == len(candidates)
    assert "Chosen: " in err
    assert "quality: " in err


def test_a_shorter_length_and_the_whole_corpus_are_named_in_the_command(
    sample: str, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ("--items", str(ROWS), "--bits", "16", "--kinds", "table", "--quality", "0")
    _, line, _ = run(capfd, "--codes", sample, *asked, *QUICK)
    assert line["commands"] == [
        f"cibhash index --codes {sample} --output INDEX --kind table --bits 16 --shards 1",
        "cibhash serve --index INDEX --replicas 1",
    ]


def test_labels_are_held_against_lengths(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    codes = make_data(32, 500, 1, 0).database
    table = make_code_table(tmp_path, codes, labels=[[int(code[0]) % 4] for code in codes], prefixes=(16, 32))
    _, line, _ = run(capfd, "--codes", table, "--items", "1000", "--kinds", "flat", *QUICK)
    assert line["quality_is"] == "mAP@10"
    assert [one["bits"] for one in line["lengths"]] == [16, 32]  # type: ignore[attr-defined]


def test_a_plan_that_nothing_fulfils_names_what_fails_and_by_how_much(
    sample: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "plan")
    asked = ("--items", "1000000", "--kinds", "flat", "--latency-ms", "20", "--output", output)
    code, line, err = run(capfd, "--codes", sample, *asked, *QUICK)
    assert code == 2
    assert (line["status"], line["error_type"], line["chosen"]) == ("error", "ConfigError", None)
    last = err.splitlines()[-1]
    assert last.startswith(
        "cibhash plan: error: no index does all that is asked; the nearest, flat of 64 bits (shards "
    )
    assert " fails at latency: 25." in last
    assert "ms, asked 20 ms, " in last
    assert last.endswith("% off")
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["problem"] in last


def test_dry_run_reads_the_manifest_alone(sample: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plan"
    code, line, _ = run(capfd, "--codes", sample, "--items", "10", "--output", str(output), "--dry-run")
    assert (code, line["status"], line["sample_rows"], line["chosen"]) == (0, "dry-run", ROWS, None)
    assert not output.exists()


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("--items", "10", "--bits", "128"), 2, "128 bits: the codes of "),
        (("--items", "10", "--bits", "32", "--kinds", "table"), 2, "kinds table: none holds codes of 32 bits"),
        (("--items", "10", "--memory-per-node", "lots"), 2, "memory_per_node 'lots': expected a size"),
        (("--items", "10", "--memory-per-node", "1GiB"), 2, "reserved_per_node 2GiB: leaves nothing of"),
        (("--items", "10", "--kinds", "flat", "flat"), 2, "kinds flat flat: one is named twice"),
        (("--items", "10", "--verify-items", "5"), 2, "verify_items: only with --verify"),
        (("--items", "10", "--verify", "--verify-items", "11"), 2, "verify_items 11: more than items 10"),
        (("--items", "0"), 2, "items"),
    ],
)
def test_what_cannot_be_is_refused(
    sample: str, argv: tuple[str, ...], code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found, _, err = run(capfd, "--codes", sample, *argv)
    assert found == code
    assert message in err
    assert err.count("\n") == 1


def test_a_sample_must_be_there_and_large_enough(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capfd, "--codes", str(tmp_path), "--items", "10")
    assert code == 4
    assert "not a complete code table" in err
    small = make_code_table(tmp_path, np.zeros((99, 2), np.uint8))
    code, _, err = run(capfd, "--codes", small, "--items", "10")
    assert code == 3
    assert "99 rows, a sample needs at least 100" in err


def test_a_large_table_is_sampled(sample: str, capfd: pytest.CaptureFixture[str]) -> None:
    asked = ("--items", "1000", "--kinds", "flat", "--bits", "64", "--sample-rows", "1500")
    _, line, _ = run(capfd, "--codes", sample, *asked, *QUICK)
    assert line["sample_rows"] == 1500


@pytest.mark.parametrize(
    ("kind", "items", "gaps"), [("flat", 1_000_000, True), ("unique", 600_000, False), ("ivf", 150_000, True)]
)
def test_what_is_verified_is_what_was_predicted(
    sample: str, kind: str, items: int, gaps: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ("--items", str(items), "--kinds", kind, "--bits", "64", "--recall", "0.8", "--verify")
    more = () if gaps else ("--contiguous",)
    code, line, err = run(capfd, "--codes", sample, *asked, *more, *QUICK)
    assert code == 0, err
    verification = line["verification"]
    assert isinstance(verification, dict)
    assert verification["items"] == verification["shards"] * verification["rows_per_shard"]
    figures = {name: Compared(**one) for name, one in verification["figures"].items()}
    assert figures["file_bytes"].ratio == pytest.approx(1, abs=0.01)
    memory = figures["memory_bytes"]
    assert abs(memory.predicted - memory.measured) < 0.25 * memory.measured + SLACK_BYTES
    assert figures["recall"].ratio == pytest.approx(1, abs=0.1)
    assert figures["one_query_ms"].measured > 0
    assert figures["block_query_ms"].measured > 0
    assert "Verified on" in err
