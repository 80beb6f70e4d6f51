"""Every benchmark script runs at its smallest setting and ends with a record of ratios; no speed is asserted."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import HANG_S

_FOLDER = Path(__file__).parent


def _record(script: str) -> dict[str, object]:
    """What the script says last."""
    done = subprocess.run(
        [sys.executable, str(_FOLDER / f"{script}.py"), "--quick", "--threads", "1"],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def _check(script: str) -> None:
    record = _record(script)
    assert record["benchmark"] == script
    machine, rows = record["machine"], record["rows"]
    assert isinstance(machine, dict)
    assert isinstance(rows, list)
    assert machine["cpu"]
    assert machine["torch"]
    assert record["checks"]
    ratios = [value for row in rows for name, value in row.items() if name.startswith("ratio")]
    assert len(ratios) >= 2 * len(rows) >= 4
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios)


@pytest.mark.parametrize(
    "script",
    [
        "augmentation",
        "objective",
        "training_step",
        "head_training",
        "encode_speed",
        "decode_resize",
        "tar_reading",
        "hamming_search",
        "evaluation_speed",
        "device_search",
        "index_kinds",
        "dedup_speed",
        "thread_scaling",
        "planning",
    ],
)
def test_a_script_runs(script: str) -> None:
    _check(script)


@pytest.mark.ray
@pytest.mark.parametrize(
    "script", ["ray_overhead", "service_load", "encode_throughput", "served_codes", "evaluation_job"]
)
def test_a_script_with_ray_runs(script: str) -> None:
    _check(script)


def test_the_gpu_script_parses() -> None:
    subprocess.run(["bash", "-n", str(_FOLDER / "gpu.sh")], check=True)
