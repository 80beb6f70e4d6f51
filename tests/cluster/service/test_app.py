"""The running service: answers equal brute force, refusals are exact, a lost shard is told and comes back."""

import asyncio
import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import ray
import torch
from ray import serve as ray_serve

from cibhash.asymmetric import query_weights
from cibhash.encoder import encode, new_encoder, save_encoder
from cibhash.errors import BadImage, ConfigError, ManifestMismatch, NotFound
from cibhash.images import decode_image
from cibhash.views import eval_view
from cluster.async_client import AsyncSearchClient
from cluster.client import SearchClient
from cluster.code_tables import packed_array
from cluster.index.versions import open_index
from cluster.search import search
from cluster.service import loaded_versions
from cluster.service.app import APP_NAME, build_app, check_endpoint, running_service
from cluster.service.arrow_answer import code_stream, read_answer
from cluster.service.router import shard_name
from cluster.service.schema import ARROW_TYPE, SearchAnswer
from cluster.service.shard_replica import ShardReplica
from cluster.service_config import SearchConfig, ServeConfig
from cluster.service_errors import RequestRejected, ServiceUnavailable
from jobs.serve import run
from tests.patience import HANG_S
from tests.service_fixture import BITS, Corpus, free_port, make_corpus, make_index, picture

TOKEN = "the-secret-of-the-tests"
CAP = 2 * 2**20
ray_mark = pytest.mark.ray


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def service(corpus: Corpus, ray_local: None) -> Iterator[str]:
    token_file = corpus.folder / "tokens"
    token_file.write_text(f"another-secret\n{TOKEN}\n")
    config = ServeConfig(
        index=make_index(corpus, 2),
        port=free_port(),
        token_file=str(token_file),
        shard_deadline_s=1.5,
        max_k=500,
        max_queries=200,
        max_body_bytes=CAP,
    )
    with running_service(config) as url:
        yield url


@pytest.fixture(scope="module")
def client(service: str) -> SearchClient:
    return SearchClient(service, TOKEN, retries=0)


