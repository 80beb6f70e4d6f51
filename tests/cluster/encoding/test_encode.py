"""The encode job: every image accounted for, resumable, independent of how the work was split."""

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cibhash.encoder import encode as encode_images
from cibhash.encoder import load_encoder
from cibhash.errors import CorruptShard, DataError, ManifestMismatch, NotFound
from cibhash.images import decode_image
from cibhash.shards import SourceImage
from cibhash.views import eval_view
from cluster import storage
from cluster.code_tables import codes_of, features_of, ids_of, label_lists, logits_of, read_part
from cluster.code_versions import open_codes
from cluster.config import EncodeConfig
from cluster.datasets import open_dataset, shard_samples
from cluster.encoding.encode import encode
from cluster.encoding.shard_encoder import EncodingPlan, PartRecord, ShardEncoder, part_name, read_record
from cluster.manifests import read_verified
from tests.datasets import (
    listed_shard,
    make_dataset,
    png,
    published_encoder,
    raw_dataset,
    shape_dataset,
    shape_image,
    shape_sources,
    tar_bytes,
)
from tests.s3 import s3_bucket
from tests.s3_faults import faulty_store

__all__ = ["faulty_store", "s3_bucket"]


def _config(dataset: str, encoder: str, output: Path | str, **settings: object) -> EncodeConfig:
    fixed = {"dataset": dataset, "encoder": encoder, "output": str(output), "batch_size": 8, "threads_per_worker": 1}
    return EncodeConfig.model_validate({**fixed, **settings})


def _plan(
    dataset: str, encoder: str, output: Path | str, *, batch_size: int = 8, features: bool = False, logits: bool = False
) -> EncodingPlan:
    return EncodingPlan(
        encoder_uri=encoder,
        encoder_digest=load_encoder(Path(encoder)).digest if not storage.is_s3(encoder) else "",
        dataset_uri=dataset,
        output_uri=str(output),
        batch_size=batch_size,
        features=features,
        logits=logits,
        num_threads=1,
        use_gpu=False,
    )


