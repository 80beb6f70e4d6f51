"""A million rows through the encode job: the driver's memory, and what listing and resuming cost per 1,000 shards.

    python tests/benchmarks/encode_million.py [--shards 1000] [--images 1000] [--workers 2]

Tiny images through a small convnet, so that the job itself is what is measured. The driver's resident memory is looked
at after every part. Then the table is taken back, so that every part is there and nothing is published: what the next
run costs before and after its (absent) work is the overhead of resuming; another run finds the table complete. Goals:
driver memory flat, overhead under 5 s per 1,000 shards.
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.shards import SourceImage, write_shard
from cibhash.types import TarShard
from cluster.code_tables import ids_of, read_part
from cluster.code_versions import open_codes
from cluster.config import EncodeConfig, RayConfig
from cluster.encoding.encode import encode
from cluster.manifests import DatasetManifest, create_manifest
from cluster.runtime import ray_session
from tests.benchmarks import measuring
from tests.datasets import png, published_encoder, shape_image

_MIB = 2**20
_LOOKS_PER_S = 4


def main() -> None:
    """Encodes, checks that every id is there once, resumes, and prints."""
    options = _options()
    count = options.shards * options.images
    with tempfile.TemporaryDirectory(prefix="cibhash-million-", dir=options.folder or None) as name:
        folder = Path(name)
        dataset, encoder = _dataset(folder / "data", options), published_encoder(folder / "encoder")
        config = EncodeConfig(
            dataset=dataset,
            encoder=encoder,
            output=str(folder / "codes"),
            num_workers=options.workers,
            threads_per_worker=1,
            batch_size=256,
        )
        records = folder / "codes/records"
        with ray_session(RayConfig(num_cpus=options.workers + 2)):
            memory, seconds = _watched(lambda: encode(config), records)
        table = open_codes(config.output)
        ids = np.sort(np.concatenate([ids_of(read_part(config.output, part)) for part in table.parts]))
        measuring.require(np.array_equal(ids, np.arange(count)), f"every id from 0 to {count - 1} once")
        complete_s = _seconds(lambda: encode(config))
        for path in (folder / "codes").iterdir():
            if path.name not in ("parts", "records", "quarantine"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        results = []
        resumed_s = _seconds(lambda: results.append(encode(config)))
        measuring.require(results[0].parts_reused == options.shards, "all parts are kept")
        measuring.require(open_codes(config.output) == table, "the table of the rerun is the same")
    quarter = [float(np.median(part)) for part in np.array_split(memory, 4)]
    record = {
        "rows": count,
        "shards": options.shards,
        "seconds": seconds,
        "rows_per_s": count / seconds,
        "driver_mib_by_quarter": quarter,
        "driver_growth_mib": quarter[-1] - quarter[1],
        "resume_s_per_1000_shards": 1000 * resumed_s / options.shards,
        "complete_s_per_1000_shards": 1000 * complete_s / options.shards,
    }
    print(json.dumps({"benchmark": "encode_million", **record, "machine": measuring.machine()}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1000, help="per shard (default 1000)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", default="", help="where a few GB fit; default: the system's temporary folder")
    return parser.parse_args()


def _dataset(folder: Path, options: argparse.Namespace) -> str:
    folder.mkdir()
    numbers = range(options.shards)
    with ProcessPoolExecutor(options.workers) as writers:
        shards = writers.map(_shard, [folder] * len(numbers), numbers, [options.images] * len(numbers), chunksize=8)
        create_manifest(str(folder), DatasetManifest(name="million", split="all", shards=tuple(shards)))
    return str(folder)


def _shard(folder: Path, number: int, count: int) -> TarShard:
    images = [png(shape_image(shape, side=16)) for shape in range(50)]
    name = f"shard-{number:06d}.tar"
    sources = (SourceImage(f"{number:06d}-{n:06d}", "png", images[n % 50], (n % 10,)) for n in range(count))
    return write_shard(folder / name, name, sources, number * count)


def _watched(work: Callable[[], object], records: Path) -> tuple[list[float], float]:
    """Resident MiB of this process since the first committed part, and the seconds of the work."""
    memory, over = [], threading.Event()

    def look() -> None:
        while not over.wait(1 / _LOOKS_PER_S):
            if records.is_dir():
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                memory.append(pages * 4096 / _MIB)

    watcher = threading.Thread(target=look)
    watcher.start()
    seconds = _seconds(work)
    over.set()
    watcher.join()
    return memory, seconds


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
