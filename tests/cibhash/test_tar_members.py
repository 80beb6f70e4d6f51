"""Damaged tars: what is intact comes back with its bytes, what is not is told."""

import io
import tarfile
from collections.abc import Sequence

import pytest

from cibhash.tar_headers import BLOCK
from cibhash.tar_members import MAX_EXTENSION_BYTES, TarDamage, TarMember, tar_members
from tests.datasets import tar_bytes

FILES = [("a.png", b"A" * 700), ("dir/b.cls", b"3"), ("c.png", b"C" * 512), ("d.txt", b"D" * 40)]


class CountingStream(io.BytesIO):
    """Remembers the largest read."""

    largest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        self.largest = max(self.largest, len(chunk))
        return chunk


def walk(data: bytes, max_bytes: int = 1 << 20) -> tuple[list[TarMember], list[TarDamage]]:
    def is_wanted(name: str, size: int) -> bool:
        return not name.endswith(".txt") and size <= max_bytes

    entries = list(tar_members(io.BytesIO(data), wanted=is_wanted))
    members = [entry for entry in entries if isinstance(entry, TarMember)]
    return members, [entry for entry in entries if isinstance(entry, TarDamage)]


def offsets(data: bytes) -> list[tuple[int, int, int]]:
    """Header, data and size of each member, as the library sees them."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member.offset, member.offset_data, member.size) for member in tar]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_intact_tar_is_read_as_the_library_reads_it(tar_format: int) -> None:
    files = [*FILES, ("x" * 80 + "/" + "y" * 90 + ".png", b"long")]
    if tar_format != tarfile.USTAR_FORMAT:
        files += [("z" * 3000 + ".png", b"longer"), ("ключ.png", b"other letters")]
    data = tar_bytes(files, tar_format)
    members, damages = walk(data)
    assert damages == []
    assert [(m.name, m.data) for m in members if m.name != "d.txt"] == [f for f in files if f[0] != "d.txt"]
    assert next(m for m in members if m.name == "d.txt").data is None
    assert [(m.offset, m.size) for m in members] == [(data_start, size) for _, data_start, size in offsets(data)]


def test_a_cut_anywhere_keeps_what_is_whole_before_it() -> None:
    data = tar_bytes(FILES)
    ends = [start + -(-size // BLOCK) * BLOCK for _, start, size in offsets(data)]
    for cut in range(0, ends[-1] + BLOCK, 64):
        members, damages = walk(data[:cut])
        assert [m.name for m in members] == [name for (name, _), end in zip(FILES, ends, strict=True) if end <= cut]
        if cut >= ends[-1] + BLOCK:
            continue
        (damage,) = damages
        whole = cut in (*ends, *(start - BLOCK for _, start, _ in offsets(data)))
        assert damage.kind == ("not_a_tar" if cut < BLOCK else "no_end_marker" if whole else "truncated_tar")
        assert str(cut) in damage.detail or damage.kind == "not_a_tar"


def test_the_search_for_the_next_header_goes_on_behind_a_damaged_one() -> None:
    data = bytearray(tar_bytes(FILES))
    header, _, _ = offsets(bytes(data))[1]
    data[header + 130] ^= 4
    members, (damage,) = walk(bytes(data))
    assert [m.name for m in members] == ["a.png", "c.png", "d.txt"]
    assert (damage.kind, damage.detail) == ("damaged_tar", f"no header at byte {header}: {2 * BLOCK} bytes skipped")


def test_a_damaged_first_header_costs_the_first_member_alone() -> None:
    data = bytearray(tar_bytes(FILES))
    data[5] ^= 1
    members, (damage,) = walk(bytes(data))
    assert [m.name for m in members] == ["dir/b.cls", "c.png", "d.txt"]
    assert damage.kind == "damaged_tar"


def test_tars_joined_into_one_are_read_on_and_told() -> None:
    members, (damage,) = walk(tar_bytes(FILES[:1]) + tar_bytes(FILES[1:]))
    assert [m.name for m in members] == [name for name, _ in FILES]
    assert (damage.kind, damage.name) == ("after_end", "dir/b.cls")
    assert walk(tar_bytes(FILES[:1]) + b"rubbish" * 1000)[1] == []


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "empty: 0 bytes"),
        (b"\x1f\x8b" + b"\5" * 2000, "gzip"),
        (b"<!DOCTYPE html><html></html>" * 50, "HTML"),
        (b"\xff\xd8\xff\xe0" + b"\1" * 900, "JPEG"),
        (bytes(range(1, 256)) * 8, "first bytes"),
        (b"short", "first bytes b'short'"),
    ],
    ids=["nothing", "gzip", "html", "jpeg", "garbage", "short"],
)
def test_what_is_no_tar_is_named_by_its_first_bytes(data: bytes, told: str) -> None:
    members, (damage,) = walk(data)
    assert (members, damage.kind) == ([], "not_a_tar")
    assert told in damage.detail


def test_links_sparse_files_and_folders_have_no_data() -> None:
    link, folder, sparse = (tarfile.TarInfo(name) for name in ("link.png", "dir", "big.png"))
    link.type, link.linkname, folder.type, sparse.type = tarfile.SYMTYPE, "/etc/hostname", tarfile.DIRTYPE, b"S"
    data = tar_bytes([link, folder, sparse, ("a.png", b"x")])
    members, damages = walk(data)
    assert [(m.name, m.is_regular, m.is_folder, m.data) for m in members] == [
        ("link.png", False, False, None),
        ("dir", False, True, None),
        ("big.png", False, False, None),
        ("a.png", True, False, b"x"),
    ]
    assert damages == []


def _claiming(size: int, kind: bytes, following: Sequence[tuple[str, bytes]]) -> bytes:
    header = tarfile.TarInfo("huge.png")
    header.size, header.type = size, kind
    return header.tobuf(tarfile.GNU_FORMAT) + b"x" * size + b"\0" * (-size % BLOCK) + tar_bytes(following)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_nothing_above_a_limit_is_held_in_memory(kind: bytes) -> None:
    """Long names and PAX records too, which the library reads whole."""
    stream = CountingStream(_claiming(3 * MAX_EXTENSION_BYTES, kind, [("a.png", b"x")]))
    entries = list(tar_members(stream, wanted=lambda _, size: size <= 1000))
    assert stream.largest <= 1 << 20
    assert isinstance(last := entries[-1], TarMember)
    assert (last.name, last.data) == ("a.png", b"x")
    first = entries[0]
    assert first.data is None if isinstance(first, TarMember) else first.kind == "damaged_tar"


def test_sizes_that_cannot_be_end_with_the_file() -> None:
    for size in (2**62, 2**80):
        header = tarfile.TarInfo("a.png")
        header.size = size
        members, (damage,) = walk(header.tobuf(tarfile.GNU_FORMAT) + b"x" * 4096)
        assert (members, damage.kind) == ([], "truncated_tar")
        assert "'a.png'" in damage.detail
