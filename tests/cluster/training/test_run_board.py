"""The board: what workers tell reaches the metrics, failures and signs of life are kept, and its loss stops nothing."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.training.metrics_log import MetricsLog, read_rows
from cluster.training.run_board import Pulse, RunBoard, answer, shown_board

pytestmark = pytest.mark.ray


def _rows() -> list[dict[str, Any]]:
    """Two epochs; the first look has no separation to tell of, as that of collapsed codes."""
    rows: list[dict[str, Any]] = []
    for epoch in (0, 1):
        step = 5 * (epoch + 1)
        rows.append({"kind": "step", "epoch": epoch, "step": step, "loss": 2.0 - epoch})
        rows.append(
            {"kind": "look", "step": step, "nt_xent": 3.0, **({"sep10": 0.5} if epoch else {"alarms": ["dead"]})}
        )
        values = {"loss": 2.5 - epoch, "bit_entropy": 0.25, "images_per_s": 1234.0}
        rows.append({"kind": "epoch", "epoch": epoch, "step": step, "steps": 5, **values})
    return rows


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_rows_reach_the_metrics_and_the_progress_line(
    ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _rows()
    with shown_board(MetricsLog(str(tmp_path)), 2) as board:
        assert not ray.get(board.started.remote())
        ray.get(board.add.remote(rows[:3]))
        assert ray.get(board.started.remote())
        ray.get(board.add.remote(rows[3:]))
        assert ray.get(board.rows.remote(4)) == rows[4:]
    assert sorted(read_rows(str(tmp_path)), key=str) == sorted(rows, key=str), "written at the end of the block"
    shown = capsys.readouterr().err
    assert "ALARM, the codes collapse: dead step=5" in shown
    assert "train: 2/2 epochs" in shown
    assert "loss 1.5000, bit entropy 0.250, 1,234 images/s, held-out sep10 0.500" in shown


def test_the_block_ends_with_its_metrics_also_by_an_error(ray_local: None, tmp_path: Path) -> None:
    def interrupted() -> None:
        with shown_board(MetricsLog(str(tmp_path)), 2) as board:
            ray.get(board.add.remote(_rows()[:3]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(read_rows(str(tmp_path))) == 3


def test_the_first_failure_is_kept_and_signs_of_life_are_the_last_ones(ray_local: None) -> None:
    board = RunBoard.remote()  # type: ignore[attr-defined]
    assert (answer(board.failure.remote(), "lost"), answer(board.signs.remote(), None)) == ("", [])
    for failure in ("DataError one", "DataError two"):
        ray.get(board.fail.remote(failure))
    assert answer(board.failure.remote(), "") == "DataError one"

    pulses = [Pulse(board, rank) for rank in (1, 0)]
    for pulse, step in zip(pulses, (7, 9), strict=True):
        pulse.beat(step)
    place = f"pid {os.getpid()} on {socket.gethostname()}"
    _until(lambda: ray.get(board.signs.remote()) == [(0, 9, place, False), (1, 7, place, False)])
    ray.get(board.beat.remote(2, 8, "elsewhere"))
    _until(lambda: ray.get(board.signs.remote())[2].is_silent)
    signs = ray.get(board.signs.remote())
    assert [sign.is_silent for sign in signs] == [False, False, True]
    assert signs[2] == (2, 8, "elsewhere", True)

    ray.kill(board)
    _until(lambda: answer(board.failure.remote(), "lost") == "lost")
    for pulse in pulses:
        pulse.beat(8)
        pulse.stop()


def test_a_lost_board_loses_only_what_it_had_not_passed_on(
    ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown_board(MetricsLog(str(tmp_path)), 2) as board:
        ray.get(board.add.remote(_rows()[:3]))
        _until(lambda: "ALARM" in capsys.readouterr().err)
        ray.kill(board)
        _until(lambda: (tmp_path / "metrics.jsonl").exists())
    assert len(read_rows(str(tmp_path))) == 3
