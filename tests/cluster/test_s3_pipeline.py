"""The whole path from S3 to S3 through a storm of faults: all that it makes is what a calm day on local disk makes."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster import storage
from cluster.code_tables import read_part
from cluster.code_versions import open_codes
from cluster.originals import Original, original_bytes
from tests.datasets import NUM_CLASSES, png, shape_image
from tests.patience import HANG_S
from tests.s3 import s3_bucket
from tests.s3_faults import FaultyStore, faulty_store

__all__ = ["faulty_store", "s3_bucket"]
_IMAGES = 24
_JOBS = """
import json, sys
from cluster.config import EncodeConfig, RayConfig
from cluster.evaluation_config import EvaluateConfig
from cluster.index_config import IndexConfig
from cluster.doctor.doctor import doctor
from cluster.doctor_config import DoctorConfig
from cluster.encoding.encode import encode
from cluster.evaluation.evaluate import evaluate
from cluster.index.build import build_index
from cluster.packing.adopt import adopt
from cluster.packing.pack import pack
from cluster.packing_config import AdoptConfig, PackConfig
from cluster.retries import retries
from cluster.runtime import ray_session
from cluster.training.trainer import train
from cluster.training_config import TrainConfig
source, base = sys.argv[1:]
backbone = dict(name="convnet-small", weights="none", image_size=32, train_from="all")
done = {}
with ray_session(RayConfig(num_cpus=16)):
    pack(PackConfig(source=source, output=f"{base}/data", splits="query=0.25,database=0.75", samples_per_shard=6))
    adopt(AdoptConfig(tar_shards=f"{base}/data/database", output=f"{base}/adopted"))
    report = doctor(DoctorConfig(datasets=(f"{base}/data",), output=f"{base}/doctor"))
    done["errors"] = report.errors
    trained = train(TrainConfig.model_validate(dict(dataset=f"{base}/data/database", output=f"{base}/encoder",
        bits=(16,), epochs=2, batch_size=4, threads_per_worker=1, backbone=backbone, hidden=16, checkpoint_every=1)))
    done["encoder"] = trained.encoder_digest
    before = sum(retries().values())
    for split in ("query", "database"):
        table = encode(EncodeConfig(dataset=f"{base}/data/{split}", encoder=f"{base}/encoder", output=f"{base}/{split}",
            batch_size=8, threads_per_worker=1))
        done[split] = [table.rows_in, table.rows_out]
    again = sum(retries().values()) - before
    index = build_index(IndexConfig(codes=f"{base}/database", output=f"{base}/index", shards=2))
    done["index"] = index.count
    evaluate(EvaluateConfig(queries=f"{base}/query", database=f"{base}/database", output=f"{base}/report", k=10))
print(json.dumps([done, again]))
"""


def _run(source: Path, base: str) -> tuple[dict[str, Any], int]:
    """What the jobs tell of themselves, and how often encoding had to try again.

    In a process of its own, for Ray's workers inherit the environment that Ray was started in.
    """
    done = subprocess.run(
        [sys.executable, "-c", _JOBS, str(source), base],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told, again = json.loads(done.stdout.splitlines()[-1])
    return told, again


def _metrics(base: str) -> dict[str, Any]:
    """Every figure of the evaluation, without places and times."""
    found = json.loads(storage.read_bytes(f"{base}/report/metrics.json"))
    return {name: found[name] for name in ("encoder_digest", "queries", "database", "series", "health")}


@pytest.mark.ray
def test_every_job_from_s3_to_s3_through_a_storm_equals_a_calm_day(
    s3_bucket: str, faulty_store: FaultyStore, tmp_path: Path
) -> None:
    """Every sixth request fails."""
    for number in range(_IMAGES):
        folder = tmp_path / f"images/class-{number % NUM_CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"shape-{number:03d}.png").write_bytes(png(shape_image(number)))
    calm, _ = _run(tmp_path / "images", str(tmp_path / "calm"))

    faulty_store.storm("", seed=3, share=1 / 6)
    stormy, tried_again = _run(tmp_path / "images", s3_bucket)
    met = faulty_store.met()
    faulty_store.plan()
    assert {"status", "reset", "lost", "cut"} <= met.keys()
    assert 0 < tried_again <= sum(met.values())

    assert stormy == calm
    assert (calm["errors"], calm["query"], calm["index"]) == (0, [6, 6], 18)
    for split in ("query", "database"):
        there, here = open_codes(f"{s3_bucket}/{split}"), open_codes(str(tmp_path / "calm" / split))
        assert there.parts == here.parts
        for part in there.parts:
            assert read_part(f"{s3_bucket}/{split}", part).equals(read_part(f"{tmp_path}/calm/{split}", part))
    assert _metrics(s3_bucket) == _metrics(f"{tmp_path}/calm")
    manifest = open_codes(f"{s3_bucket}/database")
    row = read_part(f"{s3_bucket}/database", manifest.parts[1]).to_pylist()[0]
    image = original_bytes(Original(storage.join(manifest.dataset_uri, row["shard"]), row["offset"], row["size"]))
    assert Image.open(io.BytesIO(image)).size == (40, 36)
