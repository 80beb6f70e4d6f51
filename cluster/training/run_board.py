"""What workers tell the driver while they train: rows of statistics, signs of life, and failures that no retry cures.

Knows nothing of training. The board is an actor without resources on the driver's node, for the loss of another one
must not take it along; if it is lost all the same, training goes on unseen.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.telemetry import log, progress
from cluster.training.metrics_log import MetricsLog, Row

T = TypeVar("T")
_POLL_S = 1.0
BEAT_S = 1.0
_SILENT_BEATS = 3


class Sign(NamedTuple):
    """The last sign of life of a rank."""

    rank: int
    step: int
    """Steps done since the beginning of the run."""
    place: str
    """Process and host."""
    is_silent: bool
    """Whether others were heard of well after it."""


@ray.remote(num_cpus=0)
class RunBoard:
    """Where rank 0 puts rows, every rank its signs of life, and the first failing rank its error."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._failure = ""
        self._beats: dict[int, tuple[int, str, float]] = {}

    def add(self, rows: list[Row]) -> None:
        """Adds rows of statistics."""
        self._rows.extend(rows)

    def rows(self, start: int) -> list[Row]:
        """The rows from `start` on."""
        return self._rows[start:]

    def beat(self, rank: int, step: int, place: str) -> None:
        """Tells that a rank is alive, how many steps it has done since the beginning of the run, and where it runs."""
        self._beats[rank] = (step, place, time.monotonic())

    def signs(self) -> list[Sign]:
        """The last sign of life of every rank."""
        newest = max((heard_s for *_, heard_s in self._beats.values()), default=0.0)
        return [
            Sign(rank, step, place, newest - heard_s > _SILENT_BEATS * BEAT_S)
            for rank, (step, place, heard_s) in sorted(self._beats.items())
        ]

    def started(self) -> bool:
        """Whether any rank has told of anything."""
        return bool(self._beats or self._rows or self._failure)

    def fail(self, failure: str) -> None:
        """Keeps the first failure that a restart would only repeat, as `cluster.failures` describes it."""
        self._failure = self._failure or failure

    def failure(self) -> str:
        """That failure, or empty."""
        return self._failure


def answer(reference: Any, otherwise: T) -> T:
    """What a board answers, or `otherwise` if it is lost."""
    try:
        found: T = ray.get(reference)
    except ray.exceptions.RayActorError:
        return otherwise
    return found


@contextlib.contextmanager
def shown_board(metrics: MetricsLog, epochs: int) -> Iterator[Any]:
    """A board whose rows are shown as progress and written to the metrics while the block runs."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = RunBoard.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    stop = threading.Event()
    thread = threading.Thread(target=_show, args=(board, metrics, epochs, stop), daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join()
        ray.kill(board)


def _show(board: Any, metrics: MetricsLog, epochs: int, stop: threading.Event) -> None:
    seen = 0
    with progress("train", epochs, "epochs") as line:
        stopping = False
        while not stopping:
            stopping = stop.wait(_POLL_S)
            try:
                new: list[Row] = ray.get(board.rows.remote(seen))
            except ray.exceptions.RayError:
                break
            seen += len(new)
            metrics.add(new)
            for row in new:
                if row["kind"] == "epoch":
                    line.advance(int(row["epoch"]) + 1 - line.done, _note(metrics))
                for alarm in row.get("alarms", ()):
                    log(f"train: ALARM, the codes collapse: {alarm}", step=row["step"])
            metrics.write_at_intervals()
        metrics.write()


def _note(metrics: MetricsLog) -> str:
    """Loss, rate and the last look at the held-out images, for the progress line."""
    epoch, look = metrics.last("epoch"), metrics.last("look")
    note = f"loss {epoch['loss']:.4f}, bit entropy {epoch['bit_entropy']:.3f}, {epoch['images_per_s']:,.0f} images/s"
    return f"{note}, held-out sep10 {look['sep10']:.3f}" if "sep10" in look else note


class Pulse:
    """One rank's signs of life until it is stopped, which a rank that fails is not, or its process ends.

    They come from a thread: a rank that only waits for another one must still be heard of.
    """

    def __init__(self, board: Any, rank: int) -> None:
        self._board, self._rank, self._step = board, rank, 0
        self._place = f"pid {os.getpid()} on {socket.gethostname()}"
        self._stopped = threading.Event()
        threading.Thread(target=self._tell, daemon=True).start()

    def beat(self, step: int) -> None:
        """Takes note of a finished step."""
        self._step = step

    def stop(self) -> None:
        """Ends the signs."""
        self._stopped.set()

    def _tell(self) -> None:
        while not self._stopped.is_set():
            self._board.beat.remote(self._rank, self._step, self._place)
            self._stopped.wait(BEAT_S)
