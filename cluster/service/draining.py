"""Lets the requests that are under way finish before Serve ends: its shutdown would cut the connections first.

Knows nothing of what the requests are. Serve offers no call to all replicas of a deployment, so the replicas that
answer HTTP are asked by the handle, which picks one at a time, until all of them have been heard.
"""

import time
from typing import Any, NamedTuple

from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.telemetry import log

PASS_ON_S = 0.5
"""What Serve's proxies are given to pass on the last answers."""
_ASK_PAUSE_S, _ANSWER_S = 0.05, 5.0


class Draining(NamedTuple):
    """A replica that lets nobody in any more."""

    replica: str
    in_flight: int
    """Requests that it still answers."""


def drain(app: str, ingress: str, longest_s: float) -> None:
    """Has every replica of the ingress refuse new requests, and waits until those under way are answered.

    Args:
        app: The application.
        ingress: The deployment that answers HTTP; its `drain` returns a `Draining`.
        longest_s: Requests that take longer are given up.
    """
    handle: DeploymentHandle[Any] = ray_serve.get_deployment_handle(ingress, app_name=app)
    until, left = time.monotonic() + longest_s, dict[str, int]()
    while time.monotonic() < until:
        try:
            heard: Draining = handle.drain.remote().result(timeout_s=_ANSWER_S)
            left[heard.replica] = heard.in_flight
            if len(left) >= _replicas(app, ingress) and not any(left.values()):
                time.sleep(PASS_ON_S)
                return
        except (RayError, RayServeException, TimeoutError):
            left.clear()  # a replica that is gone keeps nobody waiting
        time.sleep(_ASK_PAUSE_S)
    log(f"{sum(left.values())} requests are given up: not answered within {longest_s:.0f} s")


def _replicas(app: str, ingress: str) -> int:
    states = ray_serve.status().applications[app].deployments[ingress].replica_states
    return sum(count for state, count in states.items() if str(state) == "RUNNING")
