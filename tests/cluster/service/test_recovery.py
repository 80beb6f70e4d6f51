"""Whatever process of the service dies is replaced; meanwhile answers are right, and refusals say that it is away."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
import ray

from cluster.service.app import APP_NAME, ENCODER_NAME, INGRESS_NAME, running_service
from cluster.service_config import ServeConfig
from cluster.service_errors import ServiceUnavailable
from tests.asking import Asking
from tests.patience import HANG_S
from tests.ray_processes import workers_of
from tests.service_fixture import Corpus, free_port, make_corpus, make_index

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def service(corpus: Corpus, ray_local: None) -> Iterator[str]:
    with running_service(ServeConfig(index=make_index(corpus, 2), port=free_port(), shard_deadline_s=60.0)) as url:
        yield url


def pids(title: str) -> set[int]:
    return workers_of(ray._private.worker._global_node.get_session_dir_path(), title.encode())


@pytest.mark.parametrize(
    ("title", "refuses"),
    [
        (f"ray::ServeReplica:{APP_NAME}:{ENCODER_NAME}", True),
        (f"ray::ServeReplica:{APP_NAME}:{INGRESS_NAME}", True),
        ("ray::ProxyActor", True),
        ("ray::ServeController", False),
    ],
)
def test_what_dies_is_replaced(service: str, corpus: Corpus, title: str, refuses: bool) -> None:
    """One replica of everything; without Serve's controller nothing is missing."""
    victim = min(pids(title))
    with Asking(service, corpus, {"v000001": len(corpus.ids)}) as asking:
        asking.wait_for_more(10)
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + HANG_S
        while not (now := pids(title)) or victim in now:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        asking.wait_until_recovered()
        asking.wait_for_more()
    assert not asking.wrong, asking.wrong[:3]
    assert refuses or not asking.refused, asking.refused[:3]
    assert all(one.told.startswith(ServiceUnavailable.__name__) for one in asking.refused)
