"""Starts or joins Ray, finds the error that matters in what Ray raises, and reports versions.

Knows nothing of the jobs. A private local Ray gets its own folder and token and ends with the session; a cluster is
joined only when an address is configured or `ray job submit` has set one for its driver.
"""

import json
import logging
import os
import platform
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from cibhash import __version__
from cibhash.errors import CIBHashError, ConfigError
from cluster.config import RayConfig
from cluster.redaction import redacted
from cluster.telemetry import log

SUBMITTED_ADDRESS = "RAY_ADDRESS"
SUBMITTED_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by `ray job submit` for the driver that it runs."""
STORAGE_SETTINGS = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
)
"""What workers on other nodes must know of S3 like the driver. Never credentials: each node has its own."""
MIN_LOGICAL_CPUS = 8
OBJECT_STORE_BYTES = 512 * 2**20
_CONNECT_TIMEOUT_S = 10.0


@contextmanager
def ray_session(config: RayConfig) -> Iterator[None]:
    """Ray for the duration of the block; a session that is already there is used as it is.

    Ray's own chatter is silenced: progress is ours to show, and errors arrive as exceptions.

    Raises:
        ConfigError: the configured cluster does not answer.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    for name in ("ray.data", "ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    address = _cluster_address(config)
    if address:
        try:
            _check_reachable(address)
            ray.init(address=address, log_to_driver=False, runtime_env=_worker_environment())
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"no Ray cluster at {address}: {' '.join(str(error).split())[:200]}") from error
        try:
            yield
        finally:
            ray.shutdown()
        return
    folder = tempfile.mkdtemp(prefix="cibhash-ray-", dir="/tmp")  # socket paths must stay short
    try:
        with _own_settings():
            with muted_stderr():
                ray.init(
                    address="local",
                    num_cpus=config.num_cpus or max(MIN_LOGICAL_CPUS, os.cpu_count() or 1),
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=folder,
                )
            yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _worker_environment() -> dict[str, Any] | None:
    """A runtime environment with the driver's storage settings, without those that the submitted job gives itself.

    A private Ray needs none: its workers inherit the environment of this process.
    """
    job = json.loads(os.environ.get(SUBMITTED_JOB, "{}"))
    given = ((job.get("runtime_env") or {}).get("env_vars") or {}).keys()
    found = {name: os.environ[name] for name in STORAGE_SETTINGS if os.environ.get(name) and name not in given}
    for name, value in found.items():
        if redacted(value) != value:
            raise ConfigError(f"{name}: holds credentials, which must not travel with a job: {redacted(value)}")
    return {"env_vars": found} if found else None


def _check_reachable(address: str) -> None:
    """Connects to a `host:port` once: Ray itself tries a dead one for minutes.

    Raises:
        OSError: nobody answers.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()


@contextmanager
def _own_settings() -> Iterator[None]:
    """Token authentication with a token of this process, whatever the environment and home folder hold; quiet logs.

    Ray reads both settings when it is imported, which has happened by now: they are read again here.
    """
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",  # Serve replaces a dead proxy after three failures
        "OMP_WAIT_POLICY": "PASSIVE",  # with more logical than real CPUs, threads that spin starve each other
    }
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def muted_stderr() -> Iterator[None]:
    """Drops what Ray writes while it starts or stops Serve: announcements and false alarms; failures are exceptions."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def root_cause(error: BaseException) -> BaseException:
    """The project's own error inside what Ray raised, else the innermost cause.

    Ray's wrapper of an error is an instance of the error's class too, with a whole traceback for a message: what it
    wraps comes first.
    """
    seen: set[int] = set()
    queue, last = [error], error
    while queue:
        current = queue.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        last = current
        wrapped = getattr(current, "cause", None)
        if isinstance(current, CIBHashError) and not isinstance(wrapped, BaseException):
            return current
        failures = getattr(current, "worker_failures", None) or {}
        inner = [wrapped, current.__cause__, *failures.values()]
        queue.extend(item for item in inner if isinstance(item, BaseException))
    return last


def require_resources(config: RayConfig, setting: str, workers: int, *, cpus: float, gpus: float) -> None:
    """Refuses workers that a private Ray could never hold; on a cluster, which may still grow, says what is waited for.

    Raises:
        ConfigError: naming the setting, what it needs and what there is.
    """
    import ray

    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        have = total.get(name, 0.0)
        if workers * each > have:
            problem = f"{setting} {workers} needs {workers * each:g} {name}s, the Ray cluster has {have:g}"
            if not _cluster_address(config):
                raise ConfigError(problem)
            log(f"{problem} now: waiting for it to grow")


def require_gpu(config: RayConfig) -> None:
    """Refuses GPUs where a private Ray would be started on a machine without one; a cluster has machines of its own.

    Raises:
        ConfigError: there is no CUDA device.
    """
    import ray

    if not (_cluster_address(config) or ray.is_initialized()):
        from cibhash.device_codes import check_device

        check_device("cuda")


def _cluster_address(config: RayConfig) -> str:
    """Address of the cluster to join, empty for a private Ray."""
    return config.address or os.environ.get(SUBMITTED_ADDRESS, "")


def check_faiss() -> None:
    """Refuses to go on without exactly one FAISS distribution: pip does not see that they overwrite each other.

    Raises:
        ConfigError: none or both of faiss-cpu and faiss-gpu are installed.
    """
    found = [name for name in ("faiss-cpu", "faiss-gpu") if _version(name)]
    if len(found) == 2:
        raise ConfigError(
            "faiss-cpu and faiss-gpu are both installed and overwrite each other: uninstall both, then one"
        )
    if not found:
        raise ConfigError("no faiss is installed: pip install 'cibhash[cpu]' or 'cibhash[gpu]', exactly one")


def versions() -> dict[str, str]:
    """Versions of what decides results: this project, Python, torch, Ray, FAISS, NumPy, and whether CUDA is usable."""
    import torch

    names = (
        "torch",
        "torchvision",
        "timm",
        "ray",
        "faiss-cpu",
        "faiss-gpu",
        "numpy",
        "pillow",
        "pyarrow",
        "webdataset",
    )
    found = {name: version for name in names if (version := _version(name))}
    cuda = (torch.version.cuda or "yes") if torch.cuda.is_available() else "none"
    return {"cibhash": __version__, "python": platform.python_version(), **found, "cuda": cuda}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
