"""An index that follows its code tables answers as one built anew from them, whatever happened to both in between."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cibhash.errors import AlreadyExists, ConfigError, DataError, ManifestMismatch, NotFound
from cibhash.types import Codes
from cluster.code_versions import open_codes
from cluster.index import append, build
from cluster.index.build import build_index
from cluster.index.index_result import IndexResult
from cluster.index.merge import merge_neighbors, merge_ranges
from cluster.index.retrieval import retrieve
from cluster.index.shard_index import Row, ShardIndex
from cluster.index.versions import open_index
from cluster.index_config import IndexConfig, RetrieveConfig
from cluster.manifests import IndexManifest
from cluster.runtime import root_cause
from cluster.search import search
from cluster.service_config import SearchConfig
from tests import oracles
from tests.changing_tables import BITS, POOL, ChangingTable, Image
from tests.tables import make_code_table

QUERIES: Codes = np.concatenate([POOL[:4], np.array([[0, 0], [255, 15]], np.uint8)])


def make(folder: Path, sizes: Sequence[int] = (6, 5, 7), first_id: int = 0) -> ChangingTable:
    table = ChangingTable(folder, first_id=first_id)
    table.shards = [table.new_images(size) for size in sizes]
    table.publish()
    return table


def job(output: Path | str, **fields: object) -> IndexResult:
    places = {name: str(value) for name, value in fields.items() if name == "codes"}
    return build_index(IndexConfig.model_validate({"output": str(output), **fields, **places}))


def refusal(output: Path | str, **fields: object) -> BaseException:
    with pytest.raises(Exception) as caught:
        job(output, **fields)
    return root_cause(caught.value)


def load(uri: Path | str, version: str = "") -> list[ShardIndex]:
    index = open_index(str(uri), version)
    return [ShardIndex.load(index.base_uri, entry, BITS) for entry in index.manifest.shards]


def nearest(shards: list[ShardIndex], k: int) -> list[list[tuple[int, int]]]:
    found = merge_neighbors([shard.search(QUERIES, k) for shard in shards], k)
    return [list(zip(d, i, strict=True)) for d, i in zip(found.distances.tolist(), found.ids.tolist(), strict=True)]


def within(shards: list[ShardIndex], radius: int) -> list[list[tuple[int, int]]]:
    found = merge_ranges([shard.range_search(QUERIES, radius) for shard in shards])
    pairs = list(zip(found.distances.tolist(), found.ids.tolist(), strict=True))
    return [pairs[start:end] for start, end in zip(found.limits, found.limits[1:], strict=False)]


def rows_of(shards: list[ShardIndex], ids: Sequence[int]) -> dict[int, list[Row]]:
    """Every row that any shard shows, by id: more than one would be one too many."""
    found: dict[int, list[Row]] = {}
    for shard in shards:
        for row in shard.rows_by_id(ids):
            if row is not None:
                found.setdefault(row.id, []).append(row)
    return found


def keys_of(shards: list[ShardIndex], keys: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for shard in shards:
        for key, row_id in shard.ids_by_key(keys).items():
            found[key] = min(row_id, found.get(key, row_id))
    return found


def check_like_fresh(grown: Path | str, fresh: Path | str, tables: Sequence[ChangingTable]) -> None:
    """Every way of asking, against an index built anew, and searching against brute force over the images too."""
    one, other = load(grown), load(fresh)
    images = [
        (table.first_id + place, image)
        for table in tables
        for place, image in enumerate(image for shard in table.shards for image in shard)
        if not image.refused
    ]
    count = len(images)
    assert open_index(str(grown)).manifest.count == open_index(str(fresh)).manifest.count == count
    codes = POOL[[image.code for _, image in images]].reshape(-1, BITS // 8)
    expected = [oracles.search(query, codes, [row_id for row_id, _ in images]) for query in QUERIES]
    for k in (1, 4, max(count, 1), count + 5):
        found = nearest(one, k)
        assert found == nearest(other, k)
        assert [[pair for pair in pairs if pair[1] >= 0] for pairs in found] == [pairs[:k] for pairs in expected]
    for radius in (0, 5, BITS):
        found = within(one, radius)
        assert found == within(other, radius) == [[p for p in pairs if p[0] <= radius] for pairs in expected]
    ids = range(max((row_id for row_id, _ in images), default=0) + 40)
    rows = rows_of(one, ids)
    assert rows == rows_of(other, ids)
    assert {i: [(row.key, row.labels) for row in found] for i, found in rows.items()} == {
        row_id: [(image.key, image.labels)] for row_id, image in images
    }
    ever = [f"image-{table.first_id + number}" for table in tables for number in range(table.made)]
    assert keys_of(one, ever) == keys_of(other, ever)
    for row_id, code in {i: c for shard in one for i, c in shard.codes_by_id(ids).items()}.items():
        assert code == {i: c for shard in other for i, c in shard.codes_by_id([row_id]).items()}[row_id]


CHANGES = [
    ChangingTable.grow,
    ChangingTable.lengthen,
    ChangingTable.remove,
    ChangingTable.recode,
    ChangingTable.replace_key,
    ChangingTable.relabel,
    ChangingTable.refuse,
    ChangingTable.move,
]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("seed", range(6))
def test_any_history_answers_as_an_index_built_anew(tmp_path: Path, seed: int) -> None:
    """Every change of the dataset once in random order and some twice, followed at once, late, or after compacting."""
    rng = np.random.default_rng(seed)
    table, index = make(tmp_path / "codes", (4,) * 9), tmp_path / "index"
    codes = str(table.folder)
    job(index, codes=codes, shards=2)
    changes = [CHANGES[place] for place in rng.permutation(len(CHANGES))] + [ChangingTable.grow, ChangingTable.recode]
    for number, change in enumerate(changes):
        change(table, rng)
        table.publish()
        if rng.integers(4) == 0:
            continue
        result = job(index, append=True)
        assert result.shards == result.shards_kept + result.shards_new == len(open_index(str(index)).manifest.shards)
        assert result.count == sum(not image.refused for shard in table.shards for image in shard)
        if rng.integers(3) == 0:
            again = job(index, append=True)
            assert (again.version, again.rows_added, again.rows_hidden) == (result.version, 0, 0)
        if rng.integers(3) == 0:
            assert job(index, compact=True).count == result.count
        job(tmp_path / f"fresh-{number}", codes=codes)
        check_like_fresh(index, tmp_path / f"fresh-{number}", [table])
    job(index, append=True)
    fresh = tmp_path / "fresh"
    job(fresh, codes=codes)
    check_like_fresh(index, fresh, [table])
    keys = ("key:image-0", f"key:{table.shards[0][1].key}", "id:3")
    known = tuple(
        text for text in keys if text[4:] in {image.key for s in table.shards for image in s if not image.refused}
    )
    for fields in ({"k": 9}, {"radius": 4}):
        config = {"query": (*known, "code:00ff"), **fields}
        answers = [search(SearchConfig.model_validate({**config, "index": str(uri)})) for uri in (index, fresh)]
        assert answers[0].queries == answers[1].queries
    kept = open_index(str(index)).manifest
    job(index, compact=True, shards=3)
    compacted = open_index(str(index)).manifest
    assert not any(entry.version or entry.hidden for entry in compacted.shards)
    assert (compacted.count, compacted.code_tables) == (kept.count, kept.code_tables)
    job(fresh, codes=codes, shards=3)
    assert compacted.shards == open_index(str(fresh)).manifest.shards


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_what_an_append_makes_and_what_it_leaves(tmp_path: Path) -> None:
    """Counts, files, retrieval; and the version before, to which one may go back and from there elsewhere."""
    table, index = make(tmp_path / "codes"), tmp_path / "index"
    job(index, codes=table.folder, shards=2)
    first = {path: path.read_bytes() for path in (index / "v000001").rglob("*.*")}
    table.shards[1] = table.new_images(5)
    table.shards.append(table.new_images(20))
    table.publish()
    plan = job(index, append=True, dry_run=True)
    assert (plan.version, plan.rows_added, plan.rows_hidden, plan.shards_kept, plan.shards_new) == ("", 25, 5, 2, 3)
    assert not (index / "v000002").exists()

    result = job(index, append=True)
    manifest = open_index(str(index)).manifest
    size = sum(path.stat().st_size for path in (index / "v000002/data").iterdir())
    assert result == IndexResult(
        str(index),
        "v000002",
        "e" * 64,
        BITS,
        38,
        5,
        result.bytes,
        25,
        5,
        shards_kept=2,
        shards_new=3,
        bytes_written=size,
    )
    assert result.bytes == size + sum(len(first[path]) for path in first if path.parent.name == "data")
    assert {path: path.read_bytes() for path in (index / "v000001").rglob("*.*")} == first
    assert [entry.version for entry in manifest.shards] == ["v000001", "v000001", "", "", ""]
    assert [(entry.count, entry.stored) for entry in manifest.shards[:2]] == [(6, 9), (7, 9)]
    assert max(entry.stored for entry in manifest.shards) == 9
    assert [(ref.version, ref.digest) for ref in manifest.code_tables] == [
        ("v000002", open_codes(str(table.folder)).digest)
    ]

    queries = make_code_table(tmp_path / "queries", QUERIES)
    job(tmp_path / "fresh", codes=table.folder)
    for name in ("index", "fresh"):
        folder = {"index": str(tmp_path / name), "output": str(tmp_path / f"{name}-neighbors")}
        retrieve(RetrieveConfig.model_validate({**folder, "queries": queries, "k": 50}))
    parts = [(tmp_path / f"{name}-neighbors/parts/part-000000.parquet").read_bytes() for name in ("index", "fresh")]
    assert parts[0] == parts[1]

    before = nearest(load(index, "v000001"), 18)
    assert job(index, switch="v000001", dry_run=True).version == "v000001"
    assert open_index(str(index)).manifest.version == "v000002"
    assert (job(index, switch="v000001").version, open_index(str(index)).manifest.version) == ("v000001", "v000001")
    assert nearest(load(index), 18) == before
    assert isinstance(refusal(index, switch="v000099"), NotFound)
    assert "not an index version" in str(refusal(index, switch="../v000001"))
    assert "switch: builds nothing" in str(refusal(index, switch="v000001", append=True))
    table.shards.pop()
    table.publish()
    assert job(index, append=True).version == "v000003"
    job(tmp_path / "fresh", codes=table.folder)
    check_like_fresh(index, tmp_path / "fresh", [table])
    # A shard without a row left is no longer listed; where no row is left at all, there is one empty shard.
    table.shards = [table.new_images(4)]
    table.publish()
    assert (job(index, append=True).shards, open_index(str(index)).manifest.count) == (1, 4)
    table.shards = []
    table.publish()
    assert (job(index, append=True).shards, open_index(str(index)).manifest.count) == (1, 0)
    table.shards = [table.new_images(4)]
    table.publish()
    assert (job(index, append=True).shards, open_index(str(index)).manifest.count) == (1, 4)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_shards_hide_more_from_version_to_version(tmp_path: Path) -> None:
    table, index = make(tmp_path / "codes", (4,) * 6), tmp_path / "index"
    job(index, codes=table.folder, shards=2)
    for number, expected in [
        (0, [("", 4)]),
        (2, [("", 8)]),
        (4, [("v000003", 8), ("", 4)]),
        (0, [("v000003", 8), ("v000004", 4)]),
    ]:
        table.shards[number] = table.new_images(4)
        table.publish()
        result = job(index, append=True)
        assert (result.rows_added, result.rows_hidden) == (4, 4)
        hidden = [entry.hidden for entry in open_index(str(index)).manifest.shards]
        assert [(ids.version, ids.count) for ids in hidden if ids is not None] == expected
        job(tmp_path / "fresh", codes=table.folder)
        check_like_fresh(index, tmp_path / "fresh", [table])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_key_of_several_rows_is_the_smallest_id_wherever_its_shard_is_listed(tmp_path: Path) -> None:
    table, index = make(tmp_path / "codes", (3, 3)), tmp_path / "index"
    table.shards[1][1] = Image("twice", 1)
    table.publish()
    job(index, codes=table.folder)
    table.shards[0] = [Image("a", 2), Image("b", 3), Image("twice", 4)]
    table.publish()
    job(index, append=True)
    assert [entry.min_id for entry in open_index(str(index)).manifest.shards] == [3, 0]
    (found,) = search(SearchConfig(query=("key:twice",), index=str(index), k=1)).queries
    assert [(near.id, near.distance, near.key) for near in found.neighbors] == [(2, 0, "twice")]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_further_tables(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two", (4, 4), first_id=100)
    index = tmp_path / "index"
    job(index, codes=one.folder)
    clash = make_code_table(tmp_path / "clash", POOL[:6], ids=np.array([3, 8, 200, 201, 202, 203], np.int64))
    error = refusal(index, append=True, codes=clash)
    assert isinstance(error, DataError)
    assert f"2 ids of {clash} are in the index already: 3, 8" in str(error)
    assert "ids of" in str(refusal(index, append=True, codes=str(make(tmp_path / "twin").folder)))
    assert open_index(str(index)).manifest.version == "v000001"

    result = job(index, append=True, codes=two.folder)
    assert (result.rows_added, result.rows_hidden, result.shards_new) == (8, 0, 1)
    check = [one, two]
    two.recode(np.random.default_rng(0))
    two.publish()
    one.grow(np.random.default_rng(0))
    one.publish()
    result = job(index, append=True, codes=two.folder, bytes_per_shard="50")
    assert (result.rows_hidden, result.rows_added) == (4, 4 + len(one.shards[-1]))
    assert all(entry.count <= 5 for entry in open_index(str(index)).manifest.shards if not entry.version)
    job(tmp_path / "fresh", codes=f"{one.folder},{two.folder}")
    check_like_fresh(index, tmp_path / "fresh", check)
    empty = make_code_table(tmp_path / "empty", np.empty((0, 2), np.uint8))
    result = job(index, append=True, codes=empty)
    assert (result.rows_added, result.shards_new) == (0, 0)
    assert len(open_index(str(index)).manifest.code_tables) == 3
    check_like_fresh(index, tmp_path / "fresh", check)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_killed_on_the_way_and_run_again(tmp_path: Path) -> None:
    """Between data and manifest, and between manifest and CURRENT; the same answers in the end."""
    table, index = make(tmp_path / "codes"), tmp_path / "index"
    job(index, codes=table.folder)
    table.recode(np.random.default_rng(1))
    table.publish()
    job(tmp_path / "fresh", codes=table.folder)
    assert job(index, append=True).version == "v000002"
    files = {path.name for path in (index / "v000002/data").iterdir()}

    (index / "v000002/index.json").unlink()
    (index / "CURRENT").write_bytes(b"v000001\n")
    assert open_index(str(index)).manifest.count == sum(shard.count for shard in load(index))
    assert job(index, append=True).version == "v000002"
    assert {path.name for path in (index / "v000002/data").iterdir()} == files
    check_like_fresh(index, tmp_path / "fresh", [table])

    (index / "CURRENT").write_bytes(b"v000001\n")
    assert job(index, append=True).version == "v000003"
    check_like_fresh(index, tmp_path / "fresh", [table])
    assert job(index, compact=True).version == "v000004"
    (index / "CURRENT").write_bytes(b"v000003\n")
    assert job(index, compact=True).version == "v000005"
    assert job(index, compact=True).version == "v000005"
    check_like_fresh(index, tmp_path / "fresh", [table])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(("module", "how"), [(append, "append"), (build, "compact")])
@pytest.mark.parametrize("taken", [True, False])
def test_of_two_that_follow_one_version_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, how: str, taken: bool
) -> None:
    """The other publishes while this one has its data written, under the same name or before a name was chosen."""
    one, two = make(tmp_path / "one"), make(tmp_path / "two", (4,), first_id=100)
    index = tmp_path / "index"
    job(index, codes=one.folder)
    one.recode(np.random.default_rng(1))
    one.publish()
    step = "publish" if taken else "next_version"
    original = getattr(module, step)

    def overtaken(*arguments: object) -> object:
        monkeypatch.setattr(module, step, original)
        assert job(index, append=True, codes=two.folder).version == "v000002"
        return original(*arguments)

    monkeypatch.setattr(module, step, overtaken)
    error = refusal(index, **{how: True}, **({"shards": 2} if how == "compact" else {}))
    assert isinstance(error, AlreadyExists)
    assert "another publisher made version v000002 current meanwhile: run again" in str(error)
    assert open_index(str(index)).manifest.count == 18 + 4
    assert not (index / "v000003/index.json").exists()
    result = job(index, append=True)
    assert (result.version, result.count) == ("v000002", 22)


def test_nothing_new_is_said_and_no_version_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without Ray, for nothing is read but manifests."""
    table, index = make(tmp_path / "codes"), tmp_path / "index"
    with pytest.raises(NotFound, match="CURRENT is missing"):
        job(index, append=True)
    old_index(index, table)
    files = sorted(index.rglob("*"))
    result = job(index, append=True)
    assert (result.version, result.count, result.rows_added, result.shards_kept) == ("v000001", 0, 0, 1)
    assert "index: already up to date" in capfd.readouterr().err
    assert sorted(index.rglob("*")) == files


