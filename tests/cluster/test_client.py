"""The client against a scripted server: bounded attempts, typed errors, no endless wait, no leaked token."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cibhash.errors import BadImage, ConfigError, NotFound
from cibhash.types import RangeNeighbors
from cluster import client as client_module
from cluster.async_client import AsyncSearchClient
from cluster.client import SearchClient, read_token
from cluster.service.arrow_answer import write_answer
from cluster.service.schema import Coverage
from cluster.service_errors import RequestRejected, ServiceUnavailable

COVERAGE = Coverage(
    partial=False,
    coverage=1.0,
    shards_total=1,
    shards_answered=1,
    missing_shards=(),
    encoder_digest="e" * 64,
    index_version="v000001",
)
ANSWER = json.dumps(COVERAGE.model_dump() | {"neighbors": [[]], "seconds": 0.1}).encode()
Step = Callable[[BaseHTTPRequestHandler], None]


class Script:
    """Answers the n-th request with the n-th step, the last one again and again, and keeps what was asked."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                script.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                script.steps[min(len(script.requests), len(script.steps)) - 1](self)

            do_GET = do_POST  # noqa: N815 (the name that http.server calls)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def reply(status: int, body: bytes, declared: int | None = None, **headers: str) -> Step:
    def step(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"content-length": str(declared or len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return step


def refuse(status: int, message: str) -> Step:
    return reply(status, json.dumps({"error": message}).encode())


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    monkeypatch.setattr(client_module, "FIRST_PAUSE_S", 0.01)
    script = Script()
    yield script
    script.server.shutdown()
    script.server.server_close()


def test_503_then_200(script: Script) -> None:
    script.steps = [refuse(503, "1 of 2 shards did not answer"), reply(200, ANSWER)]
    assert SearchClient(script.url).search_ids([3], k=1).coverage == 1.0
    assert [json.loads(body) for _, _, body in script.requests] == [{"ids": [3], "k": 1, "allow_partial": False}] * 2


@pytest.mark.parametrize("retries", [0, 2])
def test_attempts_are_bounded_and_the_last_reason_is_told(script: Script, retries: int) -> None:
    script.steps = [refuse(503, "Shard-001: no answer within 1.0 s")]
    with pytest.raises(ServiceUnavailable, match=rf"Shard-001: no answer within 1.0 s \({retries + 1} attempts\)"):
        SearchClient(script.url, retries=retries).search_keys(["a"], k=1)
    assert len(script.requests) == retries + 1


def test_answer_cut_short_is_asked_again(script: Script) -> None:
    script.steps = [reply(200, ANSWER[:20], declared=len(ANSWER)), reply(200, ANSWER)]
    assert SearchClient(script.url).search_ids([3], k=1).index_version == "v000001"
    assert len(script.requests) == 2


def test_server_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServiceUnavailable, match=r"timed out.*\(2 attempts\)"):
            SearchClient(url, timeout_s=0.2, retries=1).stats()


@pytest.mark.parametrize(
    ("status", "message", "error", "exit_code"),
    [
        (401, "a valid bearer token is needed", RequestRejected, 2),
        (413, "body: 9 bytes declared, at most 8", RequestRejected, 2),
        (422, "k: 0, expected an integer from 1 to 100", RequestRejected, 2),
        (422, "image: empty: 0 bytes", BadImage, 3),
        (404, "key 'a': not in the index", NotFound, 4),
        (500, "internal error", ServiceUnavailable, 4),
    ],
)
def test_refusals_are_typed_and_not_repeated(
    script: Script, status: int, message: str, error: type[Exception], exit_code: int
) -> None:
    script.steps = [refuse(status, message)]
    with pytest.raises(error, match=message.removeprefix("image: ")) as raised:
        SearchClient(script.url).search_image(b"", k=1)
    assert len(script.requests) == 1
    assert raised.value.exit_code == exit_code  # type: ignore[attr-defined]


def test_redirects_are_not_followed_and_the_token_stays(script: Script) -> None:
    elsewhere = Script()
    elsewhere.steps = [reply(200, ANSWER)]
    script.steps = [reply(307, b"", location=elsewhere.url + "/search")]
    with pytest.raises(ServiceUnavailable, match="307"):
        SearchClient(script.url, token="secret").search_ids([1], k=1)
    assert script.requests[0][1]["authorization"] == "Bearer secret"
    assert elsewhere.requests == []
    elsewhere.server.shutdown()
    elsewhere.server.server_close()


def test_proxies_of_the_environment_are_not_used(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    script.steps = [reply(200, ANSWER)]
    assert SearchClient(script.url).search_ids([1], k=1).seconds == 0.1


def test_tls_trouble_is_not_repeated() -> None:
    accepted = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve_garbage() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                accepted.append(connection)
                connection.recv(1000)
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
                connection.close()

        threading.Thread(target=serve_garbage, daemon=True).start()
        with pytest.raises(ServiceUnavailable, match="TLS: "):
            SearchClient(f"https://127.0.0.1:{listener.getsockname()[1]}").stats()
    assert len(accepted) == 1


def test_other_servers_are_recognized(script: Script) -> None:
    script.steps = [reply(200, b"<html>hello</html>")]
    with pytest.raises(ServiceUnavailable, match="/stats: not an answer of this service"):
        SearchClient(script.url).stats()
    with pytest.raises(ServiceUnavailable, match="not an Arrow answer"):
        SearchClient(script.url).search_codes(np.zeros((1, 4), np.uint8), k=1)


def test_codes_travel_in_batches_and_come_back_in_order(script: Script) -> None:
    def part(count: int, first: int) -> Step:
        limits = np.arange(count + 1, dtype=np.int64)
        ids = np.arange(first, first + count, dtype=np.int64)
        return reply(200, write_answer(RangeNeighbors(limits, ids, np.full(count, 2, np.int32)), COVERAGE))

    script.steps = [part(2, 10), part(1, 12)]
    codes = np.zeros((3, 4), np.uint8)
    found = SearchClient(script.url).search_codes(codes, k=2, batch_size=2)
    np.testing.assert_array_equal(found.ids, [[10, -1], [11, -1], [12, -1]])
    np.testing.assert_array_equal(found.distances, [[2, 2**31 - 1]] * 3)
    script.requests.clear()
    within = SearchClient(script.url).search_codes(codes, radius=2, batch_size=2)
    np.testing.assert_array_equal(within.limits, [0, 1, 2, 3])
    assert [path for path, _, _ in script.requests] == ["/search?radius=2"] * 2


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "file:///etc/passwd", "ftp://x", "http://", "http://a:b@host", ""])
def test_bad_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        SearchClient(url)


