import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch

from cibhash.errors import ConfigError, DataError, ManifestMismatch, NotFound
from cibhash.types import Codes
from cluster.code_versions import open_codes
from cluster.index import retrieval
from cluster.index.build import build_index
from cluster.index.neighbor_tables import NEIGHBOR_SCHEMA, NeighborManifest
from cluster.index.retrieval import RetrieveResult, retrieve
from cluster.index.versions import open_index
from cluster.index_config import IndexConfig, RetrieveConfig
from cluster.manifests import load_manifest
from cluster.runtime import root_cause
from tests import oracles
from tests.tables import make_code_table

pytestmark = pytest.mark.ray

QUERIES, DATABASE = 25, 90


def make_codes(count: int, seed: int) -> Codes:
    rng = np.random.default_rng(seed)
    pool = np.random.default_rng(77).integers(0, 256, (12, 2), dtype=np.uint8)
    return pool[rng.integers(0, 12, count)]


@pytest.fixture(scope="module")
def made(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database, an index of one shard, a query table of three parts, and `out`: the neighbors for k = 8."""
    folder = tmp_path_factory.mktemp("retrieval")
    database = make_code_table(folder / "database", make_codes(DATABASE, 1), rows_per_part=40)
    ids = np.arange(500, 500 + QUERIES, dtype=np.int64)
    make_code_table(folder / "queries", make_codes(QUERIES, 2), ids=ids, rows_per_part=10)
    build_index(IndexConfig(codes=database, output=str(folder / "index")))
    result = retrieve(config_in(folder))
    assert result == RetrieveResult(str(folder / "out"), QUERIES, 8, 3, 0, "v000001", "e" * 64)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of all that was made; nothing in it knows where it lies."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def config_in(folder: Path, output: str = "out", k: int = 8, **fields: object) -> RetrieveConfig:
    places = {"index": str(folder / "index"), "queries": str(folder / "queries"), "output": str(folder / output)}
    return RetrieveConfig.model_validate({**places, "k": k, **fields})


def check_neighbors(uri: str, k: int) -> None:
    """Every listed part against brute force."""
    manifest = load_manifest(NeighborManifest, uri)
    queries, database = make_codes(QUERIES, 2), make_codes(DATABASE, 1)
    number = 0
    for part in manifest.parts:
        table = pq.read_table(Path(uri) / part.path)
        assert table.schema.equals(NEIGHBOR_SCHEMA)
        assert table.num_rows == part.rows
        for row in table.to_pylist():
            expected = oracles.search(queries[number], database, range(DATABASE))[:k]
            assert (row["query_id"], row["query_key"]) == (500 + number, f"image-{500 + number}")
            assert list(zip(row["distances"], row["ids"], strict=True)) == expected
            number += 1
    assert number == manifest.rows == QUERIES


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_neighbors_are_brute_force(made: Path) -> None:
    check_neighbors(str(made / "out"), 8)
    manifest, index = load_manifest(NeighborManifest, str(made / "out")), open_index(str(made / "index"))
    assert manifest.queries_digest == open_codes(str(made / "queries")).digest
    assert (manifest.k, manifest.index_version, manifest.index_digest) == (8, "v000001", index.digest)
    assert manifest.encoder_digest == "e" * 64


def test_more_neighbors_than_codes(folder: Path) -> None:
    assert retrieve(config_in(folder, "more", DATABASE + 10)).k == DATABASE + 10
    check_neighbors(str(folder / "more"), DATABASE)


def test_number_of_shards_does_not_change_the_bytes(folder: Path) -> None:
    build_index(IndexConfig(codes=str(folder / "database"), output=str(folder / "three"), shards=3))
    retrieve(config_in(folder, "out-3", index=str(folder / "three")))
    three, one = contents(folder / "out-3"), contents(folder / "out")
    parts = [name for name in one if name.endswith(".parquet")]
    assert len(parts) == 3
    assert [three[name] for name in parts] == [one[name] for name in parts]


def test_rerun_continues(folder: Path) -> None:
    config, out = config_in(folder), folder / "out"
    before = contents(out)
    times = {path.name: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}

    again = retrieve(config)
    assert (again.parts, again.parts_reused) == (3, 3)
    assert {path.name: path.stat().st_mtime_ns for path in (out / "parts").iterdir()} == times

    (out / "neighbors.json").unlink()
    (out / "parts" / "part-000001.parquet").unlink()
    assert retrieve(config).parts_reused == 2
    check_neighbors(str(out), 8)
    after = contents(out)
    assert {name: after[name] for name in before if name != "neighbors.json"} == {
        name: content for name, content in before.items() if name != "neighbors.json"
    }
    for name in ("part-000000.parquet", "part-000002.parquet"):
        assert (out / "parts" / name).stat().st_mtime_ns == times[name]

    (out / "neighbors.json").unlink()
    assert retrieve(config).parts_reused == 3
    assert contents(out) == after


def test_unfit_parts_are_made_again(folder: Path) -> None:
    out = folder / "out"
    before = contents(out)
    (out / "neighbors.json").unlink()
    damaged = bytearray(before["parts/part-000000.parquet"])
    damaged[40] ^= 1
    (out / "parts" / "part-000000.parquet").write_bytes(bytes(damaged))
    (out / "parts" / "part-000001.json").write_bytes(before["parts/part-000001.json"][:30])
    record = json.loads(before["parts/part-000002.json"])
    record["inputs"]["k"] = 7
    (out / "parts" / "part-000002.json").write_text(json.dumps(record))
    assert retrieve(config_in(folder)).parts_reused == 0
    after = contents(out)
    assert all(after[name] == content for name, content in before.items() if name != "neighbors.json")


def test_output_of_other_inputs_is_refused(folder: Path) -> None:
    before = contents(folder / "out")
    with pytest.raises(ManifestMismatch, match=r"k 8; asked for: .* k 9; choose another output") as caught:
        retrieve(config_in(folder, k=9))
    assert caught.value.exit_code == 3
    build_index(IndexConfig(codes=str(folder / "database"), output=str(folder / "index"), shards=2))
    with pytest.raises(ManifestMismatch, match=r"index v000001 .*asked for: .* index v000002 "):
        retrieve(config_in(folder))
    assert contents(folder / "out") == before
    (folder / "out" / "neighbors.json").unlink()
    result = retrieve(config_in(folder))
    assert (result.parts_reused, result.index_version) == (0, "v000002")
    check_neighbors(str(folder / "out"), 8)


def test_another_encoder_is_refused(folder: Path) -> None:
    other = make_code_table(folder / "other", make_codes(5, 3), encoder_digest="f" * 64)
    with pytest.raises(ManifestMismatch, match=r"ffffffff.*eeeeeeee") as caught:
        retrieve(config_in(folder, "new", queries=other))
    assert caught.value.exit_code == 3
    wider = make_code_table(folder / "wider", np.zeros((5, 4), np.uint8))
    with pytest.raises(ManifestMismatch, match=r"32 bits, but .* 16"):
        retrieve(config_in(folder, "new", queries=wider))
    assert not (folder / "new").exists()


def test_queries_are_cut_to_the_bits_that_the_index_has(folder: Path) -> None:
    build_index(IndexConfig(codes=str(folder / "database"), output=str(folder / "short"), bits=8))
    retrieve(config_in(folder, "cut", k=3, index=str(folder / "short")))
    manifest = load_manifest(NeighborManifest, str(folder / "cut"))
    found = [read_neighbors(folder / "cut" / part.path) for part in manifest.parts]
    queries, database = make_codes(QUERIES, 2)[:, :1], make_codes(DATABASE, 1)[:, :1]
    expected = [[d for d, _ in oracles.search(query, database, range(DATABASE))[:3]] for query in queries]
    assert [row for rows in found for row in rows] == expected


def read_neighbors(path: Path) -> list[list[int]]:
    return [list(row) for row in pq.read_table(path)["distances"].to_pylist()]


def test_blocks_of_queries_do_not_change_the_neighbors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = open_index(str(folder / "index")), str(folder / "queries")
    request = retrieval._Request(str(folder / "blocks"), queries, 16, 8, 8, "v000001", index.digest)
    # Ray tasks import the module afresh, so the part is made here.
    monkeypatch.setattr(retrieval, "_NEIGHBORS_PER_CALL", 24)
    part = retrieval._retrieve_part(
        request, 0, open_codes(queries).parts[0], retrieval._start_shards(index, config_in(folder))
    )
    assert pq.read_table(folder / "blocks" / part.path).equals(pq.read_table(folder / "out" / part.path))


def test_a_shard_on_a_device_gives_the_same(folder: Path) -> None:
    index, codes = open_index(str(folder / "index")), make_codes(QUERIES, 2)
    (entry,) = index.manifest.shards
    (found, expected) = (
        retrieval._ShardActor(index.base_uri, entry, 16, "flat", device).search(codes, 8) for device in ("cpu", "")
    )
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.distances, expected.distances)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpus_that_are_not_there_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = config_in(folder, "new", use_gpu=True, gpus_per_shard=0.5)
    with pytest.raises(ConfigError, match=r"^index shards 1 needs 0\.5 GPUs, the Ray cluster has 0$"):
        retrieve(config)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for dry_run in (False, True):
        with pytest.raises(ConfigError, match=r"^no CUDA device: "):
            retrieve(config.model_copy(update={"dry_run": dry_run}))
    assert not (folder / "new").exists()


def test_a_kind_that_gpus_do_not_search_is_refused(folder: Path) -> None:
    build_index(IndexConfig(codes=str(folder / "database"), output=str(folder / "unique"), kind="unique"))
    config = config_in(folder, "new", index=str(folder / "unique"), use_gpu=True)
    with pytest.raises(ConfigError, match=r"^use_gpu: only an index of kind flat .*/unique is of kind unique$"):
        retrieve(config)


def test_damaged_index_shard_is_named_and_nothing_committed(folder: Path) -> None:
    index = open_index(str(folder / "index"))
    path = Path(index.base_uri) / index.manifest.shards[0].codes.path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Exception, match="manifest says") as caught:
        retrieve(config_in(folder, "new"))
    error = root_cause(caught.value)
    assert isinstance(error, ManifestMismatch)
    assert str(path) in str(error)
    assert not (folder / "new" / "neighbors.json").exists()


def test_empty_index_and_empty_queries(folder: Path) -> None:
    nothing = make_code_table(folder / "nothing", np.empty((0, 2), np.uint8))
    empty = build_index(IndexConfig(codes=nothing, output=str(folder / "empty"))).index_uri
    assert retrieve(config_in(folder, "a", index=empty)).rows == QUERIES
    for part in load_manifest(NeighborManifest, str(folder / "a")).parts:
        rows = pq.read_table(folder / "a" / part.path).to_pylist()
        assert all(row["ids"] == row["distances"] == [] for row in rows)
    config = config_in(folder, "b", queries=nothing)
    assert retrieve(config) == retrieve(config)
    assert load_manifest(NeighborManifest, str(folder / "b")).parts == ()


def test_dry_run_touches_nothing(folder: Path) -> None:
    before = contents(folder)
    config = config_in(folder, "new", dry_run=True)
    assert retrieve(config) == RetrieveResult(str(folder / "new"), QUERIES, 8, 3, 0, "v000001", "e" * 64)
    assert contents(folder) == before
    with pytest.raises(NotFound, match="CURRENT is missing"):
        retrieve(config.model_copy(update={"index": str(folder)}))


def test_queries_must_add_up(folder: Path) -> None:
    manifest = open_codes(str(folder / "queries"))
    (folder / "queries" / "codes.json").write_bytes(manifest.model_copy(update={"rows_out": 26}).to_json())
    with pytest.raises(DataError, match="its parts have 25 rows, but it has 26"):
        retrieve(config_in(folder, "new"))
