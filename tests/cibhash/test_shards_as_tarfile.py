"""The reader against a slow twin on `tarfile`: the same samples out of whatever bytes, or refused by both."""

import io
import itertools
import tarfile
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext, group_by_keys

from cibhash import tar_members
from cibhash.errors import CorruptShard
from cibhash.shards import split_name, unlisted_samples
from cibhash.tar_headers import BLOCK, MAX_EXTENSIONS, read_header
from tests.datasets import tar_bytes
from tests.tar_pieces import END, FORMATS, long, patched, pax, plain, record, summed
from tests.tarfile_reader import Refused, SilentLoss, TwinSample, twin_samples

PROPERTY = settings(derandomize=True, deadline=None, max_examples=300)
WIDTHS = {100: 8, 108: 8, 116: 8, 124: 12, 136: 12, 329: 8, 337: 8}
"""Bytes of the number fields of a header, by where they begin."""


class Trickle(io.BytesIO):
    """Gives fewer bytes than asked for, as a socket may."""

    def read(self, size: int | None = -1, /) -> bytes:
        most = 1 + self.tell() * 7919 % 1300
        return super().read(most if size is None or size < 0 else min(size, most))


def outcome(data: bytes, stream: io.BytesIO) -> list[TwinSample] | None:
    """The samples; None: refused."""
    try:
        found = list(unlisted_samples(stream, "x.tar"))
    except CorruptShard:
        return None
    assert stream.tell() == len(data)
    return [TwinSample(s.key, s.image, s.labels, s.offset, not s.trouble) for s in found]


def check(data: bytes) -> str:
    """Holds both readers against each other and says what became of the tar."""
    try:
        expected, kind = twin_samples(data), "read"
    except Refused as error:
        expected, kind = None, "lost in silence" if isinstance(error, SilentLoss) else "refused"
    assert outcome(data, io.BytesIO(data)) == expected
    assert outcome(data, Trickle(data)) == expected
    return kind


def good_ways(key: str, rng: np.random.Generator) -> Sequence[bytes]:
    """A sample of this key in all the ways to write one."""
    image, label = rng.bytes(int(rng.integers(0, 1200))), b"%d" % rng.integers(12)
    name, fmt = f"{key}.png", FORMATS[rng.integers(3)]
    header = plain(name, image, tar_format=fmt)
    return (
        header + plain(f"{key}.cls", label, tar_format=fmt),
        plain(f"{key}.json", b'{"labels": [3, 4]}') + plain(f"{key}.JPG", image),
        plain(f"{key}.txt", image) + header + plain(f"{key}.cls", b"cat"),
        plain(f"ключ-{key}.webp", image, tar_format=fmt) + plain(f"a\udcff{key}.txt"),
        plain(f"{'d' * 60}/{'e' * 60}/{name}", image, tar_format=fmt),
        plain(f"{'f' * 99}/" * 4 + name, image, tar_format=FORMATS[rng.integers(1, 3)]),
        patched(plain(name, image), 257, bytes(8)),
        patched(plain(name, image, b"\0"), 257, bytes(8)),
        patched(plain(f"{key}/", b"", b"\0"), 257, bytes(8)) + header,
        patched(header, 124, b"\x80" + len(image).to_bytes(11, "big")) if header[156:157] == b"0" else header,
        patched(header, 100, b"000644 \0000765 \0000024 \0") if header[156:157] == b"0" else header,
        patched(plain(name, image), 345, b"14723615311\0"),
        plain(name, image, b"7"),
        plain(f"{key}/.png", image),
        plain(f"{key}.dir", b"", b"5") + header,
        long(f"{key}/" + "n" * 200 + ".png") + plain("cut.png", image),
        long("target", b"K") + long(name) + plain("cut.png", image),
        pax(record(b"mtime", b"1723.25")) + plain(name, image),
        pax(record(b"path", f"é/{name}/".encode()), record(b"comment", b"a=b")) + plain("cut.png", image),
        pax(record(b"size", b"%d" % len(image))) + patched(plain(name, image), 124, b"0" * 11),
        pax(record(b"path", name.encode())) + pax(record(b"path", b"other.png")) + plain("cut.png", image),
        pax(record(b"path", name.encode())) + long("other.png") + plain("cut.png", image),
        long(name) * int(rng.integers(2, MAX_EXTENSIONS + 1)) + plain("cut.png", image),
        long(name) + pax(record(b"path", b"other.png")) + plain("cut.png", image),
        pax(record(b"comment", b"for all"), kind=b"g") + header,
        pax(record(b"path", name.encode()), kind=b"X") + plain("cut.png", image),
    )