def old_index(index: Path, table: ChangingTable, **changes: object) -> None:
    """An index of no rows whose manifest has none of the fields that came with growing."""
    empty = {"path": "data/none", "bytes": 0, "sha256": ""}
    manifest = {
        "format": "cibhash-index-1",
        "version": "v000001",
        "encoder_digest": "e" * 64,
        "encoder_uri": "nowhere",
        "code_tables": [{"uri": str(table.folder), "digest": open_codes(str(table.folder)).digest}],
        "bits": BITS,
        "prefixes": [BITS],
        "kind": "flat",
        "shards": [{"codes": empty, "rows": empty, "count": 0, "min_id": 0, "max_id": -1}],
        **changes,
    }
    (index / "v000001").mkdir(parents=True)
    text = json.dumps(manifest, indent=1) + "\n"
    (index / "v000001/index.json").write_text(text)
    (index / "CURRENT").write_text("v000001\n")
    assert open_index(str(index)).manifest.to_json().decode() == text


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_an_index_of_before_can_be_followed(tmp_path: Path) -> None:
    table, index = make(tmp_path / "codes"), tmp_path / "index"
    job(index, codes=table.folder)
    location = index / "v000001/index.json"
    content = json.loads(location.read_text())
    assert set(content["shards"][0]) == {"codes", "rows", "count", "min_id", "max_id"}
    del content["code_tables"][0]["version"]
    location.write_text(json.dumps(content))
    table.relabel(np.random.default_rng(0))
    table.publish()
    assert job(index, append=True).version == "v000002"
    job(tmp_path / "fresh", codes=table.folder)
    check_like_fresh(index, tmp_path / "fresh", [table])


