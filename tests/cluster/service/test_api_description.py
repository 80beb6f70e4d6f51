"""The description of the HTTP interface is whole, and says what the service does."""

import json
import re
from typing import Any

from pydantic import TypeAdapter

from cluster.service.api_description import openapi, page
from cluster.service.schema import SearchRequest, Wanted

DOCUMENT = openapi("1.2.3")


def references(part: Any) -> set[str]:
    """Every model that a part of the document refers to."""
    if isinstance(part, dict):
        own = {part["$ref"].removeprefix("#/components/schemas/")} if "$ref" in part else set()
        return own.union(*map(references, part.values()))
    return set().union(*map(references, part)) if isinstance(part, list) else set()


def test_every_reference_resolves_and_every_model_is_explained() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert references(DOCUMENT) <= schemas.keys()
    assert all(schema["description"] for schema in schemas.values())
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT
    assert DOCUMENT["info"]["version"] == "1.2.3"


def test_parameters_and_fields_are_those_that_are_checked() -> None:
    parameters = DOCUMENT["paths"]["/search/image"]["post"]["parameters"]
    assert {one["name"]: one["schema"]["type"] for one in parameters} == {
        "k": "integer", "radius": "integer", "rerank": "integer", "allow_partial": "boolean", "with_codes": "boolean",
        "encoder_digest": "string",
    }  # fmt: skip
    assert all(one["description"] for one in parameters)
    assert set(DOCUMENT["components"]["schemas"]["SearchRequest"]["properties"]) == set(SearchRequest.model_fields)
    assert set(Wanted.model_fields) < set(SearchRequest.model_fields)
    assert TypeAdapter(SearchRequest).json_schema()["additionalProperties"] is False


def test_the_page_names_every_path_and_links_every_model() -> None:
    text = page(DOCUMENT).decode()
    for path, methods in DOCUMENT["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in text
    linked = set(re.findall(r"href='#(\w+)'", text))
    assert linked == {"SearchRequest", "SearchAnswer", "RandomAnswer", "StatsAnswer", "Coverage"}
    assert all(f"id='{name}'" in text for name in linked)
    assert not re.search(r"<style|\bstyle=|\bon[a-z]+=|<script|https?://", text)
