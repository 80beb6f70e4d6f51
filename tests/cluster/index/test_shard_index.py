import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from cibhash.errors import ConfigError, DataError, ManifestMismatch, NotFound
from cibhash.native.library import Level, library
from cibhash.types import PADDING_DISTANCE, PADDING_ID, Codes, Ids
from cluster.code_tables import code_schema, packed_array
from cluster.index import faiss_flat, flat_codes, shard_files
from cluster.index.shard_files import write_shard_files
from cluster.index.shard_index import Row, ShardIndex
from cluster.manifests import IndexShardEntry
from tests import oracles


def make_rows(codes: Codes, ids: Ids, keys: list[str] | None = None) -> pa.Table:
    columns = [
        pa.array(ids),
        pa.array(keys or [f"image-{i}" for i in ids], pa.string()),
        packed_array(codes),
        pa.array([list(range(i % 3)) for i in ids.tolist()], pa.list_(pa.int32())),
        pa.array([f"/data/shard-{i % 2}.tar" for i in ids.tolist()], pa.string()),
        pa.array(ids * 1000 + 512),
        pa.array(np.arange(len(ids), dtype=np.int32) + 7),
    ]
    return pa.table(columns, schema=code_schema(8 * codes.shape[1]))


def random_codes(rng: np.random.Generator, count: int, bits: int, pool: int) -> tuple[Codes, Ids]:
    """Codes drawn from a pool of few, so that many are equal, and ascending ids with gaps."""
    codes = rng.integers(0, 256, (pool, bits // 8), dtype=np.uint8)[rng.integers(0, pool, count)]
    return codes, np.sort(rng.choice(10 * count, count, replace=False)).astype(np.int64)


def check_exact(index: ShardIndex, queries: Codes, codes: Codes, ids: Ids, k: int, radius: int) -> None:
    nearest, within = index.search(queries, k), index.range_search(queries, radius)
    assert [array.dtype for array in (*nearest, *within)] == [np.int64, np.int32, np.int64, np.int64, np.int32]
    assert nearest.ids.shape == nearest.distances.shape == (len(queries), k)
    for number, query in enumerate(queries):
        expected = oracles.search(query, codes, ids.tolist())
        padded = (expected + [(PADDING_DISTANCE, PADDING_ID)] * k)[:k]
        assert list(zip(nearest.distances[number].tolist(), nearest.ids[number].tolist(), strict=True)) == padded
        rows = slice(within.limits[number], within.limits[number + 1])
        found = list(zip(within.distances[rows].tolist(), within.ids[rows].tolist(), strict=True))
        assert found == [pair for pair in expected if pair[0] <= radius]


@pytest.fixture
def without_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat_codes, "library", lambda: None)


def test_which_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.zeros((3, 2), np.uint8)
    found = library()
    fast = found is not None and found.cibhash_level() >= Level.AVX2
    assert isinstance(flat_codes.flat_codes(codes, 1), flat_codes.CompiledFlat if fast else faiss_flat.FaissFlat)
    monkeypatch.setattr(flat_codes, "library", lambda: None)
    assert isinstance(flat_codes.flat_codes(codes, 1), faiss_flat.FaissFlat)


@pytest.mark.parametrize(("bits", "pool"), [(8, 256), (16, 5), (16, 1), (24, 60), (64, 300), (256, 40)])
@pytest.mark.parametrize("segment_rows", [0, 2**20, 64])
def test_search_is_brute_force(bits: int, pool: int, segment_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In compiled code (0), and by FAISS in segments of so many rows."""
    if segment_rows:
        monkeypatch.setattr(flat_codes, "library", lambda: None)
        monkeypatch.setattr(faiss_flat, "_SEGMENT_ROWS", segment_rows)
    rng = np.random.default_rng(bits + pool)
    codes, ids = random_codes(rng, 300, bits, pool)
    index = ShardIndex(codes, ids, [])
    queries = np.concatenate([codes[:6], rng.integers(0, 256, (4, bits // 8), dtype=np.uint8)])
    for k in (1, 2, 10, 63, 64, 65, 299, 300, 305):
        check_exact(index, queries, codes, ids, k, radius=min(k, bits) // 2)
    check_exact(index, queries, codes, ids, 1, radius=0)
    check_exact(index, queries, codes, ids, 1, radius=10 * bits)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), k=st.integers(1, 45), segment_rows=st.integers(0, 45), cells=st.integers(1, 200))
def test_ties_at_every_cut(data: st.DataObject, k: int, segment_rows: int, cells: int) -> None:
    """In compiled code (0), and by FAISS in segments and blocks of any size."""
    values = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 255]), max_size=40))
    codes = np.array(values, np.uint8).reshape(-1, 1)
    ids = np.cumsum(data.draw(st.lists(st.integers(1, 9), min_size=len(values), max_size=len(values))), dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        if segment_rows:
            patch.setattr(flat_codes, "library", lambda: None)
            patch.setattr(faiss_flat, "_SEGMENT_ROWS", segment_rows)
            patch.setattr(faiss_flat, "_BLOCK_CELLS", cells)
        queries = np.array([[0], [1], [15], [255]], np.uint8)
        check_exact(ShardIndex(codes, ids, []), queries, codes, ids, k, data.draw(st.integers(0, 9)))


def test_faiss_choice_among_ties_does_not_matter(without_compiled_code: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database reversed inside FAISS: its own tie order would keep the largest ids."""
    codes = np.zeros((50, 2), np.uint8)
    codes[::7] = 1
    ids = np.arange(50, dtype=np.int64)
    index = ShardIndex(codes, ids, [])
    ((first, flat),) = index._searchable._segments  # type: ignore[attr-defined]

    class Reversed:
        ntotal = 50

        def search(self, queries: Codes, k: int) -> tuple[Ids, Ids]:
            distances, positions = flat.search(queries, 50)
            order = np.lexsort((-positions, distances), axis=1)[:, :k]
            return np.take_along_axis(distances, order, 1), np.take_along_axis(positions, order, 1)

        def range_search(self, queries: Codes, radius: int) -> tuple[Ids, Ids, Ids]:
            limits, distances, positions = flat.range_search(queries, radius)
            return limits, distances, positions

    monkeypatch.setattr(index._searchable, "_segments", [(first, Reversed())])
    for k in (1, 5, 8, 9, 20, 49, 50):
        check_exact(index, codes[:8], codes, ids, k, radius=1)


def test_threads_give_the_same_answer() -> None:
    codes, ids = random_codes(np.random.default_rng(3), 500, 32, 20)
    one, two = ShardIndex(codes, ids, []), ShardIndex(codes, ids, [], threads=2)
    for first, second in zip(one.search(codes, 20), two.search(codes, 20), strict=True):
        np.testing.assert_array_equal(first, second)


def test_empty_shard(tmp_path: Path) -> None:
    codes, ids = np.empty((0, 4), np.uint8), np.empty(0, np.int64)
    entry = write_shard_files(str(tmp_path), 0, make_rows(codes, ids), 32)
    assert (entry.count, entry.min_id, entry.max_id) == (0, 0, -1)
    index = ShardIndex.load(str(tmp_path), entry, 32)
    assert index.count == 0
    check_exact(index, np.zeros((2, 4), np.uint8), codes, ids, 3, radius=32)
    assert index.rows_by_id([0, 1]) == [None, None]
    assert index.codes_by_id([0]) == {}
    assert index.ids_by_key(["image-0"]) == {}


def test_no_queries() -> None:
    codes, ids = random_codes(np.random.default_rng(0), 20, 16, 20)
    index = ShardIndex(codes, ids, [])
    assert index.search(codes[:0], 3).ids.shape == (0, 3)
    assert index.range_search(codes[:0], 3).limits.tolist() == [0]


def test_refuses_wrong_arguments() -> None:
    codes, ids = random_codes(np.random.default_rng(0), 20, 16, 20)
    index = ShardIndex(codes, ids, [])
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"k is {k}"):
            index.search(codes, k)
    with pytest.raises(ValueError, match="radius is -1"):
        index.range_search(codes, -1)
    wrong = np.zeros((1, 8), np.uint8)
    with pytest.raises(ValueError, match="64 bits, the index has 16 bits"):
        index.search(wrong, 1)
    with pytest.raises(ValueError, match="64 bits, the index has 16 bits"):
        index.range_search(wrong, 1)
    with pytest.raises(ValueError, match="dtype"):
        index.search(codes.astype(np.int32), 1)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, IndexShardEntry, Codes, Ids]:
    """A shard on disk, its rows in batches of 16."""
    monkeypatch.setattr(shard_files, "_ROWS_PER_BATCH", 16)
    codes, ids = random_codes(np.random.default_rng(5), 100, 24, 30)
    return tmp_path, write_shard_files(str(tmp_path), 3, make_rows(codes, ids), 24), codes, ids