def odd_ways(key: str, rng: np.random.Generator) -> Sequence[bytes]:
    """What should not be in a shard, or not be like that."""
    image, name = rng.bytes(int(rng.integers(1, 1200))), f"{key}.png"
    header = plain(name, image)
    return (
        plain(name, b"", b"2"),
        plain(name, b"", b"3"),
        plain(name, image, b"Z"),
        patched(plain(name, image, b"S"), 386, bytes(100)),
        plain(".png", image),
        plain(f"{key}.__bad__", image) + header,
        plain(f"{key}.__key__", image) + header,
        header + header,
        pax(record(b"path", name.encode()), kind=b"g") + plain("cut.png", image),
        pax(record(b"size", b"%d" % len(image)), kind=b"g") + header,
        pax(record(b"size", b"-3")) + plain(name, image),
        pax(record(b"size", b"many")) + plain(name, image),
        pax(record(b"path", name.encode())[:-3]) + plain("cut.png", image),
        pax(b"0 path=x\n") + plain(name, image),
        pax(record(b"GNU.sparse.name", b"other.png")) + plain(name, image),
        pax(record(b"GNU.sparse.map", b"0,3")) + plain(name, image),
        long(name) * (MAX_EXTENSIONS + 1) + plain("cut.png", image),
        patched(header, 124, b"\xff" * 12),
        patched(plain(f"{key}.txt", image), 124, b"-0000000001"),
        patched(plain(name, image), 124, b"00000002 00\0"),
    )


