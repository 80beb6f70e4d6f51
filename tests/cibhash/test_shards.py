"""Tar shards: what is written is read back, and whatever is not what the manifest lists is refused by name."""

import hashlib
import io
import json
import pickle
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from cibhash.errors import BadImage, CorruptShard
from cibhash.images import decode_sample
from cibhash.shards import MAX_MEMBER_BYTES, SourceImage, read_samples, write_shard
from cibhash.types import Sample, TarShard
from tests.datasets import listed_shard, png, shape_image, shape_sources, tar_bytes

URI = "data/shard-000042.tar"


def _read(data: bytes, shard: TarShard) -> list[Sample]:
    return list(read_samples(io.BytesIO(data), shard))


def _read_raw(members: list[tuple[str, bytes] | tarfile.TarInfo], count: int) -> list[Sample]:
    """Reads a tar that its manifest lists correctly, whatever is in it."""
    data = tar_bytes(members)
    return _read(data, listed_shard(data, count, URI))


def _written(path: Path, sources: list[SourceImage], first_id: int = 0) -> tuple[bytes, TarShard]:
    shard = write_shard(path, URI, sources, first_id)
    return path.read_bytes(), shard


def _sources() -> list[SourceImage]:
    image = png(shape_image(1))
    return [
        SourceImage("none", "png", image, ()),
        SourceImage("one", "jpg", b"\xff\xd8 not looked at", (7,)),
        SourceImage("dir.v2/sub dir/many", "jpeg", b"x", (3, 1, 2)),
        SourceImage("/absolute/../ключ 画像", "webp", b"y" * 2000, (0,)),
        SourceImage("z" * 90, "png", image, (2**31 - 1,)),
        SourceImage("empty", "png", b"", ()),
    ]


def test_written_samples_are_read_back_with_ids_labels_and_offsets(tmp_path: Path) -> None:
    sources = _sources()
    data, shard = _written(tmp_path / "a.tar", sources, first_id=1000)
    assert shard == listed_shard(data, len(sources), URI, first_id=1000)
    samples = _read(data, shard)
    assert [s.id for s in samples] == list(range(1000, 1006))
    assert [(s.key, s.image, s.labels) for s in samples] == [(s.key, s.image, s.labels) for s in sources]
    for sample in samples:
        assert data[sample.offset : sample.offset + len(sample.image)] == sample.image


def test_an_empty_shard_is_read_back_empty(tmp_path: Path) -> None:
    data, shard = _written(tmp_path / "a.tar", [])
    assert shard.count == 0
    assert _read(data, shard) == []


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    first, shard = _written(tmp_path / "a.tar", _sources())
    second, again = _written(tmp_path / "elsewhere.tar", _sources())
    assert first == second
    assert shard == again
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


@pytest.mark.parametrize("key", ["", "a.b", "dir/.hidden", "x" * 91, "é" * 46, "a\0b", "v1.0\nnew/line"])
def test_keys_that_would_not_be_read_back_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        write_shard(tmp_path / "a.tar", URI, [SourceImage(key, "png", b"x", ())], 0)


@pytest.mark.parametrize("key", ["a\nb", "a//b", "./a", " ", "a/", "cls", "__key__", "a\\b", "\u202e"])
def test_odd_keys_are_read_back_or_refused(tmp_path: Path, key: str) -> None:
    """Never changed, never lost."""
    try:
        data, shard = _written(tmp_path / "a.tar", [SourceImage(key, "png", b"x", (5,))])
    except ValueError:
        return
    assert [(s.key, s.labels) for s in _read(data, shard)] == [(key, (5,))]


def test_other_suffixes_and_repeated_keys_are_refused(tmp_path: Path) -> None:
    for suffix in ("gif", "JPG", "pkl", "cls", ""):
        with pytest.raises(ValueError, match="suffix"):
            write_shard(tmp_path / "a.tar", URI, [SourceImage("a", suffix, b"x", ())], 0)
    twice = [SourceImage("same", "png", b"x", ()), SourceImage("same", "jpg", b"y", ())]
    with pytest.raises(ValueError, match="'same' comes twice"):
        write_shard(tmp_path / "a.tar", URI, twice, 0)


