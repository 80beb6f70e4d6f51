"""One shard: every finding is caused by a real file and told with its key."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from cibhash.types import TarShard
from cluster.doctor.findings import KINDS
from cluster.doctor.scan import ScanTask, ShardScan, locate_samples, readable, scan_shard
from tests.datasets import encoded, listed_shard, plain_image, png, shape_image, tar_bytes


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _scan(tmp_path: Path, data: bytes, listed: TarShard | None = None, *, decode: bool = True) -> ShardScan:
    path = tmp_path / "shard.tar"
    path.write_bytes(data)
    return scan_shard(ScanTask("all", str(path), listed, decode, 5))


def _frames(kind: str) -> bytes:
    return encoded(shape_image(0), kind, save_all=True, append_images=[shape_image(1)])


_LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
_TRUNCATED = encoded(shape_image(0, 64), "JPEG")[:700]
_IMAGES = {
    "plain": ("png", png(shape_image(0)), set()),
    "truncated": ("jpg", _TRUNCATED, {"undecodable"}),
    "html": ("jpg", b"<html>404</html>", {"undecodable"}),
    "empty": ("png", b"", {"undecodable"}),
    "bomb": ("png", png(Image.new("1", (8000, 7000))), {"oversized_image"}),
    "heavy": ("png", b"\x89PNG" + bytes(20 * 2**20), {"oversized_image"}),
    "tiny": ("png", png(shape_image(0).resize((15, 40))), {"tiny_image"}),
    "long": ("png", png(shape_image(0).resize((161, 40))), {"odd_shape"}),
    "blank": ("png", png(Image.new("RGB", (20, 20), "red")), {"blank_image"}),
    "animated": ("webp", _frames("WEBP"), {"animated_image"}),
    "gif": ("png", _frames("GIF"), {"animated_image", "palette", "other_format"}),
    "deep": ("png", png(Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160)), {"sixteen_bit"}),
    "print": ("jpg", encoded(shape_image(0).convert("CMYK"), "JPEG"), {"cmyk"}),
    "few": ("png", png(shape_image(0).convert("P")), {"palette"}),
    "gray": ("jpg", encoded(shape_image(0).convert("L"), "JPEG"), {"grayscale"}),
    "clear": ("png", png(shape_image(0).convert("RGBA")), {"alpha"}),
    "turned": ("jpeg", encoded(shape_image(0), "JPEG", exif=_exif(6)), {"exif_rotated"}),
    "profiled": ("png", png(shape_image(0), icc_profile=_LAB), {"color_profile"}),
    "renamed": ("jpg", png(shape_image(0)), {"other_format"}),
}


@pytest.mark.parametrize("name", _IMAGES)
def test_images(tmp_path: Path, name: str) -> None:
    suffix, data, expected = _IMAGES[name]
    scan = _scan(tmp_path, tar_bytes([(f"{name}.{suffix}", data)]))
    if name == "deep":
        expected = expected | {"grayscale"}
    assert set(scan.tally.counts) == expected
    for kind in expected:
        (offender,) = scan.tally.offenders[kind]
        assert (offender.name, offender.shard) == (name, str(tmp_path / "shard.tar"))
        assert offender.detail
        assert (tmp_path / "shard.tar").read_bytes()[offender.offset :][: offender.size] == data
    refused = expected & {"undecodable", "oversized_image"}
    assert (scan.samples, scan.refused) == (1, len(refused))
    assert sum(scan.formats.values()) == sum(scan.sides) == (0 if refused and name != "truncated" else 1)


def test_without_decoding_only_the_header_speaks(tmp_path: Path) -> None:
    data = tar_bytes([("cut.jpg", _TRUNCATED), ("no.png", b"<html>"), ("blank.png", png(Image.new("RGB", (20, 20))))])
    assert _scan(tmp_path, data, decode=False).tally.counts == {"undecodable": 1}
    assert _scan(tmp_path, data).tally.counts == {"undecodable": 2, "blank_image": 1}


def test_a_shard_that_is_not_the_listed_one(tmp_path: Path) -> None:
    data = tar_bytes([("a.png", png(shape_image(0))), ("b.png", png(shape_image(1)))])
    assert _scan(tmp_path, data, listed_shard(data, 2)).tally.counts == {}
    assert _scan(tmp_path, data, listed_shard(data, 3)).tally.counts == {"wrong_count": 1}
    assert _scan(tmp_path, data + b"\0", listed_shard(data, 2)).tally.counts == {"altered_shard": 1}
    flipped = bytearray(data)
    flipped[600] ^= 1
    assert "altered_shard" in _scan(tmp_path, bytes(flipped), listed_shard(data, 2)).tally.counts
    cut = _scan(tmp_path, data[:-3000][: len(data) // 4], listed_shard(data, 2))
    assert {"truncated_tar", "altered_shard", "wrong_count"} <= cut.tally.counts.keys()
    (offender,) = cut.tally.offenders["wrong_count"]
    assert offender.detail == f"{cut.samples} samples, its manifest says 2"


def test_samples_that_encode_quarantines_count_as_the_manifest_counts_them(tmp_path: Path) -> None:
    image = png(shape_image(0))
    data = tar_bytes([("a.png", image), ("b.cls", b"1"), ("c.png", image), ("c.cls", b"cat"), ("d.png", image)])
    scan = _scan(tmp_path, data, listed_shard(data, 4))
    assert scan.tally.counts == {"missing_image": 1, "bad_label": 1}
    assert (scan.samples, scan.refused) == (3, 2)


def test_a_missing_shard_is_a_finding(tmp_path: Path) -> None:
    scan = scan_shard(ScanTask("all", str(tmp_path / "gone.tar"), listed_shard(b"", 3), True, 5))
    assert (scan.samples, scan.tally.counts) == (0, {"missing_shard": 1})
    assert scan.num_errors == 1


def test_first_offenders_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    scan = _scan(tmp_path, tar_bytes([(f"k{n}.png", b"no") for n in range(9)]))
    assert scan.tally.counts == {"undecodable": 9}
    assert [one.name for one in scan.tally.offenders["undecodable"]] == ["k0", "k1", "k2", "k3", "k4"]


def test_labels_and_digests(tmp_path: Path) -> None:
    image = png(shape_image(0))
    members = [
        *[("a.png", image), ("a.cls", b"3"), ("b.png", image), ("b.json", b'{"labels": [3, 1, 3]}')],
        *[("c.png", png(shape_image(1))), ("d.png", png(shape_image(2))), ("d.json", b'{"labels": [1, 3]}')],
    ]
    scan = _scan(tmp_path, tar_bytes(members))
    assert (scan.labels, scan.unlabeled) == ({3: 3, 1: 2}, 1)
    assert [one.name for one in scan.first_unlabeled] == ["c"]
    expected = np.frombuffer(hashlib.sha256(image).digest()[:16], "<u8")
    np.testing.assert_array_equal(scan.image_digests[:2], [expected, expected])
    assert len({*map(tuple, scan.image_digests.tolist())}) == 3
    assert len({*scan.key_digests.tolist()}) == 4
    assert scan.label_digests[2] == 0
    assert scan.label_digests[1] == scan.label_digests[3] != scan.label_digests[0]


def test_samples_are_found_again_by_position(tmp_path: Path) -> None:
    images = [png(plain_image(n)) for n in range(5)]
    data = tar_bytes([(f"k{n}.png", image) for n, image in enumerate(images)])
    _scan(tmp_path, data)
    found = locate_samples(str(tmp_path / "shard.tar"), [1, 4])
    assert {position: place.key for position, place in found.items()} == {1: "k1", 4: "k4"}
    for position, place in found.items():
        assert data[place.offset : place.offset + place.size] == images[position]


def test_names_from_outside_can_be_written_anywhere() -> None:
    assert readable("a\udcffb") == "a\\udcffb"
    assert len(readable("x" * 10**6)) == 201
    assert readable("ключ") == "ключ"


def test_every_kind_that_a_shard_can_have_is_in_the_table(tmp_path: Path) -> None:
    for _, _, expected in _IMAGES.values():
        assert expected <= KINDS.keys()
