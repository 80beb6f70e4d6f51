"""Files of this machine, written atomically: read, create-only and compare-and-swap.

Knows nothing of what the bytes mean. Writes go to a temporary file that is fsynced and then linked or renamed, so a
reader never sees half a file.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cibhash.errors import AlreadyExists, NotFound, StorageError


def read_range(path: str, offset: int, size: int) -> bytes:
    """At most `size` bytes from `offset`, fewer where the file ends."""
    with local_errors(path), open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def write_bytes(path: str, data: bytes) -> None:
    """Writes atomically, replacing what was there."""
    _write(path, data, create_only=False)


def create_bytes(path: str, data: bytes) -> None:
    """Writes atomically and only where nothing is.

    Raises:
        AlreadyExists: somebody wrote it first.
    """
    _write(path, data, create_only=True)


def swap_bytes(path: str, expected: bytes, data: bytes) -> None:
    """Replaces content that still equals `expected`, under a lock file beside it.

    Raises:
        AlreadyExists: the content is another one by now.
    """
    with local_errors(path), open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if Path(path).read_bytes() != expected:
            raise AlreadyExists(f"{path}: changed by another writer")
        _write(path, data, create_only=False)


def put_file(source: Path, path: str) -> None:
    """Copies a file, atomically."""
    with _temporary(path) as temporary:
        shutil.copyfile(source, temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(os.path.dirname(os.path.abspath(path)))


def remove(path: str) -> None:
    """Removes a file and the folder that it leaves empty; a missing one needs no removing."""
    with local_errors(path), contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(os.path.abspath(path)))


@contextlib.contextmanager
def local_errors(path: str) -> Iterator[None]:
    """Turns OSErrors into this project's errors; a full disk is told with the free space."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file or folder") from None
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason += f" ({_free_bytes(path) // 2**20} MiB free)"
        raise StorageError(f"{path}: {reason}") from error


def _write(path: str, data: bytes, *, create_only: bool) -> None:
    with _temporary(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(data)
        _sync(temporary)
        try:
            if create_only:
                os.link(temporary, path)
            else:
                os.replace(temporary, path)
        except FileExistsError:
            raise AlreadyExists(f"{path}: exists already") from None
        _sync(os.path.dirname(os.path.abspath(path)))


def _sync(path: str) -> None:
    """Has the content of a file, or the entries of a folder, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _temporary(path: str) -> Iterator[str]:
    folder = os.path.dirname(os.path.abspath(path))
    with local_errors(path):
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=folder)
        os.close(handle)
        os.chmod(temporary, 0o644)
        try:
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _free_bytes(path: str) -> int:
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
