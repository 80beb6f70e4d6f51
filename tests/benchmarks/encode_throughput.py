"""What the encode job adds to a bare loop: images per second in steady state, per worker, against plain processes.

    python tests/benchmarks/encode_throughput.py [--workers 2] [--encoder RUN/encoder] [--shards 24] [--images 256]

The bare loop is what one would write without this project's job: read a shard, decode, resize, forward, keep the codes
in memory; as many processes of it as the job has workers, each with one thread. The job's steady state is from its
first committed part to its last, so neither the start of Ray nor that of the workers counts. Every round begins with
the other one. Goal: at least 0.9 times.
"""

import argparse
import functools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.encoder import EncoderSpec, new_encoder
from cibhash.shards import SourceImage
from cibhash.specs import BackboneSpec
from cluster.code_versions import open_codes
from cluster.config import EncodeConfig, RayConfig
from cluster.datasets import open_dataset
from cluster.encoders import open_encoder, publish_encoder
from cluster.encoding.decoding import decoded_batches
from cluster.encoding.encode import encode
from cluster.encoding.forward import Forward
from cluster.runtime import ray_session
from tests.benchmarks import measuring
from tests.benchmarks.pictures import compressed, photo
from tests.datasets import make_dataset, published_encoder
from tests.patience import HANG_S

_BARE, _JOB = "bare loop", "encode job"
_SIDE = (120, 100)


def main() -> None:
    """Measures both in turn, checks that the job encoded every image, and prints."""
    options = _options()
    if options.part_of:
        _bare_loop(options)
        return
    with tempfile.TemporaryDirectory(prefix="cibhash-throughput-") as folder:
        pictures = [compressed(photo(*_SIDE, number)) for number in range(options.images)]
        shards = [
            [SourceImage(f"{shard:04d}-{n:05d}", "jpg", data, ()) for n, data in enumerate(pictures)]
            for shard in range(options.shards)
        ]
        dataset = make_dataset(f"{folder}/data", shards)
        encoder = options.encoder or _encoder(f"{folder}/encoder", quick=options.quick)
        ways = {_BARE: functools.partial(_by_processes, dataset, encoder, options)}
        with ray_session(RayConfig(num_cpus=options.workers + 2)):
            found: dict[str, list[float]] = {_BARE: [], _JOB: []}
            for number in range(options.rounds):
                ways[_JOB] = functools.partial(_by_job, dataset, encoder, f"{folder}/codes-{number}", options)
                for name in (_BARE, _JOB) if number % 2 == 0 else (_JOB, _BARE):
                    found[name].append(ways[name]())
        table = open_codes(f"{folder}/codes-0")
    count = options.shards * options.images
    measuring.require(table.rows_out == count, f"{count} rows, not {table.rows_out}")
    times = {name: measuring.Times(tuple(1 / rate for rate in rates)) for name, rates in found.items()}
    rows = [
        {
            "candidate": name,
            "images_per_s": 1 / row["median_s"],
            "images_per_s_best": 1 / row["best_s"],
            "ratio": row["ratio"],
            "ratio_best": row["ratio_best"],
        }
        for name, row in measuring.compared(times, _BARE).items()
    ]
    measuring.report("encode_throughput", options, {"rows": table.rows_out}, rows, images_per_s=found)


def _options() -> argparse.Namespace:
    parser = measuring.parser(__doc__, one_process=False)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--encoder", default="", help="a trained encoder's folder; default: an untrained MobileNetV2")
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--images", type=int, default=256, help="per shard (default 256)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--part-of", default="", help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.shards, options.images, options.rounds, options.batch_size, options.workers = 4, 8, 2, 4, 1
    return options


def _encoder(folder: str, *, quick: bool) -> str:
    if quick:
        return published_encoder(folder)
    spec = EncoderSpec(BackboneSpec("mobilenetv2_100", "none", 96), (16, 32, 64))
    publish_encoder(new_encoder(spec, seed=0).eval(), folder)
    return folder


def _by_job(dataset: str, encoder: str, output: str, options: argparse.Namespace) -> float:
    """Images per second from the first part to the last, all workers together."""
    config = EncodeConfig(
        dataset=dataset,
        encoder=encoder,
        output=output,
        num_workers=options.workers,
        threads_per_worker=1,
        batch_size=options.batch_size,
    )
    encode(config)
    written = sorted(path.stat().st_mtime for path in Path(output, "records").glob("*.json"))
    first = options.workers - 1  # every worker has one behind it
    return (len(written) - 1 - first) * options.images / (written[-1] - written[first])


def _by_processes(dataset: str, encoder: str, options: argparse.Namespace) -> float:
    """Images per second of all processes together, each measured from its first shard's end."""
    command = [sys.executable, __file__, "--part-of", dataset, "--encoder", encoder]
    command += ["--workers", str(options.workers), "--batch-size", str(options.batch_size)]
    processes = [
        subprocess.Popen([*command, "--part", str(part)], stdout=subprocess.PIPE, text=True)
        for part in range(options.workers)
    ]
    return sum(float(process.communicate(timeout=HANG_S)[0]) for process in processes)


def _bare_loop(options: argparse.Namespace) -> None:
    """One of the plain processes: prints its images per second."""
    torch.set_num_threads(1)
    encoder = open_encoder(options.encoder)
    forward = Forward(encoder, options.batch_size, "float32", compiled=False)
    shards = open_dataset(options.part_of).shards[options.part :: options.workers]
    codes, begun, seen = [], 0.0, 0
    for number, shard in enumerate(shards):
        for batch in decoded_batches(options.part_of, shard, encoder.spec.image_size, options.batch_size, 1):
            codes.append(forward(batch.views).codes)
            seen += len(batch.rows) if number else 0
        begun = begun or time.perf_counter()
    print(seen / (time.perf_counter() - begun))


if __name__ == "__main__":
    main()
