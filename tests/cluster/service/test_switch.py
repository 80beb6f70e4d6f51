"""While an index gets new versions and replicas hang or die, every answer is complete and comes from one version."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray import serve as ray_serve

from cluster.client import SearchClient
from cluster.config import ServeConfig
from cluster.index.versions import switch
from cluster.service.app import APP_NAME, running_service
from cluster.service.router import shard_name
from tests.asking import Asking
from tests.patience import HANG_S
from tests.service_fixture import Corpus, free_port, make_corpus, make_index

pytestmark = pytest.mark.ray
_SMALLER = 60
"""Samples of the second version."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def service(corpus: Corpus, ray_local: None) -> Iterator[str]:
    index = make_index(corpus, 2, corpus.folder / "index")
    config = ServeConfig(index=index, port=free_port(), replicas=2, shard_deadline_s=10.0, hedge_s=0.2, watch_s=0.3)
    with running_service(config) as url:
        yield url


def replica_pids(slot: int) -> set[int]:
    handle = ray_serve.get_deployment_handle(shard_name(slot), app_name=APP_NAME)
    return {int(handle.state.remote("v000001").result(timeout_s=HANG_S).pid) for _ in range(30)}


def test_a_new_version_is_taken_over_and_given_back_without_a_wrong_answer(service: str, corpus: Corpus) -> None:
    """The second has three shards for two slots, and fewer codes; the first is never unloaded."""
    index = str(corpus.folder / "index")
    with Asking(service, corpus, {"v000001": len(corpus.ids), "v000002": _SMALLER}) as asking:
        asking.wait_for("v000001")
        make_index(corpus, 3, Path(index), version="v000002", count=_SMALLER)
        asking.wait_for("v000002")
        switch(index, "v000001")
        asking.wait_for("v000001")
    asking.check_all_answered()


def test_a_version_that_cannot_be_loaded_is_not_served_and_told(service: str, corpus: Corpus) -> None:
    index = corpus.folder / "index"
    make_index(corpus, 2, index, version="v000003", count=_SMALLER)
    switch(str(index), "v000001")
    for file in (index / "v000003/data").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    client = SearchClient(service)
    with Asking(service, corpus, {"v000001": len(corpus.ids)}) as asking:
        switch(str(index), "v000003")
        deadline = time.monotonic() + HANG_S
        while "v000003" not in (pending := client.stats().pending):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "bytes, its manifest says" in pending or "sha256" in pending
        switch(str(index), "v000001")
        while client.stats().pending:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    asking.check_all_answered()
    shutil.rmtree(index / "v000003")


def test_a_replica_that_hangs_is_not_waited_for(service: str, corpus: Corpus) -> None:
    pids = replica_pids(0)
    assert len(pids) == 2
    hanging = min(pids)
    with Asking(service, corpus, {"v000001": len(corpus.ids)}) as asking:
        asking.wait_for("v000001")
        os.kill(hanging, signal.SIGSTOP)
        try:
            asking.wait_for_more()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(hanging, signal.SIGCONT)
    asking.check_all_answered()


def test_a_replica_that_dies_costs_no_answer(service: str, corpus: Corpus) -> None:
    with Asking(service, corpus, {"v000001": len(corpus.ids)}) as asking:
        asking.wait_for("v000001")
        os.kill(min(replica_pids(1)), signal.SIGKILL)
        asking.wait_for_more()
    asking.check_all_answered()
