"""The pixels of an image where they lie: those that Pillow copies out, for as long as their owner lives."""

import ctypes

import numpy as np
import pytest
from PIL import Image

from cibhash.native.image_memory import image_memory


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (1, 1000), (1000, 1), (2000, 2000)])
def test_it_is_the_pixels(size: tuple[int, int]) -> None:
    image = _noise(*size)
    expected = np.asarray(image)
    memory = image_memory(image)
    del image
    assert memory is not None
    pixels = np.frombuffer(ctypes.string_at(memory.address, 4 * size[0] * size[1]), np.uint8)
    np.testing.assert_array_equal(pixels.reshape(size[1], size[0], 4)[:, :, :3], expected)


def test_it_is_so_after_pillow_changed_them() -> None:
    image = _noise(30, 20)
    for changed in (image.crop((3, 2, 20, 17)), image.rotate(90, expand=True), image.convert("L").convert("RGB")):
        memory = image_memory(changed)
        assert memory is not None
        pixels = np.frombuffer(ctypes.string_at(memory.address, 4 * changed.width * changed.height), np.uint8)
        np.testing.assert_array_equal(pixels.reshape(*changed.size[::-1], 4)[:, :, :3], np.asarray(changed))


@pytest.mark.parametrize("mode", ["L", "RGBA", "RGBX", "CMYK", "P", "1", "F", "I;16"])
def test_other_modes_have_none(mode: str) -> None:
    assert image_memory(Image.new(mode, (4, 3))) is None


def test_what_is_empty_or_in_pieces_has_none() -> None:
    assert image_memory(Image.new("RGB", (0, 3))) is None
    assert image_memory(Image.new("RGB", (3, 0))) is None
    assert image_memory(Image.new("RGB", (3000, 2000))) is None
