"""The train job on a cluster that loses the node of its worker: it goes on from a checkpoint on another node.

The nodes are raylets on one machine, so a partition between hosts, a slow farewell and the loss of files are not seen.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.training.metrics_log import read_rows
from cluster.training_config import TrainConfig
from tests.datasets import shape_dataset
from tests.events import steps_done_twice
from tests.patience import HANG_S

_COUNTS, _STEPS, _EPOCHS, _EVERY = (100, 10, 101), 11, 20, 20
_DRIVER = """
import dataclasses, json, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from cluster.training_config import TrainConfig
from cluster.training.assembly import checkpoint_store
from cluster.training.trainer import train

def workers():
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, *_ = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            is_worker = (folder / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker")
            if is_worker and state != "Z" and int(parent) in raylets:
                found[int(folder.name)] = int(parent)
        except OSError:
            continue
    return found

def strike():
    while not end.wait(0.02):
        now = workers()
        seen.update(now)
        if not struck and now and store.entries():
            time.sleep(0.1)  # some steps later
            raylet = raylets[now[min(now)]]
            struck.append(raylet.pid)
            raylet.kill()
            raylet.wait()

whole, config = (TrainConfig.model_validate_json(text) for text in sys.argv[2:])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
raylets = {p.pid: p for p in (node.all_processes["raylet"][0].process for node in nodes)}
ray.init(address=cluster.address, log_to_driver=False)
expected = train(whole)
store, seen, struck, end = checkpoint_store(config), {}, [], threading.Event()
thread = threading.Thread(target=strike)
thread.start()
try:
    found = train(config)
finally:
    end.set()
    thread.join()
told = {"expected": dataclasses.asdict(expected), "found": dataclasses.asdict(found)}
told |= {"struck": struck, "raylets": [*seen.values()]}
Path(sys.argv[1]).write_text(json.dumps(told))
ray.shutdown()
cluster.shutdown()
"""


def _config(dataset: str, output: Path) -> TrainConfig:
    settings = {
        "dataset": dataset,
        "output": str(output),
        "bits": (8, 16),
        "backbone": {"name": "convnet-small", "weights": "none", "image_size": 32, "train_from": "all"},
        "backbone_learning_rate": 0.001,
        "views": {"jitter": 0.2, "grayscale": 0.0},
        "hidden": 24,
        "epochs": _EPOCHS,
        "batch_size": 16,
        "num_streams": 2,
        "num_workers": 1,
        "threads_per_worker": 1,
        "loaders_per_worker": 0,
        "checkpoint_every_steps": _EVERY,
        "metrics_every": 1,
        "monitor": {"every_steps": 100},
    }
    return TrainConfig.model_validate(settings)


def _end_processes(folder: str) -> None:
    """Ends what is left of the Ray whose files are in the folder."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if folder.encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
        except OSError:
            continue


@pytest.fixture
def told(tmp_path: Path) -> Any:
    """What a driver saw of an undisturbed run and of one whose worker's node was lost, on a cluster of its own."""
    dataset = shape_dataset(tmp_path / "data", _COUNTS)
    configs = [_config(dataset, tmp_path / name) for name in ("whole", "out")]
    folder = tempfile.mkdtemp(prefix="cibhash-ray-", dir="/tmp")  # socket paths must stay short
    (tmp_path / "home").mkdir()
    environment = os.environ | {
        "HOME": str(tmp_path / "home"),
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_health_check_period_ms": "1000",  # five in vain, and a node counts as dead
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    for name in ("RAY_ADDRESS", "CIBHASH_FAULT"):
        environment.pop(name, None)
    try:
        with open(tmp_path / "log", "wb") as log:
            driver = subprocess.Popen(
                [sys.executable, "-c", _DRIVER, str(tmp_path / "told"), *(c.model_dump_json() for c in configs)],
                stdout=log,
                stderr=log,
                env=environment,
            )
            try:
                driver.wait(timeout=HANG_S)
            finally:
                driver.kill()
                driver.wait()
        assert driver.returncode == 0, (tmp_path / "log").read_text()[-4000:]
        return json.loads((tmp_path / "told").read_text())
    finally:
        _end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
def test_the_loss_of_a_node_is_survived_on_another_one_and_leaves_no_trace_in_the_encoder(
    told: Any, tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    (struck,) = told["struck"]
    first, second = told["raylets"]
    assert first == struck != second, "one worker on each node"
    assert told["found"] | {"encoder_uri": ""} == told["expected"] | {"encoder_uri": ""}
    assert told["found"]["steps"] == _EPOCHS * _STEPS

    # Whatever was done twice was so since a checkpoint, with the same values, and is in the metrics once.
    (path,) = (tmp_path / "out/tensorboard").iterdir()
    again = steps_done_twice(path, _EPOCHS * _STEPS)
    if again:
        assert again[0] - 1 in range(_EVERY, _EPOCHS * _STEPS, _EVERY), "from a checkpoint, not from scratch"
    assert len(read_rows(str(tmp_path / "out"))) == len(read_rows(str(tmp_path / "whole")))
    record_testsuite_property("T2 steps lost", len(again))
