"""As many codes as memory holds, through the whole path: code table, `index --no-rows`, service, queries over HTTP.

    python tests/benchmarks/served_codes.py [--count 100000000] [--shards 8] [--slots 2] [--folder DIR]

Half of the 64-bit codes are uniform, half lie around 1,000 centers. Timed once: writing the code table, building the
index with one Ray task per core, and starting the service, which verifies every byte. Then rounds of single queries
(JSON) and of batches (Arrow), each beside the bare kernel over the same mapped files with as many threads as there are
slots; answers are found equal first. `gb_per_s` is codes read per second if every query block
reads them once; the bandwidth is that of summing the codes as 64-bit numbers by as many threads. Memory: what the
replicas have to themselves, and the codes they share with the page cache. `--keep` leaves table and index there for
another run, which then measures the service alone.
"""

import argparse
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from ray import serve as ray_serve

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.types import Codes, Neighbors
from cluster.client import SearchClient
from cluster.config import RayConfig
from cluster.index.build import build_index
from cluster.index.shard_files import read_shard_files
from cluster.index.shard_index import ShardIndex
from cluster.index.versions import open_current, open_index
from cluster.index_config import IndexConfig
from cluster.service.app import APP_NAME, running_service
from cluster.service.router import shard_name
from cluster.service.shard_group import ShardGroup
from cluster.service_config import ServeConfig
from tests.benchmarks import measuring
from tests.benchmarks.large_tables import write_large_table
from tests.datasets import published_encoder
from tests.service_fixture import free_port

_BITS, _BATCH_K = 64, 100
_GB = 1e9


