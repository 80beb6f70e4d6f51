"""The service asked by five times as many clients as it answers at a time: what it still answers, and how fast.

    python tests/benchmarks/service_overload.py [--in-flight 8] [--wait-s 1.0] [--factor 5]

Clients ask without a pause for single queries as JSON, k = 10: as many as the service answers at a time, and so many
times as many. Of these there are two kinds: `at once` ask again the moment they are refused, `as told` wait as long as
Retry-After says. Goodput are answers per second; every answer is held against brute force, every refusal must be a 503
with Retry-After. The clients share the machine with the service. `/healthz` is asked all the while, and the requests
right after each load must all be answered. Anything else than that ends the script with exit code 1.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cluster.config import RayConfig
from cluster.service.app import running_service
from cluster.service_config import ServeConfig
from tests.benchmarks import measuring
from tests.service_fixture import Corpus, free_port, make_corpus, make_index

_K, _QUERIES, _AFTERWARDS = 10, 64, 10
_HEALTH_PAUSE_S = 0.25
Loads = dict[str, tuple[int, bool]]
"""Clients, and whether they wait as told; by name."""


@dataclass
class Told:
    """What the clients of one load were told."""

    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)


class Question:
    """Queries, and the answers that brute force gives."""

    def __init__(self, url: str, corpus: Corpus) -> None:
        self._url = url
        codes = np.random.default_rng(0).integers(256, size=(_QUERIES, corpus.codes.shape[1]), dtype=np.uint8)
        nearest = corpus.nearest(codes, _K)
        self._bodies = [f'{{"codes": ["{code.tobytes().hex()}"], "k": {_K}}}'.encode() for code in codes]
        self._expected = [
            list(zip(*row, strict=True)) for row in zip(nearest.ids.tolist(), nearest.distances.tolist(), strict=True)
        ]

    async def ask(self, session: aiohttp.ClientSession, number: int) -> float | None:
        """None: answered as expected; else the seconds after which to come back."""
        async with session.post(f"{self._url}/search", data=self._bodies[number % _QUERIES]) as response:
            found = await response.json()
            if response.status == 503:
                return float(response.headers["Retry-After"])
        measuring.require(response.status == 200, f"status {response.status}: {found}")
        pairs = [(near["id"], near["distance"]) for near in found["neighbors"][0]]
        measuring.require(pairs == self._expected[number % _QUERIES] and not found["partial"], "answers are right")
        return None

    async def healthy(self, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{self._url}/healthz") as response:
            measuring.require(response.status == 200, f"/healthz is 200, not {response.status}")


def main() -> None:
    """Loads in turn, in every round."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="cibhash-overload-") as name:
        corpus = make_corpus(Path(name), 90)
        config = ServeConfig(
            index=make_index(corpus, 2, Path(name, "index")),
            port=free_port(),
            max_in_flight=options.in_flight,
            max_wait_s=options.wait_s,
            ray=RayConfig(num_cpus=8),
        )
        many = options.factor * options.in_flight
        loads: Loads = {"as many": (options.in_flight, False), "more, at once": (many, False)}
        loads["more, as told"] = (many, True)
        with running_service(config) as url:
            question = Question(url, corpus)
            told: dict[str, list[Told]] = {load: [] for load in loads}
            for number in range(-1, options.rounds):
                for load, (clients, waits) in loads.items():
                    one = asyncio.run(_asked(question, clients, waits, options.seconds))
                    if number >= 0:
                        told[load].append(one)
    checks = {"answers right": sum(len(one.answered_s) for each in told.values() for one in each)}
    checks["refused"] = sum(len(one.refused_s) for each in told.values() for one in each)
    rates = {load: [len(one.answered_s) / options.seconds for one in each] for load, each in told.items()}
    rows = [_row(load, options, loads[load][0], told[load], rates) for load in loads]
    measuring.report("service_overload", options, checks, rows)


def _options() -> argparse.Namespace:
    parser = measuring.parser(__doc__, one_process=False)
    parser.set_defaults(rounds=3)
    parser.add_argument("--in-flight", type=int, default=8, help="requests answered at a time (default 8)")
    parser.add_argument("--wait-s", type=float, default=1.0, help="`max_wait_s` of the service (default 1.0)")
    parser.add_argument("--factor", type=int, default=5, help="times as many clients (default 5)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each load, per round (default 6)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.in_flight, options.seconds = 1, 2, 1.0
    return options


async def _asked(question: Question, clients: int, waits: bool, seconds: float) -> Told:
    """One load, and that all is well right after it."""
    told, numbers = Told(), iter(range(10**9))
    begun = time.perf_counter()

    async def one_client(session: aiohttp.ClientSession) -> None:
        while time.perf_counter() < begun + seconds:
            asked = time.perf_counter()
            again_s = await question.ask(session, next(numbers))
            ended = time.perf_counter()
            if ended < begun + seconds:
                (told.answered_s if again_s is None else told.refused_s).append(ended - asked)
            if again_s is not None and waits:
                await asyncio.sleep(again_s + random.uniform(0.1, 0.2))

    async def health(session: aiohttp.ClientSession) -> None:
        while time.perf_counter() < begun + seconds:
            asked = time.perf_counter()
            await question.healthy(session)
            told.health_s.append(time.perf_counter() - asked)
            await asyncio.sleep(_HEALTH_PAUSE_S)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(health(session), *(one_client(session) for _ in range(clients)))
        for number in range(_AFTERWARDS):
            measuring.require(await question.ask(session, number) is None, "requests after the load are answered")
    return told


def _row(
    load: str, options: argparse.Namespace, clients: int, each: list[Told], rates: dict[str, list[float]]
) -> measuring.Row:
    answered, refused, health = (
        np.array([s for one in each for s in part(one)])
        for part in (lambda one: one.answered_s, lambda one: one.refused_s, lambda one: one.health_s)
    )
    ratios = [rate / reference for rate, reference in zip(rates[load], rates["as many"], strict=True)]
    return {
        "load": load,
        "clients": clients,
        "goodput_per_s": statistics.median(rates[load]),
        "p50_ms": 1000 * float(np.percentile(answered, 50)),
        "p99_ms": 1000 * float(np.percentile(answered, 99)),
        "refused_share": len(refused) / (len(refused) + len(answered)),
        "refused_per_s": len(refused) / (options.seconds * len(each)),
        "refused_p50_ms": 1000 * float(np.median(refused)) if len(refused) else 0.0,
        "health_worst_ms": 1000 * float(health.max()),
        "ratio": statistics.median(ratios),
        "ratio_best": max(ratios),
    }


if __name__ == "__main__":
    main()
