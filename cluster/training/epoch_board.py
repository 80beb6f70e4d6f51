"""Epoch statistics on their way from rank 0 to the driver: live progress and `metrics.jsonl`.

Knows nothing of training. The board is an actor without resources; if it is lost, training goes on unseen.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray

from cibhash.errors import NotFound, StorageError
from cluster import storage
from cluster.telemetry import log, progress

_POLL_S = 1.0
_WRITE_INTERVAL_S = 10.0


@ray.remote(num_cpus=0)
class EpochBoard:
    """Where rank 0 puts a row per epoch and the driver reads them."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Adds an epoch's statistics."""
        self._rows.append(row)

    def rows(self, start: int) -> list[dict[str, Any]]:
        """The rows from `start` on."""
        return self._rows[start:]


class EpochRows:
    """The rows of a run so far, those before a resume included; what a repeated epoch reports replaces the earlier."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.by_epoch: dict[int, dict[str, Any]] = {row["epoch"]: row for row in read_rows(uri)}

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Takes in new rows."""
        self.by_epoch.update((row["epoch"], row) for row in rows)

    def write(self) -> None:
        """Writes `metrics.jsonl`, one JSON object per epoch; training goes on if that fails."""
        rows = [json.dumps(self.by_epoch[epoch]) + "\n" for epoch in sorted(self.by_epoch)]
        try:
            storage.write_bytes(self._uri, "".join(rows).encode())
        except StorageError as error:
            log("metrics cannot be written", reason=error)


def read_rows(uri: str) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, none if it does not exist."""
    try:
        return [json.loads(line) for line in storage.read_bytes(uri).splitlines()]
    except NotFound:
        return []
    except ValueError:
        log("metrics cannot be read and are begun anew", file=uri)
        return []


@contextlib.contextmanager
def shown_board(metrics_uri: str, epochs: int) -> Iterator[Any]:
    """A board whose rows are shown as progress and written to `metrics_uri` while the block runs."""
    board = EpochBoard.options(name=f"cibhash-epochs-{metrics_uri}").remote()  # type: ignore[attr-defined]
    stop = threading.Event()
    thread = threading.Thread(target=_show, args=(board, metrics_uri, epochs, stop), daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join()
        ray.kill(board)


def _show(board: Any, metrics_uri: str, epochs: int, stop: threading.Event) -> None:
    rows, seen, written_s = EpochRows(metrics_uri), 0, time.monotonic()
    with progress("train", epochs, "epochs") as line:
        stopping = False
        while not stopping:
            stopping = stop.wait(_POLL_S)
            try:
                new: list[dict[str, Any]] = ray.get(board.rows.remote(seen))
            except ray.exceptions.RayError:
                return
            seen += len(new)
            rows.add(new)
            for row in new:
                note = f"loss {row['loss']:.4f}, bit entropy {row['bit_entropy']:.3f}"
                line.advance(row["epoch"] + 1 - line.done, note)
            if new and (stopping or time.monotonic() - written_s > _WRITE_INTERVAL_S):
                rows.write()
                written_s = time.monotonic()
        rows.write()
