"""Ray sessions, the error that matters inside what Ray raises, and the check for one FAISS."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch

from cibhash.errors import ConfigError, CorruptShard, StorageError
from cluster.config import RayConfig
from cluster.runtime import (
    STORAGE_SETTINGS,
    SUBMITTED_JOB,
    _worker_environment,
    check_faiss,
    ray_session,
    require_gpu,
    require_resources,
    root_cause,
    versions,
)
from tests.patience import HANG_S


class _Wrapper(Exception):
    """As Ray's errors carry theirs."""

    def __init__(self, cause: BaseException | None = None, failures: dict[int, BaseException] | None = None) -> None:
        super().__init__("wrapped")
        self.cause = cause
        self.worker_failures = failures or {}


def test_the_projects_error_is_found_wherever_it_hides() -> None:
    ours = CorruptShard("a.tar: broken")
    chained = RuntimeError("outer")
    chained.__cause__ = _Wrapper(ours)
    workers = _Wrapper(failures={0: ConnectionError("peer"), 1: _Wrapper(ours)})
    for error in (ours, _Wrapper(ours), _Wrapper(_Wrapper(ours)), chained, workers):
        assert root_cause(error) is ours


def test_without_one_the_innermost_cause_is_given() -> None:
    inner = KeyError("x")
    assert root_cause(_Wrapper(_Wrapper(inner))) is inner
    assert root_cause(inner) is inner


def test_cycles_end() -> None:
    first, second = _Wrapper(), _Wrapper()
    first.cause, second.cause = second, first
    assert root_cause(first) in (first, second)


@pytest.mark.ray
def test_errors_of_tasks_and_actors_are_unwrapped(ray_local: None) -> None:
    import ray

    @ray.remote(num_cpus=0.1)
    def fail() -> None:
        raise StorageError("s3://bucket/a: access denied")

    @ray.remote(num_cpus=0.1)
    def nested() -> None:
        ray.get(fail.remote())

    @ray.remote(num_cpus=0.1)
    class Failing:
        def call(self) -> None:
            raise ValueError("k is 0, expected 1 or more")

    for task, kind, text in (
        (fail.remote, StorageError, "s3://bucket/a: access denied"),
        (nested.remote, StorageError, "s3://bucket/a: access denied"),
        (Failing.remote().call.remote, ValueError, "k is 0, expected 1 or more"),  # type: ignore[attr-defined]
    ):
        with pytest.raises(Exception) as caught:
            ray.get(task())
        cause = root_cause(caught.value)
        assert isinstance(cause, kind)
        assert str(cause) == text


@pytest.mark.ray
def test_a_session_that_is_there_is_used_and_kept(ray_local: None) -> None:
    import ray

    before = ray.get_runtime_context().get_node_id()
    with ray_session(RayConfig(num_cpus=3)):
        assert ray.get_runtime_context().get_node_id() == before
        assert ray.cluster_resources()["CPU"] == 16
    assert ray.is_initialized()


_OWN_SESSION = """
import os, sys
import ray
from cibhash.errors import ConfigError
from cluster.config import RayConfig
from cluster.runtime import ray_session
before = dict(os.environ)
with ray_session(RayConfig(num_cpus=3)):
    folder = ray._private.worker._global_node.get_session_dir_path()
    assert ray.cluster_resources()["CPU"] == 3
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42
assert not ray.is_initialized()
assert {k: v for k, v in os.environ.items() if k.startswith("RAY_AUTH")} == {
    k: v for k, v in before.items() if k.startswith("RAY_AUTH")}
assert not os.path.exists(os.path.dirname(folder)), folder
try:
    with ray_session(RayConfig(address="127.0.0.1:1")):
        sys.exit("joined")
except ConfigError as error:
    print(str(error).splitlines())
"""


@pytest.mark.ray
def test_an_own_session_ends_with_its_block_and_leaves_nothing() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", _OWN_SESSION], capture_output=True, text=True, timeout=HANG_S, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("no Ray cluster at 127.0.0.1:1") == 1


def test_workers_elsewhere_are_told_the_storage_settings_but_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in STORAGE_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(SUBMITTED_JOB, raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert _worker_environment() is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert _worker_environment() == {
        "env_vars": {"AWS_ENDPOINT_URL": "http://store:9000", "AWS_REGION": "eu-central-1"}
    }
    monkeypatch.setenv(SUBMITTED_JOB, '{"runtime_env": {"env_vars": {"AWS_REGION": "eu-central-1"}}, "metadata": {}}')
    assert _worker_environment() == {"env_vars": {"AWS_ENDPOINT_URL": "http://store:9000"}}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:secret@store:9000")
    with pytest.raises(ConfigError, match=r"AWS_ENDPOINT_URL: holds credentials") as caught:
        _worker_environment()
    assert "secret" not in str(caught.value)


def _with_distributions(folder: Path, *names: str) -> str:
    """Runs the check where these distributions are installed and no other FAISS is seen."""
    for name in names:
        info = folder / f"{name.replace('-', '_')}-1.15.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.15.1\n")
    code = (
        "import sys\n"
        "from importlib import metadata\n"
        "from cibhash.errors import ConfigError\n"
        "from cluster import runtime\n"
        "sys.path[:] = sys.argv[1:]\n"
        "try:\n    runtime.check_faiss()\n    print('fine')\n"
        "except ConfigError as error:\n    print(error.exit_code, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_exactly_one_faiss_is_needed(tmp_path: Path) -> None:
    assert _with_distributions(tmp_path / "cpu", "faiss-cpu") == "fine"
    assert _with_distributions(tmp_path / "gpu", "faiss-gpu") == "fine"
    both = _with_distributions(tmp_path / "both", "faiss-cpu", "faiss-gpu")
    assert both.startswith("2 ")
    assert "faiss-cpu and faiss-gpu are both installed" in both
    none = _with_distributions(tmp_path / "none")
    assert none.startswith("2 ")
    assert "cibhash[cpu]" in none
    assert "cibhash[gpu]" in none


def test_this_environment_has_one_faiss_and_known_versions() -> None:
    check_faiss()
    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"cibhash", "torch", "ray", "numpy", "cuda"} <= found.keys()
    assert isinstance(ConfigError("x"), Exception)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpus_are_refused_before_a_private_ray_starts_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may have left one running
    with pytest.raises(ConfigError, match=r"^no CUDA device: "):
        require_gpu(RayConfig())
    require_gpu(RayConfig(address="10.0.0.1:6379"))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    require_gpu(RayConfig())


@pytest.mark.ray
def test_workers_that_a_private_ray_cannot_hold_are_refused(ray_local: None, capfd: pytest.CaptureFixture[str]) -> None:
    require_resources(RayConfig(), "num_workers", 16, cpus=1.0, gpus=0.0)
    with pytest.raises(ConfigError, match=r"^num_workers 17 needs 17 CPUs, the Ray cluster has 16$"):
        require_resources(RayConfig(), "num_workers", 17, cpus=1.0, gpus=0.0)
    with pytest.raises(ConfigError, match=r"^num_workers 1 needs 1 GPUs, the Ray cluster has 0$"):
        require_resources(RayConfig(), "num_workers", 1, cpus=1.0, gpus=1.0)
    require_resources(RayConfig(address="10.0.0.1:6379"), "num_workers", 17, cpus=1.0, gpus=0.0)
    assert "waiting for it to grow" in capfd.readouterr().err