def test_round_trip(written: tuple[Path, IndexShardEntry, Codes, Ids]) -> None:
    folder, entry, codes, ids = written
    assert (entry.count, entry.min_id, entry.max_id) == (100, ids[0], ids[-1])
    index = ShardIndex.load(str(folder), entry, 24)
    check_exact(index, codes[:5], codes, ids, 7, radius=3)
    wanted = [int(ids[70]), 10**12, int(ids[0]), int(ids[99]), -1, int(ids[70])]
    rows = index.rows_by_id(wanted)
    assert [row.id if row else None for row in rows] == [wanted[0], None, wanted[2], wanted[3], None, wanted[5]]
    last = int(ids[99])
    shard = f"/data/shard-{last % 2}.tar"
    assert rows[3] == Row(last, f"image-{last}", tuple(range(last % 3)), shard, last * 1000 + 512, 106)
    assert index.codes_by_id(np.array(wanted)) == {int(ids[i]): codes[i].tobytes() for i in (0, 70, 99)}
    keys = ["nobody", f"image-{ids[3]}", f"image-{ids[98]}"]
    assert index.ids_by_key(keys) == {keys[1]: int(ids[3]), keys[2]: int(ids[98])}
    assert index.ids_by_key([]) == {}


def test_codes_by_id() -> None:
    codes, ids = random_codes(np.random.default_rng(5), 30, 64, 30)
    assert ShardIndex(codes, ids, []).codes_by_id(ids) == {int(i): c.tobytes() for i, c in zip(ids, codes, strict=True)}


