"""Faults while the service is asked without a pause: wrong and unflagged answers, refusals, and how long each one cost.

    python tests/benchmarks/service_faults.py [--replicas 2] [--clients 4] [--rounds 3]

Faults in turn: SIGKILL of a shard's replica, of the query encoder and of the ingress, a replica stopped for 3 s, a new
version of the index, and back. Every answer is held against brute force over the version that it names. `refused` are
requests that ended with an error instead of an answer, `worst_s` is the longest time without any answer, `recovered_s`
the time from the fault to the last refusal. A wrong or unflagged answer ends the script with exit code 1.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import ray
from ray import serve as ray_serve

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.errors import CIBHashError
from cluster.client import SearchClient
from cluster.config import RayConfig, ServeConfig
from cluster.index.versions import switch
from cluster.service.app import APP_NAME, ENCODER_NAME, INGRESS_NAME, running_service
from cluster.service.router import shard_name
from tests.benchmarks import measuring
from tests.ray_processes import workers_of
from tests.service_fixture import Corpus, free_port, make_corpus, make_index

_SMALLER = 60
_CALM_S, _STOPPED_S = 4.0, 3.0


class Asking:
    """Clients that ask without a pause, and keep when they were answered, refused or told something wrong."""

    def __init__(self, url: str, corpus: Corpus, clients: int) -> None:
        self._url, self._corpus = url, corpus
        self.answered: list[float] = []
        self.refused: list[float] = []
        self.wrong: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,), daemon=True) for seed in range(clients)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, seed: int) -> None:
        client, draws = SearchClient(self._url, retries=0, timeout_s=20.0), np.random.default_rng(seed)
        counts = {"v000001": len(self._corpus.ids), "v000002": _SMALLER}
        while not self._over.is_set():
            row, k = int(draws.integers(_SMALLER)), int(draws.integers(1, 60))
            try:
                answer = client.search_ids([self._corpus.ids[row]], k=k)
            except CIBHashError:
                self.refused.append(time.monotonic())
                continue
            self.answered.append(time.monotonic())
            ids = set(self._corpus.ids[: counts[answer.index_version]])
            nearest = self._corpus.nearest(self._corpus.codes[[row]], len(self._corpus.ids))
            known = zip(nearest.ids[0].tolist(), nearest.distances[0].tolist(), strict=True)
            expected = [pair for pair in known if pair[0] in ids][:k]
            if answer.partial or [(near.id, near.distance) for near in answer.neighbors[0]] != expected:
                self.wrong.append(f"row {row}, k {k}: {answer}")


def main() -> None:
    """Strikes, waits, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cibhash-faults-") as name:
        corpus = make_corpus(Path(name), 90)
        index = make_index(corpus, 2, Path(name, "index"))
        make_index(corpus, 3, Path(index), version="v000002", count=_SMALLER)
        switch(index, "v000001")
        faults: dict[str, Callable[[], object]] = {
            "shard replica killed": lambda: os.kill(_replica(0), signal.SIGKILL),
            "shard replica stopped for 3 s": lambda: _stop(_replica(1)),
            "encoder killed": lambda: _kill(f"ray::ServeReplica:{APP_NAME}:{ENCODER_NAME}"),
            "ingress killed": lambda: _kill(f"ray::ServeReplica:{APP_NAME}:{INGRESS_NAME}"),
            "new version": lambda: switch(index, "v000002"),
            "back": lambda: switch(index, "v000001"),
        }
        config = ServeConfig(
            index=index,
            port=free_port(),
            replicas=options.replicas,
            hedge_s=0.2,
            watch_s=0.5,
            ray=RayConfig(num_cpus=8),
        )
        with running_service(config) as url:
            asking = Asking(url, corpus, options.clients)
            time.sleep(_CALM_S)
            rows = [
                {"fault": fault, **_struck(asking, strike)}
                for _ in range(options.rounds)
                for fault, strike in faults.items()
            ]
            asking.end()
    for row in rows:
        print("  ".join(f"{key} {value:.2f}" if isinstance(value, float) else str(value) for key, value in row.items()))
    record = {"answers": len(asking.answered), "wrong": len(asking.wrong), "replicas": options.replicas, "rows": rows}
    print(json.dumps({"benchmark": "service_faults", **record, "machine": measuring.machine()}))
    if asking.wrong:
        raise SystemExit(asking.wrong[0])


def _struck(asking: Asking, strike: Callable[[], object]) -> measuring.Row:
    begun = time.monotonic()
    strike()
    while not _calm(asking, begun):
        time.sleep(0.1)
    ended = time.monotonic()
    refused = [at for at in asking.refused if begun < at < ended]
    answered = [begun, *(at for at in sorted(asking.answered) if begun < at < ended)]
    return {
        "answered": len(answered) - 1,
        "refused": len(refused),
        "worst_s": float(np.diff(answered).max(initial=0.0)),
        "recovered_s": max(refused, default=begun) - begun,
    }


def _calm(asking: Asking, begun: float) -> bool:
    """Whether all has been well for a while since then."""
    since = time.monotonic() - _CALM_S
    lately = [at for at in asking.answered[-200:] if at > since]
    return since > begun and len(lately) > 10 and not any(at > since for at in asking.refused[-1:])


def _replica(slot: int) -> int:
    handle = ray_serve.get_deployment_handle(shard_name(slot), app_name=APP_NAME)
    return int(handle.state.remote("v000001").result(timeout_s=60).pid)


def _kill(title: str) -> None:
    session = ray._private.worker._global_node.get_session_dir_path()
    os.kill(min(workers_of(session, title.encode())), signal.SIGKILL)


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(_STOPPED_S, lambda: os.kill(pid, signal.SIGCONT)).start()


if __name__ == "__main__":
    main()
