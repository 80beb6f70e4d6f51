"""Header blocks: the short way gives what `tarfile` gives, and what headers say of a member is put together."""

import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cibhash.tar_headers import BLOCK, MAX_EXTENSIONS, Extensions, Header, read_header, read_plain
from tests.tar_pieces import FORMATS, padded, plain, record, summed

PROPERTY = settings(derandomize=True, deadline=None, max_examples=400)
LONG, PAX, PAX_OF_ALL = b"Lxg"
MEMBER = Header(ord("0"), "a.png", 7)


@st.composite
def blocks(draw: st.DrawFn) -> bytes:
    """Headers of all kinds and formats, some bytes of most overwritten, the sum of many put right."""
    name = draw(st.sampled_from(["a.png", f"{'p' * 90}/{'q' * 60}.png", f"{'é' * 40}/a.png", "x" * 100]))
    kind = draw(st.sampled_from([b"0", b"x", b"L", b"5", b"\0", b"2", b"S"]))
    block = plain(name, b"x" * draw(st.integers(0, 5)), kind, draw(st.sampled_from(FORMATS)))[:BLOCK]
    value = draw(st.text("01237 89\0aé/-", max_size=12).map(str.encode) | st.binary(max_size=3))
    place = draw(st.integers(0, BLOCK) | st.sampled_from([0, 99, 100, 124, 136, 148, 156, 257, 329, 345]))
    block = (block[:place] + value + block[place + len(value) :])[:BLOCK]
    return summed(block) if draw(st.booleans()) else block


@PROPERTY
@given(blocks())
def test_a_header_says_what_tarfile_reads_in_it(block: bytes) -> None:
    expected = None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if info.size >= 0:
            has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES or info.type in b"LK"
            size = info.size if has_data else 0
            expected = Header(info.type[0], info.name, size, info.type == tarfile.GNUTYPE_SPARSE)
    except tarfile.HeaderError:
        pass
    assert read_header(block) == expected
    behind = read_plain(b"x" * 5 + block, 5)
    assert behind is None or (expected is not None and behind == (expected.name, expected.size))


@pytest.mark.parametrize("tar_format", FORMATS)
def test_what_writers_make_takes_the_short_way(tar_format: int) -> None:
    assert read_plain(plain("a.png", b"abc", tar_format=tar_format), 0) == ("a.png", 3)


def test_a_checksum_that_is_right_but_for_the_modulus_of_the_quick_sum_is_refused() -> None:
    """Adler-32 counts modulo 65521; so large a sum takes bytes above ASCII."""
    block = plain("a.png")[:BLOCK]
    block = summed(block[:157] + b"\xff" * 172 + block[329:345] + b"\xff" * 155 + bytes(12))
    assert int(block[148:154], 8) > 65521
    assert read_header(block) is not None
    field = b"%06o\0 " % (int(block[148:154], 8) % 65521)
    assert read_header(block[:148] + field + block[156:]) is None


def test_the_first_that_speaks_has_the_last_word() -> None:
    extensions = Extensions()
    assert extensions.add(PAX_OF_ALL, padded(record(b"path", b"all.png"))) == ""
    assert extensions.add(PAX, padded(record(b"path", b"first.png/"))) == ""
    assert extensions.add(LONG, padded(b"second.png\0")) == ""
    assert extensions.add(PAX, padded(record(b"size", b"9"))) == ""
    assert (extensions.is_open, extensions.is_needed) == (True, True)
    assert extensions.take(MEMBER) == Header(ord("0"), "first.png", 9)
    assert (extensions.is_open, extensions.is_needed) == (False, True)
    assert extensions.take(MEMBER) == MEMBER._replace(name="all.png")


def test_records_that_say_nothing_of_name_and_size_change_nothing() -> None:
    extensions = Extensions()
    assert extensions.add(PAX, padded(record(b"mtime", b"1.5") + record(b"comment", b"a=b\nc"))) == ""
    assert (extensions.is_open, extensions.is_needed) == (True, False)
    assert extensions.take(MEMBER) == MEMBER


@pytest.mark.parametrize(
    ("content", "trouble"),
    [
        (b"rubbish", "no PAX record at byte 0"),
        (b"8 path=x\n", "no PAX record at byte 0"),
        (b"99 path=x\n", "no PAX record at byte 0"),
        (b"900 path=x\n", "no PAX record at byte 0"),
        (b"0 path=x\n", "no PAX record at byte 0"),
        (b"10 path=xy\n".replace(b"10", b"11") + b"6 a\n", "no PAX record at byte 11"),
        (record(b"size", b"-1"), "a PAX size of b'-1'"),
        (record(b"size", b"1_0"), "a PAX size of b'1_0'"),
    ],
)
def test_broken_records_are_told(content: bytes, trouble: str) -> None:
    assert Extensions().add(PAX, padded(content)).startswith(trouble)


def test_a_size_for_all_members_is_told_and_not_used() -> None:
    extensions = Extensions()
    assert extensions.add(PAX_OF_ALL, padded(record(b"size", b"3"))) == "a size for all members that follow"
    assert extensions.take(MEMBER) == MEMBER


def test_endless_headers_are_told() -> None:
    extensions = Extensions()
    for _ in range(MAX_EXTENSIONS):
        assert extensions.add(LONG, padded(b"b.png\0")) == ""
    assert extensions.add(LONG, padded(b"b.png\0")) == "more than 16 headers before a member"
    assert extensions.take(MEMBER) == MEMBER