def test_codes_are_mapped_read_only_and_outlive_their_file(tmp_path: Path) -> None:
    codes, ids = random_codes(np.random.default_rng(5), 200, 24, 30)
    entry = write_shard_files(str(tmp_path), 0, make_rows(codes, ids), 24)
    found_codes, found_ids, rows = shard_files.read_shard_files(str(tmp_path), entry, 24)
    for found in (found_codes, found_ids):
        assert isinstance(found, np.memmap)
        assert not found.flags.writeable
    (tmp_path / entry.codes.path).unlink()
    check_exact(ShardIndex(found_codes, found_ids, rows), codes[:4], codes, ids, 9, radius=5)


@pytest.mark.parametrize("count", [0, 200])
def test_a_shard_on_a_device_is_brute_force(tmp_path: Path, count: int) -> None:
    codes, ids = random_codes(np.random.default_rng(5), count, 24, 30)
    entry = write_shard_files(str(tmp_path), 0, make_rows(codes, ids), 24)
    index = ShardIndex.load(str(tmp_path), entry, 24, device="cpu")
    for k in (1, 9, 199, 205):
        check_exact(index, codes[:4], codes, ids, k, radius=5)
    with pytest.raises(ConfigError, match="only an index of kind flat is searched on a GPU"):
        ShardIndex.load(str(tmp_path), entry, 24, kind="unique", device="cpu")


def test_a_repeated_key_means_the_smallest_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_files, "_ROWS_PER_BATCH", 2)
    codes, ids = np.zeros((6, 1), np.uint8), np.arange(6, dtype=np.int64)
    entry = write_shard_files(str(tmp_path), 0, make_rows(codes, ids, ["a", "b", "b", "c", "a", "c"]), 8)
    assert ShardIndex.load(str(tmp_path), entry, 8).ids_by_key(["c", "b", "a"]) == {"a": 0, "b": 1, "c": 3}