def test_exactly_one_of_k_and_radius() -> None:
    client = SearchClient("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="exactly one"):
        client.search_ids([1])
    with pytest.raises(ValueError, match="exactly one"):
        client.search_image(b"", k=1, radius=1)


def test_token_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("\nfirst-token\nsecond-token\n")
    assert read_token(str(file)) == "first-token"
    assert read_token("") == ""
    file.write_text("\n")
    for name, words in ((str(file), "holds no token"), (str(tmp_path / "none"), "No such file")):
        with pytest.raises(ConfigError, match=words):
            read_token(name)


def batch_of(version: str, row_id: int) -> Step:
    """An answer to one query."""
    found = RangeNeighbors(np.array([0, 1]), np.array([row_id]), np.array([3], np.int32))
    return reply(200, write_answer(found, COVERAGE.model_copy(update={"index_version": version})))


def test_batches_answered_from_an_older_version_are_asked_again(script: Script) -> None:
    script.steps = [batch_of("v000001", 7), batch_of("v000002", 8), batch_of("v000002", 9)]
    found = SearchClient(script.url).search_codes(np.zeros((2, 1), np.uint8), k=1, batch_size=1)
    assert found.ids.tolist() == [[9], [8]]
    assert len(script.requests) == 3


def test_an_index_that_never_rests_is_told(script: Script) -> None:
    script.steps = [batch_of(f"v{number:06d}", number) for number in range(20)]
    with pytest.raises(ServiceUnavailable, match="no answers from one version"):
        SearchClient(script.url).search_codes(np.zeros((2, 1), np.uint8), k=1, batch_size=1)


def test_asynchronous_calls_run_side_by_side_and_in_one_version(script: Script) -> None:
    """Two that meet at a barrier, so that neither can be answered before the other is asked."""
    meeting, order = threading.Barrier(2, timeout=20), iter(["v000001", "v000002", "v000002", "v000002"])

    def step(handler: BaseHTTPRequestHandler) -> None:
        if len(script.requests) <= 2:
            meeting.wait()
        batch_of(next(order), 5)(handler)

    script.steps = [step]

    async def ask() -> list[list[int]]:
        async with AsyncSearchClient(script.url) as client:
            found = await client.search_codes(np.zeros((2, 1), np.uint8), k=1, batch_size=1)
        return found.ids.tolist()

    assert asyncio.run(ask()) == [[5], [5]]
    assert len(script.requests) in (3, 4), "whichever of the two met the new version"


def test_asynchronous_failures_are_typed(script: Script) -> None:
    script.steps = [refuse(404, "key 'a': not in the index")]

    async def ask() -> None:
        async with AsyncSearchClient(script.url) as client:
            await client.search_keys(["a"], k=1)

    with pytest.raises(NotFound, match="not in the index"):
        asyncio.run(ask())
