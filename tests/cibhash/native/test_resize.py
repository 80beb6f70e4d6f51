"""The compiled resize: Pillow's pixels, whatever the sizes, the shape, the CPU's level and the number of threads."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from cibhash.native.library import Level, library
from cibhash.native.resize import Pixels, resize
from cibhash.views import eval_view
from tests.patience import HANG_S

compiled = pytest.mark.skipif(library() is None, reason="no compiled library")
LEVELS = [level for level in Level if (native := library()) is not None and level <= native.cibhash_level()]
KINDS = ("noise", "extremes", "checkerboard", "white")


def _image(width: int, height: int, kind: str = "noise") -> Image.Image:
    draws = np.random.default_rng([width, height])
    shape = (height, width, 3)
    if kind == "noise":
        pixels = draws.integers(0, 256, shape, np.uint8)
    elif kind == "extremes":
        pixels = draws.integers(0, 2, shape, np.uint8) * np.uint8(255)
    elif kind == "checkerboard":
        pixels = (np.indices(shape).sum(axis=0) % 2 * 255).astype(np.uint8)
    else:
        pixels = np.full(shape, 255, np.uint8)
    return Image.fromarray(pixels)


def _by_pillow(image: Image.Image, size: int) -> Pixels:
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _check(image: Image.Image, size: int) -> None:
    expected = _by_pillow(image, size)
    for level in LEVELS:
        found = resize(image, size, level)
        assert found is not None
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected, err_msg=f"{image.size} to {size} with {level.name}")


SIDES = st.one_of(st.integers(1, 12), st.integers(1, 700))


@compiled
@hypothesis_settings(deadline=None, max_examples=150)
@given(width=SIDES, height=SIDES, size=st.one_of(st.integers(1, 12), st.integers(1, 300)), kind=st.sampled_from(KINDS))
@example(width=500, height=375, size=224, kind="noise")
@example(width=32, height=32, size=96, kind="noise")
@example(width=64, height=64, size=64, kind="noise")
@example(width=64, height=300, size=64, kind="noise")
@example(width=300, height=64, size=64, kind="noise")
@example(width=1, height=1, size=1, kind="noise")
@example(width=3, height=1, size=224, kind="extremes")
def test_it_gives_pillows_pixels(width: int, height: int, size: int, kind: str) -> None:
    _check(_image(width, height, kind), size)


@compiled
@hypothesis_settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 300), size=st.integers(1, 200), off=st.integers(-2, 2))
def test_the_passes_go_in_pillows_order(width: int, size: int, off: int) -> None:
    """Which one is first shows in the pixels; it changes where twice the width is height plus size."""
    _check(_image(width, max(1, size + 2 * max(0, width - size) + off)), size)


@compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sides", [(65_536, 1), (1, 65_536), (40_000, 3), (3, 40_000), (65_536, 60), (5000, 1)])
@pytest.mark.parametrize("size", [1, 2, 96])
def test_extreme_shapes(sides: tuple[int, int], kind: str, size: int) -> None:
    """Thousands of weights, each of them rounded."""
    _check(_image(*sides, kind), size)


@compiled
@pytest.mark.parametrize("sides", [(2500, 2000), (4200, 1111)])
@pytest.mark.parametrize("size", [96, 224])
def test_an_image_in_several_pieces(sides: tuple[int, int], size: int) -> None:
    _check(_image(*sides), size)


@pytest.mark.parametrize("sides", [(70_000, 2), (2, 70_000), (1000, 5000)])
def test_what_it_leaves_to_pillow(sides: tuple[int, int]) -> None:
    image = _image(*sides)
    assert resize(image, 32) is None
    np.testing.assert_array_equal(eval_view(image, 32), _by_pillow(image, 32))


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_other_modes_are_left_to_pillow(mode: str) -> None:
    assert resize(Image.new(mode, (40, 30)), 8) is None


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_one_is_refused(size: int) -> None:
    with pytest.raises(ValueError):
        eval_view(_image(8, 8), size)


@compiled
def test_the_image_is_left_as_it_was() -> None:
    image = _image(50, 40)
    before = image.tobytes()
    resize(image, 24)
    assert image.tobytes() == before


@compiled
def test_threads_at_once() -> None:
    images = [_image(30 + 7 * number, 300 - 4 * number) for number in range(60)]
    expected = [_by_pillow(image, 64) for image in images]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda image: resize(image, 64), images * 4))
    for view, pixels in zip(found, expected * 4, strict=True):
        assert view is not None
        np.testing.assert_array_equal(view, pixels)


_DIGEST = """
from cibhash.native.library import library
from cibhash.native.resize import resize
from tests.cibhash.native.test_resize import digest_of_views, _image
print(library() is not None, resize(_image(601, 500), 32) is not None, digest_of_views())
"""


def digest_of_views() -> str:
    """Of views in both orders of the passes, of an odd width, and of pieces where those are small."""
    total = hashlib.sha256()
    for sides in ((601, 500), (33, 200), (200, 33), (7, 9)):
        total.update(eval_view(_image(*sides), 32).tobytes())
    return total.hexdigest()


@pytest.mark.parametrize(
    ("setting", "used"),
    [
        ({"CIBHASH_NATIVE": "0"}, "False False"),
        ({"PILLOW_ALIGNMENT": "64"}, "True False"),
        ({"PILLOW_BLOCK_SIZE": "64k"}, "True False"),
        ({"PILLOW_BLOCK_SIZE": "1m"}, "True True"),
    ],
)
def test_views_are_the_same_without_it(setting: dict[str, str], used: str) -> None:
    """Without the library, and with memory of Pillow's that is laid out otherwise."""
    done = subprocess.run(
        [sys.executable, "-c", _DIGEST],
        capture_output=True,
        text=True,
        env={**os.environ, **setting},
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *found, digest = done.stdout.split()
    assert digest == digest_of_views()
    if library() is not None:
        assert " ".join(found) == used