def made_up(rng: np.random.Generator) -> bytes:
    keys = [f"{n:03d}" for n in range(rng.integers(1, 6))]
    if rng.random() < 0.1:
        keys.append(keys[0])
    ends = (END, END, bytes(9 * BLOCK), bytes(BLOCK), b"", END + rng.bytes(700), END + plain("late.png"), bytes(100))
    pieces = [(good_ways if rng.random() < 0.93 else odd_ways)(key, rng) for key in keys]
    return b"".join(ways[rng.integers(len(ways))] for ways in pieces) + ends[rng.integers(len(ends))]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One damage; where a header is changed, its checksum may be put right."""
    blocks = [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]
    at, other = (int(number) for number in rng.integers(len(blocks), size=2))
    headers = [number for number, block in enumerate(blocks) if len(block) == BLOCK and read_header(block)]
    match rng.integers(9):
        case 0:
            return data[: rng.integers(len(data) + 1)]
        case 1:
            return data[: rng.integers(len(blocks) + 1) * BLOCK]
        case 2:
            del blocks[at]
        case 3:
            blocks.insert(at, blocks[other])
        case 4:
            blocks[at], blocks[other] = blocks[other], blocks[at]
        case 5:
            blocks.insert(at, bytes(BLOCK))
        case 6:
            place = int(rng.integers(len(data)))
            return data[:place] + bytes([data[place] ^ 1 << rng.integers(8)]) + data[place + 1 :]
        case 7 if headers:
            at = headers[rng.integers(len(headers))]
            place = int(rng.choice([0, 3, 99, 124, 134, 135, 148, 154, 155, 156, 257, 345, rng.integers(BLOCK)]))
            value = bytes([rng.choice([0, 32, 48, 49, 57, 65, 47, 128, 255, *b"12357LKxgXSZ"])])
            changed = blocks[at][:place] + value + blocks[at][place + 1 :]
            blocks[at] = summed(changed) if rng.random() < 0.8 and not 148 <= place < 156 else changed
        case 8 if headers:
            at = headers[rng.integers(len(headers))]
            place = list(WIDTHS)[rng.integers(len(WIDTHS))]
            letters = rng.choice([*b"00001234567 \0 -_+x89"], WIDTHS[place]).astype(np.uint8).tobytes()
            blocks[at] = patched(blocks[at], place, letters)
    return b"".join(blocks)


def test_every_way_to_write_a_sample_is_read_and_every_odd_one_refused() -> None:
    rng = np.random.default_rng(6)
    for size in range(12):
        for piece in good_ways(f"k{size}", rng):
            assert check(piece + plain("last.png") + END) == "read"
        for piece in odd_ways(f"k{size}", rng):
            assert check(piece + plain("last.png") + END) != "read"


@pytest.mark.parametrize("seed", range(4))
def test_the_same_samples_as_by_tarfile_or_an_error_by_both(seed: int) -> None:
    rng = np.random.default_rng([5, seed])
    kinds: Counter[str] = Counter()
    for _ in range(200):
        data = made_up(rng)
        kinds[check(data)] += 1
        for _ in range(3):
            data = mutated(data, rng) if data else data
            kinds[check(data)] += 1
    assert kinds["read"] > 150
    assert kinds["refused"] > 150
    assert kinds["lost in silence"] > 80


@pytest.mark.parametrize("tar_format", FORMATS)
def test_every_cut_and_every_bit_of_a_header(tar_format: int) -> None:
    """Of an image whose name needs a header of its own where the format has one, and of its label."""
    key = "k" * (90 if tar_format == tarfile.USTAR_FORMAT else 120)
    data = tar_bytes([(f"{key}.png", b"\1" * 600), (f"{key}.cls", b"3")], tar_format)
    for cut in range(0, len(data), 37):
        check(data[:cut])
    for position in itertools.chain(range(BLOCK), range(BLOCK, 4 * BLOCK, 5)):
        altered = data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :]
        check(altered)
        if position < BLOCK:
            check(summed(altered[:BLOCK]) + altered[BLOCK:])


NAMES = st.text(st.sampled_from("a./\n"), max_size=7) | st.text(st.sampled_from("abA./\n_é\udcff "), max_size=9)


@PROPERTY
@given(NAMES)
@example("a.\n/b.c")
def test_names_are_split_as_webdataset_splits_them(name: str) -> None:
    key, suffix = base_plus_ext(name)
    assert split_name(name)[0] == key
    if key is not None:
        assert split_name(name)[1] == suffix.lower()


@PROPERTY
@given(st.lists(st.sampled_from(["a.png", "a.PNG", "a.txt", "b.png", "b.cls", "a.b.cls", "c", "d/a.jpg"]), max_size=8))
def test_members_are_grouped_as_webdataset_groups_them(names: list[str]) -> None:
    """Where the library refuses none; keys that come again are refused here."""
    members = [(name, b"%d" % number) for number, name in enumerate(names)]
    found = outcome(data := tar_bytes(members), io.BytesIO(data))
    try:
        groups = list(group_by_keys({"fname": name, "data": data, "__url__": ""} for name, data in members))
    except ValueError:
        assert found is None
        return
    keys = [group["__key__"] for group in groups]
    if len(set(keys)) < len(keys):
        assert found is None
        return
    assert found is not None
    assert [sample.key for sample in found] == keys
    for sample, group in zip(found, groups, strict=True):
        images = [group[suffix] for suffix in ("png", "jpg") if suffix in group]
        assert sample.image == (images[0] if len(images) == 1 else b"")


def test_members_larger_than_a_chunk_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks end inside headers, data and padding."""
    members = [(f"{n}.png", bytes([n]) * (n * 331)) for n in range(12)]
    data = tar_bytes(members)
    for size in (1, 7, 511, 512, 513, 1000, 1536, 4096):
        monkeypatch.setattr(tar_members, "_CHUNK", size)
        found = outcome(data, io.BytesIO(data))
        assert found is not None
        assert [sample.image for sample in found] == [content for _, content in members]
