"""An encode job in a process of its own that is struck by SIGKILL at a chosen moment, and run again until it ends."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.config import EncodeConfig
from tests.patience import HANG_S
from tests.ray_processes import end_ray, raylets_of, workers_of

Target = Literal["driver", "actor", "worker", "raylet"]
_DRIVER = """
import sys
import ray
from cluster.config import EncodeConfig, RayConfig
from cluster.encoding.encode import encode
from cluster.runtime import ray_session
config = EncodeConfig.model_validate_json(sys.argv[1])
with ray_session(RayConfig(num_cpus=8)):
    print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
    print('parts reused:', encode(config).parts_reused, flush=True)
"""


@dataclass(frozen=True)
class Struck:
    """What became of a run that was struck."""

    target: Target
    parts_before: int
    """Parts committed when it was struck."""
    survived: bool
    """Whether the job itself went on to the end."""
    parts_reused: int
    """By the run that finished."""


def strike(config: EncodeConfig, target: Target, after_parts: int) -> Struck:
    """Runs the job, kills the target once so many parts are committed, and runs it again if that ended it.

    A target that is not there (all work is done) is not killed.
    """
    records = Path(config.output, "records")
    driver, session = _start(config)
    try:
        _wait(driver, lambda: len(list(records.glob("*.json"))) >= after_parts)
        pids = {
            "driver": {driver.pid},
            "actor": workers_of(session, b"ray::MapWorker"),
            "worker": workers_of(session, b"ray::"),
            "raylet": raylets_of(session),
        }[target]
        found = len(list(records.glob("*.json")))
        for pid in sorted(pids)[:1]:
            os.kill(pid, signal.SIGKILL)
        rest, _ = driver.communicate(timeout=HANG_S)
    finally:
        driver.kill()
        driver.wait()
        end_ray(session)
    if driver.returncode == 0:
        return Struck(target, found, True, _parts_reused(rest))
    return Struck(target, found, False, finish(config))


def finish(config: EncodeConfig) -> int:
    """Runs the job undisturbed; returns how many parts it found done."""
    driver, session = _start(config)
    try:
        rest, _ = driver.communicate(timeout=HANG_S)
    finally:
        driver.kill()
        driver.wait()
        end_ray(session)
    assert driver.returncode == 0, "a run that nobody disturbs ends well"
    return _parts_reused(rest)


def _parts_reused(output: bytes) -> int:
    """What the driver printed; Ray prints lines of its own around it."""
    told = re.search(rb"parts reused: (\d+)", output)
    assert told is not None
    return int(told[1])


def table_files(output: str) -> dict[str, bytes]:
    """All files of a finished code table; hidden ones are what a killed writer had not finished."""
    paths = (path for path in sorted(Path(output).rglob("*")) if path.is_file() and path.name[0] != ".")
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def _start(config: EncodeConfig) -> tuple["subprocess.Popen[bytes]", str]:
    command = [sys.executable, "-c", _DRIVER, config.model_dump_json()]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert driver.stdout is not None
    return driver, driver.stdout.readline().decode().strip()


def _wait(driver: "subprocess.Popen[bytes]", holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_S
    while driver.poll() is None and not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