def ask(
    url: str, method: str, path: str, body: object = None, token: str = TOKEN, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request, its body as JSON unless it is bytes."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=HANG_S)
    raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(connection):
        connection.request(method, path, raw, {**({"Authorization": f"Bearer {token}"} if token else {}), **names})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()


def error_of(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    """Status and message; the message must be one line."""
    message = json.loads(answer[2])["error"]
    assert "\n" not in message
    return answer[0], message


def pairs(answer: SearchAnswer) -> list[list[tuple[int, int]]]:
    return [[(near.id, near.distance) for near in query] for query in answer.neighbors]


def expected(corpus: Corpus, rows: list[int], k: int) -> list[list[tuple[int, int]]]:
    nearest = corpus.nearest(corpus.codes[rows], k)
    return [list(zip(*row, strict=True)) for row in zip(nearest.ids.tolist(), nearest.distances.tolist(), strict=True)]


# --- the answers


@ray_mark
def test_codes_ids_and_keys_equal_brute_force(client: SearchClient, corpus: Corpus) -> None:
    rows = [0, 13, 44, 45, 89]
    wanted = expected(corpus, rows, 9)
    assert pairs(client.search_ids([corpus.ids[i] for i in rows], k=9)) == wanted
    assert pairs(client.search_keys([corpus.samples[i].key for i in rows], k=9)) == wanted
    texts = [corpus.codes[i].tobytes() for i in rows]
    assert pairs(client.search_hex([text.hex() for text in texts], k=9)) == wanted
    assert pairs(client.search_hex([base64.b64encode(text).decode() for text in texts], k=9)) == wanted
    found = client.search_codes(corpus.codes, k=9)
    nearest = corpus.nearest(corpus.codes, 9)
    np.testing.assert_array_equal(found.ids, nearest.ids)
    np.testing.assert_array_equal(found.distances, nearest.distances)


@ray_mark
@pytest.mark.parametrize("radius", [0, 8, BITS])
def test_radius_is_inclusive_and_equals_brute_force(client: SearchClient, corpus: Corpus, radius: int) -> None:
    wanted = corpus.within(corpus.codes[[3, 60]], radius)
    assert pairs(client.search_ids([corpus.ids[3], corpus.ids[60]], radius=radius)) == wanted
    within = client.search_codes(corpus.codes[[3, 60]], radius=radius)
    assert within.limits.tolist() == np.cumsum([0, *map(len, wanted)]).tolist()
    assert list(zip(within.ids.tolist(), within.distances.tolist(), strict=True)) == wanted[0] + wanted[1]


@ray_mark
def test_codes_come_with_the_answer_where_they_are_asked_for(
    service: str, client: SearchClient, corpus: Corpus
) -> None:
    plain = json.loads(ask(service, "POST", "/search", {"ids": [corpus.ids[4]], "k": 3})[2])
    assert "query_codes" not in plain
    assert all(near.keys() == {"id", "key", "labels", "distance"} for near in plain["neighbors"][0])
    answer = json.loads(ask(service, "POST", "/search", {"ids": [corpus.ids[4]], "k": 3, "with_codes": True})[2])
    assert answer["query_codes"] == [corpus.codes[4].tobytes().hex()]
    by_id = dict(zip(corpus.ids, corpus.codes, strict=True))
    assert [near["code"] for near in answer["neighbors"][0]] == [
        by_id[near["id"]].tobytes().hex() for near in answer["neighbors"][0]
    ]


@ray_mark
@pytest.mark.parametrize(("k", "candidates"), [(7, 7), (5, 40), (90, 90)])
def test_candidates_are_ordered_by_asymmetric_distance(
    client: SearchClient, corpus: Corpus, k: int, candidates: int
) -> None:
    """Against weights and distances worked out bit by bit from the encoder's own logits."""
    image = corpus.samples[20].image
    view = torch.from_numpy(eval_view(decode_image(image), 32)[None])
    code, _, logits = encode(corpus.encoder, view)
    weights = query_weights(logits, BITS)[0]
    differ = np.unpackbits(corpus.codes ^ code, axis=1, bitorder="little").astype(bool)
    by_id = dict(zip(corpus.ids, (differ * weights).sum(axis=1).tolist(), strict=True))
    taken = corpus.nearest(code, candidates).ids[0].tolist()
    wanted = sorted((by_id[row_id], row_id) for row_id in taken)[:k]
    answer = client.search_image(image, k=k, rerank=candidates)
    assert [(near.weighted_distance, near.id) for near in answer.neighbors[0]] == wanted
    hamming = dict(zip(corpus.ids, differ.sum(axis=1).tolist(), strict=True))
    assert [near.distance for near in answer.neighbors[0]] == [hamming[row_id] for _, row_id in wanted]


@ray_mark
@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/search/image?k=5&rerank=4", b"x", "rerank: 4, expected k, and an integer from it to 500"),
        ("/search/image?radius=5&rerank=9", b"x", "rerank: 9, expected k, and an integer from it to 500"),
        ("/search/image?k=5&rerank=501", b"x", "rerank: 501, expected k, and an integer from it to 500"),
        ("/search", {"ids": [0], "k": 5, "rerank": 9}, "rerank: only the query of an image has what it needs"),
    ],
)
def test_reranking_that_cannot_be_is_refused(service: str, path: str, body: object, message: str) -> None:
    status, error = error_of(ask(service, "POST", path, body))
    assert (status, error.startswith(message)) == (422, True), error


@ray_mark
def test_the_asynchronous_client_finds_the_same(service: str, corpus: Corpus) -> None:
    async def ask_all() -> tuple[Any, Any, Any]:
        async with AsyncSearchClient(service, TOKEN) as client:
            codes = client.search_codes(corpus.codes, k=9, batch_size=7)
            ids = client.search_ids(corpus.ids[:3], k=4)
            image = client.search_image(corpus.samples[20].image, k=5)
            return await asyncio.gather(codes, ids, image)

    codes, ids, image = asyncio.run(ask_all())
    np.testing.assert_array_equal(codes.ids, corpus.nearest(corpus.codes, 9).ids)
    assert pairs(ids) == expected(corpus, [0, 1, 2], 4)
    assert pairs(image) == expected(corpus, [20], 5)


