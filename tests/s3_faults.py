"""A small HTTP proxy in front of the S3 emulator that does to chosen requests what networks and stores do at times.

What passes the proxy is kept as a list, so a test can count requests. Faults are scripted one by one (`Fault`), or
drawn from a seed (`storm`).
"""

import functools
import http.client
import os
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import pytest

from cluster import retries
from cluster.retries import Limits
from tests.s3 import server_url, use_endpoint

Kind = Literal["status", "reset", "lost", "cut", "stall", "trickle"]
FAST = Limits(
    connect_timeout_s=5.0,
    read_timeout_s=2.0,
    least_bytes_per_s=100_000.0,
    attempts=5,
    first_wait_s=0.001,
    longest_wait_s=0.02,
    deadline_s=20.0,
)
"""As `Limits()`, in less time."""
_PER_SOCKET = {"connection", "keep-alive", "transfer-encoding", "expect"}


@dataclass
class Fault:
    """What to do to the next `times` requests that match.

    `status`: answer that status without asking the store. `reset`: break the connection before anything is answered.
    `lost`: let the store do it, then break the connection. `cut`, `stall`: end or stop after `after` bytes of the body.
    `trickle`: send the body in pieces of `after` bytes with a pause between them.
    """

    kind: Kind
    match: str = ""
    """Regular expression over `METHOD path?query`."""
    times: int = 1
    status: int = 503
    code: str = "SlowDown"
    retry_after: str = ""
    after: int = 0


class Seen(NamedTuple):
    """One request that came in."""

    line: str
    """`METHOD path?query`."""
    range: str
    fault: str
    """Kind of the fault it met, or empty."""
    connection: int


@dataclass
class FaultyStore:
    """The proxy: what it saw and what it will do."""

    upstream: str
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _storm: tuple[re.Pattern[str], random.Random, float] | None = None
    _calm: threading.Event = field(default_factory=threading.Event)
    """Set at the next plan: who is stalled need not wait any longer."""

    def plan(self, *faults: Fault) -> None:
        """Forgets what was seen and planned, and plans these; a request meets the first that matches."""
        with self._lock:
            self.seen.clear()
            self.faults[:] = faults
            self._storm = None
            self._calm.set()
            self._calm = threading.Event()

    def storm(self, match: str, seed: int, share: float) -> None:
        """From now on a share of the matching requests meets a fault drawn from the seed."""
        self.plan()
        self._storm = (re.compile(match), random.Random(seed), share)

    def lines(self, match: str = "") -> list[str]:
        """The requests that matched, in order."""
        with self._lock:
            return [seen.line for seen in self.seen if re.search(match, seen.line)]

    def met(self) -> Counter[str]:
        """How many requests met a fault, by its kind."""
        with self._lock:
            return Counter(seen.fault for seen in self.seen if seen.fault)

    def meet(self, line: str, wanted_range: str, connection: int) -> Fault | None:
        """Notes a request and gives the fault that it meets."""
        with self._lock:
            fault = self._planned(line) or self._drawn(line)
            self.seen.append(Seen(line, wanted_range, fault.kind if fault else "", connection))
            return fault

    def _planned(self, line: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.match, line):
                fault.times -= 1
                return fault
        return None

    def _drawn(self, line: str) -> Fault | None:
        if self._storm is None or not self._storm[0].search(line):
            return None
        _, draws, share = self._storm
        if draws.random() >= share:
            return None
        kind: Kind = draws.choice(("status", "reset", "lost", "cut"))
        status, code = draws.choice(((503, "SlowDown"), (500, "InternalError")))
        return Fault(kind, status=status, code=code, after=draws.randrange(1, 3000))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: FaultyStore

    def log_message(self, *_: Any) -> None:
        pass

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.store.meet(f"{self.command} {self.path}", self.headers.get("Range", ""), id(self.connection))
        if fault is not None and fault.kind == "status":
            self._refuse(fault)
        elif fault is not None and fault.kind == "reset":
            self._break()
        else:
            status, headers, data = self._ask(body)
            if fault is not None and fault.kind == "lost":
                self._break()
            else:
                self._answer(status, headers, data, fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

    def _ask(self, body: bytes) -> tuple[int, Sequence[tuple[str, str]], bytes]:
        """Has the store do it."""
        connection = http.client.HTTPConnection(urlsplit(self.store.upstream).netloc, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _PER_SOCKET}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _refuse(self, fault: Fault) -> None:
        text = f"<Error><Code>{fault.code}</Code><Message>scripted</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))]
        if fault.retry_after:
            headers.append(("Retry-After", fault.retry_after))
        self._answer(fault.status, headers, b"" if self.command == "HEAD" else text, None)

    def _answer(self, status: int, headers: Sequence[tuple[str, str]], data: bytes, fault: Fault | None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _PER_SOCKET:
                self.send_header(name, value)
        self.end_headers()
        if fault is None:
            self.wfile.write(data)
        elif fault.kind == "trickle":
            for start in range(0, len(data), fault.after):
                self.wfile.write(data[start : start + fault.after])
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(data[: fault.after])
            self.wfile.flush()
            if fault.kind == "stall":
                self.store._calm.wait(30.0)
            self.close_connection = True

    def _break(self) -> None:
        """Ends the connection with a reset rather than an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
        self.close_connection = True

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the client has gone away


@functools.cache
def _proxy() -> FaultyStore:
    """The proxy of this process; it ends with it."""
    store = FaultyStore(server_url())
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    server.daemon_threads = True
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return store


@pytest.fixture
def faulty_store(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """The bucket of `s3_bucket` behind a proxy, by which boto3 and child processes reach it, with fast retries."""
    store = _proxy()
    monkeypatch.setattr(retries, "LIMITS", FAST)
    use_endpoint(store.url, monkeypatch)
    store.plan()
    yield store
    store.plan()
