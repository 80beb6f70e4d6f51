"""Header facts of real files of every kind, without decoding."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from cibhash.errors import BadImage, OversizedImage
from cibhash.image_traits import ImageTraits, read_traits
from tests.datasets import encoded, png, shape_image

PLAIN = ImageTraits("PNG", "RGB", 40, 36, 8, False, 1, False, "")


def changed(data: bytes) -> dict[str, object]:
    """What differs from a plain RGB PNG of 40 x 36 pixels."""
    found = vars(read_traits(data))
    return {name: value for name, value in found.items() if value != getattr(PLAIN, name)}


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _profile(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def test_a_plain_image() -> None:
    assert read_traits(png(shape_image(0))) == PLAIN
    assert not PLAIN.is_gray
    assert not PLAIN.is_rotated


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(shape_image(0), "JPEG"), {"format": "JPEG"}),
        (encoded(shape_image(0), "WEBP"), {"format": "WEBP"}),
        (encoded(shape_image(0), "GIF"), {"format": "GIF", "mode": "P"}),
        (encoded(shape_image(0).convert("CMYK"), "JPEG"), {"format": "JPEG", "mode": "CMYK"}),
        (png(shape_image(0).convert("L")), {"mode": "L"}),
        (png(shape_image(0).convert("1")), {"mode": "1", "bit_depth": 1}),
        (png(shape_image(0).convert("P")), {"mode": "P"}),
        (png(shape_image(0).convert("RGBA")), {"mode": "RGBA", "has_alpha": True}),
        (png(shape_image(0), transparency=(1, 2, 3)), {"has_alpha": True}),
        (png(Image.fromarray(np.zeros((36, 40), np.uint16))), {"mode": "I;16", "bit_depth": 16}),
        (png(shape_image(0), exif=_exif(6)), {"orientation": 6}),
        (encoded(shape_image(0), "JPEG", exif=_exif(3)), {"format": "JPEG", "orientation": 3}),
        (encoded(shape_image(0), "WEBP", exif=_exif(8)), {"format": "WEBP", "orientation": 8}),
        (png(shape_image(0), icc_profile=_profile("sRGB")), {"color_profile": "sRGB"}),
        (png(shape_image(0), icc_profile=_profile("LAB")), {"color_profile": "other"}),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else " ".join(f"{k}={v}" for k, v in value.items()),
)
def test_what_differs(data: bytes, expected: dict[str, object]) -> None:
    assert changed(data) == expected


def test_sixteen_bit_color_is_told_though_pillow_shows_eight() -> None:
    """Pillow opens it as RGB; only the header of the file says 16."""
    cv2 = pytest.importorskip("cv2")
    data = cv2.imencode(".png", np.zeros((36, 40, 3), np.uint16))[1].tobytes()
    assert changed(data) == {"bit_depth": 16}


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations(kind: str) -> None:
    frames = [shape_image(number) for number in range(3)]
    traits = read_traits(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert (traits.is_animated, traits.format) == (True, kind)


def test_a_damaged_second_frame_does_not_hide_the_header() -> None:
    data = encoded(shape_image(0), "GIF", save_all=True, append_images=[shape_image(1)])
    assert read_traits(data[: len(data) * 2 // 3]).format == "GIF"


def test_gray_and_rotated_are_read_off() -> None:
    assert read_traits(png(Image.new("LA", (20, 20)))).is_gray
    assert read_traits(png(shape_image(0), exif=_exif(2))).is_rotated


def test_refusals_are_those_of_the_decoder() -> None:
    with pytest.raises(BadImage, match="not a JPEG"):
        read_traits(b"<html>")
    with pytest.raises(OversizedImage, match="8000 x 7000 pixels"):
        read_traits(png(Image.new("1", (8000, 7000))))
