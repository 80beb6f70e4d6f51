"""Progress and log lines for the operator, on stderr only.

Knows nothing of the jobs. On a terminal progress is a live bar with rate and estimate; elsewhere a plain line every
few seconds and one at the end, so that logs stay readable.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.redaction import redacted

PLAIN_INTERVAL_S = 10.0


def log(event: str, **fields: object) -> None:
    """Writes one line: time, event, and `name=value` fields, without credentials."""
    details = " ".join(f"{name}={value}" for name, value in fields.items())
    sys.stderr.write(redacted(f"{time.strftime('%H:%M:%S')} {event}{' ' if details else ''}{details}\n"))
    sys.stderr.flush()


def show(text: str) -> None:
    """Writes text for a person as it is, a table for instance."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@dataclass
class ProgressLine:
    """Counts finished work; every change may show."""

    label: str
    total: int
    unit: str
    done: int = 0
    note: str = ""
    started_s: float = field(default_factory=time.monotonic)
    shown: int = -1
    """What `done` was in the last plain line."""
    _shown_s: float = 0.0
    _bar: Progress | None = None

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Adds finished units and an optional remark (a loss, a count of refusals)."""
        self.done += amount
        self.note = self.note if note is None else note
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, note=self.note)
        elif time.monotonic() - max(self._shown_s, self.started_s) >= PLAIN_INTERVAL_S:
            self.show()

    def show(self) -> None:
        """Writes the plain line now."""
        elapsed = max(time.monotonic() - self.started_s, 1e-9)
        rate = self.done / elapsed
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate and self.done < self.total else ""
        note = f", {self.note}" if self.note else ""
        log(f"{self.label}: {self.done:,}/{self.total:,} {self.unit}, {rate:,.1f} {self.unit}/s{left}{note}")
        self.shown, self._shown_s = self.done, time.monotonic()


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[ProgressLine]:
    """A progress display over `total` units of work.

    Args:
        label: What is going on, as in "encode".
        total: Units of the whole work.
        unit: Plural noun, as in "images".
    """
    line = ProgressLine(label, total, unit)
    if not sys.stderr.isatty():
        yield line
        if line.done != line.shown:
            line.show()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        bar.add_task(label, total=total, note="")
        line._bar = bar
        yield line
