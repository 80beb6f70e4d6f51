"""An S3 emulator (moto) on loopback, and an environment in which boto3 finds it."""

import functools
import logging
import urllib.request
from collections.abc import Iterator

import pytest
from moto.server import ThreadedMotoServer

from cluster import s3_client

BUCKET = "cibhash-test"


@functools.cache
def server_url() -> str:
    """The emulator of this process; it ends with it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


def use_endpoint(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the client of this process talk to `url`; one that does already is kept, for making one takes a second."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    if s3_client.client().meta.endpoint_url != url:
        s3_client.forget_client()


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """URI of an empty bucket."""
    url = server_url()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    if "faulty_store" not in request.fixturenames:  # which will choose its own
        use_endpoint(url, monkeypatch)
    _ask(f"{url}/{BUCKET}", "PUT")
    try:
        yield f"s3://{BUCKET}"
    finally:
        _ask(f"{url}/moto-api/reset", "POST")


@pytest.fixture
def own_client() -> Iterator[None]:
    """For a test that changes what the client is made of: no test after it gets that client."""
    yield
    s3_client.forget_client()


def _ask(url: str, method: str) -> None:
    urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30).close()