def main() -> None:
    """Builds, serves, checks, measures and prints."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="cibhash-served-", dir=options.folder or None) as folder:
        home = options.keep or folder
        built = _build(home, options)
        uri = f"{home}/index"
        queries = _queries(uri, max(options.batches))
        begun = time.perf_counter()
        with _service(uri, options) as url:
            built["start_s"] = time.perf_counter() - begun
            rows, own = _measured(url, uri, queries, options)
            built |= own
    measuring.report("served_codes", options, {"answers equal": True}, rows, built=built)


def _options() -> argparse.Namespace:
    parser = measuring.parser(__doc__, one_process=False)
    parser.add_argument("--count", type=int, default=100_000_000)
    parser.add_argument("--shards", type=int, default=8, help="index shards (default 8)")
    parser.add_argument("--slots", type=int, default=2, help="deployments they are dealt to (default 2)")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100], help="of single queries")
    parser.add_argument("--folder", default="", help="where all of it fits; default: the system's temporary folder")
    parser.add_argument("--keep", default="", help="a folder that keeps table and index, and gives them to a later run")
    options = parser.parse_args()
    if options.quick:
        options.count, options.batches, options.rounds = 20_000, [16], 1
    return options


def _build(home: str, options: argparse.Namespace) -> measuring.Row:
    """Table and index, unless they are there; seconds and bytes of each."""
    if Path(home, "index", "CURRENT").exists():
        return {}
    begun = time.perf_counter()
    encoder = published_encoder(f"{home}/encoder", bits=(_BITS,))
    table = write_large_table(f"{home}/codes", options.count, _BITS, encoder)
    table_s = time.perf_counter() - begun
    begun = time.perf_counter()
    config = IndexConfig(
        codes=table, output=f"{home}/index", shards=options.shards, rows=False, ray=RayConfig(num_cpus=8)
    )
    result = build_index(config)
    index_s = time.perf_counter() - begun
    table_bytes = sum(file.stat().st_size for file in Path(table).rglob("*") if file.is_file())
    shutil.rmtree(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "table_s": table_s,
        "table_gb": table_bytes / _GB,
        "index_s": index_s,
        "index_gb": result.bytes / _GB,
        "codes_gb": options.count * _BITS / 8 / _GB,
        "driver_peak_gb": peak / _GB,
    }


def _queries(uri: str, count: int) -> Codes:
    """Codes of the index, a few bits of each changed."""
    index, draws = open_current(uri)[0], np.random.default_rng(1)
    codes, _, _ = read_shard_files(index.base_uri, index.manifest.shards[0], _BITS)
    queries = codes[draws.integers(0, len(codes), count)]
    queries[:, 0] ^= draws.integers(0, 256, count, np.uint8)
    return queries


@contextmanager
def _service(uri: str, options: argparse.Namespace) -> Iterator[str]:
    config = ServeConfig(
        index=uri,
        port=free_port(),
        slots=options.slots,
        shard_deadline_s=110.0,
        watch_s=60.0,
        ray=RayConfig(num_cpus=8),
    )
    with running_service(config) as url:
        yield url


def _measured(
    url: str, uri: str, queries: Codes, options: argparse.Namespace
) -> tuple[list[measuring.Row], measuring.Row]:
    index = open_index(uri)
    entries = index.manifest.shards
    bare = ShardGroup(
        [ShardIndex.load(index.base_uri, entry, _BITS, threads=options.slots) for entry in entries], entries
    )
    codes = [read_shard_files(index.base_uri, entry, _BITS)[0] for entry in entries]
    client, size = SearchClient(url, timeout_s=115.0), sum(part.nbytes for part in codes)

    def by_client(asked: Codes, k: int) -> Neighbors:
        if len(asked) > 1:
            return client.search_codes(asked, k=k, batch_size=len(asked))
        near = client.search_hex([asked[0].tobytes().hex()], k=k).neighbors[0]
        return Neighbors(np.array([[n.id for n in near]]), np.array([[n.distance for n in near]]))

    sums = measuring.interleaved({"sum": lambda: _seconds(lambda: _sum(codes, options.slots))}, options.rounds)
    rows: list[measuring.Row] = []
    asked_for = [(1, k) for k in options.k] + [(count, _BATCH_K) for count in options.batches]
    for count, k in asked_for:
        asked = queries[:count]
        one, other = bare.search(asked, k), by_client(asked, k)
        same = np.array_equal(one.ids, other.ids) and np.array_equal(one.distances, other.distances)
        measuring.require(same, f"the service's answer to {count} queries is that of the bare search")
        ways = {
            "bare": lambda asked=asked, k=k: _seconds(lambda: bare.search(asked, k)),
            "service": lambda asked=asked, k=k: _seconds(lambda: by_client(asked, k)),
        }
        found = measuring.compared(measuring.interleaved(ways, options.rounds), "bare")
        for name, row in found.items():
            rates = {
                "g_codes_per_s": count * size / (_BITS / 8) / row["median_s"] / 1e9,
                "gb_per_s": size / row["median_s"] / _GB,
            }
            rows.append({"what": name, "queries": count, "k": k, **row, **rates})
    own = [_memory(slot) for slot in range(options.slots)]
    bandwidth = {"sum_gb_per_s": size / sums["sum"].median / _GB, "sum_best_gb_per_s": size / sums["sum"].best / _GB}
    memory = {
        **bandwidth,
        "replica_own_gb": [private / _GB for private, _ in own],
        "replica_mapped_gb": [m / _GB for _, m in own],
    }
    return rows, memory


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _sum(codes: list[Codes], threads: int) -> int:
    parts = [part for each in codes for part in np.array_split(each.reshape(-1).view(np.uint64), 16)]
    with ThreadPoolExecutor(threads) as pool:
        return sum(int(total) for total in pool.map(np.sum, parts))


def _memory(slot: int) -> tuple[int, int]:
    """Bytes of a replica that are its own, and those that are mapped from files."""
    handle = ray_serve.get_deployment_handle(shard_name(slot), app_name=APP_NAME)
    pid = handle.state.remote("v000001").result(timeout_s=60).pid
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}
    return fields["RssAnon"], fields["RssFile"]


if __name__ == "__main__":
    main()