def test_what_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    table, index = make(tmp_path / "codes"), tmp_path / "index"
    old_index(index, table)
    other = make_code_table(tmp_path / "other", POOL, encoder_digest="f" * 64)
    with pytest.raises(ManifestMismatch, match=r"ffffffff.*eeeeeeee"):
        job(index, append=True, codes=other)
    wider = make_code_table(tmp_path / "wider", np.zeros((3, 4), np.uint8))
    with pytest.raises(ManifestMismatch, match=r"wider has codes of 32 bits, but .*index/v000001 of 16"):
        job(index, append=True, codes=wider)
    with pytest.raises(ConfigError, match="named twice"):
        job(index, append=True, codes=f"{other},{other}")
    with pytest.raises(DataError, match="has 0 rows, its code tables 18: build the index anew"):
        job(index, compact=True)
    table.grow(np.random.default_rng(0))
    table.publish()
    (table.folder / "v000001/codes.json").unlink()
    for how in ("append", "compact"):
        error = refusal(index, **{how: True})
        assert isinstance(error, NotFound)
        assert "no version of this code table has digest" in str(error)
        assert "cannot be continued: build it anew" in str(error)
    table.folder.rename(tmp_path / "elsewhere")
    assert "not a complete code table" in str(refusal(index, append=True))
    assert sorted(path.name for path in index.iterdir()) == ["CURRENT", "v000001"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_an_index_that_is_not_of_its_tables_is_refused(tmp_path: Path) -> None:
    table, index = make(tmp_path / "codes"), tmp_path / "index"
    job(index, codes=table.folder)
    ref = open_index(str(index)).manifest.code_tables[0]
    table.lengthen(np.random.default_rng(0))
    table.publish()
    now = open_codes(str(table.folder))
    claimed = ref.model_copy(update={"digest": now.digest, "version": now.version})
    location = index / "v000001/index.json"
    manifest = IndexManifest.model_validate_json(location.read_text())
    location.write_bytes(manifest.model_copy(update={"code_tables": (claimed,)}).to_json())
    table.shards = table.shards[:1]
    table.publish()
    error = refusal(index, append=True)
    assert isinstance(error, DataError)
    assert "rows that are gone: build the index anew" in str(error)
    assert open_index(str(index)).manifest.version == "v000001"


@pytest.mark.parametrize(
    ("budget", "shards"), [("10", 60), ("200", 3), ("209", 3), ("599", 2), ("600", 1), ("1GiB", 1), ("1", 60)]
)
def test_shards_by_memory(tmp_path: Path, budget: str, shards: int) -> None:
    """A row takes 2 bytes of code and 8 of id."""
    table = make_code_table(tmp_path / "codes", POOL[np.zeros(60, np.int64)])
    result = job(tmp_path / "index", codes=table, bytes_per_shard=budget, dry_run=True)
    assert (result.count, result.shards) == (60, shards)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_an_index_without_rows_stays_so_and_finds_the_same(tmp_path: Path) -> None:
    table, bare, full = make(tmp_path / "codes", (4,) * 5), tmp_path / "bare", tmp_path / "full"
    rng, codes = np.random.default_rng(3), str(table.folder)
    for index, rows in ((bare, False), (full, True)):
        job(index, codes=codes, shards=2, rows=rows)
    for change in (ChangingTable.grow, ChangingTable.remove, ChangingTable.recode):
        change(table, rng)
        table.publish()
        for index in (bare, full):
            job(index, append=True)
    for _ in range(2):
        one, other = load(bare), load(full)
        assert nearest(one, 12) == nearest(other, 12)
        assert within(one, 6) == within(other, 6)
        ids = sorted(rows_of(other, range(60)))
        assert {i: [row.key for row in rows] for i, rows in rows_of(one, range(60)).items()} == {i: [""] for i in ids}
        manifest = open_index(str(bare)).manifest
        assert manifest.bare
        assert [entry.rows for entry in manifest.shards] == [None] * len(manifest.shards)
        for index in (bare, full):
            job(index, compact=True)
    found = search(SearchConfig(query=(f"id:{ids[0]}",), index=str(bare), k=3)).queries[0].neighbors
    assert (found[0].id, found[0].distance, found[0].key) == (nearest_of(other, ids[0]), 0, "")
    with pytest.raises(ConfigError, match=r"key:image-1: .* built without rows \(--no-rows\), so it has no keys"):
        search(SearchConfig(query=("key:image-1",), index=str(bare)))


def nearest_of(shards: list[ShardIndex], row_id: int) -> int:
    """The smallest id with the code of this one."""
    code = next(c for shard in shards for c in shard.codes_by_id([row_id]).values())
    query = np.frombuffer(code, np.uint8).reshape(1, -1)
    return int(merge_neighbors([shard.search(query, 1) for shard in shards], 1).ids[0, 0])
