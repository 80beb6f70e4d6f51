from pathlib import Path

import numpy as np
import pytest

from cibhash.errors import ConfigError, DataError, ManifestMismatch, NotFound
from cibhash.types import Codes, Ids, Neighbors, RangeNeighbors
from cluster.code_versions import open_codes
from cluster.index.build import build_index
from cluster.index.index_result import IndexResult
from cluster.index.merge import merge_neighbors, merge_ranges
from cluster.index.shard_index import ShardIndex
from cluster.index.versions import open_index
from cluster.index_config import IndexConfig
from cluster.manifests import CodePart
from cluster.runtime import root_cause
from tests import oracles
from tests.tables import make_code_table

COUNT, BITS = 60, 16


def make_codes(seed: int = 0) -> Codes:
    """Codes of which most are equal to others."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (9, BITS // 8), dtype=np.uint8)[rng.integers(0, 9, COUNT)]


def load_shards(uri: str) -> list[ShardIndex]:
    index = open_index(uri)
    return [ShardIndex.load(index.base_uri, entry, index.manifest.bits) for entry in index.manifest.shards]


def ask(uri: str, queries: Codes, k: int, radius: int) -> tuple[Neighbors, RangeNeighbors]:
    shards = load_shards(uri)
    nearest = merge_neighbors([shard.search(queries, k) for shard in shards], k)
    return nearest, merge_ranges([shard.range_search(queries, radius) for shard in shards])


def files(uri: str) -> list[tuple[str, str]]:
    return [(entry.codes.path, entry.rows.path) for entry in open_index(uri).manifest.shards]


def refusal(config: IndexConfig) -> BaseException:
    with pytest.raises(Exception) as caught:
        build_index(config)
    return root_cause(caught.value)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("k", [1, 7, COUNT])
def test_any_number_of_shards_gives_the_same_answer(tmp_path: Path, k: int) -> None:
    codes = make_codes()
    table = make_code_table(tmp_path / "codes", codes, rows_per_part=17)
    expected = [oracles.search(query, codes, range(COUNT)) for query in codes[:12]]
    for num_shards in (1, 2, 3, 7):
        uri = str(tmp_path / f"index-{num_shards}")
        result = build_index(IndexConfig(codes=table, output=uri, shards=num_shards))
        counts = [entry.count for entry in open_index(uri).manifest.shards]
        assert (result.count, result.shards, sum(counts)) == (COUNT, num_shards, COUNT)
        assert max(counts) - min(counts) <= 1
        nearest, within = ask(uri, codes[:12], k, radius=6)
        for number, ranking in enumerate(expected):
            found = list(zip(nearest.distances[number].tolist(), nearest.ids[number].tolist(), strict=True))
            assert found == ranking[:k]
            rows = slice(within.limits[number], within.limits[number + 1])
            inside = list(zip(within.distances[rows].tolist(), within.ids[rows].tolist(), strict=True))
            assert inside == [pair for pair in ranking if pair[0] <= 6]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_parts_and_tables_do_not_change_the_files(tmp_path: Path) -> None:
    codes, ids = make_codes(), np.arange(COUNT, dtype=np.int64) * 3
    labels = [[0] * (i % 3) for i in range(COUNT)]

    def build(name: str, *tables: str) -> list[tuple[str, str]]:
        result = build_index(IndexConfig(codes=",".join(tables), output=str(tmp_path / name), shards=4))
        assert result.count == COUNT
        return files(result.index_uri)

    whole = make_code_table(tmp_path / "whole", codes, ids=ids, labels=labels, dataset_uri="/data")
    small = make_code_table(tmp_path / "small", codes, ids=ids, labels=labels, rows_per_part=7, dataset_uri="/data")
    assert build("a", whole) == build("b", small)
    # Rows in any order, in two tables whose ids interleave: the same codes and ids, to the byte.
    order = np.random.default_rng(1).permutation(COUNT)
    even, odd = order[order % 2 == 0], order[order % 2 == 1]
    parts = [
        make_code_table(tmp_path / name, codes[rows], ids=ids[rows], rows_per_part=9)
        for name, rows in (("even", even), ("odd", odd))
    ]
    assert [codes_path for codes_path, _ in build("c", *parts)] == [path for path, _ in files(str(tmp_path / "a"))]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_result_manifest_and_rows(tmp_path: Path) -> None:
    codes = make_codes()
    table = make_code_table(
        tmp_path / "codes",
        codes,
        labels=[[i, 7] for i in range(COUNT)],
        shards=["a.tar" if i < 30 else "s3://bucket/b.tar" for i in range(COUNT)],
        encoder_uri="/models/one",
        dataset_uri="/data/one",
        prefixes=(8, 16),
    )
    result = build_index(IndexConfig(codes=table, output=str(tmp_path / "index"), shards=2))
    index = open_index(str(tmp_path / "index"))
    size = sum(path.stat().st_size for path in (tmp_path / "index" / "v000001" / "data").iterdir())
    assert result == IndexResult(str(tmp_path / "index"), "v000001", "e" * 64, BITS, COUNT, 2, size)
    assert (index.manifest.version, index.manifest.encoder_uri, index.manifest.prefixes) == (
        "v000001",
        "/models/one",
        (8, 16),
    )
    assert [(ref.uri, ref.digest) for ref in index.manifest.code_tables] == [(table, open_codes(table).digest)]
    first, second = load_shards(result.index_uri)
    (row,) = first.rows_by_id([5])
    assert row is not None
    assert (row.key, row.labels, row.shard, row.offset, row.size) == (
        "image-5",
        (5, 7),
        "/data/one/a.tar",
        5 * 1024 + 512,
        100,
    )
    (row,) = second.rows_by_id([59])
    assert row is not None
    assert row.shard == "s3://bucket/b.tar"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_versions_follow_each_other(tmp_path: Path) -> None:
    one = make_code_table(tmp_path / "one", make_codes(1))
    two = make_code_table(tmp_path / "two", make_codes(2), ids=np.arange(100, 100 + COUNT, dtype=np.int64))
    uri = str(tmp_path / "index")
    assert build_index(IndexConfig(codes=one, output=uri)).version == "v000001"
    assert build_index(IndexConfig(codes=f"{one}, {two}", output=uri, shards=3)).version == "v000002"
    assert open_index(uri).manifest.count == 2 * COUNT
    assert open_index(uri, "v000001").manifest.count == COUNT
    assert [shard.count for shard in load_shards(uri)] == [40, 40, 40]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_no_rows_make_an_empty_index(tmp_path: Path) -> None:
    table = make_code_table(tmp_path / "codes", np.empty((0, 2), np.uint8))
    result = build_index(IndexConfig(codes=table, output=str(tmp_path / "index"), shards=3))
    assert (result.count, result.shards) == (0, 1)
    (shard,) = load_shards(result.index_uri)
    assert (shard.search(np.zeros((1, 2), np.uint8), 2).ids == -1).all()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_repeated_ids_are_named(tmp_path: Path) -> None:
    codes = make_codes()
    one = make_code_table(tmp_path / "one", codes, rows_per_part=13)
    two = make_code_table(tmp_path / "two", codes[:3], ids=np.array([70, 41, 99], np.int64))
    for num_shards in (1, 4):
        error = refusal(IndexConfig(codes=f"{one},{two}", output=str(tmp_path / "index"), shards=num_shards))
        assert isinstance(error, DataError)
        assert error.exit_code == 3
        assert "1 ids occur more than once (41)" in str(error)
        assert one in str(error)
        assert two in str(error)
    same = make_code_table(tmp_path / "same", codes, ids=np.repeat(np.arange(COUNT // 2), 2).astype(np.int64))
    error = refusal(IndexConfig(codes=same, output=str(tmp_path / "index"), shards=1))
    assert "30 ids occur more than once (0, 1, 2, 3, 4, ...)" in str(error)
    assert not (tmp_path / "index" / "CURRENT").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_damaged_part_is_named_and_nothing_published(tmp_path: Path) -> None:
    table = make_code_table(tmp_path / "codes", make_codes(), rows_per_part=20)
    part = tmp_path / "codes" / open_codes(table).parts[1].path
    content = bytearray(part.read_bytes())
    content[50] ^= 1
    part.write_bytes(bytes(content))
    error = refusal(IndexConfig(codes=table, output=str(tmp_path / "index"), shards=2))
    assert isinstance(error, ManifestMismatch)
    assert str(part) in str(error)
    part.unlink()
    error = refusal(IndexConfig(codes=table, output=str(tmp_path / "index"), shards=2))
    assert isinstance(error, NotFound)
    assert str(part) in str(error)
    assert not (tmp_path / "index" / "CURRENT").exists()
    assert not (tmp_path / "index" / "v000001" / "index.json").exists()


def rewrite_parts(table: str, parts: list[CodePart], **totals: int) -> None:
    manifest = open_codes(table)
    (Path(table) / "codes.json").write_bytes(manifest.model_copy(update={"parts": tuple(parts), **totals}).to_json())


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_ids_outside_the_range_of_their_part_are_not_lost(tmp_path: Path) -> None:
    table = make_code_table(tmp_path / "codes", make_codes(), rows_per_part=20)
    parts = list(open_codes(table).parts)
    rewrite_parts(table, [parts[0], parts[1].model_copy(update={"max_id": 38}), parts[2]])
    error = refusal(IndexConfig(codes=table, output=str(tmp_path / "index"), shards=2))
    assert isinstance(error, ManifestMismatch)
    assert "ids 20 to 39, its manifest says 20 to 38" in str(error)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_parts_without_rows_are_skipped(tmp_path: Path) -> None:
    table = make_code_table(tmp_path / "codes", make_codes(), rows_per_part=20)
    parts = list(open_codes(table).parts)
    empty = parts[0].model_copy(update={"path": "parts/none.parquet", "rows": 0, "min_id": 0, "max_id": -1})
    rewrite_parts(table, [parts[0], empty, *parts[1:]])
    assert build_index(IndexConfig(codes=table, output=str(tmp_path / "index"), shards=2)).count == COUNT


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("rows", [True, False])
def test_an_index_of_the_first_bits_is_one_of_shorter_codes(tmp_path: Path, rows: bool) -> None:
    codes = np.random.default_rng(5).integers(0, 256, (COUNT, 4), np.uint8)
    table = make_code_table(tmp_path / "codes", codes, rows_per_part=17, prefixes=(16, 32))
    uri = str(tmp_path / "index")
    assert build_index(IndexConfig(codes=table, output=uri, bits=16, shards=2, rows=rows)).bits == 16
    manifest = open_index(uri).manifest
    assert (manifest.bits, manifest.code_bits) == (16, 32)
    nearest, _ = ask(uri, codes[:5, :2].copy(), 7, radius=2)
    for number, query in enumerate(codes[:5]):
        expected = oracles.search(query[:2], codes[:, :2], range(COUNT))[:7]
        assert list(zip(nearest.distances[number].tolist(), nearest.ids[number].tolist(), strict=True)) == expected
    more = make_code_table(tmp_path / "more", codes, ids=np.arange(100, 100 + COUNT), prefixes=(16, 32))
    assert build_index(IndexConfig(codes=more, output=uri, append=True)).bits == 16
    assert build_index(IndexConfig(output=uri, compact=True)).count == 2 * COUNT
    nearest, _ = ask(uri, codes[:5, :2].copy(), 2, radius=2)
    assert nearest.distances.tolist() == [[0, 0]] * 5


def test_refused_before_any_work(tmp_path: Path) -> None:
    codes, output = make_codes(), str(tmp_path / "index")
    table = make_code_table(tmp_path / "codes", codes)
    ids: Ids = np.arange(100, 100 + COUNT, dtype=np.int64)
    other = make_code_table(tmp_path / "other", codes, ids=ids, encoder_digest="f" * 64)
    wider = make_code_table(tmp_path / "wider", np.zeros((COUNT, 4), np.uint8), ids=ids)
    with pytest.raises(ManifestMismatch, match=r"ffffffff.*eeeeeeee"):
        build_index(IndexConfig(codes=f"{table},{other}", output=output))
    with pytest.raises(ManifestMismatch, match=r"wider has codes of 32 bits, but .*codes of 16"):
        build_index(IndexConfig(codes=f"{table},{wider}", output=output))
    with pytest.raises(ConfigError, match=r"24 bits: the codes of .* have 16"):
        build_index(IndexConfig(codes=table, output=output, bits=24))
    with pytest.raises(ValueError, match="bits: only for an index that is built anew"):
        IndexConfig(codes=table, output=output, bits=8, append=True)
    with pytest.raises(ConfigError, match=f"61 shards for {COUNT} rows"):
        build_index(IndexConfig(codes=table, output=output, shards=COUNT + 1))
    with pytest.raises(ConfigError, match="named twice"):
        build_index(IndexConfig(codes=f"{table},{table}/", output=output))
    with pytest.raises(ConfigError, match="at least one code table"):
        build_index(IndexConfig(codes=" , ", output=output))
    with pytest.raises(NotFound, match="not a complete code table"):
        build_index(IndexConfig(codes=str(tmp_path), output=output))
    rewrite_parts(table, list(open_codes(table).parts), rows_out=COUNT + 1)
    with pytest.raises(DataError, match=f"its parts have {COUNT} rows, but it has {COUNT + 1}"):
        build_index(IndexConfig(codes=table, output=output))
    assert not (tmp_path / "index").exists()


def test_dry_run_touches_nothing(tmp_path: Path) -> None:
    table = make_code_table(tmp_path / "codes", make_codes())
    before = sorted(tmp_path.rglob("*"))
    result = build_index(IndexConfig(codes=table, output=str(tmp_path / "index"), shards=3, dry_run=True))
    assert result == IndexResult(str(tmp_path / "index"), "", "e" * 64, BITS, COUNT, 3, 0)
    assert sorted(tmp_path.rglob("*")) == before
