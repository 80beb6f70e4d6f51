"""A job's face to the world: the JSON line, one-line errors, exit codes and the report."""

import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cibhash.errors import CorruptShard, NotFound, StorageError, TrainingDiverged
from cluster.config import JobConfig
from cluster.retries import note_retry
from jobs.runner import describe_failure, plain, run_job


class ToyConfig(JobConfig):
    """A job for tests."""

    output: str
    """Where the report goes."""
    size: int = 3
    """Some number."""


class NotedConfig(ToyConfig):
    """A job with a text."""

    note: str = ""
    """Any."""


@dataclass(frozen=True)
class ToyResult:
    """What the toy job returns."""

    rows: int
    map_at_k: dict[str, float]


def noisy(config: ToyConfig) -> ToyResult:
    print("a library that prints")
    os.write(1, b"native code that writes to descriptor 1\n")
    return ToyResult(config.size, {"16": 0.5, "32": float("nan")})


def failing(error: BaseException) -> Callable[[ToyConfig], Any]:
    def work(config: ToyConfig) -> None:
        raise error

    return work


def test_stdout_is_the_json_line_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = "{0.rows} rows".format
    assert run_job("toy", ToyConfig, noisy, ["--output", str(tmp_path), "--size", "4"], table=table) == 0
    out, err = capfd.readouterr()
    assert out.count("\n") == 1
    line = json.loads(out)
    seconds = line.pop("seconds")
    assert line == {"job": "toy", "status": "ok", "rows": 4, "map_at_k": {"16": 0.5, "32": None}}
    assert seconds >= 0
    for text in ("a library that prints", "native code that writes", "4 rows"):
        assert text in err
    report = json.loads((tmp_path / "run_report.json").read_text())
    assert (report["job"], report["status"], report["exit_code"], report["error"]) == ("toy", "ok", 0, "")
    assert report["config"]["size"] == 4
    assert report["result"]["rows"] == 4
    assert report["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["started"].endswith("+00:00")
    assert report["driver_peak_memory_mib"] > 1


def test_dry_run_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert run_job("toy", ToyConfig, noisy, ["--output", str(output), "--dry-run"], table=str) == 0
    line = json.loads(capfd.readouterr().out)
    assert (line["status"], line["config"]["output"], line["rows"]) == ("dry-run", str(output), 3)
    assert not output.exists()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (CorruptShard("s.tar: cut"), 3, "s.tar: cut"),
        (NotFound("s3://b/k: no such object"), 4, "s3://b/k: no such object"),
        (TrainingDiverged("loss nan at step 3"), 5, "loss nan at step 3"),
        (ValueError("k 0: expected\n  at least 1"), 2, "k 0: expected at least 1"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(15), 143, "terminated"),
        (OSError(errno.ENOSPC, "No space left on device"), 4, "[Errno 28] No space left on device"),
        (MemoryError(), 1, "out of memory"),
        (KeyError("lost"), 1, "KeyError: 'lost'"),
        (RuntimeError(), 1, "RuntimeError"),
    ],
)
def test_failures_are_one_line_with_their_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], error: BaseException, code: int, message: str
) -> None:
    assert run_job("toy", ToyConfig, failing(error), ["--output", str(tmp_path)]) == code
    out, err = capfd.readouterr()
    assert err == f"cibhash toy: error: {message}\n"
    line = json.loads(out)
    assert (line["status"], line["error"], line["exit_code"]) == ("error", message, code)
    assert line["error_type"] == type(error).__name__
    report = json.loads((tmp_path / "run_report.json").read_text())
    assert (report["status"], report["exit_code"], report["error"]) == ("error", code, message)
    assert "Traceback" in report["traceback"]
    assert report["config"]["size"] == 3