def test_files_depend_on_the_rows_alone(tmp_path: Path) -> None:
    codes, ids = random_codes(np.random.default_rng(5), 100, 24, 30)
    table = make_rows(codes, ids)
    pieces = pa.concat_tables([table.slice(0, 13), table.slice(13, 50), table.slice(63)])
    whole = write_shard_files(str(tmp_path / "a"), 0, table, 24)
    assert write_shard_files(str(tmp_path / "b"), 0, pieces, 24) == whole
    assert write_shard_files(str(tmp_path / "a"), 0, table, 24) == whole


def test_unordered_rows_are_not_written(tmp_path: Path) -> None:
    codes = np.zeros((3, 1), np.uint8)
    for ids in ([0, 2, 1], [0, 1, 1], [-1, 0, 1]):
        with pytest.raises(ValueError, match="index shard 4"):
            write_shard_files(str(tmp_path), 4, make_rows(codes, np.array(ids, np.int64)), 8)


@pytest.mark.parametrize("which", ["codes", "rows"])
def test_every_corruption_is_refused(written: tuple[Path, IndexShardEntry, Codes, Ids], which: str) -> None:
    folder, entry, _, _ = written
    listed = getattr(entry, which)
    path = folder / listed.path
    content, rng = path.read_bytes(), np.random.default_rng(9)
    planted = [content[:size] for size in np.linspace(0, len(content) - 1, 20).astype(int)]
    planted += [content + b"\0", content + content]
    for bit in rng.choice(8 * len(content), 300, replace=False).tolist():
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        planted.append(bytes(flipped))
    detected = 0
    for damaged in planted:
        path.write_bytes(damaged)
        with pytest.raises(ManifestMismatch) as caught:
            ShardIndex.load(str(folder), entry, 24)
        detected += listed.path in str(caught.value) and "manifest says" in str(caught.value)
    assert detected == len(planted) == 322
    path.unlink()
    with pytest.raises(NotFound, match=path.name):
        ShardIndex.load(str(folder), entry, 24)


def relisted(folder: Path, entry: IndexShardEntry, which: str, content: bytes) -> IndexShardEntry:
    """An entry that vouches for another content of one file."""
    listed = getattr(entry, which)
    (folder / listed.path).write_bytes(content)
    update = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return entry.model_copy(update={which: listed.model_copy(update=update)})


@pytest.mark.parametrize("which", ["codes", "rows"])
@pytest.mark.parametrize("content", [b"", b"not what it should be" * 20])
def test_a_listed_file_of_another_format(
    written: tuple[Path, IndexShardEntry, Codes, Ids], which: str, content: bytes
) -> None:
    folder, entry, _, _ = written
    with pytest.raises(DataError, match=f"{getattr(entry, which).path}: not a readable"):
        ShardIndex.load(str(folder), relisted(folder, entry, which, content), 24)


def test_content_must_be_what_the_manifest_says(written: tuple[Path, IndexShardEntry, Codes, Ids]) -> None:
    folder, entry, _, ids = written
    for bits, update, values in (
        (32, {}, "24 bits, its manifest says 32"),
        (24, {"count": 99}, "100 codes and 100 ids, its manifest says 99"),
        (24, {"max_id": 5}, f"ids {ids[0]} to {ids[-1]}, its manifest says {ids[0]} to 5"),
    ):
        with pytest.raises(ManifestMismatch, match=f"{entry.codes.path}: .*{values}"):
            ShardIndex.load(str(folder), entry.model_copy(update=update), bits)


def test_ids_must_ascend(written: tuple[Path, IndexShardEntry, Codes, Ids]) -> None:
    folder, entry, codes, ids = written
    for wrong in (ids[::-1].copy(), np.repeat(ids[:50], 2)):
        save_file({"codes": codes, "ids": wrong}, folder / "other")
        listed = relisted(folder, entry, "codes", (folder / "other").read_bytes())
        with pytest.raises(DataError, match="ascending"):
            ShardIndex.load(str(folder), listed, 24)


