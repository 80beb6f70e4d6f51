"""Versions of a code table: a dataset that grew, shrank or changed, encoded again to the same place."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from cibhash.errors import AlreadyExists, ConfigError, DataError, ManifestMismatch, NotFound
from cibhash.shards import SourceImage
from cluster.code_tables import ids_of, read_part
from cluster.code_versions import open_codes, publish_codes
from cluster.config import EncodeConfig
from cluster.encoding.encode import EncodeResult, encode
from cluster.encoding.tombstones import read_tombstones
from cluster.versions import read_current
from tests.datasets import make_dataset, published_encoder, shape_sources

A, B, C, D = (shape_sources(count, start) for count, start in ((3, 0), (4, 10), (2, 20), (5, 30)))


def _pack(folder: Path, shards: Sequence[Sequence[SourceImage]]) -> str:
    """Writes the dataset anew where one may have been."""
    (folder / "dataset.json").unlink(missing_ok=True)
    return make_dataset(folder, shards)


def _encode(tmp_path: Path, shards: Sequence[Sequence[SourceImage]], output: str = "codes") -> EncodeResult:
    dataset = _pack(tmp_path / "data", shards)
    if not (tmp_path / "encoder").exists():
        published_encoder(tmp_path / "encoder")
    settings = {"encoder": str(tmp_path / "encoder"), "batch_size": 8, "threads_per_worker": 1}
    return encode(EncodeConfig.model_validate({"dataset": dataset, "output": str(tmp_path / output), **settings}))


def _rows(uri: str, version: str = "") -> list[dict[str, object]]:
    return pa.concat_tables([read_part(uri, part) for part in open_codes(uri, version).parts]).to_pylist()


def _gone(uri: str) -> list[tuple[int, str, str, str]]:
    return [tuple(row.values()) for row in read_tombstones(uri, open_codes(uri)).to_pylist()]


@pytest.mark.ray
def test_a_table_follows_its_dataset_and_redoes_only_what_changed(ray_local: None, tmp_path: Path) -> None:
    """Grown, then a shard in the middle written anew with ids shifted behind it, then a shard taken out."""
    uri = str(tmp_path / "codes")
    first = _encode(tmp_path, [A, B])
    assert (first.version, first.rows_out, first.parts_reused, first.deleted, first.replaced) == ("v000001", 7, 0, 0, 0)
    assert open_codes(uri).tombstones is None

    grown = _encode(tmp_path, [A, B, C])
    assert (grown.version, grown.rows_out, grown.parts_reused, grown.deleted, grown.replaced) == ("v000002", 9, 2, 0, 0)
    assert _gone(uri) == []
    assert open_codes(uri).parts[:2] == open_codes(uri, "v000001").parts

    changed = _encode(tmp_path, [A, [*B[:2], *D[:1]], C])
    assert (changed.version, changed.parts_reused) == ("v000003", 1)
    assert (changed.rows_out, changed.deleted, changed.replaced) == (8, 2, 4)
    expected = [
        *((number, f"shape-{key:05d}", "v000002", "replaced") for number, key in ((3, 10), (4, 11))),
        *((number, f"shape-{key:05d}", "v000002", "deleted") for number, key in ((5, 12), (6, 13))),
        *((number, f"shape-{key:05d}", "v000002", "replaced") for number, key in ((7, 20), (8, 21))),
    ]
    assert sorted(_gone(uri)) == expected

    shrunk = _encode(tmp_path, [A, [*B[:2], *D[:1]]])
    assert (shrunk.version, shrunk.parts_reused, shrunk.rows_out, shrunk.deleted) == ("v000004", 2, 6, 2)
    assert sorted(_gone(uri)) == sorted(
        [*expected, *((n, f"shape-{n + 14:05d}", "v000003", "deleted") for n in (6, 7))]
    )

    fresh = _encode(tmp_path, [A, [*B[:2], *D[:1]]], "fresh")
    assert _rows(uri) == _rows(fresh.codes_uri)
    assert [row["id"] for row in _rows(uri)] == list(range(6))
    counts = [len(_rows(uri, f"v{number:06d}")) for number in (1, 2, 3, 4)]
    assert counts == [7, 9, 8, 6]
    assert (tmp_path / "codes/codes.json").read_bytes() == (tmp_path / "codes/v000004/codes.json").read_bytes()
    again = _encode(tmp_path, [A, [*B[:2], *D[:1]]])
    assert (again.version, again.parts_reused) == ("v000004", 2)


@pytest.mark.ray
def test_a_run_killed_while_publishing_is_finished_by_the_next(ray_local: None, tmp_path: Path) -> None:
    """At each of the three steps; what is there in the end is what an undisturbed run leaves."""
    _encode(tmp_path, [A, B])
    _encode(tmp_path, [A, C])
    codes = tmp_path / "codes"
    files = {str(path.relative_to(codes)): path.read_bytes() for path in codes.rglob("*") if path.is_file()}
    old_copy = (codes / "v000001/codes.json").read_bytes()
    for undone in ({"v000002/codes.json": None, "CURRENT": b"v000001\n"}, {"CURRENT": b"v000001\n"}, {}):
        for name, content in undone.items():
            (codes / name).unlink()
            if content:
                (codes / name).write_bytes(content)
        (codes / "codes.json").write_bytes(old_copy)
        result = _encode(tmp_path, [A, C])
        assert (result.version, result.rows_out, result.parts_reused) == ("v000002", 5, 2)
        found = {str(path.relative_to(codes)): path.read_bytes() for path in codes.rglob("*") if path.is_file()}
        assert {name: content for name, content in found.items() if not name.endswith(".lock")} == {
            name: content for name, content in files.items() if not name.endswith(".lock")
        }


@pytest.mark.ray
def test_of_two_runs_with_different_tables_one_wins(ray_local: None, tmp_path: Path) -> None:
    uri = _encode(tmp_path, [A]).codes_uri
    pointer, manifest = read_current(uri), open_codes(uri)
    winner = publish_codes(uri, manifest.model_copy(update={"dataset_digest": "1" * 64}), pointer)
    assert winner.version == "v000002"
    with pytest.raises(AlreadyExists, match=r"version v000002 current meanwhile") as caught:
        publish_codes(uri, manifest.model_copy(update={"dataset_digest": "2" * 64}), pointer)
    assert "\n" not in str(caught.value)
    assert open_codes(uri) == winner
    same = publish_codes(uri, manifest.model_copy(update={"dataset_digest": "1" * 64}), pointer)
    assert same == winner


@pytest.mark.ray
def test_what_cannot_be_continued_is_refused(ray_local: None, tmp_path: Path) -> None:
    uri = _encode(tmp_path, [A, B]).codes_uri
    other = published_encoder(tmp_path / "other", seed=5)
    settings = {"encoder": str(tmp_path / "encoder"), "dataset": str(tmp_path / "data"), "output": uri}
    with pytest.raises(ManifestMismatch, match=r"encoder [0-9a-f]{16}\.\.\., asked for [0-9a-f]{16}"):
        encode(EncodeConfig.model_validate({**settings, "encoder": other}))
    moved = make_dataset(tmp_path / "moved", [A, C])
    with pytest.raises(ManifestMismatch, match="--moved"):
        encode(EncodeConfig.model_validate({**settings, "dataset": moved}))
    result = encode(EncodeConfig.model_validate({**settings, "dataset": moved, "moved": True}))
    assert (result.version, result.parts_reused, result.deleted) == ("v000002", 1, 4)
    assert open_codes(uri).dataset_uri == moved
    twin = make_dataset(tmp_path / "twin", [A, C])
    assert encode(EncodeConfig.model_validate({**settings, "dataset": twin})).version == "v000002"
    again = encode(EncodeConfig.model_validate({**settings, "dataset": twin, "moved": True}))
    assert (again.version, again.parts_reused, again.deleted, again.replaced) == ("v000003", 2, 0, 0)
    assert open_codes(uri).dataset_uri == twin


def test_versions_that_are_not_there_or_broken_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="not a complete code table"):
        open_codes(str(tmp_path))
    with pytest.raises(ConfigError, match="'2' is not the version of a code table"):
        open_codes(str(tmp_path), "2")
    with pytest.raises(NotFound, match=r"there is no version v000002 \(codes\.json is missing\)"):
        open_codes(str(tmp_path), "v000002")
    (tmp_path / "CURRENT").write_text("v000001\n")
    with pytest.raises(NotFound, match=r"version v000001 has no codes\.json, but CURRENT names it"):
        open_codes(str(tmp_path))
    (tmp_path / "CURRENT").write_text("newest\n")
    with pytest.raises(DataError, match="CURRENT: 'newest' is not the name of a version"):
        open_codes(str(tmp_path))


@pytest.mark.ray
def test_ids_of_unchanged_parts_are_those_of_the_dataset(ray_local: None, tmp_path: Path) -> None:
    """A shard whose ids shift is encoded anew, though its bytes are the same."""
    uri = _encode(tmp_path, [A, B]).codes_uri
    result = _encode(tmp_path, [C, A, B])
    shards = json.loads((tmp_path / "data/dataset.json").read_text())["shards"]
    assert result.parts_reused == 0
    ids = [ids_of(read_part(uri, part)).tolist() for part in open_codes(uri).parts]
    assert ids == [list(range(shard["first_id"], shard["first_id"] + shard["count"])) for shard in shards]
