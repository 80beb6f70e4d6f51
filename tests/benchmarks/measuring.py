"""What the benchmark scripts share: candidates in interleaved rounds, the machine they ran on, table and JSON line.

Knows nothing of what is measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, Any]
"""One line of the table; values by column. Names of ratios begin with `ratio`."""


@dataclass(frozen=True)
class Times:
    """Seconds of one candidate, a round each."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """What a round took, contention of the machine included."""
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        """What a round took when it was disturbed least."""
        return min(self.seconds)


def parser(description: str, *, one_process: bool = True) -> argparse.ArgumentParser:
    """A parser with the options that every script has; CPU time is offered where one process does all work."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=5, help="rounds; every candidate runs once in each (default 5)")
    made.add_argument("--threads", type=int, default=1, help="threads of torch and OpenCV (default 1)")
    made.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    made.add_argument("--seed", type=int, default=0, help="of images, features and weights (default 0)")
    made.set_defaults(clock="wall")
    if one_process:
        made.add_argument(
            "--clock", choices=["wall", "cpu"], help="cpu: this process's own time, for a machine that others load too"
        )
    made.add_argument("--quick", action="store_true", help="smallest sizes: only whether the script runs")
    return made


def clocked(work: Callable[[], object], options: argparse.Namespace, count: int = 1) -> Callable[[], float]:
    """The work as a candidate: runs it once and tells the seconds, those of the device included.

    Args:
        work: What is measured.
        options: Name device and clock.
        count: Units of work in one run; the seconds are those of one unit.
    """
    clock = time.process_time if options.clock == "cpu" else time.perf_counter

    def run() -> float:
        synchronize(options.device)
        begun = clock()
        work()
        synchronize(options.device)
        return (clock() - begun) / count

    return run


def synchronize(device: str) -> None:
    """Waits for the device's work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def interleaved(candidates: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 1) -> dict[str, Times]:
    """Runs all candidates once per round, one after the other.

    Args:
        candidates: Each runs its work once and returns the seconds.
        rounds: That count.
        warmup: Rounds before them that do not.
    """
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(-warmup, rounds):
        for name, run in candidates.items():
            seconds = run()
            if number >= 0:
                found[name].append(seconds)
    return {name: Times(tuple(seconds)) for name, seconds in found.items()}


def compared(times: Mapping[str, Times], reference: str) -> dict[str, Row]:
    """Per candidate: median and best, and how many times as fast as the reference it was by either."""
    base = times[reference]
    return {
        name: {
            "median_s": t.median,
            "best_s": t.best,
            "ratio": base.median / t.median,
            "ratio_best": base.best / t.best,
        }
        for name, t in times.items()
    }


def machine(device: str = "cpu") -> Row:
    """Where and with what this runs."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "unknown",
    )
    of_device = {"device": torch.cuda.get_device_name()} if torch.device(device).type == "cuda" else {}
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(value, 2) for value in os.getloadavg()],
        "torch": torch.__version__,
        **of_device,
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit, marked where the package differs from it; empty outside a checkout."""
    head = _git("rev-parse", "--short", "HEAD")
    return f"{head}+changes" if head and _git("status", "--porcelain", "--", "cibhash", "cluster", "tests") else head


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def report(name: str, options: argparse.Namespace, checks: Row, rows: Sequence[Row], **more: Any) -> None:
    """Prints table, machine and, last, one JSON line.

    Args:
        name: Of the benchmark.
        options: It ran with.
        checks: What was found equal before anything was timed.
        rows: Of the table, all with the same columns.
        more: Further fields of the JSON line.
    """
    ran_on = machine(options.device)
    columns = list(rows[0])
    cells = [columns, *([_cell(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print("checks:", ", ".join(f"{check} {_cell(value)}" for check, value in checks.items()))
    print("machine:", ", ".join(f"{key} {value}" for key, value in ran_on.items()))
    record = {"benchmark": name, "options": vars(options), "machine": ran_on, "checks": checks, "rows": list(rows)}
    print(json.dumps(record | more, default=str), flush=True)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def require(holds: bool, what: str) -> None:
    """Ends the script where a check fails: what is not equal is not compared."""
    if not holds:
        raise SystemExit(f"check failed: {what}")
