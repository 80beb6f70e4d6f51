"""Five times as many clients as are answered at a time: right answers or clean refusals, health, and then all is well.

The load runs until both kinds of answer were seen: nothing depends on how fast the machine is.
"""

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from cluster.async_client import AsyncSearchClient
from cluster.service.app import running_service
from cluster.service.schema import SearchAnswer
from cluster.service_config import ServeConfig
from cluster.service_errors import ServiceUnavailable
from tests.asking import Repeating
from tests.patience import HANG_S
from tests.service_fixture import Corpus, free_port, make_corpus, make_index

pytestmark = pytest.mark.ray
IN_FLIGHT = 3
CLIENTS = 5 * IN_FLIGHT + 1
"""One more than are answered and wait at a time."""
K = 40
Pairs = list[tuple[int, int]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def service(corpus: Corpus, ray_local: None) -> Iterator[str]:
    config = ServeConfig(
        index=make_index(corpus, 2),
        port=free_port(),
        shard_deadline_s=60.0,
        max_in_flight=IN_FLIGHT,
        max_wait_s=0.02,
    )
    with running_service(config) as url:
        yield url


def expected(corpus: Corpus, row: int) -> Pairs:
    nearest = corpus.nearest(corpus.codes[[row]], K)
    return list(zip(nearest.ids[0].tolist(), nearest.distances[0].tolist(), strict=True))


def pairs(answer: SearchAnswer) -> Pairs:
    return [(near.id, near.distance) for near in answer.neighbors[0]]


def ask(url: str, method: str, path: str, body: bytes | None = None) -> tuple[int, str | None, bytes]:
    """Status, Retry-After and body."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=HANG_S)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.getheader("Retry-After"), response.read()
    finally:
        connection.close()


class Crowd(Repeating):
    """Clients that come back at once, whatever they are told."""

    def __init__(self, url: str, corpus: Corpus) -> None:
        self.answered, self.refused, self.wrong = 0, 0, list[str]()
        self._url = url
        self._bodies = [json.dumps({"codes": [code.tobytes().hex()], "k": K}).encode() for code in corpus.codes]
        self._expected = [expected(corpus, row) for row in range(len(self._bodies))]
        self._lock = threading.Lock()
        super().__init__(self._ask, CLIENTS)

    def _ask(self, row: int) -> None:
        while not self.over.is_set():
            row = (row + 7) % len(self._bodies)
            try:
                self._judge(row, *ask(self._url, "POST", "/search", self._bodies[row]))
            except Exception as error:
                self.wrong.append(repr(error))

    def _judge(self, row: int, status: int, retry_after: str | None, raw: bytes) -> None:
        right = status == 200 and pairs(SearchAnswer.model_validate_json(raw)) == self._expected[row]
        busy = (status, retry_after) == (503, "1") and json.loads(raw)["error"].startswith("busy: ")
        with self._lock:
            self.answered += right
            self.refused += busy
        if not right and not busy:
            self.wrong.append(f"{status}, Retry-After {retry_after}: {raw[:200]!r}")


def test_at_five_times_the_capacity_answers_are_right_or_clean_refusals(service: str, corpus: Corpus) -> None:
    deadline, health = time.monotonic() + HANG_S, 0
    with Crowd(service, corpus) as crowd:
        while min(crowd.answered, crowd.refused) < 40 or health < 5:
            assert not crowd.wrong, crowd.wrong[:3]
            assert time.monotonic() < deadline, (crowd.answered, crowd.refused)
            assert [ask(service, "GET", path)[0] for path in ("/healthz", "/readyz")] == [200, 200]
            health += 1
    assert not crowd.wrong, crowd.wrong[:3]
    for row in range(10):
        status, _, raw = ask(service, "POST", "/search", json.dumps({"ids": [corpus.ids[row]], "k": K}).encode())
        assert (status, pairs(SearchAnswer.model_validate_json(raw))) == (200, expected(corpus, row))


def test_clients_that_come_back_as_told_are_all_answered_in_the_end(service: str, corpus: Corpus) -> None:
    """With the client's own retries; where these are spent, the caller asks again."""

    async def one(client: AsyncSearchClient, row: int, deadline: float) -> Pairs:
        while True:
            try:
                return pairs(await client.search_ids([corpus.ids[row]], k=K))
            except ServiceUnavailable as error:
                if "busy: " not in str(error) or time.monotonic() > deadline:
                    raise

    async def ask_all() -> list[Pairs]:
        async with AsyncSearchClient(service, timeout_s=HANG_S, at_a_time=CLIENTS) as client:
            calls = (one(client, row, time.monotonic() + HANG_S) for row in range(len(corpus.ids)))
            return await asyncio.gather(*calls)

    assert asyncio.run(ask_all()) == [expected(corpus, row) for row in range(len(corpus.ids))]
