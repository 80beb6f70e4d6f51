"""The whole job: planted pairs, splits, refusals, reruns, the page, and real images."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageEnhance

from cibhash.errors import ConfigError, DataError, ManifestMismatch, NotFound
from cibhash.shards import SourceImage
from cibhash.types import Codes
from cluster import storage
from cluster.config import EncodeConfig
from cluster.dedup.dedup import DedupResult, dedup
from cluster.dedup.results import DedupManifest
from cluster.dedup.written import GROUP_SCHEMA, PAIR_SCHEMA
from cluster.dedup_config import DedupConfig
from cluster.encoding.encode import encode
from cluster.manifests import load_manifest, read_verified
from jobs.dedup import main
from tests import oracles
from tests.datasets import make_dataset, png, published_encoder, shape_image
from tests.patience import HANG_S
from tests.s3 import s3_bucket as s3_bucket
from tests.tables import make_code_table

HOSTILE = "<script>alert(1)</script>\x1b[31m"


def run(*codes: object, **fields: Any) -> DedupResult:
    return dedup(DedupConfig.model_validate({"codes": tuple(map(str, codes)), **fields}))


def planted(folder: Path) -> tuple[list[str], Codes]:
    """A query and a database table in parts: four copies of queries in the database, a chain and a triple within it."""
    rng = np.random.default_rng(5)
    queries, database = rng.integers(0, 256, (40, 8), np.uint8), rng.integers(0, 256, (120, 8), np.uint8)
    for number, (query, row) in enumerate(((3, 10), (7, 50), (8, 90), (9, 91))):
        database[row] = flipped(queries[query], number)
    database[101], database[102] = flipped(database[100], 2), flipped(database[100], 4)
    database[111] = database[112] = database[110]
    labels = [[n % 3] for n in range(40)], [[n % 2] for n in range(120)]
    keys = [f"db-{n}" for n in range(120)]
    keys[110] = HOSTILE
    uris = [
        make_code_table(folder / "query", queries, labels=labels[0], rows_per_part=15),
        make_code_table(folder / "database", database, labels=labels[1], keys=keys, rows_per_part=50),
    ]
    return uris, np.concatenate((queries, database))


def flipped(code: Codes, bits: int) -> Codes:
    mask = np.zeros(64, np.uint8)
    mask[:bits] = 1
    flips: Codes = code ^ np.packbits(mask, bitorder="little")
    return flips


def rows_of(output: Path | str, kind: str) -> list[dict[str, Any]]:
    found = load_manifest(DedupManifest, str(output))
    parts = found.pair_parts if kind == "pairs" else found.group_parts
    tables = [pq.read_table(Path(str(output), part.path)) for part in parts]
    assert all(table.schema.equals(PAIR_SCHEMA if kind == "pairs" else GROUP_SCHEMA) for table in tables)
    return [row for table in tables for row in table.to_pylist()]


@pytest.mark.ray
def test_planted_pairs_groups_and_overlaps(ray_local: None, tmp_path: Path) -> None:
    uris, codes = planted(tmp_path)
    result = run(*uris, output=str(tmp_path / "out"), radius=2)
    pairs = rows_of(tmp_path / "out", "pairs")
    found = [(row["distance"], row["split_a"], row["id_a"], row["split_b"], row["id_b"]) for row in pairs]
    assert found == [
        (0, "query", 3, "database", 10),
        (0, "database", 110, "database", 111),
        (0, "database", 110, "database", 112),
        (0, "database", 111, "database", 112),
        (1, "query", 7, "database", 50),
        (2, "query", 8, "database", 90),
        (2, "database", 100, "database", 101),
        (2, "database", 101, "database", 102),
    ]
    assert (pairs[0]["key_a"], pairs[0]["key_b"], pairs[1]["key_a"]) == ("image-3", "db-10", HOSTILE)
    groups = rows_of(tmp_path / "out", "groups")
    shown = [(row["group"], row["split"], row["id"], row["is_representative"], row["distance"]) for row in groups]
    assert shown == [
        (0, "database", 100, True, 0),
        (0, "database", 101, False, 2),
        (0, "database", 102, False, 4),
        (1, "database", 110, True, 0),
        (1, "database", 111, False, 0),
        (1, "database", 112, False, 0),
        *[(2, "query", 3, True, 0), (2, "database", 10, False, 0)],
        *[(3, "query", 7, True, 0), (3, "database", 50, False, 1)],
        *[(4, "query", 8, True, 0), (4, "database", 90, False, 2)],
    ]
    assert [row["labels"] for row in groups[:2]] == [[0], [1]]
    manifest = load_manifest(DedupManifest, str(tmp_path / "out"))
    overlaps = {(one.split, one.other): one.images for one in manifest.overlaps}
    assert overlaps == {
        ("query", "query"): (0, 0, 0),
        ("query", "database"): (1, 2, 3),
        ("database", "query"): (1, 2, 3),
        ("database", "database"): (3, 3, 6),
    }
    assert (result.pairs, result.groups, result.duplicates, result.shared["query in database"]) == (8, 5, 7, 3)
    assert manifest.candidates == (4, 1, 3)
    every = [(a, b) for a in range(160) for b in range(a) if oracles.hamming(codes[a], codes[b]) <= 2]
    assert len(every) == result.pairs


@pytest.mark.ray
def test_neither_method_nor_blocks_nor_parts_change_a_byte(ray_local: None, tmp_path: Path) -> None:
    uris, _ = planted(tmp_path)
    ways: list[dict[str, Any]] = [{"method": "multi-index"}, {"method": "all-pairs"}]
    ways += [{"method": "all-pairs", "block_rows": size} for size in (7, 64, 159)]
    contents = []
    for number, fields in enumerate(ways):
        run(*uris, output=str(tmp_path / f"out{number}"), radius=4, **fields)
        files = (path for path in (tmp_path / f"out{number}").rglob("*") if path.is_file())
        contents.append({str(path.relative_to(tmp_path / f"out{number}")): path.read_bytes() for path in files})
    assert sorted(contents[0]) == [
        "dedup.json",
        "groups/part-000000.parquet",
        "pairs/part-000000.parquet",
        "report.html",
    ]
    assert all(one == contents[0] for one in contents[1:])


@pytest.mark.ray
def test_codes_that_are_all_equal(ray_local: None, tmp_path: Path) -> None:
    uri = make_code_table(tmp_path / "codes", np.zeros((3000, 8), np.uint8), rows_per_part=700)
    result = run(uri, output=str(tmp_path / "out"), radius=3, pairs_per_group=50)
    assert (result.candidates, result.pairs_listed, result.groups) == (3000 * 2999 // 2, 50, 1)
    assert (result.duplicates, result.largest_group, result.distinct_codes) == (2999, 3000, 1)
    assert f"{3000 * 2999 // 2 - 50:,} further pairs of large groups are counted but not listed" in result.verdict
    assert "do not tell near-duplicates from similar images" in result.verdict
    groups = rows_of(tmp_path / "out", "groups")
    assert [row["id"] for row in groups] == list(range(3000))
    assert [row["id"] for row in groups if row["is_representative"]] == [0]


@pytest.mark.ray
def test_nothing_to_find(ray_local: None, tmp_path: Path) -> None:
    codes = np.array([[0, 0], [255, 255], [0, 255]], np.uint8)
    result = run(make_code_table(tmp_path / "codes", codes), output=str(tmp_path / "out"), radius=3)
    assert (result.pairs, result.groups, result.largest_group) == (0, 0, 0)
    assert rows_of(tmp_path / "out", "pairs") == rows_of(tmp_path / "out", "groups") == []
    one = make_code_table(tmp_path / "one", codes[:1])
    assert run(one, output=str(tmp_path / "alone"), radius=15, calibrate=5).pairs == 0


@pytest.mark.ray
def test_the_page_stands_alone(ray_local: None, tmp_path: Path) -> None:
    uris, _ = planted(tmp_path)
    run(*uris, output=str(tmp_path / "out"), radius=2, calibrate=50)
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.search(r"https?:|//cdn|@import|<script|<link|url\((?!#)", page) is None
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page
    assert page.count('<section class="group">') == 5
    assert page.count('<figure class="pair') == 8
    assert "labels differ in 1" in page, "101 has another label than 100"
    assert "no image" in page
    assert "could not be read" in page, "the originals are nowhere"
    assert "No copies were made" in page
    assert "What splits share" in page
    assert load_manifest(DedupManifest, str(tmp_path / "out")).disagreeing_groups == 4
    assert "Labels disagree in 4 groups." in page


def test_tables_that_do_not_belong_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (5, 8), np.uint8)
    first = make_code_table(tmp_path / "first", codes)
    other = make_code_table(tmp_path / "other", codes, encoder_digest="f" * 64)
    short = make_code_table(tmp_path / "short", codes[:, :4].copy())
    empty = make_code_table(tmp_path / "empty", codes[:0])
    out = {"output": str(tmp_path / "out"), "radius": 2}
    with pytest.raises(ManifestMismatch, match=r"other was made by encoder f{16}.*first by e{16}"):
        run(first, other, **out)
    with pytest.raises(ManifestMismatch, match=r"short has codes of 32 bits, but .*first of 64"):
        run(first, short, **out)
    with pytest.raises(DataError, match="empty: the code table has no rows"):
        run(first, empty, **out)
    with pytest.raises(ConfigError, match="first is named twice"):
        run(first, first + "/", **out)
    with pytest.raises(ConfigError, match=r"radius 64: the codes of .*first have 64 bits"):
        run(first, output=str(tmp_path / "out"), radius=64)
    with pytest.raises(NotFound, match="nowhere"):
        run(tmp_path / "nowhere", **out)
    path = tmp_path / "other" / "codes.json"
    path.write_text(path.read_text().replace('"little"', '"big"'))
    with pytest.raises(DataError, match="bit_order"):
        run(other, **out)
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_ids_that_come_twice_and_codes_of_another_length(ray_local: None, tmp_path: Path) -> None:
    codes = np.zeros((4, 8), np.uint8)
    uri = make_code_table(tmp_path / "codes", codes, ids=np.array([5, 6, 5, 7]))
    with pytest.raises(DataError, match=r"codes: id 5 comes twice \(1 such rows\)"):
        run(uri, output=str(tmp_path / "out"), radius=2)
    lying = make_code_table(tmp_path / "lying", codes)
    path = tmp_path / "lying" / "codes.json"
    path.write_text(path.read_text().replace('"bits": 64', '"bits": 32'))
    with pytest.raises(DataError, match="codes of 64 bits, its manifest says 32"):
        run(lying, output=str(tmp_path / "out"), radius=2)
    assert not (tmp_path / "out" / "dedup.json").exists()


@pytest.mark.ray
def test_a_rerun_returns_what_is_there(ray_local: None, tmp_path: Path) -> None:
    uris, _ = planted(tmp_path)
    out = tmp_path / "out"
    first = run(*uris, output=str(out), radius=2)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = run(*uris, output=str(out), radius=2, block_rows=9)
    assert (again.reused, again.pairs, again.verdict) == (True, first.pairs, first.verdict)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == times
    with pytest.raises(ManifestMismatch, match="duplicates of other inputs: radius 2, asked for: 3"):
        run(*uris, output=str(out), radius=3)
    (out / "dedup.json").unlink()
    (out / "pairs" / "part-000000.parquet").write_bytes(b"half")
    assert not run(*uris, output=str(out), radius=2).reused
    assert len(rows_of(out, "pairs")) == 8


@pytest.mark.ray
def test_from_s3_to_s3(s3_bucket: str, tmp_path: Path) -> None:
    """In its own process, whose private Ray has the credentials."""
    uris, _ = planted(tmp_path)
    moved = [s3_bucket + "/codes/" + uri.rsplit("/", 1)[-1] for uri in uris]
    for source, target in zip(uris, moved, strict=True):
        for path in Path(source).rglob("*"):
            if path.is_file():
                storage.put_file(path, f"{target}/{path.relative_to(source)}")
    argv = ["--codes", *moved, "--output", f"{s3_bucket}/out", "--radius", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.dedup", *argv], capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert (line["pairs"], line["report_uri"]) == (8, f"{s3_bucket}/out/report.html")
    found = load_manifest(DedupManifest, f"{s3_bucket}/out")
    content = read_verified(f"{s3_bucket}/out", found.pair_parts[0])
    assert [row["id_a"] for row in pq.read_table(pa.BufferReader(content)).to_pylist()][:2] == [3, 110]
    assert storage.read_bytes(line["report_uri"]).startswith(b"<!doctype html>")


@pytest.fixture(scope="module")
def photos(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries and a database of real images, encoded: 4 of 24 queries are in the database, 2 darker, 1 mirrored."""
    folder = tmp_path_factory.mktemp("photos")
    queries = [textured(n) for n in range(24)]
    copies = [queries[0], *(ImageEnhance.Brightness(queries[n]).enhance(0.9) for n in (1, 2))]
    copies.append(queries[3].transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    database = [*copies, *(textured(n) for n in range(100, 160))]
    encoder = published_encoder(folder / "encoder", bits=(64,))
    for name, images in (("query", queries), ("database", database)):
        sources = [SourceImage(f"{name}-{n}", "png", png(image), (n % 3,)) for n, image in enumerate(images)]
        make_dataset(folder / "data" / name, [sources[:20], sources[20:]], split=name)
        config = {"dataset": str(folder / "data" / name), "output": str(folder / "codes" / name)}
        encode(EncodeConfig.model_validate({"encoder": encoder, **config}))
    return folder


def textured(number: int) -> Image.Image:
    """A picture unlike any other at 16 x 16 pixels."""
    blocks = np.random.default_rng([11, number]).integers(0, 256, (8, 8, 3), np.uint8)
    blended = Image.blend(Image.fromarray(blocks).resize((40, 40)), shape_image(number).resize((40, 40)), 0.2)
    return blended


@pytest.mark.ray
def test_real_images_are_looked_at(photos: Path, tmp_path: Path) -> None:
    tables = photos / "codes" / "query", photos / "codes" / "database"
    output = str(tmp_path / "out")
    result = run(*tables, output=output, radius=40, confirm=0.85, calibrate=30)
    pairs = rows_of(output, "pairs")
    assert sorted((row["key_a"], row["key_b"]) for row in pairs) == [(f"query-{n}", f"database-{n}") for n in range(4)]
    assert all(row["correlation"] >= 0.85 for row in pairs)
    assert result.shared == {"query in database": 4, "database in query": 4}
    assert result.candidates > 1000
    manifest = load_manifest(DedupManifest, output)
    assert manifest.calibration is not None
    assert (sum(manifest.calibration.copies), manifest.calibration.why_no_copies) == (30, "")
    assert sum(manifest.calibration.nearest) == 30
    assert sum(manifest.calibration.pairs) == 30 * (result.images - 1)
    assert 0 < sum(manifest.calibration.sharing) < sum(manifest.calibration.pairs)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 16
    assert "no image" not in page
    assert "correlation 0.9" in page or "correlation 1.0" in page


@pytest.mark.ray
def test_the_radius_is_chosen_from_a_sample(ray_local: None, tmp_path: Path) -> None:
    codes = np.random.default_rng(2).integers(0, 256, (300, 4), np.uint8)
    labels = [[n % 2] if n % 3 else [] for n in range(300)]
    tables = [
        make_code_table(tmp_path / "a", codes[:100], labels=labels[:100]),
        make_code_table(tmp_path / "b", codes[100:], labels=labels[100:], rows_per_part=90),
    ]
    result = run(*tables, output=str(tmp_path / "out"), max_confused=0.3)
    found = load_manifest(DedupManifest, str(tmp_path / "out")).calibration
    distances = np.array([[oracles.hamming(a, b) for b in codes] for a in codes])
    np.fill_diagonal(distances, 99)
    assert found is not None
    assert found.nearest == tuple(np.bincount(distances.min(axis=1), minlength=33).tolist())
    assert found.pairs == tuple(np.bincount(distances.ravel(), minlength=33)[:33].tolist())
    same = np.array([[bool({*a} & {*b}) for b in labels] for a in labels])
    assert found.sharing == tuple(np.bincount(distances[same], minlength=33)[:33].tolist())
    assert (found.sampled, found.copies, result.radius) == (300, (), found.suggested)
    assert "nowhere/encoder" in found.why_no_copies
    assert sum(found.nearest[: result.radius + 1]) <= 0.3 * 300 < sum(found.nearest[: result.radius + 2])
    collapsed = make_code_table(tmp_path / "collapsed", np.zeros((50, 8), np.uint8))
    with pytest.raises(DataError, match=r"radius auto: 100.0% of 50 sampled images have the same code of 64 bits"):
        run(collapsed, output=str(tmp_path / "none"))


@pytest.mark.ray
def test_another_encoder_makes_no_copies_and_gone_originals_confirm_nothing(photos: Path, tmp_path: Path) -> None:
    table = str(photos / "codes" / "database")
    other = published_encoder(tmp_path / "other", bits=(64,), seed=1)
    with pytest.raises(ManifestMismatch, match=r"other: encoder .*the code tables were made by"):
        run(table, output=str(tmp_path / "out"), radius=3, calibrate=10, encoder=other)
    shutil.copytree(photos / "data" / "database", tmp_path / "data")
    moved = shutil.copytree(table, tmp_path / "codes")
    for path in (moved / "v000001" / "codes.json", moved / "codes.json"):
        path.write_text(path.read_text().replace(str(photos / "data" / "database"), str(tmp_path / "data")))
    (tmp_path / "data" / "shard-000000.tar").unlink()
    result = run(moved, output=str(tmp_path / "out"), radius=60, confirm=0.5, calibrate=64)
    manifest = load_manifest(DedupManifest, str(tmp_path / "out"))
    assert manifest.unreadable == 20 * 19 // 2 + 20 * 44
    assert f"{manifest.unreadable:,} pairs could not be looked at" in result.verdict
    assert manifest.calibration is not None
    assert sum(manifest.calibration.copies) == 44
    assert "20 of 64 originals could not be read" in manifest.calibration.why_no_copies


@pytest.mark.ray
def test_from_the_command_line(ray_local: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    uris, _ = planted(tmp_path)
    out = tmp_path / "out"
    given = ["--codes", ",".join(uris), "--output", str(out), "--radius", "2"]
    assert main([*given, "--dry-run"]) == 0
    line = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (line["status"], line["images"], line["radius"], out.exists()) == ("dry-run", 160, 2, False)
    assert main(given) == 0
    captured = capfd.readouterr()
    line = json.loads(captured.out.splitlines()[-1])
    assert (line["status"], line["pairs"], line["shared"]["query in database"]) == ("ok", 8, 3)
    assert "Images with a near-duplicate in" in captured.err
    assert json.loads((out / "run_report.json").read_text())["status"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--codes", ",", "--output", "o"], "at least one code table"),
        (["--codes", "a", "--output", "o", "--radius", "-1"], "expected a whole number of bits"),
        (["--codes", "a", "--output", "o", "--radius", "near"], "expected a whole number of bits"),
        (["--codes", "a", "--output", "o", "--calibrate", "0"], "radius auto is chosen from a sample"),
        (["--codes", "a", "--output", "o", "--confirm", "1.5"], "confirm"),
        (["--output", "o"], "missing: --codes"),
    ],
)
def test_what_is_refused_on_the_command_line(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capfd.readouterr().err
