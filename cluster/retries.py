"""How long to wait before a failed call is tried again, when to give up, and how often that happened in this process.

Knows nothing of what is called. Waits grow exponentially up to a limit and are drawn at random below it (full jitter),
so that many workers that failed together do not come back together.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.telemetry import log


@dataclass(frozen=True)
class Limits:
    """What a call to remote storage may cost before it fails."""

    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    """Of silence; and the time over which a body must come at `least_bytes_per_s`."""
    least_bytes_per_s: float = 1024.0
    attempts: int = 10
    """In a row without progress."""
    first_wait_s: float = 0.2
    longest_wait_s: float = 20.0
    deadline_s: float = 180.0
    """From the first failure in a row to the last attempt."""


LIMITS = Limits()
_JITTER = random.Random()  # not the global generator: training draws from that one
_counts: Counter[str] = Counter()
_lock = threading.Lock()


class Patience:
    """The failures in a row of one call."""

    def __init__(self) -> None:
        self.failures = 0
        self._since_s = 0.0

    def wait_s(self, asked_s: float = 0.0) -> float | None:
        """Seconds to wait after one more failure; None: enough is enough.

        Args:
            asked_s: What the other side asked for (`Retry-After`); honored up to the longest wait.
        """
        now_s = time.monotonic()
        if not self.failures:
            self._since_s = now_s
        self.failures += 1
        ceiling_s = min(LIMITS.longest_wait_s, LIMITS.first_wait_s * 2.0 ** (self.failures - 1))
        wait_s = max(_JITTER.uniform(0.0, ceiling_s), min(asked_s, LIMITS.longest_wait_s))
        too_late = now_s + wait_s - self._since_s > LIMITS.deadline_s
        return None if too_late or self.failures >= LIMITS.attempts else wait_s

    def reset(self) -> None:
        """Forgets the failures: there was progress."""
        self.failures = 0


def note_retry(operation: str, where: str, reason: str, wait_s: float) -> None:
    """Counts one retry and writes its line to the log.

    Args:
        operation: Of the storage's interface, as in `GetObject`.
        where: The object.
        reason: What failed.
        wait_s: Seconds until the next attempt.
    """
    with _lock:
        _counts[operation] += 1
    log("warning: storage call is tried again", operation=operation, at=where, reason=reason, wait_s=f"{wait_s:.2f}")


def retries() -> dict[str, int]:
    """Retries of this process so far, and of others where `add_retries` was told of them, by operation."""
    with _lock:
        return dict(sorted(_counts.items()))


def retries_since(before: Mapping[str, int]) -> dict[str, int]:
    """Retries since an earlier answer of `retries`."""
    return {name: count - before.get(name, 0) for name, count in retries().items() if count > before.get(name, 0)}


def add_retries(found: Mapping[str, int]) -> None:
    """Counts what another process had to try again."""
    with _lock:
        _counts.update(found)
