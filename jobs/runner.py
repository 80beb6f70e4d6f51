"""Runs one job: config in, one JSON line on stdout, one line per error on stderr, `run_report.json` by the output.

Knows nothing of what the jobs do. While a job runs, file descriptor 1 leads to stderr, so that no library can put a
line on stdout; the JSON line is written to the real stdout at the end.
"""

import atexit
import contextlib
import dataclasses
import errno
import json
import math
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from cibhash.errors import CIBHashError, ConfigError, StorageError
from cluster import storage
from cluster.config import JobConfig
from cluster.redaction import redacted
from cluster.retries import retries, retries_since
from cluster.runtime import SUBMITTED_JOB, root_cause, versions
from cluster.telemetry import log
from jobs.config_loader import load_config

C = TypeVar("C", bound=JobConfig)
REPORT_FILE = "run_report.json"
FAILURE_FILE = "run_report_failed.json"
"""Of a run that failed where an earlier one had succeeded."""
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
_STORAGE_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MESSAGE_LIMIT = 1000


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a job ended early, for a person and for a program."""

    error: str
    error_type: str
    exit_code: int
    traceback: str


def run_job(
    job: str,
    cls: type[C],
    work: Callable[[C], Any],
    argv: Sequence[str] | None = None,
    *,
    table: Callable[[Any], str] | None = None,
    failing: Callable[[Any], CIBHashError | None] | None = None,
) -> int:
    """Runs one job from the command line.

    Args:
        job: Name of the command.
        cls: Its config model.
        work: Does it; the fields of what it returns (a dataclass, a model, a dict or None) go into the JSON line. Under
            `dry_run` it checks what it can and writes nothing.
        argv: The arguments; default: the process's.
        table: Shows the result to a person, on stderr.
        failing: The error that the job ends with although its work is done, or None; the result stays in the JSON line.

    Returns:
        The exit code: 0, or that of the error, as in `cibhash.errors`; 130 and 143 after SIGINT and SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    if "-h" in arguments or "--help" in arguments:
        return _show_help(job, cls, arguments)
    started, clock, before = datetime.now(UTC), time.monotonic(), retries()
    config: C | None = None
    failure: Failure | None = None
    fields: dict[str, Any] = {}
    with _stdout_for_result() as stdout, _terminated_by_exit():
        try:
            config = load_config(cls, arguments, f"cibhash {job}")
            _refuse_lost_output(config)
            result = work(config)
            fields = plain(result) if result is not None else {}
            if config.dry_run:
                fields["config"] = plain(config)
            elif table is not None:
                sys.stderr.write(f"{table(result).rstrip()}\n")
            if failing is not None and (refusal := failing(result)) is not None:
                raise refusal
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            failure = describe_failure(error)
            sys.stderr.write(f"cibhash {job}: error: {failure.error}\n{failure.traceback if show_traceback else ''}")
        status = "error" if failure else "dry-run" if config and config.dry_run else "ok"
        seconds = round(time.monotonic() - clock, 3)
        if config is not None and not config.dry_run:
            _write_report(job, config, status, started, seconds, failure, fields, retries_since(before))
        if failure:
            fields |= {"error": failure.error, "error_type": failure.error_type, "exit_code": failure.exit_code}
        line = {"job": job, "status": status, **fields, "seconds": seconds}
        stdout.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    return failure.exit_code if failure else 0


def leave(code: int) -> int:
    """The exit code; an interrupted process ends here, without Python's own end, in which Ray's threads may crash."""
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _refuse_lost_output(config: JobConfig) -> None:
    """Refuses a relative output of a job run by `ray job submit`, which would go with the job's working folder.

    Raises:
        ConfigError: naming the output.
    """
    for name in ("output", "fix"):
        output = getattr(config, name, "")
        if not output or SUBMITTED_JOB not in os.environ or storage.is_s3(output) or os.path.isabs(output):
            continue
        raise ConfigError(
            f"{name} {output!r}: relative, but a submitted job runs in a copy of the working folder that "
            "is thrown away: use an absolute path or s3://bucket/prefix"
        )


def describe_failure(error: BaseException) -> Failure:
    """One line and an exit code for whatever ended the job."""
    cause = root_cause(error)
    message = redacted(" ".join(str(cause).split()))
    if isinstance(cause, KeyboardInterrupt):
        message, code = "interrupted", INTERRUPTED
    elif isinstance(cause, SystemExit):
        message, code = "terminated", TERMINATED
    elif isinstance(cause, CIBHashError):
        code = cause.exit_code
    elif isinstance(cause, MemoryError):
        message, code = f"out of memory {message}".rstrip(), CIBHashError.exit_code
    elif isinstance(cause, OSError) and cause.errno in _STORAGE_FULL:
        code = StorageError.exit_code
    elif isinstance(cause, ValueError):
        code = ConfigError.exit_code
    else:
        message, code = f"{type(cause).__name__}: {message}".rstrip(": "), CIBHashError.exit_code
    text = redacted("".join(traceback.format_exception(error)))
    return Failure(message[:_MESSAGE_LIMIT] or type(cause).__name__, type(cause).__name__, int(code), text)


def plain(value: Any) -> Any:
    """The value as JSON takes it: models, dataclasses, paths and NumPy scalars unfolded, NaN as null.

    Credentials in texts are hidden.
    """
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return redacted(value)
    if value is None or isinstance(value, int | bool):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _write_report(
    job: str,
    config: JobConfig,
    status: str,
    started: datetime,
    seconds: float,
    failure: Failure | None,
    result: dict[str, Any],
    storage_retries: dict[str, int],
) -> None:
    """Leaves the report beside the output; a report that cannot be written is a line in the log, nothing more."""
    output = getattr(config, "output", "")
    if not output:
        return
    report = {
        "job": job,
        "status": status,
        "exit_code": failure.exit_code if failure else 0,
        "error": failure.error if failure else "",
        "error_type": failure.error_type if failure else "",
        "traceback": failure.traceback if failure else "",
        "config": plain(config),
        "result": result,
        "versions": versions(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
        "storage_retries": storage_retries,
        "driver_peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    try:
        name = FAILURE_FILE if failure and _succeeded_before(output) else REPORT_FILE
        storage.write_bytes(
            storage.join(output, name), json.dumps(report, indent=1, ensure_ascii=False).encode() + b"\n"
        )
    except (CIBHashError, OSError) as error:
        log(f"{job}: {REPORT_FILE} could not be written", reason=error)


def _succeeded_before(output: str) -> bool:
    """Whether the output holds the report of a run that succeeded: a later failure does not replace it."""
    try:
        return bool(json.loads(storage.read_bytes(storage.join(output, REPORT_FILE)))["status"] == "ok")
    except (CIBHashError, ValueError, KeyError, TypeError):
        return False


def _show_help(job: str, cls: type[JobConfig], arguments: list[str]) -> int:
    try:
        load_config(cls, arguments, f"cibhash {job}")
    except SystemExit:
        return 0
    except ConfigError as error:
        sys.stderr.write(f"cibhash {job}: error: {error}\n")
        return error.exit_code
    return 0


@contextlib.contextmanager
def _stdout_for_result() -> Iterator[Any]:
    """The real stdout, while descriptor 1 and `sys.stdout` lead to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w", encoding="utf-8") as stdout, contextlib.redirect_stdout(sys.stderr):
            yield stdout
    except BrokenPipeError:
        log("nobody reads stdout: the result line is lost")
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def _terminated_by_exit() -> Iterator[None]:
    """SIGTERM as SystemExit, so that reports are written and Ray ends; a job may set its own handler meanwhile."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