def _table(uri: str) -> pa.Table:
    return pa.concat_tables([read_part(uri, part) for part in open_codes(uri).parts])


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _broken_images() -> list[SourceImage]:
    good = shape_sources(1, 900)[0].image
    return [
        SourceImage("half", "png", good[: len(good) // 2], (1,)),
        SourceImage("empty", "jpg", b"", (1,)),
        SourceImage("html", "jpg", b"<!DOCTYPE html><html><body>404</body></html>", ()),
    ]


@pytest.mark.ray
def test_table_holds_every_image_once_with_its_code_labels_and_place(ray_local: None, tmp_path: Path) -> None:
    """A database without labels, several labels, and shards smaller and larger than a batch."""
    several = shape_sources(1, 500)[0]._replace(key="dir/mehrere ü", labels=(3, 1, 70000))
    none = shape_sources(1, 501)[0]._replace(key="none", labels=())
    dataset = make_dataset(tmp_path / "data", [shape_sources(11), [several, none], shape_sources(8, 40)])
    encoder = published_encoder(tmp_path / "encoder", (8, 24))
    result = encode(_config(dataset, encoder, tmp_path / "codes"))

    assert (result.rows_in, result.rows_out, result.quarantined, result.parts, result.parts_reused) == (21, 21, 0, 3, 0)
    manifest = open_codes(result.codes_uri)
    assert manifest.encoder_digest == result.encoder_digest == load_encoder(Path(encoder)).digest
    assert manifest.dataset_digest == result.dataset_digest == open_dataset(dataset).digest
    assert (manifest.bits, manifest.prefixes, manifest.features) == (24, (8, 24), 0)
    assert [part.shard for part in manifest.parts] == [f"shard-{n:06d}.tar" for n in range(3)]
    table = _table(result.codes_uri)
    assert ids_of(table).tolist() == list(range(21))
    assert table["key"].to_pylist()[10:14] == ["shape-00010", "dir/mehrere ü", "none", "shape-00040"]
    assert table["labels"].to_pylist()[10:14] == [[2], [3, 1, 70000], [], [0]]
    limits, values = label_lists(table)
    assert values[limits[11] : limits[12]].tolist() == [3, 1, 70000]
    loaded = load_encoder(Path(encoder))
    for row in table.to_pylist():
        image = storage.read_range(storage.join(manifest.dataset_uri, row["shard"]), row["offset"], row["size"])
        view = torch.from_numpy(eval_view(decode_image(image), 32))[None]
        assert encode_images(loaded, view).codes.tobytes() == row["code"], row["key"]


@pytest.mark.ray
@pytest.mark.parametrize("features", [False, True])
def test_logits_are_kept_when_asked_for_and_agree_with_the_bits(
    ray_local: None, tmp_path: Path, features: bool
) -> None:
    """Over shards larger and smaller than a batch, one of them without a good image."""
    dataset = make_dataset(tmp_path / "data", [shape_sources(11), _broken_images(), shape_sources(3, 11)])
    encoder = published_encoder(tmp_path / "encoder", (8, 24))
    config = _config(dataset, encoder, tmp_path / "codes", logits=True, features=features)
    encode(config)
    manifest, table = open_codes(config.output), _table(config.output)
    assert (manifest.logits, bool(manifest.features), manifest.rows_out) == (True, features, 14)
    assert table.column_names[-1] == "logits"
    logits, codes = logits_of(table), codes_of(table)
    assert logits.shape == (14, 24)
    for row, code in zip(logits.tolist(), codes.tolist(), strict=True):
        assert [code[j // 8] >> (j % 8) & 1 for j in range(24)] == [int(value > 1e-7) for value in row]
    views = [
        eval_view(decode_image(sample.image), 32)
        for shard in open_dataset(dataset).shards
        for sample in shard_samples(dataset, shard)
        if sample.key.startswith("shape")
    ]
    expected = encode_images(load_encoder(Path(encoder)), torch.from_numpy(np.stack(views)))
    np.testing.assert_allclose(logits, expected.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(codes, expected.codes)
    assert encode(config).parts_reused == 3


@pytest.mark.ray
def test_result_does_not_depend_on_the_number_of_workers(ray_local: None, tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", [5, 9, 1])
    encoder = published_encoder(tmp_path / "encoder")
    for workers in (1, 2):
        result = encode(_config(dataset, encoder, tmp_path / f"codes-{workers}", num_workers=workers))
        assert (result.rows_out, result.parts) == (15, 3)
    assert _files(tmp_path / "codes-1") == _files(tmp_path / "codes-2")


@pytest.mark.ray
def test_cpu_workers_that_decode_for_an_actor_change_nothing(ray_local: None, tmp_path: Path) -> None:
    """Several shards side by side, refused images among them; a corrupt shard is told by name all the same."""
    dataset = make_dataset(tmp_path / "data", [shape_sources(20), [*_broken_images(), *shape_sources(9, 40)]])
    encoder = published_encoder(tmp_path / "encoder")
    for decoders in (0, 3):
        encode(_config(dataset, encoder, tmp_path / f"codes-{decoders}", decoders=decoders))
    assert _files(tmp_path / "codes-0") == _files(tmp_path / "codes-3")

    path = tmp_path / "data/shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[-3000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptShard, match=r"shard-000001\.tar") as caught:
        encode(_config(dataset, encoder, tmp_path / "others", decoders=3))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("others/records/shard-000000-*")), "the other shard is done all the same"


@pytest.mark.ray
def test_rerun_redoes_only_what_is_missing_and_gives_the_same_bytes(ray_local: None, tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", [5, 9, 3])
    encoder = published_encoder(tmp_path / "encoder")
    config = _config(dataset, encoder, tmp_path / "codes")
    encode(config)
    before = _files(tmp_path / "codes")

    again = encode(config)
    assert (again.parts, again.parts_reused, again.rows_out) == (3, 3, 17)

    for name in ("codes.json", "CURRENT", "v000001/codes.json"):
        (tmp_path / "codes" / name).unlink()
    part = tmp_path / "codes" / open_record(tmp_path / "codes", 1).part.path
    part.unlink()
    kept = {name: (tmp_path / "codes" / name).stat().st_mtime_ns for name in before if "shard-000002" in name}
    assert len(kept) == 3
    resumed = encode(config)
    assert (resumed.parts, resumed.parts_reused, resumed.rows_out) == (3, 2, 17)
    assert _files(tmp_path / "codes") == before
    assert kept == {name: (tmp_path / "codes" / name).stat().st_mtime_ns for name in kept}


def open_record(folder: Path, number: int) -> PartRecord:
    (path,) = folder.glob(f"records/shard-{number:06d}-*.json")
    return PartRecord.model_validate_json(path.read_bytes())


@pytest.mark.ray
def test_refused_images_are_counted_and_above_the_limit_fail_the_job(ray_local: None, tmp_path: Path) -> None:
    """Ten refused images always pass; the eleventh needs a higher limit, and a rerun with it keeps the work."""
    first = _broken_images()
    more = [SourceImage(f"more-{n}", "jpg", b"no image", ()) for n in range(8)]
    encoder = published_encoder(tmp_path / "encoder")
    ten = make_dataset(tmp_path / "ten", [shape_sources(4), [*first, *more[:7], *shape_sources(6, 20)]])
    result = encode(_config(ten, encoder, tmp_path / "codes-ten", max_quarantined=0.0))
    assert (result.rows_in, result.rows_out, result.quarantined) == (20, 10, 10)
    manifest = open_codes(result.codes_uri)
    assert manifest.rows_in == manifest.rows_out + manifest.quarantined == 20
    assert ids_of(_table(result.codes_uri)).tolist() == [0, 1, 2, 3, 14, 15, 16, 17, 18, 19]
    quarantine = pq.read_table(pa.BufferReader(read_verified(result.codes_uri, manifest.quarantine))).to_pylist()
    assert [row["id"] for row in quarantine] == list(range(4, 14))
    assert [row["key"] for row in quarantine[:3]] == ["half", "empty", "html"]
    assert all(row["shard"] == "shard-000001.tar" and row["stage"] == "decode" and row["reason"] for row in quarantine)
    assert "0 bytes" in quarantine[1]["reason"]
    assert "<!DOCTYP" in quarantine[2]["reason"]

    eleven = make_dataset(tmp_path / "eleven", [shape_sources(4), [*first, *more, *shape_sources(6, 20)]])
    with pytest.raises(DataError, match=r"11 of 21 images refused.*shard-000001.tar.*'half'") as caught:
        encode(_config(eleven, encoder, tmp_path / "codes-eleven", max_quarantined=0.5))
    assert caught.value.exit_code == 3
    assert not (tmp_path / "codes-eleven/codes.json").exists()
    allowed = encode(_config(eleven, encoder, tmp_path / "codes-eleven", max_quarantined=0.6))
    assert (allowed.quarantined, allowed.rows_out, allowed.parts_reused) == (11, 10, 2)


@pytest.mark.ray
def test_a_shard_or_encoder_that_is_not_what_it_was_stops_the_job(ray_local: None, tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", [4, 5])
    encoder = published_encoder(tmp_path / "encoder")
    path = tmp_path / "data/shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptShard, match=r"shard-000001\.tar") as caught:
        encode(_config(dataset, encoder, tmp_path / "codes", num_workers=2))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "codes/codes.json").exists()
    assert not list(tmp_path.glob("codes/records/shard-000001-*"))

    weights = tmp_path / "encoder/head.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ManifestMismatch, match=load_encoder(Path(published_encoder(tmp_path / "same"))).digest[:16]):
        encode(_config(dataset, encoder, tmp_path / "other-codes"))


def test_codes_of_another_encoder_or_dataset_are_refused_with_both_digests(tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", [3])
    encoder, other = published_encoder(tmp_path / "a"), published_encoder(tmp_path / "b", seed=1)
    digests = [load_encoder(Path(uri)).digest for uri in (encoder, other)]
    output = tmp_path / "codes"
    _commit_without_ray(dataset, encoder, output)
    assert encode(_config(dataset, encoder, output)).parts_reused == 1
    with pytest.raises(ManifestMismatch) as caught:
        encode(_config(dataset, other, output))
    assert all(digest[:16] in str(caught.value) for digest in digests)
    larger = shape_dataset(tmp_path / "larger", [4])
    with pytest.raises(ManifestMismatch, match=f"dataset at {dataset}, asked for {larger}: .*--moved"):
        encode(_config(larger, encoder, output))
    assert open_codes(str(output)).logits is False
    for column in ("features", "logits"):
        with pytest.raises(ManifestMismatch, match=f"codes without {column}"):
            encode(_config(dataset, encoder, output, **{column: True}))
    with pytest.raises(ManifestMismatch, match="made with precision float32, asked for bfloat16"):
        encode(_config(dataset, encoder, output, precision="bfloat16"))


def _commit_without_ray(dataset: str, encoder: str, output: Path) -> None:
    """All shards are recorded by hand, so that the job has only to commit."""
    worker = ShardEncoder(_plan(dataset, encoder, output))
    for shard in open_dataset(dataset).shards:
        worker.encode_shard(shard)
    encode(_config(dataset, encoder, output))


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    dataset, encoder = shape_dataset(tmp_path / "data", [2]), published_encoder(tmp_path / "encoder")
    with pytest.raises(NotFound, match=r"nowhere: not a complete dataset"):
        encode(_config(str(tmp_path / "nowhere"), encoder, tmp_path / "codes"))
    with pytest.raises(NotFound, match=r"nowhere: not a complete encoder"):
        encode(_config(dataset, str(tmp_path / "nowhere"), tmp_path / "codes"))


def test_dry_run_touches_nothing(tmp_path: Path) -> None:
    dataset, encoder = shape_dataset(tmp_path / "data", [2, 3]), published_encoder(tmp_path / "encoder")
    result = encode(_config(dataset, encoder, tmp_path / "codes", dry_run=True))
    assert (result.rows_in, result.parts, result.parts_reused) == (5, 2, 0)
    assert not (tmp_path / "codes").exists()


def test_records_are_reused_only_for_the_same_work(tmp_path: Path) -> None:
    """Another encoder, another shard, shifted ids, other columns, a changed or missing file: all are done again."""
    dataset, encoder = shape_dataset(tmp_path / "data", [3, 4]), published_encoder(tmp_path / "encoder")
    output = tmp_path / "codes"
    plan, shard = _plan(dataset, encoder, output), open_dataset(dataset).shards[1]
    assert read_record(plan, shard) is None
    record = ShardEncoder(plan).encode_shard(shard)
    assert read_record(plan, shard) == record
    assert (record.part.min_id, record.part.max_id, record.part.rows) == (3, 6, 4)

    from dataclasses import replace

    assert read_record(replace(plan, encoder_digest="0" * 64), shard) is None
    assert read_record(replace(plan, features=True), shard) is None
    assert read_record(replace(plan, logits=True), shard) is None
    assert read_record(plan, replace(shard, sha256="0" * 64)) is None
    assert read_record(plan, replace(shard, uri="other.tar")) is None
    assert read_record(plan, replace(shard, first_id=5)) is None
    assert read_record(plan, replace(shard, first_id=1)) is None
    path = output / record.part.path
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert read_record(plan, shard) is None
    path.write_bytes(content)
    assert read_record(plan, shard) == record
    (output / record.quarantine.path).unlink()
    assert read_record(plan, shard) is None


def test_encoding_a_shard_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", [[*_broken_images(), *shape_sources(9)]])
    encoder, shard = published_encoder(tmp_path / "encoder"), open_dataset(dataset).shards[0]
    for name in ("a", "b"):
        ShardEncoder(_plan(dataset, encoder, tmp_path / name)).encode_shard(shard)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


def test_rows_do_not_depend_on_the_batch_they_fell_into(tmp_path: Path) -> None:
    """With as many images refused as a batch holds, and fewer images than a batch."""
    bad = [SourceImage(f"bad-{n}", "jpg", b"x", ()) for n in range(4)]
    dataset = make_dataset(tmp_path / "data", [[*shape_sources(3), *bad, *shape_sources(10, 3)]])
    encoder, shard = published_encoder(tmp_path / "encoder"), open_dataset(dataset).shards[0]
    tables = []
    for size in (1, 4, 64):
        plan = _plan(dataset, encoder, tmp_path / f"batch-{size}", batch_size=size, features=True)
        record = ShardEncoder(plan).encode_shard(shard)
        assert (record.part.rows_in, record.part.rows, record.part.quarantined) == (17, 13, 4)
        tables.append(read_part(plan.output_uri, record.part))
    for table in tables[1:]:
        assert table.drop_columns("features").equals(tables[0].drop_columns("features"))
        np.testing.assert_allclose(features_of(table), features_of(tables[0]), rtol=1e-4, atol=1e-5)
    views = [eval_view(decode_image(s.image), 32) for s in shard_samples(dataset, shard) if not s.key.startswith("bad")]
    expected = encode_images(load_encoder(Path(encoder)), torch.from_numpy(np.stack(views)))
    np.testing.assert_array_equal(codes_of(tables[0]), expected.codes)
    np.testing.assert_allclose(features_of(tables[0]), expected.features, rtol=1e-4, atol=1e-5)


def test_a_shard_without_a_single_good_image_gives_an_empty_part(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", [shape_sources(2), _broken_images()])
    encoder, output = published_encoder(tmp_path / "encoder"), tmp_path / "codes"
    _commit_without_ray(dataset, encoder, output)
    manifest = open_codes(str(output))
    assert [(p.rows_in, p.rows, p.quarantined) for p in manifest.parts] == [(2, 2, 0), (3, 0, 3)]
    assert ids_of(_table(str(output))).tolist() == [0, 1]


def test_unlisted_files_in_the_output_are_ignored(tmp_path: Path) -> None:
    dataset, encoder = shape_dataset(tmp_path / "data", [3]), published_encoder(tmp_path / "encoder")
    output = tmp_path / "codes"
    (output / "parts").mkdir(parents=True)
    (output / "parts/part-000777.parquet").write_bytes(b"left by another run")
    (output / "records").mkdir()
    name = part_name(_plan(dataset, encoder, output), open_dataset(dataset).shards[0])
    (output / f"records/{name}.json").write_bytes(b'{"half')
    _commit_without_ray(dataset, encoder, output)
    assert [part.rows for part in open_codes(str(output)).parts] == [3]


@pytest.mark.parametrize("label", [b"5000000000", b"-3", b'{"labels": [4294967296]}'])
def test_labels_that_a_code_table_cannot_hold_are_quarantined(tmp_path: Path, label: bytes) -> None:
    """The column is int32, and -1 stands for no label."""
    image = png(Image.new("RGB", (32, 32), "red"))
    suffix = "json" if label.startswith(b"{") else "cls"
    dataset = raw_dataset(tmp_path / "data", tar_bytes([("a.png", image), (f"a.{suffix}", label)]), 1)
    encoder, shard = published_encoder(tmp_path / "encoder"), open_dataset(dataset).shards[0]
    record = ShardEncoder(_plan(dataset, encoder, tmp_path / "codes")).encode_shard(shard)
    assert (record.part.rows, record.part.quarantined) == (0, 1)
    table = pq.read_table(tmp_path / "codes" / record.quarantine.path).to_pylist()
    assert [(row["key"], "label" in row["reason"]) for row in table] == [("a", True)]


@pytest.mark.ray
def test_samples_without_image_or_label_are_quarantined_and_a_missing_label_is_none(
    ray_local: None, tmp_path: Path
) -> None:
    images = [png(shape_image(number)) for number in range(4)]
    members = [
        ("a.png", images[0]), ("a.cls", b"3"),
        ("b.png", images[1]), ("b.cls", b"cat"),
        ("c.cls", b"1"),
        ("d.png", images[2]),
        ("e.png", images[3]), ("e.jpg", images[3]), ("e.cls", b"2"),
    ]  # fmt: skip
    dataset = raw_dataset(tmp_path / "data", tar_bytes(members), 5)
    result = encode(_config(dataset, published_encoder(tmp_path / "encoder"), tmp_path / "codes"))
    assert (result.rows_in, result.rows_out, result.quarantined) == (5, 2, 3)
    table = _table(result.codes_uri)
    assert table["key"].to_pylist() == ["a", "d"]
    assert table["labels"].to_pylist() == [[3], []]
    quarantine = pa.BufferReader(read_verified(result.codes_uri, open_codes(result.codes_uri).quarantine))
    assert [(row["key"], row["reason"]) for row in pq.read_table(quarantine).to_pylist()] == [
        ("b", "label b'cat', expected one integer"),
        ("c", "0 image members, expected 1"),
        ("e", "2 image members, expected 1"),
    ]


@pytest.mark.parametrize("content", [b"", b"\0garbage" * 99, gzip.compress(b"x" * 9999), b"<html>no</html>", None])
def test_a_shard_that_is_no_whole_tar_is_refused_before_work_starts(tmp_path: Path, content: bytes | None) -> None:
    """No worker is started, and what is not there or not a tar is told by what is seen of it."""
    dataset = shape_dataset(tmp_path / "data", [4, 5])
    path = tmp_path / "data/shard-000001.tar"
    whole, seen = path.read_bytes(), {b"": "empty: 0 bytes", b"<html>no</html>": "an HTML or XML page"}
    path.write_bytes(whole[:-700] if content is None else content)
    expected = seen.get(content, "gzip data" if content and content[0] == 0x1F else "first bytes")
    with pytest.raises(
        CorruptShard, match=rf"{path}: .*{'cut or replaced' if content is None else expected}"
    ) as caught:
        encode(_config(dataset, published_encoder(tmp_path / "encoder"), tmp_path / "codes"))
    assert caught.value.exit_code == 3
    assert not (tmp_path / "codes").exists()


def test_keys_are_opaque_names_never_paths(tmp_path: Path) -> None:
    """Absolute, climbing, spaced, non-ASCII and very long keys come back byte for byte; nothing is written by them."""
    image = png(Image.new("RGB", (32, 32), "red"))
    keys = ["../../escape", "/tmp/absolute-cibhash", "with space", "ключ/画像", "x" * 4000, "v1.0/a"]
    dataset = raw_dataset(tmp_path / "in/data", tar_bytes([(f"{key}.png", image) for key in keys]), len(keys))
    encoder, shard = published_encoder(tmp_path / "in/encoder"), open_dataset(dataset).shards[0]
    plan = _plan(dataset, encoder, tmp_path / "in/codes")
    record = ShardEncoder(plan).encode_shard(shard)
    assert read_part(plan.output_uri, record.part)["key"].to_pylist() == keys
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert not Path("/tmp/absolute-cibhash.png").exists()


def test_a_key_that_is_not_unicode_is_a_data_error(tmp_path: Path) -> None:
    image = png(Image.new("RGB", (32, 32), "red"))
    data = tar_bytes([("xx.png", image)], tar_format=1).replace(b"xx.png", b"\xff\xfe.png", 1)
    data = _with_checksum(data)
    dataset = raw_dataset(tmp_path / "data", data, 1)
    encoder, shard = published_encoder(tmp_path / "encoder"), open_dataset(dataset).shards[0]
    with pytest.raises(DataError, match=r"shard-000000.tar"):
        ShardEncoder(_plan(dataset, encoder, tmp_path / "codes")).encode_shard(shard)


def _with_checksum(data: bytes) -> bytes:
    """The tar with the checksum of its first header made right."""
    header = bytearray(data[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def test_shards_and_outputs_on_s3(tmp_path: Path, s3_bucket: str) -> None:
    """One actor's work, without Ray."""
    local = published_encoder(tmp_path / "encoder")
    encoder = published_encoder(f"{s3_bucket}/encoder")
    dataset, remote = shape_dataset(tmp_path / "data", [5]), shape_dataset(f"{s3_bucket}/data", [5])
    plan = _plan(dataset, local, tmp_path / "codes")
    expected = ShardEncoder(plan).encode_shard(open_dataset(dataset).shards[0])
    there = dataclasses.replace(plan, encoder_uri=encoder, dataset_uri=remote, output_uri=f"{s3_bucket}/codes")
    shard = open_dataset(remote).shards[0]
    assert ShardEncoder(there).encode_shard(shard) == expected
    assert read_record(there, shard) == expected
    assert read_part(there.output_uri, expected.part).equals(read_part(plan.output_uri, expected.part))


def test_listed_shard_matches_what_is_written(tmp_path: Path) -> None:
    """The helper of these tests says what the writer says."""
    dataset = shape_dataset(tmp_path / "data", [3])
    shard = open_dataset(dataset).shards[0]
    assert listed_shard((tmp_path / "data/shard-000000.tar").read_bytes(), 3) == shard