@ray_mark
def test_the_described_paths_are_those_that_are_served(service: str) -> None:
    status, headers, raw = ask(service, "GET", "/openapi.json", token="")
    assert (status, headers["content-type"]) == (200, "application/json")
    for path, methods in json.loads(raw)["paths"].items():
        for method in methods:
            found = ask(service, method.upper(), path.replace("{id}", "0"), b"{}" if method == "post" else None)[0]
            assert found in (200, 422), (method, path)
    status, headers, raw = ask(service, "GET", "/docs", token="")
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/html")
    assert b"POST /search/image" in raw


@ray_mark
def test_answers_say_what_they_cover(client: SearchClient, corpus: Corpus) -> None:
    answer = client.search_ids([0], k=2)
    assert (answer.partial, answer.coverage, answer.missing_shards) == (False, 1.0, ())
    assert (answer.shards_total, answer.shards_answered) == (2, 2)
    assert (answer.encoder_digest, answer.index_version) == (corpus.encoder.digest, "v000001")
    itself = answer.neighbors[0][0]
    assert (itself.id, itself.distance, itself.key) == (0, 0, corpus.samples[0].key)


@ray_mark
def test_k_beyond_the_index_gives_all_and_no_padding(client: SearchClient, corpus: Corpus) -> None:
    answer = client.search_ids([0], k=500)
    assert sorted(near.id for near in answer.neighbors[0]) == corpus.ids


@ray_mark
def test_arrow_and_json_say_the_same(service: str, corpus: Corpus) -> None:
    body = {"codes": [code.tobytes().hex() for code in corpus.codes[:20]], "k": 11}
    plain = SearchAnswer.model_validate_json(ask(service, "POST", "/search", body)[2])
    stream = code_stream(packed_array(corpus.codes[:20]))
    for status, headers, raw in (
        ask(service, "POST", "/search", body, Accept=ARROW_TYPE),
        ask(service, "POST", "/search?k=11", stream, Content_Type=ARROW_TYPE, Accept=ARROW_TYPE),
        ask(service, "POST", "/search?k=11", stream, Content_Type=ARROW_TYPE),
    ):
        assert (status, headers["content-type"]) == (200, ARROW_TYPE)
        found, coverage = read_answer(raw)
        assert coverage.model_dump() == plain.model_dump(include=set(type(coverage).model_fields))
        flat = list(zip(found.ids.tolist(), found.distances.tolist(), strict=True))
        assert flat == [pair for query in pairs(plain) for pair in query]
        assert found.limits.tolist() == list(range(0, 221, 11))
    as_json = ask(service, "POST", "/search?k=11", stream, Content_Type=ARROW_TYPE, Accept="application/json")
    assert SearchAnswer.model_validate_json(as_json[2]).neighbors == plain.neighbors


@ray_mark
def test_uploaded_images_get_the_code_of_the_database(client: SearchClient, corpus: Corpus) -> None:
    for row in (0, 1, 2, 88):
        assert pairs(client.search_image(corpus.samples[row].image, k=6)) == expected(corpus, [row], 6)
    assert pairs(client.search_image(corpus.samples[5].image, radius=7)) == corpus.within(corpus.codes[[5]], 7)


@ray_mark
def test_one_index_shard_answers_like_two(service: str, corpus: Corpus) -> None:
    query = ("id:0", f"key:{corpus.samples[70].key}", "code:00ff00ff")
    token_file = str(corpus.folder / "tokens")
    two = search(SearchConfig(query=query, url=service, k=60, token_file=token_file))
    one = search(SearchConfig(query=query, index=make_index(corpus, 1), k=60))
    assert two == one


@ray_mark
def test_original_images_come_back_byte_for_byte(service: str, corpus: Corpus) -> None:
    for row, media_type in ((0, "image/png"), (1, "image/jpeg"), (2, "image/webp"), (89, "image/webp")):
        status, headers, raw = ask(service, "GET", f"/image/{corpus.ids[row]}")
        assert (status, raw) == (200, corpus.samples[row].image)
        assert (headers["content-type"], headers["x-content-type-options"]) == (media_type, "nosniff")


