"""A service deployed anew while clients ask: nothing is dropped, and nobody hears of the wrong index.

What `serve deploy` does with a changed file, `serve.run` of the same application does here: Serve replaces all
replicas.
"""

import time

import pytest
from ray import serve as ray_serve

from cluster.client import SearchClient
from cluster.service.app import APP_NAME, build_app, running_service
from cluster.service_config import ServeConfig
from cluster.service_errors import RequestRejected, ServiceUnavailable
from tests.asking import Asking
from tests.patience import HANG_S
from tests.service_fixture import Corpus, free_port, make_corpus, make_index

pytestmark = pytest.mark.ray
_SMALLER = 60


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def replica_states() -> list[dict[str, int]]:
    deployments = ray_serve.status().applications[APP_NAME].deployments.values()
    return [{str(state): count for state, count in one.replica_states.items() if count} for one in deployments]


def deploy(config: ServeConfig) -> None:
    """Until the replicas of before are gone."""
    ray_serve.run(build_app(config), name=APP_NAME, route_prefix="/")
    deadline = time.monotonic() + HANG_S
    while any(states.keys() != {"RUNNING"} for states in replica_states()):
        assert time.monotonic() < deadline, replica_states()
        time.sleep(0.1)


def test_deployed_anew_no_request_is_dropped(corpus: Corpus, ray_local: None) -> None:
    """One replica of everything by another one, then that by two."""
    config = ServeConfig(index=make_index(corpus, 2), port=free_port(), shard_deadline_s=60.0)
    with running_service(config) as url, Asking(url, corpus, {"v000001": len(corpus.ids)}) as asking:
        asking.wait_for_more()
        for replicas, largest_k in ((1, 500), (2, 400)):
            deploy(config.model_copy(update={"replicas": replicas, "max_k": largest_k}))
            with pytest.raises(RequestRejected, match=f"k: 501, expected an integer from 1 to {largest_k}"):
                SearchClient(url, timeout_s=HANG_S).search_ids([0], k=501)
            asking.wait_for_more()
    asking.check_all_answered()


def test_another_index_in_fewer_slots_is_never_mixed_with_the_one_before(corpus: Corpus, ray_local: None) -> None:
    """Both indexes call their version v000001. Serve ends the third slot first: until all else is replaced, requests
    are refused."""
    before = make_index(corpus, 3, corpus.folder / "before")
    after = make_index(corpus, 2, corpus.folder / "after", count=_SMALLER)
    config = ServeConfig(index=before, port=free_port(), shard_deadline_s=5.0)  # what a refusal takes
    everything = {"v000001": len(corpus.ids)}
    with running_service(config) as url, Either(url, corpus, everything) as asking:
        asking.wait_for_more()
        deploy(config.model_copy(update={"index": after}))
        asking.wait_for_more(10)
        asking.sizes_seen.clear()
        asking.wait_for_more()
        assert asking.sizes_seen == {_SMALLER}
    assert not asking.wrong, asking.wrong[:3]
    assert all(one.told.startswith(ServiceUnavailable.__name__) for one in asking.refused)


class Either(Asking):
    """An answer is that of all samples or that of the first ones; keeps which."""

    def __init__(self, url: str, corpus: Corpus, counts: dict[str, int]) -> None:
        super().__init__(url, corpus, counts | {"fewer": _SMALLER})
        self.sizes_seen = set[int]()

    def is_right(self, found: list[tuple[int, int]], row: int, k: int, version: str) -> bool:
        sizes = {self._counts[name] for name in (version, "fewer") if found == self.expected(row, k, name)}
        if len(sizes) == 1:
            self.sizes_seen |= sizes
        return bool(sizes)
