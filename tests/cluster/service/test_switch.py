"""While an index gets new versions and replicas hang or die, every answer is complete and comes from one version."""

import contextlib
import json
import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray import serve as ray_serve

from cluster.client import SearchClient
from cluster.drift.drift import compare
from cluster.drift.findings import Side
from cluster.drift.left_beside import leave_beside
from cluster.drift.sample import Pairs
from cluster.drift_config import DriftConfig
from cluster.index.versions import switch
from cluster.service.app import APP_NAME, running_service
from cluster.service.router import shard_name
from cluster.service_config import ServeConfig
from cluster.service_errors import RequestRejected
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


def test_an_index_without_rows_is_asked_by_codes_and_ids(service: str, corpus: Corpus) -> None:
    index, client = corpus.folder / "index", SearchClient(service)
    make_index(corpus, 2, index, version="v000004", bare=True)
    wait_for_version(client, "v000004")
    assert client.stats().bare
    nearest = corpus.nearest(corpus.codes[[3]], 7)
    for answer in (client.search_hex([corpus.codes[3].tobytes().hex()], k=7), client.search_ids([corpus.ids[3]], k=7)):
        found = [(near.id, near.distance, near.key, near.labels) for near in answer.neighbors[0]]
        assert found == [
            (i, d, "", ()) for i, d in zip(nearest.ids[0].tolist(), nearest.distances[0].tolist(), strict=True)
        ]
    with pytest.raises(RequestRejected, match=r"keys: .* without rows \(--no-rows\), so it has no keys"):
        client.search_keys([corpus.samples[3].key], k=1)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{service}/image/{corpus.ids[3]}", timeout=HANG_S)
    with urllib.request.urlopen(f"{service}/random?n=5", timeout=HANG_S) as random:
        assert {image["key"] for image in json.load(random)["images"]} == {""}
    switch(str(index), "v000001")
    wait_for_version(client, "v000001")
    shutil.rmtree(index / "v000004")


def test_a_version_by_another_encoder_is_served_with_that_encoder(
    service: str, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Uploads are encoded by it, codes of the one before are refused where they say so, and the switch says what is
    known of the two."""
    index, other = str(corpus.folder / "index"), make_corpus(tmp_path_factory.mktemp("other"), encoder_seed=7)
    client = SearchClient(service, encoder_digest=corpus.encoder.digest)
    assert client.search_codes(corpus.codes[:3], k=4).ids.tolist() == corpus.nearest(corpus.codes[:3], 4).ids.tolist()
    for known in ("", "New codes may stand among old ones"):
        if known:
            sides = [
                Side(codes_uri="", digest="", encoder_digest=one.encoder.digest, encoder_uri="", only_here=0)
                for one in (corpus, other)
            ]
            config = DriftConfig(old="old", new="new", output="nowhere", k=5, tolerance=1.0)
            leave_beside(index, compare(Pairs(corpus.codes, other.codes, None, 0, 0), (sides[0], sides[1]), config))
        make_index(other, 2, Path(index), version="v000005" if known else "v000006")
        wait_for_version(client, "v000005" if known else "v000006")
        stats = client.stats()
        assert stats.encoder_digest == other.encoder.digest
        assert (known or "Nobody has compared them (`cibhash drift`)") in stats.change
        for row in (0, 1, 2):
            nearest = other.nearest(other.codes[[row]], 6)
            found = client.search_image(other.samples[row].image, k=6).neighbors[0]
            assert [(n.id, n.distance) for n in found] == list(
                zip(nearest.ids[0].tolist(), nearest.distances[0].tolist(), strict=True)
            )
        own, theirs = corpus.encoder.digest[:16], other.encoder.digest[:16]
        told = rf"encoder_digest: {own}\.\.\., this index is of encoder {theirs}\.\.\. \(409\)"
        for ask in (
            lambda: client.search_codes(corpus.codes[:3], k=4),
            lambda: client.search_hex([corpus.codes[0].tobytes().hex()], k=4),
        ):
            with pytest.raises(RequestRejected, match=told):
                ask()
        switch(index, "v000001")
        wait_for_version(client, "v000001")
        assert client.search_codes(corpus.codes[:3], k=4).ids[0, 0] == corpus.nearest(corpus.codes[:1], 1).ids[0, 0]


def wait_for_version(client: SearchClient, version: str) -> None:
    """Until all that answers HTTP has gone over to it."""
    deadline, last = time.monotonic() + HANG_S, [""] * 20
    while {*last} != {version}:
        assert time.monotonic() < deadline, client.stats().pending
        last = [*last[1:], client.stats().index_version]
        time.sleep(0.02)


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