def test_rows_of_other_codes(written: tuple[Path, IndexShardEntry, Codes, Ids]) -> None:
    folder, entry, codes, ids = written
    shifted = write_shard_files(str(folder), 3, make_rows(codes, ids + 1), 24)
    with pytest.raises(ManifestMismatch, match="ids differ"):
        ShardIndex.load(str(folder), entry.model_copy(update={"rows": shifted.rows}), 24)
    fewer = write_shard_files(str(folder), 3, make_rows(codes[:9], ids[:9]), 24)
    with pytest.raises(ManifestMismatch, match="9 rows, its codes file has 100"):
        ShardIndex.load(str(folder), entry.model_copy(update={"rows": fewer.rows}), 24)


@pytest.mark.parametrize("first_id", [0, 10**12])
def test_contiguous_ids_take_no_room(tmp_path: Path, first_id: int) -> None:
    codes, _ = random_codes(np.random.default_rng(5), 200, 24, 30)
    ids = np.arange(first_id, first_id + 200)
    entry = write_shard_files(str(tmp_path), 0, make_rows(codes, ids), 24)
    assert entry.codes.bytes < codes.nbytes + 300
    assert (entry.min_id, entry.max_id) == (first_id, first_id + 199)
    index = ShardIndex.load(str(tmp_path), entry, 24)
    check_exact(index, codes[:5], codes, ids, 7, radius=3)
    wanted = [first_id + 70, first_id - 1, first_id + 200, first_id]
    assert [row and row.key for row in index.rows_by_id(wanted)] == [
        f"image-{wanted[0]}",
        None,
        None,
        f"image-{first_id}",
    ]
    assert index.codes_by_id(wanted) == {wanted[0]: codes[70].tobytes(), first_id: codes[0].tobytes()}


def test_stored_ids_without_a_gap_are_read_too(tmp_path: Path) -> None:
    """As older versions of this project wrote them."""
    codes, _ = random_codes(np.random.default_rng(5), 50, 24, 30)
    ids = np.arange(7, 57)
    entry = write_shard_files(str(tmp_path), 0, make_rows(codes, ids), 24)
    save_file({"codes": codes, "ids": ids}, tmp_path / "older")
    listed = relisted(tmp_path, entry, "codes", (tmp_path / "older").read_bytes())
    check_exact(ShardIndex.load(str(tmp_path), listed, 24), codes[:5], codes, ids, 7, radius=3)


@pytest.mark.parametrize("first_ids", [[], [7, 8], [-1]])
def test_first_ids_that_cannot_be(tmp_path: Path, first_ids: list[int]) -> None:
    codes, _ = random_codes(np.random.default_rng(5), 50, 24, 30)
    entry = write_shard_files(str(tmp_path), 0, make_rows(codes, np.arange(7, 57)), 24)
    save_file({"codes": codes, "first_id": np.array(first_ids, np.int64)}, tmp_path / "other")
    with pytest.raises(DataError, match=r"first ids: not an index shard|ids are not ascending, unique and at least 0"):
        ShardIndex.load(str(tmp_path), relisted(tmp_path, entry, "codes", (tmp_path / "other").read_bytes()), 24)


def test_a_shard_without_rows_knows_ids_and_codes(tmp_path: Path) -> None:
    codes, ids = random_codes(np.random.default_rng(5), 200, 24, 30)
    table = make_rows(codes, ids).select(["id", "code"])
    entry = write_shard_files(str(tmp_path), 0, table, 24, with_rows=False)
    assert entry.rows is None
    index = ShardIndex.load(str(tmp_path), entry, 24)
    check_exact(index, codes[:5], codes, ids, 7, radius=3)
    first = int(ids[0])
    assert index.rows_by_id([first, -1]) == [Row(first, "", (), "", 0, 0), None]
    assert index.codes_by_id([first]) == {first: codes[0].tobytes()}
    assert index.ids_by_key([""]) == {}