@ray_mark
def test_random_rows_are_distinct_real_and_repeatable(service: str, corpus: Corpus) -> None:
    def drawn(query: str) -> list[int]:
        answer = json.loads(ask(service, "GET", f"/random{query}")[2])
        by_id = {sample.id: sample.key for sample in corpus.samples}
        assert all(by_id[item["id"]] == item["key"] for item in answer["images"])
        return [item["id"] for item in answer["images"]]

    assert len(set(drawn(""))) == 12
    assert drawn("?n=20&seed=1") == drawn("?n=20&seed=1") != drawn("?n=20&seed=2")
    assert sorted(drawn("?n=100")) == corpus.ids


@ray_mark
def test_stats_and_health(service: str, client: SearchClient, corpus: Corpus) -> None:
    stats = client.stats()
    assert (stats.count, stats.bits, stats.kind, stats.max_k) == (len(corpus.samples), BITS, "flat", 500)
    assert [(shard.name, shard.count, shard.ready) for shard in stats.shards] == [
        ("Shard-000", 45, True),
        ("Shard-001", 45, True),
    ]
    assert ask(service, "GET", "/healthz", token="")[0] == 200
    ready = ask(service, "GET", "/readyz", token="")
    assert (ready[0], json.loads(ready[2])["shards_answered"]) == (200, 2)


# --- the refusals


@ray_mark
@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"ids": [0], "k": 0}, 422, "k: 0, expected an integer from 1 to 500"),
        ({"ids": [0], "k": -1}, 422, "k: -1, expected an integer from 1 to 500"),
        ({"ids": [0], "k": 1.5}, 422, "k: 1.5: Input should be a valid integer"),
        ({"ids": [0], "k": 501}, 422, "k: 501, expected an integer from 1 to 500"),
        ({"ids": [0], "radius": -1}, 422, "radius: -1, expected an integer from 0 to 32"),
        ({"ids": [0], "radius": 33}, 422, "radius: 33, expected an integer from 0 to 32"),
        ({"codes": [], "k": 1}, 422, "codes: 0 queries, expected from 1 to 200"),
        ({"ids": [0] * 201, "k": 1}, 422, "ids: 201 queries, expected from 1 to 200"),
        (
            {"codes": ["00112233", "001122334455"], "k": 1},
            422,
            "codes[1]: '001122334455' (12 characters), expected 8 hex digits or base64 of 4 bytes (32 bits)",
        ),
        (
            {"codes": ["0011223x"], "k": 1},
            422,
            "codes[0]: '0011223x' (8 characters), expected 8 hex digits or base64 of 4 bytes (32 bits)",
        ),
        ({"keys": ["nobody"], "k": 1}, 404, "key 'nobody': not in the index"),
        ({"ids": [0, 500], "k": 1}, 404, "id 500: not in the index"),
    ],
)
def test_refused_searches(service: str, body: dict[str, Any], status: int, message: str) -> None:
    assert error_of(ask(service, "POST", "/search", body)) == (status, message)


@ray_mark
def test_other_refusals(service: str, corpus: Corpus) -> None:
    bad_image = error_of(ask(service, "POST", "/search/image?k=3", b"hello"))
    assert bad_image == (422, "image: not a JPEG, PNG, WebP or GIF image (first bytes b'hello')")
    cut = error_of(ask(service, "POST", "/search/image?k=3", corpus.samples[0].image[:80]))
    assert (cut[0], cut[1][:25]) == (422, "image: cannot be decoded:")
    for path, status, start in (
        ("/search/image?k=0", 422, "k: 0, expected an integer from 1 to 500"),
        ("/search/image?k=x", 422, "k: 'x', expected an integer"),
        ("/search?k=3", 422, "'k=3': k, radius and allow_partial belong into the JSON"),
    ):
        assert error_of(ask(service, "POST", path, b"{}")) == (status, start)
    narrow = code_stream(packed_array(np.zeros((1, 8), np.uint8)))
    wrong_width = error_of(ask(service, "POST", "/search?k=1", narrow, Content_Type=ARROW_TYPE))
    assert wrong_width == (422, "code: a column of type fixed_size_binary[8], expected fixed_size_binary[4] (32 bits)")
    for path, status, start in (
        ("/image/500", 404, "id 500: not in the index"),
        ("/image/x", 422, "id: 'x', expected an integer from 0"),
        ("/image/..%2f..%2fetc%2fpasswd", 404, "GET /image/../../etc/passwd: Not Found"),
        ("/random?n=0", 422, "n: 0, expected an integer from 1 to 100"),
        ("/nothing", 404, "GET /nothing: Not Found"),
    ):
        found = error_of(ask(service, "GET", path))
        assert (found[0], found[1][: len(start)]) == (status, start)