def test_a_cut_is_found_wherever_it_is(tmp_path: Path) -> None:
    """Inside headers, inside images, at every member boundary, in the closing zeros, and nothing left at all."""
    data, shard = _written(tmp_path / "a.tar", shape_sources(3))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    cuts = {0, 1, 100, 511, 512, len(data) - 1, len(data) - 512, len(data) - 1024}
    for member in members:
        cuts |= {member.offset, member.offset + 13, member.offset_data, member.offset_data + member.size // 2}
        cuts |= {member.offset_data + member.size, (member.offset_data + member.size + 511) // 512 * 512}
    cuts = {cut for cut in cuts if cut < len(data)}
    assert len(cuts) > 20
    for cut in sorted(cuts):
        with pytest.raises(CorruptShard, match=URI):
            _read(data[:cut], shard)


def test_a_single_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    data, shard = _written(tmp_path / "a.tar", shape_sources(2))
    for position in range(0, len(data), 97):
        altered = bytearray(data)
        altered[position] ^= 1 << position % 8
        with pytest.raises(CorruptShard, match=URI):
            _read(bytes(altered), shard)


def test_trailing_bytes_and_wrong_counts_are_found(tmp_path: Path) -> None:
    data, shard = _written(tmp_path / "a.tar", shape_sources(3))
    with pytest.raises(CorruptShard, match=rf"{len(data) + 1} bytes, its manifest says {len(data)}"):
        _read(data + b"x", shard)
    with pytest.raises(CorruptShard, match="3 samples, its manifest says 4"):
        _read(data, replace(shard, count=4))
    with pytest.raises(CorruptShard, match="more samples than the 2"):
        _read(data, replace(shard, count=2))
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(CorruptShard, match=rf"{shard.sha256[:16]}.*{other[:16]}"):
        _read(data, replace(shard, sha256=other))


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 10240, b"<!DOCTYPE html><html></html>" * 50, b"\x1f\x8b" + b"\5" * 2000, bytes(range(256)) * 8],
    ids=["nothing", "zeros", "html", "gzip", "garbage"],
)
def test_what_is_no_tar_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptShard, match=URI):
        _read(data, listed_shard(data, 3, URI))


def test_a_compressed_tar_is_refused() -> None:
    import gzip

    data = gzip.compress(tar_bytes([("a.png", b"x")]))
    with pytest.raises(CorruptShard, match=URI):
        _read(data, listed_shard(data, 1, URI))


def test_labels_from_cls_and_json() -> None:
    members: list[tuple[str, bytes] | tarfile.TarInfo] = [
        ("a.png", b"1"),
        ("a.cls", b" 12\n"),
        ("b.json", json.dumps({"labels": [4, 2], "caption": "x"}).encode()),
        ("b.jpg", b"2"),
        ("c.JPEG", b"3"),
        ("c.json", b'{"width": 3}'),
        ("d.png", b"4"),
        ("d.json", b'{"labels": []}'),
    ]
    assert [s.labels for s in _read_raw(members, 4)] == [(12,), (4, 2), (), ()]


@pytest.mark.parametrize("label", [b"cat", b"", b"1.5", b"1 2", b"\xff", b"9" * 5000, b"\0" * 8])
def test_a_cls_that_is_not_one_integer_is_the_trouble_of_its_sample(label: bytes) -> None:
    _expect_trouble("bad.cls", label, r"label b.*, expected one integer")


@pytest.mark.parametrize(
    "content", [b"{", b'{"labels": 3}', b'{"labels": ["3"]}', b'{"labels": [true]}', b'{"labels": [1.0]}', b"\xff\xfe"]
)
def test_a_json_without_integer_labels_is_the_trouble_of_its_sample(content: bytes) -> None:
    _expect_trouble("bad.json", content, r"json member is not JSON|labels .*, expected a list of integers")


def _expect_trouble(name: str, content: bytes, trouble: str) -> None:
    """The sample comes with its image, without labels and unusable; the others are as ever."""
    good, bad, last = _read_raw([("good.png", b"1"), ("bad.png", b"2"), (name, content), ("last.png", b"3")], 3)
    assert (good.trouble, last.trouble, last.id) == ("", "", 2)
    assert (bad.key, bad.image, bad.labels) == ("bad", b"2", ())
    assert re.search(trouble, bad.trouble)
    with pytest.raises(BadImage, match=re.escape(bad.trouble)):
        decode_sample(bad)


@pytest.mark.parametrize("label", [-1, 2**31])
def test_labels_outside_the_range_of_a_code_table_are_refused(tmp_path: Path, label: int) -> None:
    """-1 stands for no label, and the column is int32."""
    with pytest.raises(ValueError, match=rf"'a'.*{label}"):
        write_shard(tmp_path / "a.tar", URI, [SourceImage("a", "png", b"x", (label,))], 0)
    for member in (("a.cls", str(label).encode()), ("a.json", json.dumps({"labels": [1, label]}).encode())):
        (sample,) = _read_raw([("a.png", b"x"), member], 1)
        assert str(label) in sample.trouble


