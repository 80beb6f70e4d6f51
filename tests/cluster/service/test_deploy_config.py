"""The Serve config file of `infra/` is valid, and what it deploys answers: through Serve's own command."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from cibhash.errors import ConfigError, NotFound
from cluster.client import SearchClient
from cluster.service.app import ENCODER_NAME, INGRESS_NAME, deployed_app
from cluster.service_config import ServeConfig
from cluster.service_errors import RequestRejected, ServiceUnavailable
from tests.patience import HANG_S
from tests.service_fixture import free_port, make_corpus, make_index

FILE = Path(__file__).parents[3] / "infra/serve.yaml"
TOKEN = "the-secret-of-the-file"


def content() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def test_the_file_is_valid_for_serve_and_for_the_service() -> None:
    schema = ServeDeploySchema.model_validate(content())
    (application,) = schema.applications
    assert application.import_path == "cluster.service.app:deployed_app"
    config = ServeConfig.model_validate(application.args)
    assert config.token_file
    assert {deployment.name for deployment in application.deployments} == {ENCODER_NAME, INGRESS_NAME}


def test_without_tokens_nothing_is_deployed() -> None:
    with pytest.raises(ConfigError, match=r"^token_file: needed"):
        deployed_app(ServeConfig(index="nowhere"))


@pytest.mark.ray
def test_the_file_deployed_answers_to_its_token_alone(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 12)
    (tmp_path / "tokens").write_text(f"{TOKEN}\n")
    document, port = content(), free_port()
    document["http_options"] |= {"host": "127.0.0.1", "port": port}
    document["applications"][0]["args"] |= {
        "index": make_index(corpus, 2), "token_file": str(tmp_path / "tokens"), "slots": 2, "replicas": 1,
    }  # fmt: skip
    for deployment in document["applications"][0]["deployments"]:
        deployment |= {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.25}}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(document))

    log = open(tmp_path / "log", "w")  # noqa: SIM115
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "--app-dir", str(FILE.parents[1]), "serve.yaml"]
    short = tempfile.mkdtemp(prefix="cibhash-ray-", dir="/tmp")  # Ray's sockets lie below it
    environment = {**os.environ, "RAY_TMPDIR": short, "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    running = subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )
    try:
        client, deadline = SearchClient(f"http://127.0.0.1:{port}", TOKEN, retries=0), time.monotonic() + HANG_S
        while True:
            assert running.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            try:
                found = client.search_codes(corpus.codes, k=3)
                break
            except (ServiceUnavailable, NotFound):  # no route yet
                time.sleep(0.5)
        assert found.ids.tolist() == corpus.nearest(corpus.codes, 3).ids.tolist()
        with pytest.raises(RequestRejected, match="a valid bearer token is needed"):
            SearchClient(f"http://127.0.0.1:{port}", "another").search_codes(corpus.codes, k=3)
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(HANG_S)
        log.close()
        shutil.rmtree(short, ignore_errors=True)
