"""`ray job submit` against a local head with token authentication: training and encoding, as on a cluster."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from cibhash.shards import SourceImage, write_shard
from cluster.code_versions import open_codes
from cluster.encoders import encoder_info
from cluster.manifests import DatasetManifest, create_manifest
from tests.patience import HANG_S

REPOSITORY = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
RECIPE = {
    "bits": [16, 32],
    "backbone": {"name": "convnet-small", "weights": "none", "image_size": 32, "train_from": "all"},
    "epochs": 2,
    "batch_size": 16,
}

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Head:
    """A running head: where its dashboard listens, and the environment that may talk to it."""

    url: str
    env: dict[str, str]

    @property
    def token(self) -> str:
        return Path(self.env["RAY_AUTH_TOKEN_PATH"]).read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return port if not 10002 <= port <= 19999 else free_port()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """The project's own start script with its own home, folder, ports and token; ended by its process group."""
    folder = tempfile.mkdtemp(prefix="cibhash-head-", dir="/tmp")
    ports = {name: str(free_port()) for name in ("PORT", "DASHBOARD_PORT", "AGENT_PORT", "CLIENT_PORT")}
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"HOME": folder, "NUM_CPUS": "16", **ports, "PATH": f"{RAY.parent}:{env['PATH']}"}
    token_path = Path(folder, "token")
    command = [str(REPOSITORY / "infra" / "local-head.sh"), folder]
    log_path = Path(folder, "start.log")
    with open(log_path, "wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_path)}
    running = Head(f"http://127.0.0.1:{ports['DASHBOARD_PORT']}", env)
    try:
        deadline = time.monotonic() + HANG_S
        trivial = json.dumps({"entrypoint": "true"}).encode()
        while (
            not token_path.exists() or status(running, "/api/jobs/", running.token, trivial) != 200
        ):  # 500: no agent yet
            assert process.poll() is None, log_path.read_text()
            assert time.monotonic() < deadline, log_path.read_text()
            time.sleep(0.5)
        yield running
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=HANG_S)
        shutil.rmtree(folder, ignore_errors=True)


def status(head: Head, path: str, token: str = "", data: bytes | None = None) -> int:
    """The HTTP status of a request to the dashboard, 0 if it does not listen yet."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(head.url + path, headers=headers | {"Content-Type": "application/json"}, data=data)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def submit(head: Head, *entrypoint: str) -> tuple[int, str]:
    """Runs `ray job submit` from the repository as the README says; gives exit code and output."""
    command = [str(RAY), "job", "submit", "--address", head.url, "--working-dir", ".", "--", *entrypoint]
    done = subprocess.run(command, cwd=REPOSITORY, env=head.env, capture_output=True, text=True, timeout=HANG_S)
    return done.returncode, done.stdout + done.stderr


def job_line(output: str) -> dict[str, object]:
    """The job's JSON line among what `ray job submit` prints."""
    lines = [line for line in output.splitlines() if line.startswith('{"job"')]
    assert lines, output
    content: dict[str, object] = json.loads(lines[-1])
    return content


_SHOW_SETTINGS = """
import os
os.environ["AWS_ENDPOINT_URL"], os.environ["AWS_SECRET_ACCESS_KEY"] = "http://store:9000", "of-the-driver"
import ray
from cluster.config import RayConfig
from cluster.runtime import ray_session
with ray_session(RayConfig()):
    names = ("AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY")
    print("seen", ray.get(ray.remote(lambda: [os.environ.get(name) for name in names]).remote()))
"""


def test_workers_of_a_cluster_get_the_drivers_storage_settings(head: Head, tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(_SHOW_SETTINGS)
    code, output = submit(head, "python", str(tmp_path / "show.py"))
    assert code == 0, output
    assert "seen ['http://store:9000', None]" in output


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dataset")
    generator, samples = np.random.default_rng(0), []
    for number in range(40):
        stream = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "PNG")
        samples.append(SourceImage(f"image-{number}", "png", stream.getvalue(), (number % 4,)))
    shards = [
        write_shard(folder / f"shard-{n:06d}.tar", f"shard-{n:06d}.tar", samples[n * 20 : n * 20 + 20], n * 20)
        for n in range(2)
    ]
    create_manifest(str(folder), DatasetManifest(name="noise", split="train", shards=tuple(shards)))
    return str(folder)


def test_jobs_without_the_token_are_refused(head: Head) -> None:
    body = json.dumps({"entrypoint": "true"}).encode()
    assert status(head, "/api/jobs/", data=body) == 401
    assert status(head, "/api/jobs/", token="0" * 64, data=body) == 403
    assert status(head, "/api/jobs/", token=head.token) == 200


def test_train_and_encode_by_submission(head: Head, dataset: str, tmp_path: Path) -> None:
    recipe, encoder, codes = tmp_path / "recipe.yaml", str(tmp_path / "encoder"), str(tmp_path / "codes")
    recipe.write_text(yaml.safe_dump(RECIPE))
    python = (sys.executable, "-m")

    code, output = submit(
        head, *python, "jobs.train", str(recipe), "--dataset", dataset, "--output", encoder, "--num-workers", "2"
    )
    assert code == 0, output
    trained = job_line(output)
    assert (trained["status"], trained["bits"]) == ("ok", [16, 32])
    assert encoder_info(encoder).digest == trained["encoder_digest"]

    code, output = submit(head, *python, "jobs.encode", "--encoder", encoder, "--dataset", dataset, "--output", codes)
    assert code == 0, output
    table = open_codes(codes)
    assert (table.rows_out, table.encoder_digest) == (40, trained["encoder_digest"])
    assert json.loads(Path(codes, "run_report.json").read_text())["status"] == "ok"


def test_a_relative_output_is_refused(head: Head, dataset: str) -> None:
    code, output = submit(
        head,
        sys.executable,
        "-m",
        "jobs.encode",
        "--encoder",
        "nowhere",
        "--dataset",
        dataset,
        "--output",
        "runs/codes",
    )
    assert code == 1
    assert job_line(output)["exit_code"] == 2
    assert "'runs/codes': relative" in str(job_line(output)["error"])


def test_a_failing_job_reports_its_exit_code(head: Head, dataset: str, tmp_path: Path) -> None:
    output_uri = str(tmp_path / "codes")
    code, output = submit(
        head, sys.executable, "-m", "jobs.encode", "--encoder", "nowhere", "--dataset", dataset, "--output", output_uri
    )
    assert code == 1, "ray job submit flattens exit codes"
    assert job_line(output)["exit_code"] == 4
    report = json.loads(Path(output_uri, "run_report.json").read_text())
    assert (report["exit_code"], report["status"]) == (4, "error")
    assert "nowhere" in report["error"]
