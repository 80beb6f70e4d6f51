"""Every kind of index: exact ones against brute force, approximate ones against what their manifest says of them."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cibhash.errors import ConfigError, DataError, ManifestMismatch
from cibhash.native.library import library
from cibhash.types import PADDING_DISTANCE, PADDING_ID, Codes, Ids
from cluster.index import flat_codes, posting_lists
from cluster.index.approximate_codes import ApproximateCodes, build_structure, from_bytes, to_bytes
from cluster.index.build import build_index
from cluster.index.index_result import IndexResult
from cluster.index.kinds import IndexKind, KindSpec
from cluster.index.merge import merge_neighbors
from cluster.index.neighbor_tables import NeighborManifest
from cluster.index.retrieval import retrieve
from cluster.index.shard_index import ShardIndex
from cluster.index.structure_files import index_recall, open_structure, sample_positions, write_structure
from cluster.index.versions import OpenIndex, open_index
from cluster.index_config import IndexConfig, RetrieveConfig
from cluster.manifests import IndexManifest, IndexShardEntry, ListedFile, SearchStructure, load_manifest
from cluster.search import search
from cluster.service.loaded_versions import LoadedVersions
from cluster.service_config import SearchConfig
from tests import oracles
from tests.changing_tables import POOL, ChangingTable
from tests.cluster.index.test_shard_index import check_exact, random_codes
from tests.tables import make_code_table

EXACT: tuple[IndexKind, ...] = ("unique", "table")
APPROXIMATE: tuple[IndexKind, ...] = ("ivf", "multihash", "hnsw")
EXHAUSTIVE: dict[IndexKind, dict[str, int]] = {
    "ivf": {"nlist": 7, "nprobe": 7},
    "multihash": {"nhash": 2, "hash_bits": 6, "nflip": 6},
    "hnsw": {"m": 32, "ef_search": 1000},
}


def clustered_codes(seed: int, count: int, bits: int) -> Codes:
    """Codes around twenty centers, an eighth of the bits flipped: approximate kinds find neither all nor nothing."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (3, count, bits // 8), dtype=np.uint8)
    centers = rng.integers(0, 256, (20, bits // 8), dtype=np.uint8)
    return centers[rng.integers(0, 20, count)] ^ (noise[0] & noise[1] & noise[2])


def check_within(index: ShardIndex, queries: Codes, codes: Codes, ids: Ids, radius: int) -> None:
    within = index.range_search(queries, radius)
    assert [array.dtype for array in within] == [np.int64, np.int64, np.int32]
    for number, query in enumerate(queries):
        rows = slice(within.limits[number], within.limits[number + 1])
        found = list(zip(within.distances[rows].tolist(), within.ids[rows].tolist(), strict=True))
        assert found == [pair for pair in oracles.search(query, codes, ids.tolist()) if pair[0] <= radius]


def check_ordered(index: ShardIndex, queries: Codes, codes: Codes, ids: Ids, k: int) -> None:
    """As many as there are, each once, with their distances, in the order of (distance, id)."""
    nearest, kept = index.search(queries, k), min(k, len(ids))
    code_of = dict(zip(ids.tolist(), codes, strict=True))
    for query, row_ids, distances in zip(queries, nearest.ids.tolist(), nearest.distances.tolist(), strict=True):
        pairs = list(zip(distances, row_ids, strict=True))
        assert pairs[:kept] == sorted(set(pairs[:kept]))
        assert pairs[kept:] == [(PADDING_DISTANCE, PADDING_ID)] * (k - kept)
        assert distances[:kept] == [oracles.hamming(query, code_of[row_id]) for row_id in row_ids[:kept]]


@pytest.mark.parametrize(
    ("kind", "bits", "pool"),
    [("unique", 8, 256), ("unique", 24, 60), ("unique", 64, 300), ("unique", 256, 40), ("unique", 16, 1)]
    + [("table", 16, pool) for pool in (1, 5, 60, 300)],
)
@pytest.mark.parametrize("block_cells", [2**21, 40])
@pytest.mark.parametrize("compiled", [True, False])
def test_exact_kinds_are_brute_force(
    kind: IndexKind, bits: int, pool: int, block_cells: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With queries in one block or many, in compiled code and by FAISS."""
    monkeypatch.setattr(posting_lists, "_BLOCK_CELLS", block_cells)
    monkeypatch.setattr(flat_codes, "library", library if compiled else lambda: None)
    codes, ids = random_codes(np.random.default_rng(bits + pool), 200, bits, pool)
    index = ShardIndex(codes, ids, [], kind=kind)
    queries = np.concatenate([codes[:4], ~codes[:1], random_codes(np.random.default_rng(1), 3, bits, 3)[0]])
    for k in (1, 2, 10, 63, 199, 200, 205):
        check_exact(index, queries, codes, ids, k, radius=min(k, bits) // 2)
    check_exact(index, queries, codes, ids, 1, radius=10 * bits)
    assert index.search(queries[:0], 3).ids.shape == (0, 3)
    assert index.range_search(queries[:0], 3).limits.tolist() == [0]


@settings(deadline=None, max_examples=150)
@given(data=st.data(), k=st.integers(1, 45), cells=st.integers(1, 200), radius=st.integers(0, 17))
@pytest.mark.parametrize("kind", EXACT)
def test_ties_at_every_cut(kind: IndexKind, data: st.DataObject, k: int, cells: int, radius: int) -> None:
    values = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 255, 256, 65535]), max_size=40))
    codes = np.array(values, "<u2").view(np.uint8).reshape(-1, 2)
    ids = np.cumsum(data.draw(st.lists(st.integers(1, 9), min_size=len(values), max_size=len(values))), dtype=np.int64)
    queries = np.array([0, 1, 15, 255, 65535], "<u2").view(np.uint8).reshape(-1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(posting_lists, "_BLOCK_CELLS", cells)
        check_exact(ShardIndex(codes, ids, [], kind=kind), queries, codes, ids, k, radius)


def test_more_queries_than_a_block_may_have() -> None:
    """The query is part of the number that is sorted: 8,192 of them fit."""
    codes, ids = random_codes(np.random.default_rng(3), 50, 16, 9)
    queries = np.random.default_rng(4).integers(0, 256, (20_000, 2), dtype=np.uint8)
    flat = ShardIndex(codes, ids, []).search(queries, 7)
    for kind in EXACT:
        for ours, expected in zip(ShardIndex(codes, ids, [], kind=kind).search(queries, 7), flat, strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_codes_of_another_length_have_no_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="codes of 24 bits, a table holds codes of 16 bits"):
        ShardIndex(*random_codes(np.random.default_rng(0), 9, 24, 9), [], kind="table")
    codes = make_code_table(tmp_path / "codes", random_codes(np.random.default_rng(0), 9, 24, 9)[0])
    for kind, fields, message in [
        ("table", {}, f"kind table needs codes of 16 bits, {codes} has codes of 24 bits"),
        ("multihash", {"multihash": {"nhash": 4, "hash_bits": 7}}, f"4 hashes of 7 bits, but the codes of {codes}"),
        ("multihash", {"multihash": {"nhash": 25}}, "25 hashes of 1 bits"),
        ("multihash", {"multihash": {"hash_bits": 25}}, "1 hashes of 25 bits"),
    ]:
        config = {"codes": codes, "output": str(tmp_path / "index"), "kind": kind, "dry_run": True, **fields}
        with pytest.raises(ConfigError, match=message):
            build_index(IndexConfig.model_validate(config))


def test_parameters_go_with_their_kind() -> None:
    def refused(message: str, **fields: object) -> None:
        with pytest.raises(ValueError, match=message):
            IndexConfig.model_validate({"output": "o", **fields})

    refused("ivf.nprobe: only with --kind ivf", codes="c", kind="hnsw", ivf={"nprobe": 3})
    refused("hnsw.m: only with --kind hnsw", codes="c", hnsw={"m": 4})
    refused("hnsw.m: only with --kind hnsw", append=True, hnsw={"m": 4})
    config = IndexConfig.model_validate({"codes": "c", "output": "o", "kind": "multihash", "multihash": {"nflip": 0}})
    assert config.parameters == {"nflip": 0}
    assert IndexConfig(codes="c", output="o").parameters == {}


@pytest.mark.parametrize("count", [1, 2, 38, 100, 5000, 10**6, 10**8])
@pytest.mark.parametrize("bits", [8, 16, 64, 512])
def test_parameters_by_the_size_of_a_shard(count: int, bits: int) -> None:
    ivf = KindSpec("ivf").of_shard(count, bits)
    assert 1 <= ivf["nprobe"] <= ivf["nlist"] <= max(1, count // 39)
    multihash = KindSpec("multihash").of_shard(count, bits)
    assert 4 <= multihash["nhash"] * multihash["hash_bits"] <= bits
    assert multihash["nflip"] <= multihash["hash_bits"]
    assert KindSpec("ivf", {"nlist": 50, "nprobe": 60}).of_shard(count, bits)["nprobe"] == min(50, count)
    assert KindSpec("hnsw", {"m": 4}).of_shard(count, bits) == {"m": 4, "ef_search": 256}


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize(("bits", "pool"), [(16, 4), (64, 500)])
def test_exhaustive_parameters_find_all(kind: IndexKind, bits: int, pool: int) -> None:
    """All distances are those of brute force, and all ids but those tied with the last."""
    codes, ids = random_codes(np.random.default_rng(8), 300, bits, pool)
    structure = build_structure(kind, codes, EXHAUSTIVE[kind])
    index = ShardIndex(codes, ids, [], kind=kind, searchable=ApproximateCodes(codes, structure, 1))
    flat = ShardIndex(codes, ids, [])
    for k in (1, 10, 300, 310):
        found, exact = index.search(codes[:20], k), flat.search(codes[:20], k)
        np.testing.assert_array_equal(found.distances, exact.distances)
        closer = found.distances < exact.distances[:, -1:]
        np.testing.assert_array_equal(found.ids[closer], exact.ids[closer])
        check_ordered(index, codes[:6], codes, ids, k)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_a_query_that_finds_too_few_is_answered_exactly(kind: IndexKind) -> None:
    """By parameters that cannot find all; HNSW cannot among equal codes, which lead to each other alone."""
    codes, ids = random_codes(np.random.default_rng(5), 400, 64, 400 if kind != "hnsw" else 1)
    least = {"ivf": {"nlist": 10, "nprobe": 1}, "multihash": {"nhash": 2, "hash_bits": 8, "nflip": 0}}
    structure = build_structure(kind, codes, least.get(kind, {"m": 2, "ef_search": 1}))
    assert np.any(structure.search(codes[:9], 300)[1] < 0)
    index = ShardIndex(codes, ids, [], kind=kind, searchable=ApproximateCodes(codes, structure, 1))
    check_exact(index, codes[:9], codes, ids, 400, radius=30)
    check_ordered(index, codes[:9], codes, ids, 300)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_equal_codes_give_equal_bytes_and_threads_equal_answers(kind: IndexKind) -> None:
    codes = clustered_codes(1, 500, 32)
    spec = KindSpec(kind).of_shard(500, 32)
    content = to_bytes(build_structure(kind, codes, spec))
    assert to_bytes(build_structure(kind, codes.copy(), spec)) == content
    one, two = (ApproximateCodes(codes, from_bytes(content), threads) for threads in (1, 2))
    expected = one.search(codes[:40], 9)
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda _: one.search(codes[:40], 9), range(12)))
    for found in (two.search(codes[:40], 9), *at_once):
        for first, second in zip(found, expected, strict=True):
            np.testing.assert_array_equal(first, second)


def test_the_order_of_a_structure_does_not_matter() -> None:
    codes, ids = random_codes(np.random.default_rng(8), 60, 16, 4)
    structure = build_structure("ivf", codes, {"nlist": 2, "nprobe": 2})

    class Reversed:
        d, ntotal = structure.d, structure.ntotal

        def search(self, queries: Codes, k: int) -> tuple[Ids, Ids]:
            distances, positions = structure.search(queries, k)
            return distances[:, ::-1], positions[:, ::-1]

    index = ShardIndex(codes, ids, [], kind="ivf", searchable=ApproximateCodes(codes, Reversed(), 1))
    for k in (7, 60):
        check_ordered(index, codes[:9], codes, ids, k)


def test_a_structure_of_other_codes_is_refused() -> None:
    codes = clustered_codes(1, 50, 32)
    structure = build_structure("hnsw", codes, {"m": 4, "ef_search": 8})
    with pytest.raises(ValueError, match="50 codes of 32 bits, expected 49 of 32"):
        ApproximateCodes(codes[1:], structure, 1)
    with pytest.raises(ValueError, match="need the structure"):
        ShardIndex(codes, np.arange(50), [], kind="hnsw")


def entry_with(structure: SearchStructure | None, count: int) -> IndexShardEntry:
    file = ListedFile(path="data/codes", bytes=0, sha256="")
    return IndexShardEntry(codes=file, rows=file, count=count, min_id=0, max_id=count - 1, structure=structure)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_a_structure_is_verified_before_it_is_parsed(
    tmp_path: Path, kind: IndexKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, uri = clustered_codes(2, 300, 32), str(tmp_path)
    structure = write_structure(uri, 3, codes, KindSpec(kind))
    assert structure is not None
    open_structure(uri, entry_with(structure, 300), codes, 1)
    path = tmp_path / structure.path
    content = path.read_bytes()
    monkeypatch.setattr("cluster.index.structure_files.from_bytes", lambda _: pytest.fail("parsed"))
    for damaged in (content[:-1], content + b"\0", content[:99] + bytes([content[99] ^ 1]) + content[100:]):
        path.write_bytes(damaged)
        with pytest.raises(ManifestMismatch, match=f"{structure.path}: .* its manifest says"):
            open_structure(uri, entry_with(structure, 300), codes, 1)


def test_what_else_a_structure_may_not_be(tmp_path: Path) -> None:
    codes, uri = clustered_codes(2, 300, 32), str(tmp_path)
    structure = write_structure(uri, 3, codes, KindSpec("hnsw"))
    assert structure is not None
    with pytest.raises(ManifestMismatch, match="300 codes of 32 bits, expected 299"):
        open_structure(uri, entry_with(structure, 299), codes[1:], 1)
    with pytest.raises(ManifestMismatch, match="data/codes has no structure"):
        open_structure(uri, entry_with(None, 300), codes, 1)
    nonsense = b"nonsense" * 4
    (tmp_path / "other").write_bytes(nonsense)
    update = {"path": "other", "bytes": len(nonsense), "sha256": hashlib.sha256(nonsense).hexdigest()}
    listed = structure.model_copy(update=update)
    with pytest.raises(DataError, match="other: not a readable search structure"):
        open_structure(uri, entry_with(listed, 300), codes, 1)
    assert write_structure(uri, 3, codes[:0], KindSpec("hnsw")) is None
    assert write_structure(uri, 3, codes, KindSpec("unique")) is None


def test_recall_counts_ties() -> None:
    found, exact = np.array([[0, 2, 5], [1, 1, 1]]), np.array([[0, 1, 2], [1, 1, 1]])
    assert index_recall(found, exact) == 5 / 6


def job(output: Path, **fields: object) -> IndexResult:
    return build_index(IndexConfig.model_validate({"output": str(output), **fields}))


def load(index: OpenIndex) -> list[ShardIndex]:
    manifest = index.manifest
    return [ShardIndex.load(index.base_uri, one, manifest.bits, kind=manifest.kind) for one in manifest.shards]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_recall_in_the_manifest_is_that_of_its_searches(tmp_path: Path) -> None:
    """Of every approximate kind, built by Ray in two shards; retrieval and the command line answer as the shards do."""
    codes = clustered_codes(4, 3000, 64)
    table = make_code_table(tmp_path / "codes", codes)
    queries = make_code_table(tmp_path / "queries", clustered_codes(5, 30, 64))
    asked: dict[IndexKind, dict[str, int]] = {
        "ivf": {"nlist": 30, "nprobe": 2},
        "multihash": {"nflip": 1},
        "hnsw": {"ef_search": 20},
    }
    for kind in APPROXIMATE:
        output = tmp_path / kind
        result = job(output, codes=table, shards=2, kind=kind, **{kind: asked[kind]})
        index = open_index(str(output))
        manifest, shards = index.manifest, load(index)
        assert (manifest.kind, manifest.parameters) == (kind, asked[kind])
        recalls = []
        for entry, shard, own in zip(manifest.shards, shards, (codes[:1500], codes[1500:]), strict=True):
            structure = entry.structure
            assert structure is not None
            assert structure.parameters == KindSpec(kind, asked[kind]).of_shard(1500, 64)
            assert (structure.k, structure.num_queries) == (100, 256)
            sample = own[sample_positions(1500)]
            found, share = shard.search(sample, 100), []
            for query, distances in zip(sample[:40], found.distances, strict=False):
                ranking = oracles.search(query, own, range(1500))
                share.append(np.mean(distances <= ranking[99][0]))
            flat = ShardIndex(own, np.arange(1500), []).search(sample, 100)
            recall = float(np.mean(found.distances <= flat.distances[:, -1:]))
            assert np.mean(share) == pytest.approx(np.mean(found.distances[:40] <= flat.distances[:40, -1:]))
            assert structure.recall == recall
            assert 0.3 < recall < 1
            recalls.append(recall)
            ids = np.arange(entry.min_id, entry.max_id + 1)
            check_ordered(shard, sample[:5], own, ids, 20)
            check_within(shard, sample[:3], own, ids, 20)
        assert (result.kind, result.least_recall, result.mean_recall) == (kind, min(recalls), sum(recalls) / 2)
        size = sum(path.stat().st_size for path in (output / "v000001/data").iterdir())
        assert (result.bytes, len(list((output / "v000001/data").glob("*.faiss")))) == (size, 2)

        places = {"index": str(output), "queries": queries, "output": str(tmp_path / f"{kind}-neighbors")}
        retrieve(RetrieveConfig.model_validate({**places, "k": 12}))
        (part,) = load_manifest(NeighborManifest, places["output"]).parts
        found_rows = pq.read_table(Path(places["output"]) / part.path)
        wanted = merge_neighbors([shard.search(clustered_codes(5, 30, 64), 12) for shard in shards], 12)
        assert found_rows["ids"].to_pylist() == wanted.ids.tolist()
        assert found_rows["distances"].to_pylist() == wanted.distances.tolist()
        (answer,) = search(SearchConfig(query=("id:7",), index=str(output), k=12)).queries
        of_seven = merge_neighbors([shard.search(codes[7:8], 12) for shard in shards], 12)
        assert [(near.distance, near.id) for near in answer.neighbors] == [
            *zip(of_seven.distances[0].tolist(), of_seven.ids[0].tolist(), strict=True)
        ]
    plan = job(tmp_path / "ivf", codes=table, kind="ivf", dry_run=True)
    assert (plan.kind, plan.least_recall) == ("ivf", None)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("kind", EXACT + APPROXIMATE)
def test_an_index_that_grows_keeps_its_kind(tmp_path: Path, kind: IndexKind) -> None:
    """Exhaustive parameters, so that answers can be compared: what is hidden is never found, what is new is."""
    table, output = ChangingTable(tmp_path / "codes"), tmp_path / "index"
    table.shards = [table.new_images(size) for size in (9, 8, 7)]
    table.publish()
    asked = {kind: EXHAUSTIVE[kind]} if kind in EXHAUSTIVE else {}
    job(output, codes=str(table.folder), shards=2, kind=kind, **asked)
    before = open_index(str(output)).manifest

    def check(version: str) -> IndexManifest:
        index = open_index(str(output))
        assert (index.manifest.version, index.manifest.spec) == (version, before.spec)
        images = [image for shard in table.shards for image in shard]
        codes = POOL[[image.code for image in images]]
        for k in (1, 5, len(images) + 3):
            found = merge_neighbors([shard.search(POOL, k) for shard in load(index)], k)
            for query, distances, ids in zip(POOL, found.distances, found.ids, strict=True):
                expected = oracles.search(query, codes, range(len(images)))[:k]
                assert distances[: len(expected)].tolist() == [distance for distance, _ in expected]
                shown = ids[ids >= 0].tolist()
                assert len(shown) == len(set(shown)) == len(expected)
                assert [oracles.hamming(query, codes[i]) for i in shown] == [distance for distance, _ in expected]
        return index.manifest

    check("v000001")
    table.shards[0] = table.new_images(9)
    table.shards.append(table.new_images(4))
    table.publish()
    job(output, append=True)
    kept, untouched, *new = check("v000002").shards
    assert (kept.hidden is not None, untouched.hidden, bool(new)) == (True, None, True)
    if kind in APPROXIMATE:
        assert kept.structure is not None
        assert untouched.structure is not None
        assert (kept.version, kept.structure.version) == ("v000001", "")
        assert (untouched.version, untouched.structure.version) == ("v000001", "v000001")
    else:
        assert not any(entry.structure for entry in (kept, untouched, *new))
    for how in ("append", "compact"):
        for fields in ({"kind": "ivf", "ivf": {"nlist": 3}}, {"kind": "table" if kind == "unique" else "unique"}):
            with pytest.raises(ConfigError, match=rf"asked for kind {fields['kind']}.*, but .* is of kind {kind}"):
                job(output, **{how: True}, **fields)
    table.shards[3] = table.new_images(4)
    table.publish()
    job(output, append=True, kind=kind, **asked)
    kept, *_ = check("v000003").shards
    assert kept.structure is None or kept.structure.version == "v000002"
    job(output, compact=True)
    check("v000004")
    table.shards = []
    table.publish()
    job(output, append=True)
    last = open_index(str(output))
    (empty,) = last.manifest.shards
    assert (last.manifest.version, empty.count, empty.structure) == ("v000005", 0, None)
    assert load(last)[0].search(POOL, 2).ids.tolist() == [[PADDING_ID] * 2] * len(POOL)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_service_tells_versions_of_two_kinds_apart(tmp_path: Path) -> None:
    """Of the same codes and rows: the files are equal, what searches them is not."""
    table, output = ChangingTable(tmp_path / "codes"), tmp_path / "index"
    table.shards = [table.new_images(9)]
    table.publish()
    for kind in ("flat", "unique", "unique", "hnsw"):
        job(output, codes=str(table.folder), kind=kind)
    versions = LoadedVersions(str(output), 0, 1, "v000001", 3600.0)
    shards = [versions._load(f"v{number:06d}").shards[0] for number in (1, 2, 3, 4)]
    assert [shard.kind for shard in shards] == ["flat", "unique", "unique", "hnsw"]
    assert shards[1] is shards[2]
    manifest = json.loads((output / "v000001/index.json").read_text())
    assert "parameters" not in manifest
    assert "structure" not in manifest["shards"][0]
    on_device = LoadedVersions(str(output), 0, 1, "v000001", 3600.0, "cpu")
    expected, found = (each._load("v000001").search(POOL, 4) for each in (versions, on_device))
    np.testing.assert_array_equal(found.ids, expected.ids)
    with pytest.raises(ConfigError, match="v000002 is of kind unique"):
        on_device._load("v000002")
