"""SIGTERM to `cibhash serve` under load: what was begun is answered, what comes then is told so, the exit code is 0."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.client import SearchClient
from cluster.service_errors import ServiceUnavailable
from tests.asking import Asking
from tests.patience import HANG_S
from tests.service_fixture import free_port, make_corpus, make_index

pytestmark = pytest.mark.ray


def test_sigterm_under_load_ends_after_the_last_answer(tmp_path: Path) -> None:
    """An upload that has begun holds the service up until it is complete, and is answered."""
    corpus, port = make_corpus(tmp_path / "corpus"), free_port()
    index, url = make_index(corpus, 2), f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "jobs.cli", "serve", "--index", index, "--port", str(port)]
    with open(tmp_path / "log", "w") as log:
        running = subprocess.Popen(
            [*command, "--replicas", "2"],
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])},
            cwd=tmp_path,
        )
    try:
        wait_for(running, tmp_path / "log", "search page: ")
        body = json.dumps({"ids": [corpus.ids[3]], "k": 5}).encode()
        head = f"POST /search HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        with (
            socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as upload,
            Asking(url, corpus, {"v000001": len(corpus.ids)}) as asking,
        ):
            upload.sendall(head.encode() + body[:9])
            asking.wait_for_more()
            assert not asking.refused, asking.refused[:3]
            signaled_s = time.monotonic()
            running.send_signal(signal.SIGTERM)
            wait_until_nobody_is_let_in(url)
            assert running.poll() is None, "the upload is under way"
            upload.sendall(body[9:])
            answer = b"".join(iter(lambda: upload.recv(65536), b""))
            out, _ = running.communicate(timeout=HANG_S)
        assert answer.startswith(b"HTTP/1.1 200 "), answer[:300]
        nearest = corpus.nearest(corpus.codes[[3]], 5)
        found = json.loads(answer.partition(b"\r\n\r\n")[2])["neighbors"][0]
        assert [near["id"] for near in found] == nearest.ids[0].tolist()
        assert not asking.wrong, asking.wrong[:3]
        assert all(one.begun_s > signaled_s for one in asking.refused), asking.refused[:3]
        assert (running.returncode, json.loads(out)["status"]) == (0, "ok"), (tmp_path / "log").read_text()[-3000:]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=HANG_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        running.wait(HANG_S)


def wait_for(running: subprocess.Popen[bytes], log: Path, line: str) -> None:
    deadline = time.monotonic() + HANG_S
    while line not in (told := log.read_text()):
        assert running.poll() is None, told[-3000:]
        assert time.monotonic() < deadline, told[-3000:]
        time.sleep(0.2)


def wait_until_nobody_is_let_in(url: str) -> None:
    """Both replicas that answer HTTP have heard."""
    client, deadline, refused = SearchClient(url, retries=0, timeout_s=HANG_S), time.monotonic() + HANG_S, 0
    reason = ""
    while refused < 20:
        assert time.monotonic() < deadline
        try:
            client.stats()
            refused = 0
        except ServiceUnavailable as error:
            refused += 1
            reason = str(error)
    assert "shutting down" in reason
