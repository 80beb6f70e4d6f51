"""Serves an index with Ray Serve: a deployment per shard, a query encoder, and the HTTP ingress.

Knows nothing of routes and answers. What is served is the version that `CURRENT` names; another one is loaded beside it
and taken over without a pause (`current_router`, `loaded_versions`). A Serve config file names
`cluster.service.app:deployed_app`.
"""

import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.exceptions import RayTaskError
from ray.serve.config import BackpressureConfig
from ray.serve.handle import DeploymentHandle

from cibhash.errors import ConfigError
from cluster import storage
from cluster.encoders import encoder_info
from cluster.index.versions import open_index
from cluster.manifests import IndexManifest, same_encoder
from cluster.runtime import check_faiss, muted_stderr, ray_session, require_gpu, require_resources, root_cause
from cluster.service.admission import WAITING_PER_TURN, Admission
from cluster.service.current_router import CurrentRouter
from cluster.service.draining import Draining, drain
from cluster.service.http_api import build_api
from cluster.service.http_guard import RETRY_AFTER_S, UPLOAD_DEADLINE_S, token_digests
from cluster.service.query_encoder import EncoderRef, QueryEncoder
from cluster.service.router import ENCODE_DEADLINE_S, Router, shard_name
from cluster.service.shard_replica import ShardReplica
from cluster.service_config import ServeConfig
from cluster.telemetry import log

APP_NAME = "cibhash"
ENCODER_NAME = "QueryEncoder"
INGRESS_NAME = "Ingress"
REQUEST_TIMEOUT_S = 120.0
LOAD_TIMEOUT_S = 120.0
_REFUSED_AT_A_TIME, _QUEUED = 64, 256
"""Requests beyond those that wait that the ingress takes only to refuse them, and those that Serve keeps for that."""
_CPUS = {"num_cpus": 0.25}
"""Logical CPUs of a replica, small enough for a laptop; a Serve config file sets `ray_actor_options` per deployment."""
_REPLICA: dict[str, Any] = {
    "ray_actor_options": _CPUS,
    "health_check_period_s": 2.0,
    "health_check_timeout_s": 10.0,
    "max_surge_percent": 1,
}
"""Deployed anew, a replica goes on until its successor answers: one more at a time (the percentage is rounded up)."""
_GRACE_S = 5.0


class Ingress:
    """The deployment that answers HTTP; `serve.ingress` asks it for its application."""

    def __init__(
        self,
        config: ServeConfig,
        index_uri: str,
        manifest: IndexManifest,
        digests: tuple[str, ...],
        encoder_uri: str,
        encoder: DeploymentHandle[Any],
        *slots: DeploymentHandle[Any],
    ) -> None:
        self._config, self._digests = config, digests
        self._admission = Admission(config.max_in_flight, config.max_wait_s)
        hedge_s = config.hedge_s if config.replicas > 1 else None
        router = Router(index_uri, manifest, slots, encoder, config.shard_deadline_s, hedge_s, encoder_uri)
        self._current = CurrentRouter(index_uri, router, config.watch_s)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The HTTP interface over this replica's router."""
        return build_api(self._current, self._config, self._digests, self._admission)

    async def drain(self) -> Draining:
        """Lets nobody in any more; those who are in go on."""
        self._admission.close()
        return Draining(ray_serve.get_replica_context().replica_id.unique_id, self._admission.in_flight)


def build_app(config: ServeConfig) -> ray_serve.Application:
    """The Serve application for the current version of an index.

    Raises:
        NotFound: no index or no encoder at the given place.
        ManifestMismatch: the encoder is not the one that made the index; names both digests.
        ConfigError: the token file holds no tokens, or shards cannot be searched on GPUs.
    """
    check_faiss()
    index = open_index(storage.absolute(config.index))
    manifest = index.manifest
    check_gpu(config, manifest)
    wanted = _encoder_ref(config, manifest)
    same_encoder((config.index, manifest.encoder_digest), (wanted.uri, encoder_info(wanted.uri).digest))
    digests = token_digests(config.token_file) if config.token_file else ()

    shard = ray_serve.deployment(
        num_replicas=config.replicas,
        max_ongoing_requests=16,
        graceful_shutdown_timeout_s=config.shard_deadline_s + _GRACE_S,
        **_REPLICA,
    )(ShardReplica)
    if config.use_gpu:
        gpus = _CPUS | {"num_gpus": config.num_gpus}
        shard = shard.options(ray_actor_options=gpus, max_surge_percent=0)  # a GPU more may not be there
    num_slots = config.slots or len(manifest.shards)
    slots = [
        shard.options(name=shard_name(slot)).bind(
            index.uri, slot, num_slots, manifest.version, config.watch_s, config.device
        )
        for slot in range(num_slots)
    ]
    encoder = ray_serve.deployment(
        name=ENCODER_NAME,
        num_replicas=config.replicas,
        max_ongoing_requests=64,
        graceful_shutdown_timeout_s=ENCODE_DEADLINE_S + _GRACE_S,
        **_REPLICA,
    )(QueryEncoder)
    ingress = ray_serve.deployment(
        name=INGRESS_NAME,
        num_replicas=config.replicas,
        max_ongoing_requests=config.max_in_flight * (1 + WAITING_PER_TURN) + _REFUSED_AT_A_TIME,
        max_queued_requests=_QUEUED,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER_S),
        graceful_shutdown_timeout_s=_longest_s(config),
        **_REPLICA,
    )(ray_serve.ingress()(Ingress))
    app: ray_serve.Application = ingress.bind(
        config, index.uri, manifest, digests, wanted.uri, encoder.bind(wanted), *slots
    )
    return app


