"""Tokens, body caps and upload deadlines over real sockets, without Ray."""

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request

from cibhash.errors import ConfigError
from cluster.service import http_guard
from cluster.service.admission import Admission
from cluster.service.http_api import add_error_answers
from cluster.service.http_guard import Guard, token_digests

TOKENS = ("first-secret", "second-secret")
CAP = 1000


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    api = FastAPI()
    digests = tuple(hashlib.sha256(token.encode()).hexdigest() for token in TOKENS)
    api.add_middleware(Guard, digests=digests, max_body_bytes=CAP, admission=Admission(2, max_wait_s=0.1))
    add_error_answers(api)

    @api.get("/healthz")
    async def healthz() -> str:
        return "fine"

    @api.post("/search")
    async def search(request: Request) -> int:
        return len(await request.body())

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(api, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(timeout=10)


def talk(port: int, head: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """Sends raw bytes and reads the whole answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        raw = b""
        while chunk := connection.recv(65536):
            raw += chunk
    top, _, content = raw.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), content


def post(size: int, token: str = TOKENS[0]) -> str:
    return f"POST /search HTTP/1.1\nHost: x\nConnection: close\nAuthorization: Bearer {token}\nContent-Length: {size}"


@pytest.mark.parametrize("token", TOKENS)
def test_every_token_of_the_file_opens(port: int, token: str) -> None:
    assert talk(port, post(3, token), b"abc")[::2] == (200, b"3")


@pytest.mark.parametrize(
    "line",
    [
        "X-Nothing: 1",
        "Authorization: Bearer wrong",
        "Authorization: Bearer ",
        "Authorization: Bearer first-secre",
        "Authorization: Bearer first-secret second-secret",
        "Authorization: Basic first-secret",
        "Authorization: first-secret",
        "Cookie: token=first-secret",
    ],
)
@pytest.mark.parametrize(
    "path",
    ["/search", "/healthz%2f..%2fsearch", "/healthz/../search", "//healthz", "/healthz/", "/search?token=first-secret"],
)
def test_everything_else_is_401(port: int, path: str, line: str) -> None:
    status, headers, body = talk(port, f"GET {path} HTTP/1.1\nHost: x\nConnection: close\n{line}")
    assert status == 401
    assert headers["www-authenticate"] == "bearer"
    assert json.loads(body) == {"error": "a valid bearer token is needed"}


def test_health_is_open_and_answers_carry_security_headers(port: int) -> None:
    status, headers, _ = talk(port, "GET /healthz HTTP/1.1\nHost: x\nConnection: close")
    assert status == 200
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]


def test_body_at_the_cap_passes(port: int) -> None:
    assert talk(port, post(CAP), b"x" * CAP)[::2] == (200, b"1000")


@pytest.mark.parametrize("size", [CAP + 1, 5_000_000])
def test_declared_body_over_the_cap(port: int, size: int) -> None:
    status, _, body = talk(port, post(size), b"x" * size)
    assert status == 413
    assert json.loads(body) == {"error": f"body: {size} bytes declared, at most {CAP}"}


@pytest.mark.parametrize("chunks", [11, 5000])
def test_chunked_body_over_the_cap(port: int, chunks: int) -> None:
    head = post(0).replace("Content-Length: 0", "Transfer-Encoding: chunked")
    status, _, body = talk(port, head, (b"64\r\n" + b"x" * 100 + b"\r\n") * chunks + b"0\r\n\r\n")
    assert status == 413
    assert json.loads(body)["error"].endswith(f"at most {CAP}")


def test_slow_upload_is_408(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_guard, "UPLOAD_DEADLINE_S", 0.3)
    status, _, body = talk(port, post(10), b"x")
    assert status == 408
    assert json.loads(body)["error"].startswith("body: not complete after")


def test_token_file_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("a-secret\n\n b-secret \n")
    assert token_digests(str(file)) == tuple(hashlib.sha256(t).hexdigest() for t in (b"a-secret", b"b-secret"))
    for content, words in ((b"\n \n", "holds no token"), ("ü".encode(), "not ASCII")):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=words):
            token_digests(str(file))
    with pytest.raises(ConfigError, match="No such file"):
        token_digests(str(tmp_path / "none"))


def test_beyond_the_load_limit_requests_are_told_to_come_back(port: int) -> None:
    """Two wait for their bodies; the third is refused at once, health is answered, and then all is well again."""
    head = post(3).replace("\n", "\r\n").encode() + b"\r\n\r\n"
    with contextlib.ExitStack() as stack:
        waiting = []
        for _ in range(2):
            waiting.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)))
            waiting[-1].sendall(head)
        while (refused := talk(port, post(3), b"abc"))[0] == 200:  # the two may not have arrived yet
            time.sleep(0.01)
        status, headers, body = refused
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(body) == {"error": "busy: 2 requests are being answered, at most 2 at a time"}
        assert talk(port, "GET /healthz HTTP/1.1\nHost: x\nConnection: close")[0] == 200
        for connection in waiting:
            connection.sendall(b"abc")
            assert b" 200 " in connection.recv(65536)
    assert talk(port, post(3), b"abc")[::2] == (200, b"3")
