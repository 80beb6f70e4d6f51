"""The running service against what it stands on: the bare search for batches, an empty handler for single queries.

    python tests/benchmarks/service_load.py [--count 10000000] [--shards 2] [--clients 1 16 64]

Codes as in `hamming_search.py`, rows with a key each. A batch of 1,000 queries goes as Arrow to the service and
straight to `cibhash.hamming.search` with as many threads as there are shards, in turn. Single queries (JSON, k = 10)
and requests to a Serve deployment that only answers are sent in turn by 1, 16 and 64 clients; the clients share the
machine with the service. The memory of a shard's replica is what it has to itself, beyond that of a shard of one code,
and the codes, which are mapped; rows that were looked at are pages of a file that the system may drop. Goals: 0.8 of
the bare throughput, 1.1 times codes and ids.
"""

import argparse
import asyncio
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pyarrow as pa
from ray import serve as ray_serve
from starlette.requests import Request

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash import hamming
from cibhash.types import Codes
from cluster.client import SearchClient
from cluster.code_tables import packed_array
from cluster.config import RayConfig
from cluster.encoders import encoder_info
from cluster.index.shard_files import write_shard_files
from cluster.index.versions import publish
from cluster.manifests import CodeTableRef, IndexManifest
from cluster.service.app import APP_NAME, running_service
from cluster.service.router import shard_name
from cluster.service_config import ServeConfig
from tests.benchmarks import measuring
from tests.benchmarks.clustered_codes import make_data
from tests.datasets import published_encoder

_BITS, _K, _BATCH = 64, 100, 1000
_NOTHING, _SEARCH = "no-op handler", "single query"


@ray_serve.deployment(ray_actor_options={"num_cpus": 0.25}, max_ongoing_requests=128)
class NoOp:
    """Reads a request and answers."""

    async def __call__(self, request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}


def main() -> None:
    """Measures and prints."""
    options = _options()
    data = make_data(_BITS, options.count, _BATCH, options.seed)
    with tempfile.TemporaryDirectory(prefix="cibhash-load-", dir=options.folder or None) as folder:
        index = _index(data.database, options.shards, folder)
        with _service(index, options) as url:
            rows = [*_batches(url, data.queries, data.database, options), *_singles(url, data.queries, options)]
            memory = _own_bytes(0)
        with _service(_index(data.database[:1], 1, f"{folder}/one"), options):
            base = _own_bytes(0)
    per_shard = options.count / options.shards
    checks = {
        "answers equal": True,
        "replica_own_mib": memory / 2**20,
        "of_one_code_mib": base / 2**20,
        "per_code_and_id": (memory - base + per_shard * _BITS / 8) / (per_shard * (_BITS / 8 + 8)),
    }
    measuring.report("service_load", options, checks, rows)


def _options() -> argparse.Namespace:
    parser = measuring.parser(__doc__, one_process=False)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--requests", type=int, default=600, help="per round and number of clients (default 600)")
    parser.add_argument("--folder", default="", help="where the index fits; default: the system's temporary folder")
    options = parser.parse_args()
    if options.quick:
        options.count, options.clients, options.requests, options.rounds = 2000, [1, 4], 20, 1
    return options


def _index(codes: Codes, num_shards: int, folder: str) -> str:
    """Publishes an index of the codes, ids counting up."""
    encoder = published_encoder(f"{folder}/encoder", bits=(_BITS,))
    uri, entries = f"{folder}/index", []
    limits = [number * len(codes) // num_shards for number in range(num_shards + 1)]
    for number in range(num_shards):
        ids = np.arange(limits[number], limits[number + 1])
        rows = {
            "id": pa.array(ids),
            "key": pa.array(ids).cast(pa.string()),
            "code": packed_array(codes[ids[0] : ids[-1] + 1]),
            "labels": pa.ListArray.from_arrays(pa.array(np.zeros(len(ids) + 1, np.int32)), pa.array([], pa.int32())),
            "shard": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(ids), np.int32)), ["a.tar"]).cast(
                pa.string()
            ),
            "offset": pa.array(ids * 1024),
            "size": pa.array(np.full(len(ids), 900, np.int32)),
        }
        entries.append(write_shard_files(f"{uri}/v000001", number, pa.table(rows), _BITS))
    manifest = IndexManifest(
        version="v000001",
        encoder_digest=encoder_info(encoder).digest,
        encoder_uri=encoder,
        code_tables=(CodeTableRef(uri="nowhere", digest="0" * 64),),
        bits=_BITS,
        prefixes=(_BITS,),
        shards=tuple(entries),
    )
    publish(uri, manifest)
    return uri


