"""The lease of an output: one live holder, a dead one's taken over, and a lost one noticed."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from cibhash.errors import ConfigError
from cluster import storage
from cluster.lease import hold_lease
from tests.s3 import s3_bucket

__all__ = ["s3_bucket"]

_FOREVER_S = 10_000.0
"""Between two beats: who waits for one only ends by the test's time limit."""
_HOLDER = """
import sys, time
from cluster.lease import hold_lease
with hold_lease(sys.argv[1], beat_s=0.1):
    print("held", flush=True)
    sys.stdin.readline()
"""


def _holder(uri: str) -> subprocess.Popen[bytes]:
    """A process of its own that holds the lease until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", _HOLDER, uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def _content(uri: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(storage.read_bytes(uri))
    return found


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_bucket')}/out/training.lease"
    return str(tmp_path / "out/training.lease")


def test_a_live_holder_is_named_a_killed_one_is_taken_over_at_once(uri: str) -> None:
    process = _holder(uri)
    try:
        with (
            pytest.raises(ConfigError, match=rf"{uri}.*pid {process.pid} on {socket.gethostname()}") as caught,
            hold_lease(uri, beat_s=0.1),
        ):
            pass
        assert caught.value.exit_code == 2
        assert _content(uri)["pid"] == process.pid
        process.kill()
        _until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z")
        with hold_lease(uri, beat_s=_FOREVER_S):  # still there as a zombie
            assert _content(uri)["pid"] == os.getpid()
    finally:
        process.kill()
        process.wait()


def test_a_lease_is_let_go_at_the_end_of_the_block(uri: str) -> None:
    for _ in range(2):
        with hold_lease(uri, beat_s=_FOREVER_S):
            found = _content(uri)
            assert (found["host"], found["pid"], found["released"]) == (socket.gethostname(), os.getpid(), False)
        assert _content(uri)["released"]
    with pytest.raises(ZeroDivisionError), hold_lease(uri, beat_s=_FOREVER_S):
        _ = 1 / 0
    assert _content(uri)["released"]


def test_the_holder_counts_up_as_long_as_it_lives(uri: str) -> None:
    with hold_lease(uri, beat_s=0.02):
        _until(lambda: _content(uri)["beats"] >= 3)
    assert _content(uri)["beats"] >= 3


def test_a_holder_of_another_host_is_dead_once_it_no_longer_counts(tmp_path: Path) -> None:
    uri = str(tmp_path / "lease")
    elsewhere = {"owner": "a", "host": "elsewhere", "pid": os.getpid(), "started": "1", "beats": 7, "released": False}
    storage.write_bytes(uri, json.dumps(elsewhere).encode())
    beats = threading.Event()

    def count() -> None:
        for number in range(8, 10_000):
            if beats.wait(0.02):
                return
            storage.write_bytes(uri, json.dumps({**elsewhere, "beats": number}).encode())

    thread = threading.Thread(target=count)
    thread.start()
    try:
        with pytest.raises(ConfigError, match=f"pid {os.getpid()} on elsewhere"), hold_lease(uri, beat_s=0.2):
            pass
    finally:
        beats.set()
        thread.join()
    with hold_lease(uri, beat_s=0.2):
        assert _content(uri)["host"] == socket.gethostname()


def test_a_later_process_with_the_pid_of_the_holder_is_not_the_holder(tmp_path: Path) -> None:
    uri = str(tmp_path / "lease")
    for pid, started in ((os.getpid(), "1"), (2**30, "1")):
        before = {"owner": "a", "host": socket.gethostname(), "pid": pid, "started": started}
        storage.write_bytes(uri, json.dumps(before).encode())
        with hold_lease(uri, beat_s=_FOREVER_S):
            assert _content(uri)["owner"] != "a"


def test_a_file_that_is_no_lease_is_replaced(tmp_path: Path) -> None:
    uri = str(tmp_path / "lease")
    for content in (b"", b"{", b'{"owner": 1}', b"\xff"):
        storage.write_bytes(uri, content)
        with hold_lease(uri, beat_s=_FOREVER_S):
            assert _content(uri)["pid"] == os.getpid()


@pytest.mark.parametrize("dead", [False, True])
def test_one_of_many_wins(uri: str, dead: bool) -> None:
    if dead:
        before = {"owner": "a", "host": socket.gethostname(), "pid": 2**30, "started": "1"}
        storage.write_bytes(uri, json.dumps(before).encode())
    barrier, end = Barrier(8), threading.Event()
    won: list[int] = []
    refused: list[str] = []

    def attempt(number: int) -> None:
        with ExitStack() as stack:
            barrier.wait()
            try:
                stack.enter_context(hold_lease(uri, beat_s=0.1))
            except ConfigError as error:
                refused.append(str(error))
                return
            won.append(number)
            end.wait()

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    try:
        _until(lambda: len(refused) + len(won) == 8)
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert len(won) == 1
    assert all(uri in message and "another run" in message for message in refused)


def test_a_lease_that_is_lost_interrupts_its_process_and_is_not_let_go(interrupts: None, tmp_path: Path) -> None:
    uri = str(tmp_path / "lease")
    other = b'{"owner": "other", "host": "elsewhere", "pid": 1, "started": "1"}'

    def robbed(content: bytes) -> None:
        with hold_lease(uri, beat_s=0.05):
            storage.write_bytes(uri, content)
            threading.Event().wait(60)

    for taken in (other, b"no lease"):
        storage.write_bytes(uri, b"")
        with pytest.raises(KeyboardInterrupt):
            robbed(taken)
        assert storage.read_bytes(uri) == taken


def test_a_process_that_ignores_interrupts_is_terminated_when_its_lease_is_lost(tmp_path: Path) -> None:
    uri = str(tmp_path / "lease")
    script = (
        "import signal, sys, time\n"
        "from cluster import storage\n"
        "from cluster.lease import hold_lease\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "with hold_lease(sys.argv[1], beat_s=0.05):\n"
        "    storage.write_bytes(sys.argv[1], b'no lease')\n"
        "    time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, uri], stderr=subprocess.DEVNULL, check=False)
    assert ended.returncode == -signal.SIGTERM


def test_a_renewal_whose_answer_was_lost_and_a_missing_file_end_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "lease")
    with hold_lease(uri, beat_s=0.05):
        storage.write_bytes(uri, json.dumps({**_content(uri), "beats": 1000}).encode())
        _until(lambda: _content(uri)["beats"] > 1001)
        Path(uri).unlink()
        threading.Event().wait(0.2)
