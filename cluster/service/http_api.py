"""The HTTP interface: routes, status codes, JSON and Arrow answers, the search page.

Knows nothing of how shards are reached; that is the router's. Every error answer is `{"error": one line}`.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cibhash import __version__
from cibhash.asymmetric import query_weights
from cibhash.binary import prefix
from cibhash.errors import DataError, StorageError
from cluster.originals import Original, media_type, original_bytes
from cluster.service import threads
from cluster.service.admission import Admission
from cluster.service.api_description import openapi
from cluster.service.api_description import page as describing_page
from cluster.service.arrow_answer import write_answer
from cluster.service.current_router import CurrentRouter
from cluster.service.found import Found
from cluster.service.http_guard import RETRY_AFTER_S, Guard
from cluster.service.query_metrics import QueryMetrics
from cluster.service.request_parsing import check_wanted, parse_arrow, parse_int, parse_json, parse_wanted
from cluster.service.router import WITHOUT_ROWS, Incomplete, Router, shard_name
from cluster.service.schema import (
    ARROW_TYPE,
    DEFAULT_K,
    JSON_TYPE,
    MAX_ID,
    Limits,
    Neighbor,
    Query,
    RandomAnswer,
    RequestRefused,
    SearchAnswer,
    ShardStats,
    StatsAnswer,
    Wanted,
)
from cluster.service_config import ServeConfig

"""Neighbors of an uploaded image when the caller names neither k nor radius."""
MAX_RANDOM = 100
PAGE_FILES = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css")}
PAGE_FILES["/page.js"] = ("page.js", "text/javascript")
_ORIGINAL_READERS = 8
"""Threads of their own: storage that hangs must not hold up the answers to queries."""
IMAGE_CACHE = "private, max-age=3600"
"""The page adds the index version to image addresses, so a new index is never answered from a cache."""


def build_api(current: CurrentRouter, config: ServeConfig, digests: tuple[str, ...], admission: Admission) -> FastAPI:
    """The FastAPI application over the router of the version that is served.

    Args:
        current: What answers queries.
        config: Limits of a request.
        digests: SHA-256 digests of the tokens that may query; empty: everybody may.
        admission: How many are answered at a time.
    """

    @contextlib.asynccontextmanager
    async def following(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(current.follow())
        yield
        task.cancel()

    api = FastAPI(
        title="CIBHash search",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=following,
    )
    api.add_middleware(Guard, digests=digests, max_body_bytes=config.max_body_bytes, admission=admission)
    add_error_answers(api)
    _add_search(api, current, config)
    _add_rows(api, current)
    _add_state(api, current, config)
    _add_page(api)
    return api


def _add_search(api: FastAPI, current: CurrentRouter, config: ServeConfig) -> None:
    metrics = QueryMetrics()

    def limits_of(router: Router) -> Limits:
        manifest = router.manifest
        return Limits(manifest.bits, config.max_k, config.max_queries, manifest.encoder_digest)

    async def answer(request: Request, router: Router, query: Query, started: float) -> Response:
        from_arrow = _media_type(request.headers.get("content-type", "")) == ARROW_TYPE
        accepted = request.headers.get("accept", "*/*")
        as_arrow = ARROW_TYPE in accepted or (from_arrow and JSON_TYPE not in accepted)
        found = await router.search(query, with_items=not as_arrow)
        metrics.answered(len(found.neighbors.limits) - 1, found.coverage)
        is_short = len(found.neighbors.ids) <= threads.SHORT_ANSWER
        if as_arrow:
            body = await threads.run(is_short, write_answer, found.neighbors, found.coverage)
            return Response(body, media_type=ARROW_TYPE)
        body = await threads.run(is_short, _search_json, found, query.wanted.with_codes, started)
        return Response(body, media_type=JSON_TYPE)

    @api.post("/search")
    async def search(request: Request) -> Response:
        started = time.perf_counter()
        with metrics.measured():
            body = await request.body()
            router, is_short = current.router, len(body) <= threads.SHORT_BODY
            limits = limits_of(router)
            if _media_type(request.headers.get("content-type", "")) == ARROW_TYPE:
                query = await threads.run(is_short, parse_arrow, body, _wanted(request), limits)
            elif request.query_params:
                raise RequestRefused(
                    422, f"{request.url.query[:60]!r}: k, radius and allow_partial belong into the JSON"
                )
            else:
                query = await threads.run(is_short, parse_json, body, limits)
            return await answer(request, router, query, started)

    @api.post("/search/image")
    async def search_image(request: Request) -> Response:
        started = time.perf_counter()
        with metrics.measured():
            wanted = _wanted(request)
            if wanted.k is None and wanted.radius is None:
                wanted = wanted.model_copy(update={"k": DEFAULT_K})
            router = current.router
            check_wanted(wanted, limits := limits_of(router))
            code, logits = await router.encode(await request.body())
            weights = query_weights(logits, limits.bits) if wanted.rerank is not None else None
            query = Query(wanted, codes=prefix(code, limits.bits), weights=weights)
            return await answer(request, router, query, started)


def _search_json(found: Found, with_codes: bool, started: float) -> bytes:
    limits, ids, distances = (part.tolist() for part in found.neighbors)
    neighbors = [
        [_neighbor(found, ids[row], distances[row], with_codes) for row in range(limits[query], limits[query + 1])]
        for query in range(len(limits) - 1)
    ]
    seconds = round(time.perf_counter() - started, 6)
    more: dict[str, Any] = {"query_codes": [code.tobytes().hex() for code in found.codes]} if with_codes else {}
    answer = SearchAnswer(**dict(found.coverage), neighbors=neighbors, seconds=seconds, **more)
    return answer.model_dump_json(exclude_unset=True).encode()


def _neighbor(found: Found, row_id: int, distance: int, with_codes: bool) -> Neighbor:
    item = found.items[row_id]
    more: dict[str, Any] = {"code": item.code} if with_codes else {}
    if found.weighted is not None:
        more["weighted_distance"] = found.weighted[row_id]
    return Neighbor(id=row_id, distance=distance, key=item.key, labels=item.labels, **more)


def _add_rows(api: FastAPI, current: CurrentRouter) -> None:
    readers = ThreadPoolExecutor(_ORIGINAL_READERS, thread_name_prefix="originals")

    @api.get("/image/{row_id}")
    async def image(row_id: str) -> Response:
        if current.router.manifest.bare:
            raise RequestRefused(404, f"image {row_id[:40]}: {WITHOUT_ROWS} no originals")
        row = await current.router.row(parse_int("id", row_id, 0, MAX_ID))
        original = Original(row.shard, row.offset, row.size)
        try:
            data = await asyncio.get_running_loop().run_in_executor(readers, original_bytes, original)
        except StorageError as error:
            raise RequestRefused(503, f"image {row.id}: {error}") from None
        except DataError as error:
            raise RequestRefused(500, f"image {row.id}: {error}") from None
        return Response(data, media_type=media_type(data), headers={"Cache-Control": IMAGE_CACHE})

    @api.get("/random")
    async def random(request: Request) -> Response:
        parameters = dict(request.query_params)
        number = parse_int("n", parameters.get("n", "12"), 1, MAX_RANDOM)
        seed = parse_int("seed", parameters["seed"], 0, MAX_ID) if "seed" in parameters else None
        items, coverage = await current.router.sample(number, seed)
        return _json(RandomAnswer(**dict(coverage), images=items))


def _add_state(api: FastAPI, current: CurrentRouter, config: ServeConfig) -> None:
    @api.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @api.get("/readyz")
    async def readyz() -> Response:
        router = current.router
        coverage = router.check_complete(await router.states(), Wanted())
        return _json(coverage)

    @api.get("/stats")
    async def stats() -> Response:
        router = current.router
        scattered, manifest = await router.states(), router.manifest
        shards = [
            ShardStats(name=shard_name(slot), count=count, ready=slot in scattered.answers)
            for slot, count in enumerate(router.counts)
        ]
        answer = StatsAnswer(
            **dict(router.coverage(scattered)),
            count=manifest.count,
            bits=manifest.bits,
            prefixes=manifest.prefixes,
            kind=manifest.kind,
            bare=manifest.bare,
            max_k=config.max_k,
            max_queries=config.max_queries,
            max_body_bytes=config.max_body_bytes,
            shards=shards,
            pending=current.pending,
            change=current.change,
        )
        return _json(answer)


def _add_page(api: FastAPI) -> None:
    for path, (name, kind) in PAGE_FILES.items():
        content = resources.files("cluster.service").joinpath(name).read_bytes()

        async def page(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

        api.add_api_route(path, page, methods=["GET"])

    document = openapi(__version__)
    described = describing_page(document)

    @api.get("/openapi.json")
    async def openapi_json() -> Response:
        return JSONResponse(document)

    @api.get("/docs")
    async def docs() -> Response:
        return Response(described, media_type="text/html")


def add_error_answers(api: FastAPI) -> None:
    """Makes every refusal and failure of `api` answer with `{"error": one line}`."""

    @api.exception_handler(RequestRefused)
    async def refused(_: Request, error: RequestRefused) -> Response:
        body = {"error": str(error)}
        if isinstance(error, Incomplete):
            body |= error.coverage.model_dump()
        headers = {"Retry-After": str(RETRY_AFTER_S)} if error.status == 503 else {}
        return JSONResponse(body, error.status, headers)

    @api.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": f"{request.method} {request.url.path[:80]}: {error.detail}"}, error.status_code)

    @api.exception_handler(ClientDisconnect)
    async def disconnected(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=400)

    @api.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return JSONResponse({"error": "internal error; the service's log has the details"}, 500)


def _wanted(request: Request) -> Wanted:
    return parse_wanted(dict(request.query_params))


def _media_type(header: str) -> str:
    return header.partition(";")[0].strip().lower()


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type=JSON_TYPE)