def test_deeply_nested_json_is_refused() -> None:
    _expect_trouble("bad.json", b"[" * 500_000, "json member is not JSON")


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (["a.png", "b.png", "a.jpg"], "a"),
        (["a.png", "b.png", "a.png"], "a"),
        (["a.png", "a.png"], "a.png"),
        (["a.png", "b.png", "a.cls"], "a"),
    ],
)
def test_broken_layouts_name_shard_and_key(names: list[str], key: str) -> None:
    """Keys that come twice, members apart from their image."""
    with pytest.raises(CorruptShard, match=URI) as caught:
        _read_raw([(name, b"1") for name in names], 2)
    assert key in str(caught.value).replace(URI, "")


@pytest.mark.parametrize(
    ("names", "found"),
    [(["k.png", "k.jpg"], 2), (["k.cls"], 0), (["k.json", "b.png"], 0), (["k.1.png"], 0), (["k.txt", "b.png"], 0)],
)
def test_a_sample_without_a_single_image_is_counted_and_unusable(names: list[str], found: int) -> None:
    sample, *others = _read_raw([(name, b"1") for name in names], 1 + ("b.png" in names))
    assert (sample.key, sample.image, sample.trouble) == ("k", b"", f"{found} image members, expected 1")
    assert [other.trouble for other in others] == [""] * len(others)


@pytest.mark.parametrize("name", [".png", "dir/.jpg", "line.1\nbreak/a.png"])
def test_an_image_without_a_readable_key_is_not_lost_in_silence(name: str) -> None:
    """The manifest counts the samples that remain, as a scan by the same reader would have."""
    with pytest.raises(CorruptShard, match=URI):
        _read_raw([("a.png", b"x"), (name, b"x")], 1)


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "pyd", "pth", "pt", "npy", "mp"])
def test_payloads_are_never_executed(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / "executed"
    samples = _read_raw([("a.png", b"x"), (f"a.{suffix}", pickle.dumps(_Touch(str(target))))], 1)
    assert [s.key for s in samples] == ["a"]
    assert not target.exists()


class _Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE], ids=["sym", "hard", "char", "fifo"]
)
def test_links_and_devices_are_refused(kind: bytes) -> None:
    info = tarfile.TarInfo("link.png")
    info.type, info.linkname = kind, "/etc/hostname"
    with pytest.raises(CorruptShard, match=rf"{URI}.*link.png"):
        _read_raw([("a.png", b"x"), info], 2)


def test_sparse_members_are_refused() -> None:
    """A PAX sparse member of a few bytes that claims 300 MB."""
    sink = io.BytesIO()
    content = b"1\n0\n0\n".ljust(512, b"\0")
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("GNUSparseFile.0/big.png")
        info.size = len(content)
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "big.png",
            "GNU.sparse.realsize": str(300 * 2**20),
        }
        tar.addfile(info, io.BytesIO(content))
    data = sink.getvalue()
    with pytest.raises(CorruptShard, match=rf"{URI}.*big.png"):
        _read(data, listed_shard(data, 1, URI))


def test_directories_are_passed_over_and_too_large_members_refused() -> None:
    folder = tarfile.TarInfo("dir")
    folder.type = tarfile.DIRTYPE
    assert [s.key for s in _read_raw([folder, ("dir/a.png", b"x")], 1)] == ["dir/a"]
    header = tarfile.TarInfo("huge.png")
    header.size = MAX_MEMBER_BYTES + 1
    data = tar_bytes([("a.png", b"x")])[:1024] + header.tobuf() + b"x" * 4096
    with pytest.raises(CorruptShard, match=rf"{URI}.*huge.png.*{MAX_MEMBER_BYTES}"):
        _read(data, listed_shard(data, 2, URI))


def test_samples_come_before_the_end_is_read(tmp_path: Path) -> None:
    """A stream, not a whole file: the first sample needs only the first read."""
    sources = [SourceImage(f"k{n}", "png", bytes([n]) * 700_000, ()) for n in range(8)]
    data, shard = _written(tmp_path / "a.tar", sources)
    stream = io.BytesIO(data)
    samples = read_samples(stream, shard)
    assert next(samples).image == sources[0].image
    assert stream.tell() < len(data) / 2
    assert len(list(samples)) == 7
