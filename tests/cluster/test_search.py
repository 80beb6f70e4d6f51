"""The search job without a service: answers equal brute force, and errors are one line with the right exit code."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from cibhash.errors import BadImage, ConfigError, ManifestMismatch, NotFound
from cluster.search import format_table, search
from cluster.service_config import SearchConfig
from cluster.service_errors import ServiceUnavailable
from tests.service_fixture import BITS, Corpus, free_port, make_corpus, make_index, picture


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def index(corpus: Corpus) -> str:
    return make_index(corpus, 3)


def four_queries(corpus: Corpus, folder: Path) -> tuple[tuple[str, ...], list[int]]:
    """One query of each kind, and the rows of the corpus that they are."""
    rows = [4, 17, 60, 89]
    file = folder / "query.png"
    file.write_bytes(corpus.samples[rows[0]].image)
    texts = (
        str(file),
        f"key:{corpus.samples[rows[1]].key}",
        f"id:{corpus.ids[rows[2]]}",
        f"code:{corpus.codes[rows[3]].tobytes().hex()}",
    )
    return texts, rows


def test_neighbors_equal_brute_force(corpus: Corpus, index: str, tmp_path: Path) -> None:
    queries, rows = four_queries(corpus, tmp_path)
    result = search(SearchConfig(query=queries, index=index, k=7))
    expected = corpus.nearest(corpus.codes[rows], 7)
    assert [found.query for found in result.queries] == list(queries)
    assert [[near.id for near in found.neighbors] for found in result.queries] == expected.ids.tolist()
    assert [[near.distance for near in found.neighbors] for found in result.queries] == expected.distances.tolist()
    by_id = {sample.id: sample for sample in corpus.samples}
    for found in result.queries:
        for near in found.neighbors:
            assert (near.key, near.labels) == (by_id[near.id].key, by_id[near.id].labels)
    assert (result.index_version, result.encoder_digest) == ("v000001", corpus.encoder.digest)


def test_an_index_of_the_first_bits_is_asked_with_those_of_the_image(corpus: Corpus, tmp_path: Path) -> None:
    short = make_index(corpus, 2, folder=tmp_path / "short", bits=16)
    queries, rows = four_queries(corpus, tmp_path)
    code = corpus.codes[rows[3], :2].tobytes().hex()
    result = search(SearchConfig(query=(*queries[:3], f"code:{code}"), index=short, k=7))
    expected = replace(corpus, codes=corpus.codes[:, :2]).nearest(corpus.codes[rows, :2], 7)
    assert [[near.id for near in found.neighbors] for found in result.queries] == expected.ids.tolist()


@pytest.mark.parametrize("radius", [0, 9, BITS])
def test_radius_is_inclusive_and_equals_brute_force(corpus: Corpus, index: str, tmp_path: Path, radius: int) -> None:
    queries, rows = four_queries(corpus, tmp_path)
    result = search(SearchConfig(query=queries, index=index, radius=radius))
    found = [[(near.id, near.distance) for near in query.neighbors] for query in result.queries]
    assert found == corpus.within(corpus.codes[rows], radius)


def test_split_of_the_index_does_not_matter(corpus: Corpus, index: str, tmp_path: Path) -> None:
    queries, _ = four_queries(corpus, tmp_path)
    one = search(SearchConfig(query=queries, index=make_index(corpus, 1), k=200))
    three = search(SearchConfig(query=queries, index=index, k=200))
    assert one.queries == three.queries
    assert [len(found.neighbors) for found in one.queries] == [len(corpus.samples)] * 4


def test_default_is_ten_neighbors(corpus: Corpus, index: str) -> None:
    result = search(SearchConfig(query=(f"id:{corpus.ids[0]}",), index=index))
    assert len(result.queries[0].neighbors) == 10


def test_table_shows_every_neighbor(corpus: Corpus, index: str) -> None:
    result = search(SearchConfig(query=("id:0", "code:" + "f" * 8), index=index, k=4))
    text = format_table(result)
    for found in result.queries:
        assert found.query in text
        for near in found.neighbors:
            assert near.key in text
    nothing = search(SearchConfig(query=("code:" + "f" * 8,), index=index, radius=0))
    assert "no neighbors" in format_table(nothing)


def test_usage_errors(corpus: Corpus, index: str, tmp_path: Path) -> None:
    for fields, error, words in [
        ({"query": ("code:0011",)}, ConfigError, "code:0011.*expected 8 hex digits.*32 bits"),
        ({"query": ("id:0",), "radius": 33}, ConfigError, "radius 33: the codes have 32 bits"),
        ({"query": ("id:x",)}, ConfigError, "id:x: expected id:NUMBER"),
        ({"query": ("key:",)}, ConfigError, "key:: nothing after the colon"),
        ({"query": ("id:777",)}, NotFound, "id:777: not in the index"),
        ({"query": ("key:nobody",)}, NotFound, "key:nobody: not in the index"),
        ({"query": (str(tmp_path / "none.png"),)}, NotFound, "none.png: no such file"),
    ]:
        with pytest.raises(error, match=words) as raised:
            search(SearchConfig(index=index, **fields))
        assert "\n" not in str(raised.value)
    for fields in ({"query": ()}, {"query": ("id:0",), "url": "http://x"}, {"query": ("id:0",), "k": 1, "radius": 1}):
        with pytest.raises(ValidationError):
            SearchConfig(index=index, **fields)


def test_bad_image_is_named(index: str, tmp_path: Path) -> None:
    file = tmp_path / "cut.png"
    file.write_bytes(picture(0)[:60])
    with pytest.raises(BadImage, match=r"cut.png: "):
        search(SearchConfig(query=(str(file),), index=index))


def test_foreign_encoder_is_refused_with_both_digests(corpus: Corpus, tmp_path: Path) -> None:
    file = tmp_path / "query.png"
    file.write_bytes(picture(0))
    foreign = make_index(corpus, 1, folder=tmp_path / "foreign", encoder_digest="f" * 64)
    with pytest.raises(ManifestMismatch, match=f"{'f' * 16}|{corpus.encoder.digest[:16]}") as raised:
        search(SearchConfig(query=(str(file),), index=foreign))
    assert "f" * 16 in str(raised.value)
    assert corpus.encoder.digest[:16] in str(raised.value)
    assert search(SearchConfig(query=("id:0",), index=foreign)).queries, "codes need no encoder"


def test_no_service_is_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServiceUnavailable, match=r"Connection refused \(4 attempts\)") as raised:
        search(SearchConfig(query=("id:0",), url=url))
    assert raised.value.exit_code == 4


def test_packed_queries_agree_with_the_oracle(corpus: Corpus) -> None:
    """The fixture's own brute force, against distances counted one by one."""
    nearest = corpus.nearest(corpus.codes[:2], 5)
    for query, ids, distances in zip(corpus.codes, nearest.ids, nearest.distances, strict=False):
        for row_id, distance in zip(ids, distances, strict=True):
            other = corpus.codes[corpus.ids.index(row_id)]
            assert sum(bin(a ^ b).count("1") for a, b in zip(query.tolist(), other.tolist(), strict=True)) == distance
    assert np.all(np.diff(nearest.distances, axis=1) >= 0)