@ray_mark
def test_bodies_over_the_cap_are_413(service: str) -> None:
    declared = error_of(ask(service, "POST", "/search", b" " * (CAP + 1)))
    assert declared == (413, f"body: {CAP + 1} bytes declared, at most {CAP}")
    connection = http.client.HTTPConnection(urlsplit(service).netloc, timeout=HANG_S)
    with contextlib.closing(connection):
        pieces = (b" " * 65536 for _ in range(CAP // 65536 * 3))
        connection.request("POST", "/search", pieces, {"Authorization": f"Bearer {TOKEN}"}, encode_chunked=True)
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["error"][-10:]) == (413, f"st {CAP}")


@ray_mark
def test_tokens_guard_all_but_page_and_health(service: str) -> None:
    for token in ("", "wrong"):
        for method, path in (("GET", "/stats"), ("POST", "/search"), ("GET", "/image/0"), ("GET", "/random")):
            assert error_of(ask(service, method, path, token=token)) == (401, "a valid bearer token is needed")
    for path, media_type in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, headers, _ = ask(service, "GET", path, token="")
        assert (status, headers["content-type"].partition(";")[0]) == (200, media_type)
        assert "script-src 'self'" in headers["content-security-policy"]
    with pytest.raises(RequestRejected, match="bearer token"):
        SearchClient(service, "wrong").stats()


@ray_mark
def test_client_raises_typed_errors(client: SearchClient) -> None:
    with pytest.raises(NotFound, match="key 'nobody'"):
        client.search_keys(["nobody"], k=1)
    with pytest.raises(BadImage, match=r"^not a JPEG"):
        client.search_image(b"hello", k=1)
    with pytest.raises(RequestRejected, match="expected fixed_size_binary"):
        client.search_codes(np.zeros((1, 8), np.uint8), k=1)


@ray_mark
def test_port_in_use_is_one_line(service: str, corpus: Corpus) -> None:
    port = urlsplit(service).port
    with (
        pytest.raises(ConfigError, match=f"^127.0.0.1:{port}: Address already in use"),
        running_service(ServeConfig(index=make_index(corpus, 4), port=port)),
    ):
        pass


# --- a shard is lost; last, for the shard is loaded anew afterwards


def replica_pid(number: int) -> int:
    state = ray_serve.get_deployment_handle(shard_name(number), app_name=APP_NAME).state.remote("v000001")
    return int(state.result(timeout_s=HANG_S).pid)


def search_first_shard_only(service: str, corpus: Corpus) -> None:
    """Shard-001 does not answer: 503 with its name, or a flagged answer from the other one."""
    body = {"codes": [corpus.codes[0].tobytes().hex()], "k": 100}
    status, headers, raw = ask(service, "POST", "/search", body)
    refused = json.loads(raw)
    assert (status, headers["retry-after"], refused["missing_shards"]) == (503, "1", ["Shard-001"])
    assert re.match(r"1 of 2 shards did not answer: Shard-001: no answer within \d+\.\d s", refused["error"])
    status, _, raw = ask(service, "POST", "/search", {**body, "allow_partial": True})
    answer = SearchAnswer.model_validate_json(raw)
    assert (status, answer.partial, answer.coverage, answer.missing_shards) == (200, True, 0.5, ("Shard-001",))
    assert (answer.shards_total, answer.shards_answered) == (2, 1)
    everything = expected(corpus, [0], len(corpus.samples))[0]
    assert pairs(answer)[0] == [(row_id, distance) for row_id, distance in everything if row_id < 1000]
    stats = json.loads(ask(service, "GET", "/stats")[2])
    assert [shard["ready"] for shard in stats["shards"]] == [True, False]
    assert (ask(service, "GET", "/readyz")[0], ask(service, "GET", "/healthz")[0]) == (503, 200)


def wait_until_complete(client: SearchClient, corpus: Corpus) -> None:
    for _ in range(60):
        with contextlib.suppress(ServiceUnavailable):
            assert pairs(client.search_ids([0], k=5)) == expected(corpus, [0], 5)
            return
        time.sleep(0.5)
    pytest.fail("the shard did not come back")


@ray_mark
def test_hanging_shard_is_told_within_the_deadline(service: str, client: SearchClient, corpus: Corpus) -> None:
    pid = replica_pid(1)
    os.kill(pid, signal.SIGSTOP)
    try:
        search_first_shard_only(service, corpus)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until_complete(client, corpus)


@ray_mark
def test_killed_shard_is_told_and_comes_back(service: str, client: SearchClient, corpus: Corpus) -> None:
    pid = replica_pid(1)
    codes = next((corpus.folder / "index-2" / "v000001" / "data").glob("shard-00001-*.safetensors"))
    hidden = codes.rename(codes.with_suffix(".hidden"))  # its successor cannot load, so the shard stays lost until told
    os.kill(pid, signal.SIGKILL)
    body = {"ids": [0, 1], "k": 3}
    status, message = error_of(ask(service, "POST", "/search", body))
    assert (status, "Shard-001" in message, "Shard-000" in message) == (503, True, False)
    unknown = ask(service, "POST", "/search", {"keys": ["nobody"], "k": 1, "allow_partial": True})
    assert unknown[0] == 503, "a key that the missing shard may hold is not called unknown"
    flagged = json.loads(ask(service, "POST", "/search", {**body, "allow_partial": True})[2])
    assert (flagged["partial"], flagged["missing_shards"]) == (True, ["Shard-001"])
    hidden.rename(codes)
    wait_until_complete(client, corpus)
    assert replica_pid(1) != pid


# --- before anything starts, without Ray


def test_open_address_needs_tokens(corpus: Corpus) -> None:
    index = make_index(corpus, 5)
    with pytest.raises(ConfigError, match=r"^0\.0\.0\.0:23999: .*token_file"):
        check_endpoint(ServeConfig(index=index, host="0.0.0.0", port=23999))
    with pytest.raises(ConfigError, match=r"^192\.0\.2\.77:23999: "):
        check_endpoint(ServeConfig(index=index, host="192.0.2.77", port=23999, token_file="tokens"))
    check_endpoint(ServeConfig(index=index, host="localhost", port=free_port()))


def test_taken_port_is_named(corpus: Corpus) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"^127.0.0.1:{port}: Address already in use") as raised:
            check_endpoint(ServeConfig(index="nowhere", port=port))
    assert raised.value.exit_code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpus_that_are_not_there_are_refused(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    config = ServeConfig(index=make_index(corpus, 1, corpus.folder / "index-gpu"), use_gpu=True)
    with pytest.raises(ConfigError, match=r"^no CUDA device: ") as raised:
        build_app(config)
    assert raised.value.exit_code == 2
    with pytest.raises(ConfigError, match=r"^no CUDA device: "):
        run(config.model_copy(update={"dry_run": True, "port": free_port()}))


def test_foreign_encoder_is_refused_with_both_digests(corpus: Corpus, tmp_path: Path) -> None:
    other = save_encoder(new_encoder(corpus.encoder.spec, seed=99), tmp_path / "encoder")
    with pytest.raises(ManifestMismatch) as raised:
        build_app(ServeConfig(index=make_index(corpus, 6), encoder=str(tmp_path / "encoder")))
    assert raised.value.exit_code == 3
    assert other[:16] in str(raised.value)
    assert corpus.encoder.digest[:16] in str(raised.value)
    with pytest.raises(NotFound, match="CURRENT is missing"):
        build_app(ServeConfig(index=str(tmp_path)))


def test_damaged_shard_is_told_and_loaded_once_repaired(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_versions, "RELOAD_PAUSE_S", 0.0)
    index = open_index(make_index(corpus, 1, folder=tmp_path / "index"))
    entry = index.manifest.shards[0]
    file = Path(index.base_uri, entry.codes.path)
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))

    async def states() -> int:
        replica = ShardReplica(index.uri, 0, 1, "v000001", HANG_S)
        with pytest.raises(ManifestMismatch, match="sha256"):
            await replica.state("v000001")
        file.write_bytes(good)
        return (await replica.state("v000001")).count

    assert asyncio.run(states()) == len(corpus.samples)


def test_pictures_of_the_fixture_differ() -> None:
    assert picture(0) != picture(3)
