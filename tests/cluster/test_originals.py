"""Originals by pointer: the packed bytes of any row by one range read, from a local tar and from S3."""

import io
from pathlib import Path

import pytest
from PIL import Image

from cibhash.errors import DataError, NotFound, StorageError
from cibhash.shards import SourceImage
from cluster import storage
from cluster.datasets import located, open_dataset, shard_samples
from cluster.originals import Original, media_type, original_bytes
from cluster.reports.thumbnails import read_thumbnails
from tests.datasets import encoded, make_dataset, shape_image, shape_sources
from tests.s3 import s3_bucket
from tests.s3_faults import Fault, FaultyStore, faulty_store

__all__ = ["faulty_store", "s3_bucket"]


def _sources() -> list[SourceImage]:
    others = [SourceImage(f"as-{kind}", kind, encoded(shape_image(40), kind), ()) for kind in ("jpeg", "webp")]
    return [*shape_sources(5), *others, *shape_sources(2, 100)]


def _originals(uri: str) -> list[tuple[Original, bytes]]:
    """Pointers to all images, and what `tarfile` reads there."""
    pairs = []
    for shard in open_dataset(uri).shards:
        place = located(uri, shard).uri
        for sample in shard_samples(uri, shard):
            pairs.append((Original(place, sample.offset, len(sample.image)), sample.image))
    return pairs


def test_originals_are_the_packed_bytes_from_disk_and_from_s3(
    tmp_path: Path, s3_bucket: str, faulty_store: FaultyStore
) -> None:
    local = make_dataset(tmp_path / "data", [_sources(), shape_sources(3, 50)])
    remote = make_dataset(f"{s3_bucket}/data", [_sources(), shape_sources(3, 50)])
    packed = [source.image for source in (*_sources(), *shape_sources(3, 50))]
    for uri in (local, remote):
        pairs = _originals(uri)
        assert [image for _, image in pairs] == packed
        assert [original_bytes(original) for original, _ in pairs] == packed
    assert [media_type(image) for image in packed[4:7]] == ["image/png", "image/jpeg", "image/webp"]


def test_each_original_costs_one_request_of_its_own_size(s3_bucket: str, faulty_store: FaultyStore) -> None:
    pairs = _originals(make_dataset(f"{s3_bucket}/data", [_sources()]))
    faulty_store.plan()
    for original, image in pairs:
        assert original_bytes(original) == image
    ends = [(original.offset, original.offset + original.size - 1) for original, _ in pairs]
    assert [seen.range for seen in faulty_store.seen] == [f"bytes={first}-{last}" for first, last in ends]
    assert set(faulty_store.lines()) == {"GET /cibhash-test/data/shard-000000.tar"}
    faulty_store.plan(Fault("status"), Fault("cut", after=100), Fault("reset"))
    found = read_thumbnails(original for original, _ in pairs + pairs)
    assert (len(found.pictures), found.reasons) == (len(pairs), ())
    assert len(faulty_store.seen) == len(pairs) + 3


def test_a_pointer_into_a_shard_that_was_replaced_is_refused(tmp_path: Path) -> None:
    (original, _), *_ = _originals(make_dataset(tmp_path / "data", [_sources()]))
    with pytest.raises(DataError, match=rf"{original.uri} at offset {original.offset + 1}: not a JPEG, PNG"):
        original_bytes(Original(original.uri, original.offset + 1, original.size))
    with pytest.raises(StorageError, match="of 10 bytes at offset 1000000000"):
        original_bytes(Original(original.uri, 10**9, 10))
    Path(original.uri).unlink()
    with pytest.raises(NotFound, match=original.uri):
        original_bytes(original)


def test_everything_that_can_be_decoded_has_a_media_type() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        data = encoded(shape_image(1), kind)
        assert media_type(data) == f"image/{kind.lower()}"
        assert Image.open(io.BytesIO(data)).format == kind
    for data in (b"", b"RIFF1234WAVE", b"<!DOCTYPE html>", b"\x00" * 40):
        assert media_type(data) == ""


def test_storage_errors_name_the_shard(s3_bucket: str, faulty_store: FaultyStore) -> None:
    storage.write_bytes(f"{s3_bucket}/a.tar", b"x" * 1000)
    faulty_store.plan(Fault("status", status=403, code="AccessDenied", times=9))
    with pytest.raises(StorageError, match=rf"{s3_bucket}/a.tar: access denied"):
        original_bytes(Original(f"{s3_bucket}/a.tar", 0, 10))
    assert len(faulty_store.seen) == 1