def test_work_that_is_done_may_still_fail(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The result stays beside the error, in the line and in the report."""

    def judged(result: ToyResult) -> CorruptShard | None:
        return CorruptShard(f"{result.rows} rows are too many") if result.rows > 3 else None

    argv = ["--output", str(tmp_path)]
    assert run_job("toy", ToyConfig, noisy, argv, failing=judged) == 0
    assert json.loads(capfd.readouterr().out)["status"] == "ok"
    assert run_job("toy", ToyConfig, noisy, [*argv, "--size", "4"], failing=judged) == 3
    out, err = capfd.readouterr()
    line = json.loads(out)
    assert (line["status"], line["rows"], line["exit_code"]) == ("error", 4, 3)
    assert err.endswith("cibhash toy: error: 4 rows are too many\n")
    assert json.loads((tmp_path / "run_report_failed.json").read_text())["result"]["rows"] == 4


def test_usage_errors_leave_no_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_job("toy", ToyConfig, noisy, ["--output", str(tmp_path), "--sise", "3"]) == 2
    out, err = capfd.readouterr()
    assert err == "cibhash toy: error: unknown option --sise: did you mean --size?\n"
    assert json.loads(out)["exit_code"] == 2
    assert list(tmp_path.iterdir()) == []


def test_traceback_on_request(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["--output", str(tmp_path), "--traceback"]
    assert run_job("toy", ToyConfig, failing(CorruptShard("s.tar")), argv) == 3
    assert "Traceback (most recent call last)" in capfd.readouterr().err


def test_a_report_that_cannot_be_written_does_not_hide_the_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    argv = ["--output", str(tmp_path / "file" / "out")]
    assert run_job("toy", ToyConfig, failing(CorruptShard("s.tar: cut")), argv) == 3
    out, err = capfd.readouterr()
    assert json.loads(out)["error"] == "s.tar: cut"
    assert "run_report.json could not be written" in err


def test_the_report_counts_the_storage_retries_of_this_run_alone(tmp_path: Path) -> None:
    def work(config: ToyConfig) -> None:
        for _ in range(config.size):
            note_retry("GetObject", "s3://bucket/a", "503 SlowDown", 0.0)

    for size in (2, 1):
        assert run_job("toy", ToyConfig, work, ["--output", str(tmp_path), "--size", str(size)]) == 0
        assert json.loads((tmp_path / "run_report.json").read_text())["storage_retries"] == {"GetObject": size}


def test_neither_report_nor_lines_hold_credentials(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")

    def work(config: NotedConfig) -> dict[str, str]:
        if config.note:
            return {"uri": config.note}
        raise StorageError("no answer with wJalrXUtnFEMI/K7MDENG from http://me:pass-word@host")

    for note in ("s3://me:pass-word@bucket/a", ""):
        run_job("toy", NotedConfig, work, ["--output", str(tmp_path), "--note", note, "--traceback"])
        name = "run_report.json" if note else "run_report_failed.json"
        texts = (*capfd.readouterr(), (tmp_path / name).read_text())
        for text in texts:
            assert "wJalrXUtnFEMI" not in text
            assert "me:pass-word" not in text
        assert "[hidden]" in texts[2]


@pytest.mark.ray
def test_errors_of_ray_tasks_are_told_as_their_own(ray_local: None) -> None:
    import ray

    @ray.remote
    def task() -> None:
        raise CorruptShard("s.tar: cut inside a header")

    with pytest.raises(CorruptShard) as caught:
        ray.get(task.remote())
    failure = describe_failure(caught.value)
    assert (failure.error, failure.error_type, failure.exit_code) == ("s.tar: cut inside a header", "CorruptShard", 3)


def test_plain_takes_numpy_and_paths() -> None:
    value = {"n": np.int64(3), "x": np.float32(0.5), "a": np.arange(2), "p": Path("a/b"), "t": (1, None, True)}
    assert plain(value) == {"n": 3, "x": 0.5, "a": [0, 1], "p": "a/b", "t": [1, None, True]}
    with pytest.raises(TypeError, match="object has no JSON form"):
        plain(object())
