"""The metrics files: every row once, also after a resume, and TensorBoard's files with the same values."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import s3_client, storage
from cluster.training import metrics_log
from cluster.training.metrics_log import MetricsLog, read_rows
from tests.events import Point, crc32c, events, points
from tests.s3 import s3_bucket

__all__ = ["s3_bucket"]


def _step(step: int, loss: float, **more: Any) -> dict[str, Any]:
    return {"kind": "step", "epoch": step // 10, "step": step, "loss": loss, **more}


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_come_in_the_order_of_steps_and_repeated_ones_once(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path))
    look = {"kind": "look", "step": 20, "sep10": 0.25}
    log.add([_step(10, 3.0), _step(20, 2.0)])
    log.add([look, {"kind": "epoch", "epoch": 1, "step": 20, "loss": 2.5}, _step(30, 1.0)])
    log.write()
    assert [(row["step"], row["kind"]) for row in _lines(tmp_path)] == [
        (10, "step"),
        (20, "epoch"),
        (20, "look"),
        (20, "step"),
        (30, "step"),
    ]

    again = MetricsLog(str(tmp_path))  # continues after step 10
    assert (again.last("step"), again.last("look"), again.last("none")) == (_step(30, 1.0), look, {})
    again.add([_step(20, 2.25), _step(25, 2.0)])
    again.add([_step(40, 0.5, alarms=["one code"])])
    assert again.last("step")["step"] == 40
    again.write()
    rows = _lines(tmp_path)
    assert rows == read_rows(str(tmp_path))
    places = [(row["step"], row["kind"]) for row in rows]
    assert len(places) == len(set(places)) == 7
    assert [row["loss"] for row in rows if row["kind"] == "step"] == [3.0, 2.25, 2.0, 1.0, 0.5]
    assert rows[-1]["alarms"] == ["one code"]


def test_event_files_hold_the_same_values_as_points_of_curves(tmp_path: Path) -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720
    log = MetricsLog(str(tmp_path))
    log.add([_step(10, 3.5, alarms=["one"], note="text"), {"kind": "look", "step": 10, "sep10": float("nan"), "k": 7}])
    log.add([_step(20, 0.1)])
    log.write()
    log.add([_step(30, float("inf"))])
    log.write()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert path.name.startswith("events.out.tfevents.")
    first, *_ = events(path)
    assert first.file_version == "brain.Event:2"
    assert points(path) == [
        Point("step/loss", 10, 3.5),
        Point("look/k", 10, 7.0),
        Point("step/loss", 20, float(np.float32(0.1))),
    ]

    MetricsLog(str(tmp_path)).write()  # nothing new, nothing written
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    again = MetricsLog(str(tmp_path))
    again.add([_step(20, 0.2)])
    again.write()
    (other,) = set((tmp_path / "tensorboard").iterdir()) - {path}
    assert points(other) == [Point("step/loss", 20, float(np.float32(0.2)))]
    sessions = [event for event in events(other) if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in sessions] == [(20, 1)]  # START: purge from 20 on


def test_files_are_written_at_intervals_and_only_with_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(str(tmp_path))
    log.add([_step(1, 1.0)])
    log.write_at_intervals()
    assert read_rows(str(tmp_path)) == []
    monkeypatch.setattr(metrics_log, "_WRITE_INTERVAL_S", 0.0)
    log.write_at_intervals()
    assert len(read_rows(str(tmp_path))) == 1
    (tmp_path / "metrics.jsonl").unlink()
    log.write_at_intervals()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_metrics_that_cannot_be_read_or_written_stop_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"kind": "step", "step": 1}\n{"kind": "st')
    log = MetricsLog(str(tmp_path))
    assert "begun anew" in capsys.readouterr().err
    log.add([_step(2, 1.0)])
    log.write()
    assert read_rows(str(tmp_path)) == [_step(2, 1.0)]

    (tmp_path / "file").write_bytes(b"")
    blocked = MetricsLog(str(tmp_path / "other"))
    blocked.add([_step(1, 1.0)])
    (tmp_path / "other").write_bytes(b"")
    blocked.write()
    assert "metrics cannot be written" in capsys.readouterr().err
    (tmp_path / "other").unlink()
    blocked.add([_step(2, 1.0)])
    blocked.write()
    assert [row["step"] for row in read_rows(str(tmp_path / "other"))] == [1, 2]


def test_metrics_on_s3(s3_bucket: str, tmp_path: Path) -> None:
    output = f"{s3_bucket}/out"
    log = MetricsLog(output)
    log.add([_step(1, 1.0)])
    log.write()
    assert read_rows(output) == [_step(1, 1.0)]
    (name,) = (item["Key"] for item in s3_client.client().list_objects_v2(Bucket=s3_bucket[5:])["Contents"][1:])
    storage.get_file(f"{s3_bucket}/{name}", tmp_path / "events")
    assert points(tmp_path / "events") == [Point("step/loss", 1, 1.0)]
