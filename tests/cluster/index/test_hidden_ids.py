"""What a version hides of a shard is nowhere to be found in it; a file of hidden ids that is not right is refused."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from safetensors.numpy import save

from cibhash.errors import DataError, ManifestMismatch, NotFound
from cibhash.types import Codes, Ids
from cluster.code_tables import code_schema, packed_array
from cluster.index import shard_files
from cluster.index.hidden_ids import read_hidden, write_hidden
from cluster.index.shard_files import read_shard_files, read_shard_ids, write_shard_files
from cluster.index.shard_index import ShardIndex
from cluster.manifests import HiddenIds, IndexShardEntry
from tests import oracles
from tests.s3 import s3_bucket as s3_bucket

COUNT, BITS = 200, 16


def make_shard(uri: str) -> tuple[IndexShardEntry, Codes, Ids]:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, (7, BITS // 8), dtype=np.uint8)[rng.integers(0, 7, COUNT)]
    ids = np.sort(rng.choice(10 * COUNT, COUNT, replace=False)).astype(np.int64)
    columns = [
        pa.array(ids),
        pa.array([f"image-{i // 3}" for i in range(COUNT)], pa.string()),
        packed_array(codes),
        pa.array([[i] for i in range(COUNT)], pa.list_(pa.int32())),
        pa.array(["/data/a.tar"] * COUNT, pa.string()),
        pa.array(ids * 1000),
        pa.array(np.full(COUNT, 9, np.int32)),
    ]
    return write_shard_files(uri, 0, pa.table(columns, schema=code_schema(BITS)), BITS), codes, ids


def followed(entry: IndexShardEntry, hidden: HiddenIds, ids: Ids, mask: npt.NDArray[np.bool_]) -> IndexShardEntry:
    """The shard of v000001 in a version that shows the rows of the mask."""
    shown = ids[mask]
    update = {
        "version": "v000001",
        "hidden": hidden,
        "count": len(shown),
        "min_id": int(shown[0]) if len(shown) else 0,
        "max_id": int(shown[-1]) if len(shown) else -1,
    }
    return entry.model_copy(update=update)


def masks() -> list[npt.NDArray[np.bool_]]:
    """Ends, a middle that spans batches, every other, all but one, all, and rows at random."""
    place = np.arange(COUNT)
    rng = np.random.default_rng(0)
    hidden = [place < 5, place > 190, (place > 20) & (place < 120), place % 2 == 0, place != 77, place >= 0]
    return [~mask for mask in (*hidden, rng.random(COUNT) < 0.1, rng.random(COUNT) < 0.9)]


@pytest.mark.parametrize("least_run", [1, 64, 10**6])
def test_a_shard_with_hidden_rows_is_the_shard_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least_run: int
) -> None:
    monkeypatch.setattr(shard_files, "_ROWS_PER_BATCH", 32)
    monkeypatch.setattr(shard_files, "_LEAST_RUN", least_run)
    entry, codes, ids = make_shard(f"{tmp_path}/v000001")
    base_uri = f"{tmp_path}/v000002"
    rows = ShardIndex.load(f"{tmp_path}/v000001", entry, BITS).rows_by_id(ids)
    for mask in masks():
        shown = followed(entry, write_hidden(base_uri, 0, ids[~mask]), ids, mask)
        index = ShardIndex.load(base_uri, shown, BITS)
        assert index.count == mask.sum()
        assert index.rows_by_id(ids) == [row if kept else None for row, kept in zip(rows, mask, strict=True)]
        assert index.codes_by_id(ids) == {int(i): c.tobytes() for i, c in zip(ids[mask], codes[mask], strict=True)}
        keys = [f"image-{number}" for number in range(COUNT // 3 + 1)]
        first: dict[str, int] = {}
        for place in np.flatnonzero(mask):
            first.setdefault(f"image-{place // 3}", int(ids[place]))
        assert index.ids_by_key(keys) == first
        for query in codes[:3]:
            expected = oracles.search(query, codes[mask], ids[mask].tolist())
            found = index.search(query[None], COUNT)
            pairs = list(zip(found.distances[0].tolist(), found.ids[0].tolist(), strict=True))
            assert [pair for pair in pairs if pair[1] >= 0] == expected
            near = index.range_search(query[None], 5)
            assert list(zip(near.distances.tolist(), near.ids.tolist(), strict=True)) == [
                p for p in expected if p[0] <= 5
            ]
        visible, hidden = read_shard_ids(base_uri, shown, BITS)
        assert (visible.tolist(), hidden.tolist()) == (ids[mask].tolist(), ids[~mask].tolist())


def test_whole_runs_of_rows_stay_mapped(tmp_path: Path) -> None:
    entry, _, ids = make_shard(f"{tmp_path}/v000001")
    mask = (np.arange(COUNT) < 70) | (np.arange(COUNT) >= 130)
    shown = followed(entry, write_hidden(f"{tmp_path}/v000002", 0, ids[~mask]), ids, mask)
    before = pa.total_allocated_bytes()
    _, _, rows = read_shard_files(f"{tmp_path}/v000002", shown, BITS)
    assert [batch.num_rows for batch in rows] == [70, 70]
    assert pa.total_allocated_bytes() == before


@pytest.fixture
def hiding(tmp_path: Path) -> tuple[str, IndexShardEntry, Path, Ids]:
    """A version that hides ten rows, and the file that says so."""
    entry, _, ids = make_shard(f"{tmp_path}/v000001")
    mask = np.arange(COUNT) >= 10
    shown = followed(entry, write_hidden(f"{tmp_path}/v000002", 0, ids[:10]), ids, mask)
    assert shown.hidden is not None
    return f"{tmp_path}/v000002", shown, tmp_path / "v000002" / shown.hidden.path, ids


def test_every_corruption_is_refused(hiding: tuple[str, IndexShardEntry, Path, Ids]) -> None:
    base_uri, entry, path, _ = hiding
    content = path.read_bytes()
    damaged = [content[:end] for end in range(0, len(content), 7)] + [content + b"\0"]
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        damaged.append(bytes(flipped))
    for wrong in damaged:
        path.write_bytes(wrong)
        with pytest.raises(ManifestMismatch, match=path.name):
            ShardIndex.load(base_uri, entry, BITS)
    path.unlink()
    with pytest.raises(NotFound, match=path.name):
        ShardIndex.load(base_uri, entry, BITS)


def test_a_file_that_is_vouched_for_must_still_fit(hiding: tuple[str, IndexShardEntry, Path, Ids]) -> None:
    base_uri, entry, path, ids = hiding
    foreign = np.setdiff1d(np.arange(2000), ids)[:7]
    for content, count, error, words in [
        (save({"ids": foreign}), 7, ManifestMismatch, "hides 7 ids that its shard does not have: .*, ..."),
        (save({"ids": np.sort(np.append(ids[:9], foreign[0]))}), 10, ManifestMismatch, f"does not have: {foreign[0]}$"),
        (save({"ids": ids[:9]}), 10, ManifestMismatch, "9 hidden ids, its manifest says 10"),
        (save({"ids": ids[9::-1].copy()}), 10, DataError, "not int64, ascending"),
        (save({"ids": ids[:10].astype(np.int32)}), 10, DataError, "hidden ids int32"),
        (save({"other": ids[:10]}), 10, DataError, "not a readable file of hidden ids"),
        (b"not what it should be", 10, DataError, "not a readable file of hidden ids"),
        (b"", 10, DataError, "not a readable file of hidden ids"),
    ]:
        path.write_bytes(content)
        assert entry.hidden is not None
        sha256 = hashlib.sha256(content).hexdigest()
        hidden = entry.hidden.model_copy(update={"bytes": len(content), "sha256": sha256, "count": count})
        with pytest.raises(error, match=f"{path.name}: .*{words}") as caught:
            read_hidden(base_uri, hidden, ids)
        assert caught.value.exit_code == 3
    with pytest.raises(ManifestMismatch, match="200 codes and 200 ids, its manifest says 199"):
        ShardIndex.load(base_uri, entry.model_copy(update={"count": 189}), BITS)


def test_the_visible_range_must_be_right(hiding: tuple[str, IndexShardEntry, Path, Ids]) -> None:
    base_uri, entry, _, ids = hiding
    with pytest.raises(ManifestMismatch, match=f"ids {ids[10]} to {ids[-1]}, its manifest says {ids[0]} to {ids[-1]}"):
        ShardIndex.load(base_uri, entry.model_copy(update={"min_id": int(ids[0])}), BITS)


def test_in_s3(s3_bucket: str) -> None:
    entry, codes, ids = make_shard(f"{s3_bucket}/index/v000001")
    mask = np.arange(COUNT) % 7 > 0
    base_uri = f"{s3_bucket}/index/v000002"
    shown = followed(entry, write_hidden(base_uri, 0, ids[~mask]), ids, mask)
    found_codes, found_ids, rows = read_shard_files(base_uri, shown, BITS)
    assert found_ids.tolist() == ids[mask].tolist() == [i for batch in rows for i in batch["id"].to_pylist()]
    assert found_codes.tolist() == codes[mask].tolist()
