"""The statistics of a run as files: `metrics.jsonl`, and TensorBoard's event files with the same curves.

Knows nothing of Ray and of where rows come from. A row is a step, an epoch, or a look at the held-out images; what is
repeated after a resume replaces what was there.
"""

import json
import math
import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cibhash.errors import NotFound, StorageError
from cluster import storage
from cluster.telemetry import log

Row = dict[str, Any]
"""`kind` (step, epoch, look), `step` (done since the beginning), and values by name."""
METRICS, EVENTS = "metrics.jsonl", "tensorboard"
_WRITE_INTERVAL_S = 10.0
_NOT_CURVES = {"kind", "step", "epoch", "alarms"}


class MetricsLog:
    """The rows of the run at `output`, those before a resume included."""

    def __init__(self, output: str) -> None:
        self._output = output
        self._rows = {_place(row): row for row in read_rows(output)}
        self._events = _Events(storage.join(output, EVENTS))
        self._written_s = time.monotonic()
        self._changed = False

    def add(self, rows: Sequence[Row]) -> None:
        """Takes in new rows."""
        self._rows.update((_place(row), row) for row in rows)
        self._events.add(rows)
        self._changed = self._changed or bool(rows)

    def last(self, kind: str) -> Row:
        """The latest row of a kind, empty if there is none."""
        return max((row for row in self._rows.values() if row["kind"] == kind), key=lambda row: row["step"], default={})

    def write_at_intervals(self) -> None:
        """Writes if something has changed and the last time is a while ago."""
        if time.monotonic() - self._written_s > _WRITE_INTERVAL_S:
            self.write()

    def write(self) -> None:
        """Writes all files; training goes on if that fails."""
        if not self._changed:
            return
        rows = [json.dumps(self._rows[place]) + "\n" for place in sorted(self._rows)]
        try:
            storage.write_bytes(storage.join(self._output, METRICS), "".join(rows).encode())
            self._events.write()
        except StorageError as error:
            log("metrics cannot be written", reason=error)
        self._written_s, self._changed = time.monotonic(), False


def read_rows(output: str) -> list[Row]:
    """The rows of a run's `metrics.jsonl`, none if it does not exist."""
    location = storage.join(output, METRICS)
    try:
        return [json.loads(line) for line in storage.read_bytes(location).splitlines()]
    except NotFound:
        return []
    except ValueError:
        log("metrics cannot be read and are begun anew", file=location)
        return []


def _place(row: Row) -> tuple[int, str]:
    return int(row["step"]), str(row["kind"])


class _Events:
    """One new event file per process, kept in a temporary folder and copied to its place."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._writer: Any = None
        self._folder = tempfile.TemporaryDirectory()

    def add(self, rows: Sequence[Row]) -> None:
        """Adds a point to every curve."""
        if not rows:
            return
        if self._writer is None:
            from tensorboardX import SummaryWriter  # a second to import

            first = min(int(row["step"]) for row in rows)
            suffix = f".{secrets.token_hex(4)}"  # the rest of the name is host and second
            self._writer = SummaryWriter(self._folder.name, purge_step=first, flush_secs=3600, filename_suffix=suffix)
        for row in rows:
            for name, value in row.items():
                if name not in _NOT_CURVES and isinstance(value, int | float) and math.isfinite(value):
                    self._writer.add_scalar(f"{row['kind']}/{name}", value, int(row["step"]))

    def write(self) -> None:
        """Copies the file as it is now."""
        if self._writer is None:
            return
        self._writer.flush()
        for path in Path(self._folder.name).iterdir():
            storage.put_file(path, storage.join(self._uri, path.name))
