"""Progress and logs: on stderr only, plain lines where there is no terminal."""

import os
import pty
import re
import subprocess
import sys

import pytest

from cluster.telemetry import ProgressLine, log, progress, show
from tests.patience import HANG_S


def test_a_log_line_has_time_event_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log("encode: done", rows=3, uri="s3://bucket/a")
    log("bare")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"\d\d:\d\d:\d\d encode: done rows=3 uri=s3://bucket/a\n\d\d:\d\d:\d\d bare\n", err)


def test_text_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show("a  table\n---")
    assert capsys.readouterr() == ("", "a  table\n---\n")


def test_plain_progress_ends_with_a_line_of_the_totals(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("encode", 1500, "images") as line:
        for _ in range(3):
            line.advance(500)
        line.advance(0, "2 refused")
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.search(r"encode: 1,500/1,500 images, [\d,.]+ images/s, 2 refused$", err.strip())


def test_unfinished_progress_tells_rate_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine("train", 40, "epochs")
    line.started_s -= 10.0
    line.advance(10, "loss 1.2")
    text = capsys.readouterr().err
    assert re.search(r"train: 10/40 epochs, 1\.0 epochs/s, (29|30) s left, loss 1\.2$", text.strip())
    line.advance(1)
    assert capsys.readouterr().err == "", "the next plain line is due later"


def test_work_of_nothing_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("encode", 0, "images"):
        pass
    assert "encode: 0/0 images" in capsys.readouterr().err


def test_errors_pass_through(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        with progress("encode", 3, "images") as line:
            line.advance(1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert capsys.readouterr().out == ""


_ON_A_TERMINAL = """
from cluster.telemetry import progress
with progress("encode", 4, "images") as line:
    for n in range(4):
        line.advance(1, f"{n} refused")
"""


def test_on_a_terminal_a_live_bar_is_drawn_and_stdout_stays_clean() -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_TERMINAL], stdout=subprocess.PIPE, stderr=slave, timeout=HANG_S, env=environment
    )
    os.close(slave)
    drawn = b""
    try:
        while chunk := os.read(master, 65536):
            drawn += chunk
    except OSError:
        pass
    os.close(master)
    assert done.returncode == 0
    assert done.stdout == b""
    assert b"4/4" in drawn
    assert b"3 refused" in drawn
