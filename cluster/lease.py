"""A lease on an output: one live writer at a time, told from a dead one without comparing clocks.

Knows nothing of what is written. The holder counts up in a small file; whoever finds the file watches whether it still
counts. A holder that died is known at once on its own machine, and after a few seconds elsewhere.
"""

import contextlib
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, ValidationError

from cibhash.errors import AlreadyExists, ConfigError, NotFound, StorageError
from cluster import storage
from cluster.telemetry import log

BEAT_S = 5.0
_PATIENCE_BEATS = 3


class _Lease(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    owner: str
    host: str
    pid: int
    started: str
    """When the process started, in the machine's own count: a later process may have the same pid."""
    beats: int = 0
    released: bool = False

    def to_bytes(self) -> bytes:
        return (self.model_dump_json() + "\n").encode()


@contextlib.contextmanager
def hold_lease(uri: str, *, beat_s: float = BEAT_S) -> Iterator[None]:
    """Holds the lease at `uri` during the block; a lease that is lost to another process interrupts this one.

    Args:
        uri: Of the lease file.
        beat_s: Seconds between signs of life; the same for all who ask for this lease.

    Raises:
        ConfigError: another process holds it and is alive; names its host and pid.
    """
    own = _Lease(owner=secrets.token_hex(8), host=socket.gethostname(), pid=os.getpid(), started=_started(os.getpid()))
    found = _wait_until_dead(uri, beat_s)
    try:
        storage.swap_bytes(uri, found, own.to_bytes())
    except AlreadyExists:
        raise ConfigError(f"{uri}: another run has just started on this output") from None
    stop = threading.Event()
    holder = _Holder(uri, own, beat_s, stop)
    holder.start()
    try:
        yield
    finally:
        stop.set()
        holder.join()
        with contextlib.suppress(StorageError):
            storage.swap_bytes(uri, holder.content, holder.lease.model_copy(update={"released": True}).to_bytes())


class _Holder(threading.Thread):
    """Counts up until it is stopped, or finds that somebody else has taken over."""

    def __init__(self, uri: str, lease: _Lease, beat_s: float, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.uri, self.lease, self.content = uri, lease, lease.to_bytes()
        self._beat_s, self._stop_event = beat_s, stop

    def run(self) -> None:
        while not self._stop_event.wait(self._beat_s):
            try:
                is_own = self._renew()
            except StorageError as error:
                log("the lease cannot be renewed", reason=error)
                continue
            if not is_own:
                log("another run has taken over this output: this one ends", lease=self.uri)
                os.kill(os.getpid(), _ending_signal())
                return

    def _renew(self) -> bool:
        """Counts up; returns whether the lease is still this process's."""
        following = self.lease.model_copy(update={"beats": self.lease.beats + 1})
        try:
            storage.swap_bytes(self.uri, self.content, following.to_bytes())
        except AlreadyExists:
            try:
                content, found = _read(self.uri)
            except ValidationError:
                return False
            if found.owner != self.lease.owner:
                return False
            self.lease, self.content = found, content  # a write whose answer was lost looks like a lost race
            return True
        self.lease, self.content = following, following.to_bytes()
        return True


def _ending_signal() -> signal.Signals:
    """An interrupt, which leaves time to clean up, unless this process was started to ignore it, as by `nohup`."""
    return signal.SIGTERM if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else signal.SIGINT


def _wait_until_dead(uri: str, beat_s: float) -> bytes | None:
    """The content of a lease that nobody holds, None where there is none.

    Raises:
        ConfigError: its holder is alive.
    """
    try:
        content, lease = _read(uri)
    except NotFound:
        return None
    except ValidationError:
        return storage.read_bytes(uri)
    if lease.released:
        return content
    on_this_machine = lease.host == socket.gethostname()
    if on_this_machine and _started(lease.pid) != lease.started:
        return content
    log("the output was in use: watching whether its run is alive", host=lease.host, pid=lease.pid)
    deadline = time.monotonic() + _PATIENCE_BEATS * beat_s
    while time.monotonic() < deadline:
        time.sleep(min(beat_s / 5, 1.0))
        try:
            later = storage.read_bytes(uri)
        except NotFound:
            return None
        if later != content:
            if _Lease.model_validate_json(later).released:
                return later
            raise ConfigError(f"{uri}: another run is writing to this output (pid {lease.pid} on {lease.host})")
    return content


def _read(uri: str) -> tuple[bytes, _Lease]:
    content = storage.read_bytes(uri)
    return content, _Lease.model_validate_json(content)


def _started(pid: int) -> str:
    """When the process with this pid started, empty if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
