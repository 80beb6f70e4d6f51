"""The HTTP interface described: as an OpenAPI document for programs, and as a plain page for people.

Knows nothing of how requests are answered. The document is made of the same models that requests and answers are
checked with, so it cannot say anything else.
"""

import html
import json
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from cluster.service.schema import (
    ARROW_TYPE,
    JSON_TYPE,
    Coverage,
    RandomAnswer,
    SearchAnswer,
    SearchRequest,
    StatsAnswer,
    Wanted,
)

_MODELS: tuple[type[BaseModel], ...] = (SearchRequest, SearchAnswer, RandomAnswer, StatsAnswer, Coverage)
_REFERENCE = "#/components/schemas/{model}"
_ERRORS = {
    "401": "no valid bearer token, where the service wants one",
    "404": "no such key or id",
    "408": "the body took too long",
    "409": "the codes are of another encoder than the index",
    "413": "the body is too large",
    "422": "the request cannot be answered; the error names field, value and what is expected",
    "503": "too many requests at a time, or shards are missing; Retry-After says when to come back",
}


def openapi(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document.

    Args:
        version: Of the software.
    """
    _, definitions = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REFERENCE)
    wanted = Wanted.model_json_schema()["properties"]
    parameters = [_parameter(name, field) for name, field in wanted.items()]
    arrow = {ARROW_TYPE: {"schema": {"type": "string", "format": "binary"}}}
    image = {"image/*": {"schema": {"type": "string", "format": "binary"}}}
    paths = {
        "/search": {
            "post": _operation(
                "Neighbors of codes, keys or ids",
                "JSON, or an Arrow IPC stream with the column `code`, whose other settings are URL parameters; the "
                "answer is Arrow where Accept asks for it.",
                "401 404 408 409 413 422 503",
                answer=_json_of(SearchAnswer) | arrow,
                body=_json_of(SearchRequest) | arrow,
            )
        },
        "/search/image": {
            "post": _operation(
                "Neighbors of an image",
                "The body is the image itself: JPEG, PNG, WebP or GIF.",
                "401 408 409 413 422 503",
                answer=_json_of(SearchAnswer),
                body=image,
                parameters=parameters,
            )
        },
        "/image/{id}": {
            "get": _operation(
                "An image of the index, as it was packed",
                "Read from its tar shard by one range request.",
                "401 404 422 503",
                answer=image,
                parameters=[{"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}],
            )
        },
        "/random": {
            "get": _operation(
                "Images drawn at random",
                "",
                "401 422 503",
                answer=_json_of(RandomAnswer),
                parameters=[
                    _parameter("n", {"type": "integer", "default": 12}),
                    _parameter("seed", {"type": "integer"}),
                ],
            )
        },
        "/stats": {"get": _operation("What is served", "", "401", answer=_json_of(StatsAnswer))},
        "/readyz": {
            "get": _operation("Whether every shard answers", "Open.", "503", answer=_json_of(Coverage)),
        },
        "/healthz": {"get": _operation("Whether the process lives", "Open.", "", answer={JSON_TYPE: {}})},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "CIBHash search",
            "version": version,
            "description": "Exact search in Hamming distance, ordered by (distance, id).",
        },
        "security": [{"bearer": []}, {}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def page(document: dict[str, Any]) -> bytes:
    """The document as one HTML page without scripts."""
    sections = [
        _section(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [
        f"<h3 id='{name}'>{name}</h3><p>{html.escape(schema.get('description', ''))}</p>"
        f"<pre>{html.escape(json.dumps(schema.get('properties', {}), indent=1))}</pre>"
        for name, schema in document["components"]["schemas"].items()
    ]
    info = document["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{info['title']}: HTTP interface</title>"
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="/page.css"></head><body>'
        f"<header><h1>HTTP interface</h1><p>{info['description']} "
        '<a href="/openapi.json">openapi.json</a></p></header>'
        f"<main class='description'>{''.join(sections)}<h2>Models</h2>{''.join(schemas)}</main></body></html>"
    ).encode()


def _parameter(name: str, field: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    described = {"description": field["description"]} if "description" in field else {}
    return {"name": name, "in": "query", "schema": {"type": kinds[0]["type"]}, **described}


def _json_of(model: type[BaseModel]) -> dict[str, Any]:
    return {JSON_TYPE: {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}}


def _operation(
    summary: str,
    description: str,
    errors: str,
    *,
    answer: dict[str, Any],
    body: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    failed = {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}
    responses: dict[str, Any] = {"200": {"description": "the answer", "content": answer}}
    for status in errors.split():
        responses[status] = {"description": _ERRORS[status], "content": {JSON_TYPE: failed}}
    operation: dict[str, Any] = {"summary": summary, "description": description, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    if parameters:
        operation["parameters"] = parameters
    return operation


def _section(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<li><code>{one['name']}</code> {one['schema']['type']} {html.escape(one.get('description', ''))}</li>"
        for one in operation.get("parameters", [])
    )
    accepts = ", ".join(operation.get("requestBody", {}).get("content", {}))
    answers = "".join(
        f"<li><code>{status}</code> {html.escape(response['description'])}: {_models(response['content'])}</li>"
        for status, response in operation["responses"].items()
    )
    return (
        f"<section><h2><code>{method.upper()} {path}</code></h2><p>{operation['summary']}. "
        f"{html.escape(operation['description'])}</p>"
        + (f"<p>Body: {_models(operation['requestBody']['content'])} ({accepts})</p>" if accepts else "")
        + (f"<ul>{parameters}</ul>" if parameters else "")
        + f"<ul>{answers}</ul></section>"
    )


def _models(content: dict[str, Any]) -> str:
    names = [one.get("schema", {}).get("$ref", "").rpartition("/")[2] for one in content.values()]
    linked = [f"<a href='#{name}'>{name}</a>" for name in names if name]
    return ", ".join(linked) or ", ".join(content)
