"""Decoding: defined pixels out of every kind of image, and a reason for every refusal."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from cibhash.errors import BadImage
from cibhash.images import decode_image
from tests.datasets import encoded, png, shape_image
from tests.patience import HANG_S

_COLORS = {1: (255, 0, 0), 2: (0, 255, 0), 3: (0, 0, 255), 4: (255, 255, 0), 5: (0, 255, 255), 6: (255, 0, 255)}
_SHOWN = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}
"""How the stored rows 1 2 3, 4 5 6 are shown under each EXIF orientation."""


def _pixels(data: bytes) -> np.ndarray:
    image = decode_image(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_exif_orientation_is_honored(orientation: int, kind: str) -> None:
    """Six squares of 16 pixels, compared at their centers; JPEG may be a little off."""
    stored = np.array([[_COLORS[n] for n in row] for row in _SHOWN[1]], np.uint8).repeat(16, 0).repeat(16, 1)
    options = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 95}}[kind]
    data = encoded(Image.fromarray(stored), kind, exif=_exif(orientation), **options)
    expected = np.array([[_COLORS[n] for n in row] for row in _SHOWN[orientation]])
    found = _pixels(data)
    assert found.shape[:2] == (expected.shape[0] * 16, expected.shape[1] * 16)
    assert np.abs(found[8::16, 8::16] - expected).max() <= (12 if kind == "JPEG" else 0)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 128 * 257, 255 * 257, 65535, 256, 40000]], np.uint16)
    data = png(Image.fromarray(values))
    assert struct.unpack(">B", data[24:25]) == (16,)
    expected = [0, 1, 128, 255, 255, 1, round(40000 / 257)]
    np.testing.assert_array_equal(_pixels(data), np.repeat(np.array(expected)[None, :, None], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_composed_on_white(kind: str) -> None:
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [0, 0, 0, 51]]], np.uint8).repeat(8, 0).repeat(8, 1)
    data = encoded(Image.fromarray(rgba), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    found = _pixels(data)[4, 4::8]
    np.testing.assert_array_equal(found[:2], [[200, 100, 0], [255, 255, 255]])
    assert np.abs(found[2] - 204).max() <= 1


def test_gray_with_alpha_is_composed_on_white() -> None:
    found = _pixels(png(Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA")))
    np.testing.assert_array_equal(found, [[[10, 10, 10], [255, 255, 255]]])


def test_palettes_with_and_without_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    for x in range(3):
        image.putpixel((x, 0), x)
    np.testing.assert_array_equal(_pixels(png(image)), [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]])
    one = [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    np.testing.assert_array_equal(_pixels(png(image, transparency=1)), one)
    np.testing.assert_array_equal(_pixels(png(image, transparency=bytes([255, 0, 255]))), one)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_color_is_white(mode: str) -> None:
    colors = {"L": (7, 200), "RGB": ((1, 2, 3), (200, 100, 50))}[mode]
    image = Image.new(mode, (2, 1), colors[1])
    image.putpixel((0, 0), colors[0])
    found = _pixels(png(image, transparency=colors[0]))
    np.testing.assert_array_equal(found[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(found[0, 1], np.broadcast_to(np.array(colors[1]), 3))


def test_gray_black_and_white_and_cmyk() -> None:
    np.testing.assert_array_equal(_pixels(png(Image.new("L", (2, 2), 77))), np.full((2, 2, 3), 77))
    np.testing.assert_array_equal(_pixels(png(Image.new("1", (2, 2), 1))), np.full((2, 2, 3), 255))
    red = _pixels(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(red - [255, 0, 0]).max() <= 6
    gray = _pixels(encoded(Image.new("L", (16, 16), 77), "JPEG", quality=95))
    assert np.abs(gray - 77).max() <= 2


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(_pixels(data), np.broadcast_to([255, 0, 0], (4, 4, 3)))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    assert decode_image(png(Image.new("RGB", size, "red"))).size == size


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "<!DOCTYP"),
        (b"\0" * 1000, "not a JPEG, PNG, WebP or GIF"),
        (encoded(shape_image(0), "BMP"), "not a JPEG, PNG, WebP or GIF"),
        (encoded(shape_image(0), "TIFF"), "not a JPEG, PNG, WebP or GIF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG, PNG, WebP or GIF"),
    ],
    ids=["empty", "html", "zeros", "bmp", "tiff", "eps"],
)
def test_what_is_no_image_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_truncated_images_are_refused(kind: str, share: float) -> None:
    data = encoded(shape_image(0, 64), kind)
    with pytest.raises(BadImage) as caught:
        decode_image(data[: int(len(data) * share)])
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_name_what_was_found_and_what_is_allowed() -> None:
    data = png(Image.new("RGB", (30, 20)))
    with pytest.raises(BadImage, match=r"30 x 20 pixels.*599"):
        decode_image(data, max_pixels=599)
    assert decode_image(data, max_pixels=600).size == (30, 20)
    with pytest.raises(BadImage, match=rf"{len(data)} bytes.*{len(data) - 1}"):
        decode_image(data, max_bytes=len(data) - 1)
    assert decode_image(data, max_bytes=len(data)).size == (30, 20)


def _png_bomb(side: int) -> bytes:
    """A black and white PNG of side x side pixels, without ever holding them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer, row = zlib.compressobj(9), b"\0" * (1 + (side + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


_BOMB_CHILD = """
import resource, sys
from cibhash.errors import BadImage
from cibhash.images import decode_image
bombs = [open(path, "rb").read() for path in sys.argv[1:]]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for bomb in bombs:
    try:
        decode_image(bomb)
        sys.exit("decoded")
    except BadImage as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_bombs_are_refused_from_the_header(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """100 and 256 megapixels in few bytes: memory must not grow."""
    paths = []
    for side in (10_000, 16_000):
        paths.append(str(tmp_path / f"{side}.png"))
        data = _png_bomb(side)
        assert len(data) < 100_000
        (tmp_path / f"{side}.png").write_bytes(data)
    done = subprocess.run([sys.executable, "-c", _BOMB_CHILD, *paths], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    first, second, grown_mib = done.stdout.splitlines()
    assert "10000 x 10000 pixels, the limit is 50000000" in first
    assert "50000000" in second
    assert int(grown_mib) < 50


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_damaged_images_are_decoded_or_refused_and_nothing_else(kind: str) -> None:
    """Random bytes overwritten anywhere, EXIF and ICC included: never another exception."""
    draws = np.random.default_rng(0)
    exif = _exif(6)
    exif[0x010E], exif[0x8769] = "description", {0x9003: "2020:01:01 00:00:00", 0xA002: 3}
    options = {} if kind == "GIF" else {"exif": exif, "icc_profile": b"not a profile " * 9}
    good = encoded(shape_image(3, 24), kind, **options)
    refused = 0
    for _ in range(600):
        data = bytearray(good)
        near = 300 if draws.random() < 0.7 else len(data)
        for _ in range(int(draws.integers(1, 6))):
            data[int(draws.integers(min(near, len(data))))] = int(draws.integers(256))
        try:
            assert decode_image(bytes(data), max_pixels=10**6).mode == "RGB"
        except BadImage:
            refused += 1
    assert refused > 0


def test_the_source_is_not_needed_afterwards() -> None:
    data = io.BytesIO(png(shape_image(1)))
    image = decode_image(data.getvalue())
    data.close()
    assert image.resize((4, 4)).size == (4, 4)
