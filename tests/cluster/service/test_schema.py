"""Requests that are refused name field, position, value and expectation; those that are not mean what they say."""

import base64
import json

import numpy as np
import pyarrow as pa
import pytest

from cibhash.types import RangeNeighbors
from cluster.code_tables import packed_array
from cluster.service.arrow_answer import code_stream, read_answer, write_answer
from cluster.service.request_parsing import parse_arrow, parse_codes, parse_json, parse_wanted
from cluster.service.schema import Coverage, Limits, RequestRefused, Wanted

LIMITS = Limits(bits=32, max_k=100, max_queries=3)
CODES = np.random.default_rng(0).integers(256, size=(3, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"ids": [0], "k": 0}, "k: 0, expected an integer from 1 to 100"),
        ({"ids": [0], "k": -3}, "k: -3, expected an integer from 1 to 100"),
        ({"ids": [0], "k": 101}, "k: 101, expected an integer from 1 to 100"),
        ({"ids": [0], "k": 1.5}, "k: 1.5: Input should be a valid integer"),
        ({"ids": [0], "k": "7"}, 'k: "7": Input should be a valid integer'),
        ({"ids": [0], "k": True}, "k: true: Input should be a valid integer"),
        ({"ids": [0], "radius": -1}, "radius: -1, expected an integer from 0 to 32"),
        ({"ids": [0], "radius": 33}, "radius: 33, expected an integer from 0 to 32"),
        ({"ids": [0]}, "k, radius: exactly one is needed, found none"),
        ({"ids": [0], "k": 1, "radius": 1}, "k, radius: exactly one is needed, found both"),
        ({"k": 1}, "codes, keys, ids: exactly one is needed, found none"),
        ({"ids": [0], "keys": ["a"], "k": 1}, "codes, keys, ids: exactly one is needed, found keys and ids"),
        ({"ids": [], "k": 1}, "ids: 0 queries, expected from 1 to 3"),
        ({"ids": [0, 1, 2, 3], "k": 1}, "ids: 4 queries, expected from 1 to 3"),
        ({"ids": [0, -4], "k": 1}, "ids[1]: -4: Input should be greater than or equal to 0"),
        ({"ids": [2**63], "k": 1}, "ids[0]: 9223372036854775808: Input should be less than or equal to"),
        ({"ids": [0], "k": 1, "allow_partial": "yes"}, 'allow_partial: "yes": Input should be a valid boolean'),
        ({"ids": [0], "top": 1}, "top: no such field"),
        ({"codes": ["00112233", "0011223"], "k": 1}, "codes[1]: '0011223' (7 characters), expected 8 hex digits or"),
        ({"codes": ["0011223g"], "k": 1}, "codes[0]: '0011223g' (8 characters), expected 8 hex digits or base64 of 4"),
        ({"codes": ["*****w=="], "k": 1}, "codes[0]: '*****w==' (8 characters)"),
        ({"codes": ["AAAAAAAA"[:7] + "="], "k": 1}, "codes[0]: 'AAAAAAA=' (8 characters)"),
        ({"codes": [1.5], "k": 1}, "codes[0]: 1.5: Input should be a valid string"),
        ([1], "body: [1]: Input should be an object"),
    ],
)
def test_json_refusals_are_one_line_and_exact(body: object, message: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        parse_json(json.dumps(body).encode(), LIMITS)
    assert refused.value.status == 422
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe{}", b"[" * 10_000])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(RequestRefused, match=r"^body: Invalid JSON"):
        parse_json(body, LIMITS)


def test_codes_are_read_from_hex_and_base64() -> None:
    texts = [CODES[0].tobytes().hex(), CODES[1].tobytes().hex().upper(), base64.b64encode(CODES[2].tobytes()).decode()]
    np.testing.assert_array_equal(parse_codes(texts, 32), CODES)


@pytest.mark.parametrize("bits", [8, 16, 24, 64, 256])
def test_every_code_length_has_unambiguous_texts(bits: int) -> None:
    codes = np.random.default_rng(1).integers(256, size=(50, bits // 8), dtype=np.uint8)
    np.testing.assert_array_equal(parse_codes([code.tobytes().hex() for code in codes], bits), codes)
    np.testing.assert_array_equal(
        parse_codes([base64.b64encode(code.tobytes()).decode() for code in codes], bits), codes
    )


def test_arrow_request_carries_the_codes() -> None:
    query = parse_arrow(code_stream(packed_array(CODES)), Wanted(k=5), LIMITS)
    assert query.codes is not None
    np.testing.assert_array_equal(query.codes, CODES)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"code": pa.array([b"1234", None], pa.binary(4))}, "code[1]: null, expected 4 bytes"),
        ({"code": pa.array([b"12345"], pa.binary(5))}, "code: a column of type fixed_size_binary[5], expected"),
        ({"code": pa.array([b"1234"], pa.binary())}, "code: a column of type binary, expected fixed_size_binary[4]"),
        ({"codes": pa.array([b"1234"], pa.binary(4))}, "code: this column is needed once, found codes"),
        ({"code": pa.array([], pa.binary(4))}, "code: 0 queries, expected from 1 to 3"),
        ({"code": pa.array([b"1234"] * 4, pa.binary(4))}, "code: 4 queries, expected from 1 to 3"),
    ],
)
def test_arrow_refusals_are_exact(column: dict[str, pa.Array], message: str) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.table(column).schema) as writer:
        writer.write_table(pa.table(column))
    with pytest.raises(RequestRefused) as refused:
        parse_arrow(sink.getvalue().to_pybytes(), Wanted(k=1), LIMITS)
    assert str(refused.value).startswith(message)


def test_damaged_arrow_streams_are_refused() -> None:
    body = code_stream(packed_array(CODES))
    for cut in range(0, len(body) - 8, 16):
        with pytest.raises(RequestRefused):
            parse_arrow(body[:cut], Wanted(k=1), LIMITS)


def test_url_parameters() -> None:
    assert parse_wanted({"radius": "3", "allow_partial": "true"}) == Wanted(radius=3, allow_partial=True)
    for parameters in ({"k": "1.5"}, {"k": ""}, {"k": "٣"}, {"allow_partial": "maybe"}, {"K": "1"}):
        with pytest.raises(RequestRefused):
            parse_wanted(parameters)


def test_arrow_answer_comes_back_whole() -> None:
    coverage = Coverage(
        partial=True,
        coverage=0.5,
        shards_total=2,
        shards_answered=1,
        missing_shards=("Shard-001",),
        encoder_digest="e" * 64,
        index_version="v000001",
    )
    found = RangeNeighbors(np.array([0, 2, 2, 3, 3]), np.array([5, 2**60, 0]), np.array([1, 1, 0], np.int32))
    body = write_answer(found, coverage)
    back, same = read_answer(body)
    assert same == coverage
    for one, other in zip(found, back, strict=True):
        np.testing.assert_array_equal(one, other)
    assert pa.ipc.open_stream(body).schema.types == [pa.int32(), pa.int64(), pa.int32()]