def deployed_app(config: ServeConfig) -> ray_serve.Application:
    """The application of a Serve config file, whose proxies other machines reach: tokens are a must.

    Raises:
        CIBHashError: as `build_app`.
        ConfigError: no token file is named.
    """
    if not config.token_file:
        raise ConfigError("token_file: needed in a Serve config file, for its proxies listen beyond this machine")
    return build_app(config)


@contextlib.contextmanager
def running_service(config: ServeConfig) -> Iterator[str]:
    """The service for the duration of the block; yields its address, `http://host:port`.

    Raises:
        ConfigError: the port is in use, the host is open to others without tokens, or Serve already runs there.
        CIBHashError: an artefact is missing, broken or another one than expected.
    """
    check_endpoint(config)
    app, manifest = build_app(config), open_index(config.index).manifest
    host = f"[{config.host}]" if ":" in config.host else config.host
    with ray_session(config.ray):
        if ray_serve.status().proxies:
            raise ConfigError("Ray Serve already runs on this cluster: deploy cluster.service.app:deployed_app instead")
        if config.use_gpu:
            num_replicas = config.replicas * (config.slots or len(manifest.shards))
            require_resources(config.ray, "shard replicas", num_replicas, cpus=0.0, gpus=config.num_gpus)
        try:
            ray_serve.start(
                proxy_location="HeadOnly",
                http_options={"host": config.host, "port": config.port, "request_timeout_s": REQUEST_TIMEOUT_S},
            )
            ray_serve.run(app, name=APP_NAME, route_prefix="/")
            _check_loaded(manifest.version, _encoder_ref(config, manifest))
            yield f"http://{host}:{config.port}"
            drain(APP_NAME, INGRESS_NAME, _longest_s(config))
        finally:
            with muted_stderr():
                ray_serve.shutdown()  # type: ignore[no-untyped-call]


def serve(config: ServeConfig) -> None:
    """Serves until SIGINT or SIGTERM, then answers what is under way and ends; prints the page's address on stderr.

    A second signal ends it at once.

    Raises:
        CIBHashError: as `running_service`.
    """
    with running_service(config) as url:
        log(f"search page: {url}/", index=config.index)
        _wait_for_signal()
        log("shutting down: no new requests, those under way are answered")


def check_endpoint(config: ServeConfig) -> None:
    """Refuses an address that is taken, cannot be bound, or is open to others without tokens.

    Raises:
        ConfigError: naming host and port.
    """
    where = f"{config.host}:{config.port}"
    if not config.token_file and not _is_loopback(config.host):
        raise ConfigError(f"{where}: reachable from other machines, so a token_file is needed (or host 127.0.0.1)")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}; choose another host or port") from None


def check_gpu(config: ServeConfig, manifest: IndexManifest) -> None:
    """Refuses shards on GPUs where there are none, or the index is not of a kind that is searched there.

    Raises:
        ConfigError: naming what is missing.
    """
    if config.use_gpu:
        manifest.spec.check_device(config.index, config.device)
        require_gpu(config.ray)


def _longest_s(config: ServeConfig) -> float:
    """What a request may take: its upload, its turn, its image, and keys to codes to neighbors."""
    return UPLOAD_DEADLINE_S + config.max_wait_s + ENCODE_DEADLINE_S + 2 * config.shard_deadline_s


def _encoder_ref(config: ServeConfig, manifest: IndexManifest) -> EncoderRef:
    return EncoderRef(storage.absolute(config.encoder or manifest.encoder_uri), manifest.encoder_digest)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_loaded(version: str, encoder: EncoderRef) -> None:
    """Raises what kept a shard or the encoder from loading."""
    names = [name for name in ray_serve.status().applications[APP_NAME].deployments if name != INGRESS_NAME]
    handles = {name: ray_serve.get_deployment_handle(name, app_name=APP_NAME) for name in names}
    responses = [
        handle.state.remote(encoder) if name == ENCODER_NAME else handle.state.remote(version)
        for name, handle in handles.items()
    ]
    for response in responses:
        try:
            response.result(timeout_s=LOAD_TIMEOUT_S)
        except RayTaskError as error:
            raise root_cause(error.cause or error) from None


def _wait_for_signal() -> None:
    stop = threading.Event()

    def on_signal(_: int, __: FrameType | None) -> None:
        stop.set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    stop.wait()
    for number, handler in previous.items():
        signal.signal(number, handler)
