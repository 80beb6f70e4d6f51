"""Faults while the service is asked without a pause: wrong and unflagged answers, refusals, and how long each one cost.

    python tests/benchmarks/service_faults.py [--replicas 2] [--clients 4] [--rounds 3] [--faults NAME ...]

Faults in turn: SIGKILL of a shard's replica, of the query encoder, of the ingress, of Serve's proxy and of its
controller; a shard's replica and an ingress stopped for 3 s; a new version of the index, and back; the application
deployed anew. Every answer is held against brute force over the version that it names; a fifth of the queries are
images. `refused` are requests that ended with an error instead of an answer, `worst_s` is the longest time without any
answer, `recovered_s` the time from the fault to the end of the last refusal (0: none refused), `healed_s` that until as
many replicas answer as before, without the one that was struck (or until the switch is made). The table has the
median over the rounds and the worst of the times, and the sum of requests; the JSON line has every round too. A wrong
or unflagged answer ends the script with exit code 1. The head's node is not struck: without its GCS there is no cluster
left on one machine.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import ray
from ray import serve as ray_serve

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cluster.client import SearchClient
from cluster.config import RayConfig
from cluster.index.versions import switch
from cluster.service.app import APP_NAME, ENCODER_NAME, INGRESS_NAME, build_app, running_service
from cluster.service.router import shard_name
from cluster.service_config import ServeConfig
from tests.asking import Asking
from tests.benchmarks import measuring
from tests.ray_processes import workers_of
from tests.service_fixture import free_port, make_corpus, make_index

_SMALLER = 60
_CALM_S, _STOPPED_S, _LOST_S = 4.0, 3.0, 300.0
_REPLICA = f"ray::ServeReplica:{APP_NAME}:"


class Fault(NamedTuple):
    """What is done to the service, and when it has healed."""

    strike: Callable[[], object]
    healed: Callable[[], bool]


def main() -> None:
    """Strikes, waits, prints."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="cibhash-faults-") as name:
        corpus = make_corpus(Path(name), 90)
        index = make_index(corpus, 2, Path(name, "index"))
        make_index(corpus, 3, Path(index), version="v000002", count=_SMALLER)
        switch(index, "v000001")
        config = ServeConfig(
            index=index,
            port=free_port(),
            replicas=options.replicas,
            hedge_s=0.2,
            watch_s=0.5,
            ray=RayConfig(num_cpus=8),
        )
        counts = {"v000001": len(corpus.ids), "v000002": _SMALLER}
        with running_service(config) as url, Asking(url, corpus, counts, options.clients) as asking:
            faults = _faults(config, index, url)
            time.sleep(_CALM_S)
            rounds = {
                fault: [_struck(asking, faults[fault]()) for _ in range(options.rounds)]
                for fault in options.faults or faults
            }
    checks = {"answers": len(asking.answered), "wrong": len(asking.wrong)}
    rows = [{"fault": fault, **_median(each)} for fault, each in rounds.items()]
    measuring.report("service_faults", options, checks, rows, each_round=rounds)
    if asking.wrong:
        raise SystemExit(asking.wrong[0])


def _options() -> argparse.Namespace:
    parser = measuring.parser(__doc__, one_process=False)
    parser.set_defaults(rounds=3)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--faults", nargs="+", default=[], help="only these, by the table's names")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.faults = 1, ["shard replica killed"]
    return options


def _faults(config: ServeConfig, index: str, url: str) -> dict[str, Callable[[], Fault]]:
    """By name; each is made when it is its turn, for it looks at the processes of that moment."""
    client = SearchClient(url, timeout_s=_LOST_S)

    def switched(version: str) -> Callable[[], Fault]:
        return lambda: Fault(lambda: switch(index, version), lambda: client.stats().index_version == version)

    def there_and_back() -> Fault:
        there = client.stats().index_version == "v000001"
        return switched("v000002" if there else "v000001")()

    def deployed_anew() -> Fault:
        def strike() -> None:
            ray_serve.run(build_app(config), name=APP_NAME, route_prefix="/")

        return Fault(strike, _all_run)

    return {
        "shard replica killed": lambda: _killed(_REPLICA + shard_name(0)),
        "shard replica stopped for 3 s": lambda: _stopped(_REPLICA + shard_name(1)),
        "encoder killed": lambda: _killed(_REPLICA + ENCODER_NAME),
        "ingress killed": lambda: _killed(_REPLICA + INGRESS_NAME),
        "ingress stopped for 3 s": lambda: _stopped(_REPLICA + INGRESS_NAME),
        "Serve's proxy killed": lambda: _killed("ray::ProxyActor"),
        "Serve's controller killed": lambda: _killed("ray::ServeController"),
        "another version": there_and_back,
        "deployed anew": deployed_anew,
    }


def _struck(asking: Asking, fault: Fault) -> measuring.Row:
    begun = time.monotonic()
    fault.strike()
    healed = 0.0
    while not healed or not _calm(asking, begun):
        measuring.require(time.monotonic() < begun + _LOST_S, "the service recovers")
        if not healed and fault.healed():
            healed = time.monotonic() - begun
        time.sleep(0.1)
    ended = time.monotonic()
    refused = [one.ended_s for one in asking.refused if begun < one.ended_s < ended]
    answered = [begun, *sorted(one.ended_s for one in asking.answered if begun < one.ended_s < ended)]
    return {
        "answered": len(answered) - 1,
        "refused": len(refused),
        "worst_s": float(np.diff(answered).max(initial=0.0)),
        "recovered_s": max(refused, default=begun) - begun,
        "healed_s": healed,
    }


def _median(each: list[measuring.Row]) -> measuring.Row:
    """Requests summed up, times as the median and the worst of the rounds."""
    row: measuring.Row = {name: sum(one[name] for one in each) for name in ("answered", "refused")}
    for name in ("worst_s", "recovered_s", "healed_s"):
        row |= {name: statistics.median(one[name] for one in each), f"{name}_max": max(one[name] for one in each)}
    return row


def _calm(asking: Asking, begun: float) -> bool:
    """Whether all has been well for a while since then."""
    since = time.monotonic() - _CALM_S
    lately = [one for one in asking.answered[-200:] if one.ended_s > since]
    return since > begun and len(lately) > 10 and not any(one.ended_s > since for one in asking.refused[-1:])


def _killed(title: str) -> Fault:
    before = _pids(title)
    victim = min(before)

    def healed() -> bool:
        now = _pids(title)
        return victim not in now and len(now) >= len(before) and _all_run()

    return Fault(lambda: os.kill(victim, signal.SIGKILL), healed)


def _stopped(title: str) -> Fault:
    pid = min(_pids(title))

    def strike() -> None:
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(_STOPPED_S, lambda: os.kill(pid, signal.SIGCONT)).start()

    return Fault(strike, lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T")


def _all_run() -> bool:
    """Whether Serve says so of everything."""
    try:
        deployments = ray_serve.status().applications[APP_NAME].deployments.values()
    except (ray.exceptions.RayError, KeyError):  # its controller is away
        return False
    return all(
        one.status == "HEALTHY" and {str(state) for state, count in one.replica_states.items() if count} == {"RUNNING"}
        for one in deployments
    )


def _pids(title: str) -> set[int]:
    session = ray._private.worker._global_node.get_session_dir_path()
    return workers_of(session, title.encode())


if __name__ == "__main__":
    main()
