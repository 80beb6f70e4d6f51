"""Processes of a Ray that a test started: found by their session, killed one by one, gone in the end.

Others may run Ray on this machine too: nothing here looks at a process of another session.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

_LEAVING_S = 20.0


def processes(holds: Callable[[bytes], bool]) -> set[int]:
    """Processes, zombies left out, whose command line is as asked."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if holds((folder / "cmdline").read_bytes()) and process_stat(int(folder.name))[0] != "Z":
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def process_stat(pid: int) -> list[str]:
    """State, parent, ... of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def raylets_of(session: str) -> set[int]:
    """The raylets of a session, given by its folder."""
    return processes(lambda command: b"raylet" in command.split(b"\0")[0] and session.encode() in command)


def workers_of(session: str, name: bytes) -> set[int]:
    """The session's worker processes whose title begins like this, as in `ray::RayTrainWorker`."""
    raylets, found = raylets_of(session), set()
    for pid in processes(lambda command: command.startswith(name)):
        try:
            if int(process_stat(pid)[1]) in raylets:
                found.add(pid)
        except OSError:
            continue
    return found


def end_ray(session: str) -> None:
    """Waits until the processes of a killed driver's Ray are gone, and ends those that stay."""
    deadline = time.monotonic() + _LEAVING_S
    while pids := processes(lambda command: session.encode() in command):
        if time.monotonic() > deadline:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    shutil.rmtree(Path(session).parent, ignore_errors=True)