@contextmanager
def _service(index: str, options: argparse.Namespace) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray = RayConfig(num_cpus=8)
    config = ServeConfig(index=index, port=port, shard_deadline_s=120.0, max_in_flight=256, watch_s=60.0, ray=ray)
    with running_service(config) as url:
        ray_serve.run(NoOp.bind(), name="noop", route_prefix="/noop")
        yield url


def _batches(url: str, queries: Codes, database: Codes, options: argparse.Namespace) -> list[measuring.Row]:
    client, found = SearchClient(url, timeout_s=300.0), list[Any]()

    def served() -> float:
        begun = time.perf_counter()
        found.append(client.search_codes(queries, k=_K))
        return time.perf_counter() - begun

    def bare() -> float:
        begun = time.perf_counter()
        found.append(hamming.search(queries, database, _K, threads=options.shards))
        return time.perf_counter() - begun

    times = measuring.interleaved({"bare search": bare, "batch over HTTP": served}, options.rounds)
    measuring.require(all(np.array_equal(found[0].ids, one.ids) for one in found), "all answers are equal")
    pairs = len(queries) * len(database) / 1e9
    return [
        _row(name, "-", "g_per_s", pairs / row["median_s"], row["median_s"], max(times[name].seconds))
        | {"ratio": row["ratio"], "ratio_best": row["ratio_best"]}
        for name, row in measuring.compared(times, "bare search").items()
    ]


def _singles(url: str, queries: Codes, options: argparse.Namespace) -> list[measuring.Row]:
    bodies = [f'{{"codes": ["{code.tobytes().hex()}"], "k": 10}}'.encode() for code in queries]
    rows = []
    for clients in options.clients:
        seconds: dict[str, list[float]] = {_NOTHING: [], _SEARCH: []}
        rates: dict[str, list[float]] = {_NOTHING: [], _SEARCH: []}
        for number in range(-1, options.rounds):
            for name, path in ((_NOTHING, "/noop"), (_SEARCH, "/search")):
                each, whole = asyncio.run(_ask(url + path, bodies, clients, options.requests))
                if number >= 0:
                    seconds[name] += each
                    rates[name].append(options.requests / whole)
        for name, each in seconds.items():
            rate, p50, p99 = statistics.median(rates[name]), *np.percentile(each, (50, 99)).tolist()
            ratios = [one / nothing for one, nothing in zip(rates[name], rates[_NOTHING], strict=True)]
            row = _row(name, clients, "requests_per_s", rate, p50, p99)
            rows.append(row | {"ratio": statistics.median(ratios), "ratio_best": max(ratios)})
    return rows


async def _ask(url: str, bodies: list[bytes], clients: int, requests: int) -> tuple[list[float], float]:
    """Seconds of each request, and of all of them, so many at a time."""
    seconds: list[float] = []
    numbers = iter(range(requests))

    async def one_client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            begun = time.perf_counter()
            async with session.post(url, data=bodies[number % len(bodies)]) as answer:
                await answer.read()
                measuring.require(answer.status == 200, f"status 200, not {answer.status}")
            seconds.append(time.perf_counter() - begun)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=clients)) as session:
        begun = time.perf_counter()
        await asyncio.gather(*(one_client(session) for _ in range(clients)))
        return seconds, time.perf_counter() - begun


def _row(name: str, clients: object, unit: str, rate: float, p50: float, p99: float) -> measuring.Row:
    times = {"p50_ms": 1000 * p50, "p99_ms": 1000 * p99}
    return {"candidate": name, "clients": clients, "unit": unit, "rate": rate, **times}


def _own_bytes(slot: int) -> float:
    """Resident bytes of the slot's replica that are not mapped from files."""
    handle = ray_serve.get_deployment_handle(shard_name(slot), app_name=APP_NAME)
    pid = handle.state.remote("v000001").result(timeout_s=60).pid
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
