"""Reads and checks requests: JSON bodies, Arrow bodies, URL parameters.

Knows nothing of HTTP servers, Ray or the index. Everything refused is a `RequestRefused` with one readable line.
"""

import base64
import binascii
import json

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from cibhash.types import Codes
from cluster.code_tables import codes_of
from cluster.service.schema import (
    Limits,
    Query,
    RequestRefused,
    SearchRequest,
    Wanted,
)

_SHOWN = 60
_LEAST_DIGEST = 8


def parse_json(body: bytes, limits: Limits) -> Query:
    """The query of a JSON body.

    Raises:
        RequestRefused: 422, the first thing that is wrong.
    """
    try:
        request = SearchRequest.model_validate_json(body)
    except ValidationError as error:
        raise RequestRefused(422, one_line(error)) from None
    named = [name for name in ("codes", "keys", "ids") if getattr(request, name) is not None]
    if len(named) != 1:
        found = " and ".join(named) or "none"
        raise RequestRefused(422, f"codes, keys, ids: exactly one is needed, found {found}")
    _check_number(named[0], len(getattr(request, named[0])), limits)
    check_wanted(request, limits)
    if request.rerank is not None:
        raise RequestRefused(422, "rerank: only the query of an image has what it needs (POST /search/image)")
    if request.codes is not None:
        return Query(request, codes=parse_codes(request.codes, limits.bits))
    return Query(request, keys=tuple(request.keys or ()), ids=tuple(request.ids or ()))


def parse_arrow(body: bytes, wanted: Wanted, limits: Limits) -> Query:
    """The query of an Arrow IPC stream whose table has the fixed-size binary column `code`.

    Raises:
        RequestRefused: 422, the first thing that is wrong.
    """
    try:
        table = pa.ipc.open_stream(body).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RequestRefused(422, f"body: not an Arrow IPC stream: {' '.join(str(error).split())[:200]}") from None
    if table.column_names.count("code") != 1:
        raise RequestRefused(422, f"code: this column is needed once, found {', '.join(table.column_names) or 'none'}")
    expected = pa.binary(limits.bits // 8)
    if table.schema.field("code").type != expected:
        found = table.schema.field("code").type
        raise RequestRefused(422, f"code: a column of type {found}, expected {expected} ({limits.bits} bits)")
    if table["code"].null_count:
        position = table["code"].is_null().to_pylist().index(True)
        raise RequestRefused(422, f"code[{position}]: null, expected {limits.bits // 8} bytes")
    _check_number("code", table.num_rows, limits)
    check_wanted(wanted, limits)
    if wanted.rerank is not None or wanted.with_codes:
        raise RequestRefused(422, "rerank, with_codes: not for queries as Arrow")
    return Query(wanted, codes=codes_of(table))


def parse_wanted(parameters: dict[str, str]) -> Wanted:
    """What `Wanted` has, from URL parameters.

    Raises:
        RequestRefused: 422, an unknown parameter or a value that is not an integer or boolean.
    """
    values: dict[str, int | bool | str] = {}
    for name, text in parameters.items():
        if name in ("k", "radius", "rerank"):
            values[name] = parse_int(name, text)
        elif name in ("allow_partial", "with_codes") and text.lower() in ("true", "false", "1", "0"):
            values[name] = text.lower() in ("true", "1")
        elif name == "encoder_digest":
            values[name] = text
        elif name in ("allow_partial", "with_codes"):
            raise RequestRefused(422, f"{name}: {text[:_SHOWN]!r}, expected true or false")
        else:
            raise RequestRefused(
                422, f"{name[:_SHOWN]!r}: no such parameter, expected {', '.join(Wanted.model_fields)}"
            )
    return Wanted.model_validate(values)


def parse_int(name: str, text: str, low: int | None = None, high: int | None = None) -> int:
    """A decimal integer in [low, high] from a URL.

    Raises:
        RequestRefused: 422, it is something else.
    """
    bounds = "" if low is None else f" from {low} to {high}"
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        raise RequestRefused(422, f"{name}: {text[:_SHOWN]!r}, expected an integer{bounds}")
    value = int(text)
    if (low is not None and value < low) or (high is not None and value > high):
        raise RequestRefused(422, f"{name}: {value}, expected an integer{bounds}")
    return value


def check_wanted(wanted: Wanted, limits: Limits) -> None:
    """Refuses a `k`, `radius` or `rerank` that is missing, doubled or out of range, and codes of another encoder.

    Raises:
        RequestRefused: 422, with the value and the limits; 409, with both digests.
    """
    if (wanted.k is None) == (wanted.radius is None):
        found = "none" if wanted.k is None else "both"
        raise RequestRefused(422, f"k, radius: exactly one is needed, found {found}")
    if wanted.k is not None and not 1 <= wanted.k <= limits.max_k:
        raise RequestRefused(422, f"k: {wanted.k}, expected an integer from 1 to {limits.max_k}")
    if wanted.rerank is not None and (wanted.k is None or not wanted.k <= wanted.rerank <= limits.max_k):
        raise RequestRefused(422, f"rerank: {wanted.rerank}, expected k, and an integer from it to {limits.max_k}")
    if wanted.radius is not None and not 0 <= wanted.radius <= limits.bits:
        raise RequestRefused(422, f"radius: {wanted.radius}, expected an integer from 0 to {limits.bits}")
    digest = wanted.encoder_digest
    if digest is not None and not (len(digest) >= _LEAST_DIGEST and limits.encoder_digest.startswith(digest)):
        found = f"{digest[:_SHOWN]!r}" if len(digest) < _LEAST_DIGEST else f"{digest[:16]}..."
        raise RequestRefused(409, f"encoder_digest: {found}, this index is of encoder {limits.encoder_digest[:16]}...")


def parse_codes(texts: list[str], bits: int) -> Codes:
    """Packed codes uint8 (Q, bits/8) from hex or base64 texts.

    Raises:
        RequestRefused: 422, naming the first bad one by position.
    """
    return np.stack([_parse_code(position, text, bits) for position, text in enumerate(texts)])


def _parse_code(position: int, text: str, bits: int) -> Codes:
    size = bits // 8
    if len(text) == 2 * size and all(letter in "0123456789abcdefABCDEF" for letter in text):
        return np.frombuffer(bytes.fromhex(text), np.uint8)
    try:
        code = base64.b64decode(text, validate=True) if len(text) == -(-size // 3) * 4 else b""
    except (binascii.Error, ValueError):
        code = b""
    if len(code) != size:
        shown = repr(text[:_SHOWN]) + ("..." if len(text) > _SHOWN else "")
        expected = f"{2 * size} hex digits or base64 of {size} bytes ({bits} bits)"
        raise RequestRefused(422, f"codes[{position}]: {shown} ({len(text)} characters), expected {expected}")
    return np.frombuffer(code, np.uint8)


def _check_number(name: str, number: int, limits: Limits) -> None:
    if not 1 <= number <= limits.max_queries:
        raise RequestRefused(422, f"{name}: {number} queries, expected from 1 to {limits.max_queries}")


def one_line(error: ValidationError) -> str:
    """The first complaint of pydantic as one line: field, reason, value given."""
    first = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    if first["type"] == "json_invalid":
        return f"body: {first['msg']}"
    if first["type"] == "extra_forbidden":
        return f"{where}: no such field, expected codes, keys or ids, k or radius, allow_partial"
    return f"{where or 'body'}: {json.dumps(first['input'], default=str)[:_SHOWN]}: {first['msg']}"
