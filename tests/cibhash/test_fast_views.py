"""Fast views: the geometry of Pillow's, colors by the formulas, and a stated distance to the exact views."""

import itertools
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from torchvision.transforms.v2 import functional

from cibhash.fast_views import color_map, cut_out, fast_view
from cibhash.specs import ViewSpec
from cibhash.view_draws import COLOR_STEPS, ViewDraw, draw_view, view_generator
from cibhash.views import random_view
from tests.datasets import shape_image

Floats = npt.NDArray[np.float64]

_PLAIN: dict[str, Any] = {"flip": 0, "jitter": 0, "grayscale": 0, "blur": 0}
_GEOMETRY: dict[str, Any] = {**_PLAIN, "flip": 0.5}
_LUMA = (0.299, 0.587, 0.114)


def _natural(number: int, width: int, height: int) -> Image.Image:
    """Colors that go together and a spectrum that falls with frequency, as those of photographs do."""
    draws = np.random.default_rng([11, number])
    rows, columns = np.meshgrid(np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij")
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1
    planes = []
    for _ in range(3):
        waves = draws.normal(size=frequency.shape) + 1j * draws.normal(size=frequency.shape)
        plane = np.fft.irfft2(waves / frequency**1.2, s=(height, width))
        planes.append(plane / plane.std())
    mixed = np.tensordot([[1, 0.35, 0.15], [1, -0.05, -0.3], [1, -0.3, 0.35]], np.stack(planes), 1)
    pixels = draws.uniform(90, 150) + draws.uniform(25, 55) * mixed + 8 * draws.normal(size=(3, 1, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def _both(image: Image.Image, spec: ViewSpec, size: int, *key: int) -> tuple[Floats, Floats]:
    """The exact view and the fast one of the same draws, (size, size, 3)."""
    seed, epoch, sample, view = (*key, 0, 0, 0, 0)[:4]
    exact = random_view(image, spec, size, view_generator(seed, epoch, sample, view)).transpose(1, 2, 0)
    fast = fast_view(np.asarray(image), spec, size, view_generator(seed, epoch, sample, view))
    assert fast.shape == exact.shape
    return exact.astype(float), fast.astype(float)


def _distances(spec: ViewSpec, size: int, shapes: list[tuple[int, int]], count: int) -> Floats:
    """Mean absolute difference of the two engines' views in gray levels, one number per image."""
    views = [_both(_natural(k, *shapes[k % len(shapes)]), spec, size, 0, 0, k) for k in range(count)]
    return np.array([np.abs(exact - fast).mean() for exact, fast in views])


def _colors(*steps: tuple[str, float], grayscale: bool = False) -> ViewDraw:
    return ViewDraw(0.0, (0, 0, 1, 1), False, steps, grayscale, 0.0)


def _mapped(draw: ViewDraw, pixels: Floats) -> Floats:
    """Pixels (N, 3) through the color map of their own mean, nothing clipped or rounded."""
    mapped: Floats = np.column_stack([pixels, np.ones(len(pixels))]) @ color_map(draw, pixels.mean(axis=0)).T
    return mapped


def test_a_view_depends_on_seed_epoch_sample_and_view_alone() -> None:
    spec, image = ViewSpec(rotation=10), np.asarray(shape_image(1))
    keys = list(itertools.product((0, 2**31), (0, 1), (0, 2**40), (0, 1)))

    def view(key: tuple[int, ...]) -> bytes:
        return fast_view(image, spec, 16, view_generator(*key)).tobytes()

    views = {key: view(key) for key in keys}
    assert len(set(views.values())) == len(keys)
    np.random.seed(5)
    cv2.setRNGSeed(5)
    assert all(view(key) == views[key] for key in reversed(keys))


@pytest.mark.parametrize("size", [2, 8, 33])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (40, 30), (16, 16)])
def test_shape_and_type(size: int, shape: tuple[int, int]) -> None:
    """Of plain images too small to be anything: without changes of color every pixel stays what it is."""
    image = np.full((shape[1], shape[0], 3), (10, 20, 30), np.uint8)
    image.flags.writeable = False
    for epoch in range(10):
        view = fast_view(image, ViewSpec(rotation=30), size, view_generator(0, epoch, 0, 0))
        assert view.shape == (size, size, 3)
        assert view.dtype == np.uint8
        plain = fast_view(image, ViewSpec(**{**_GEOMETRY, "blur": 1}), size, view_generator(0, epoch, 0, 0))
        assert (plain == (10, 20, 30)).all()


def test_the_draws_are_those_of_the_exact_views() -> None:
    """Both leave the generator in the same state, and the parts give the view when the draw is made apart."""
    spec, size = ViewSpec(rotation=10), 24
    for sample in range(40):
        image = np.asarray(_natural(sample, 40, 30))
        exact, fast, apart = (view_generator(1, 2, sample, 0) for _ in range(3))
        random_view(Image.fromarray(image), spec, size, exact)
        view = fast_view(image, spec, size, fast)
        assert exact.bit_generator.state == fast.bit_generator.state
        draw = draw_view(40, 30, spec, apart)
        expected = cut_out(image, draw, size)
        if draw.color or draw.grayscale:
            mapped = _mapped(draw, expected.reshape(-1, 3).astype(float)).reshape(size, size, 3)
            expected = mapped.round().clip(0, 255).astype(np.uint8)
        if draw.blur_sigma:
            expected = cv2.GaussianBlur(expected, (3, 3), draw.blur_sigma)  # type: ignore[assignment]
        assert np.abs(view.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("shape", [(96, 80), (60, 70), (100, 30), (5, 4)])
def test_the_geometry_is_pillows_where_nothing_shrinks(shape: tuple[int, int]) -> None:
    """Crop, resize and flip: rounding alone differs."""
    for sample in range(30):
        exact, fast = _both(_natural(sample, *shape), ViewSpec(**_GEOMETRY), 100, 0, 0, sample)
        assert np.abs(exact - fast).max() <= 1


def test_the_geometry_is_close_to_pillows_where_it_shrinks() -> None:
    """A mean over areas against a triangle twice as wide: found 2.7 levels of 255 on average."""
    distances = _distances(ViewSpec(**_GEOMETRY), 32, [(196, 180), (160, 170), (200, 130)], 60)
    assert distances.mean() < 3.2
    assert distances.max() < 6


def test_a_rotation_is_pillows_away_from_the_borders_it_brings_in() -> None:
    """Same center and same sense; found 0.6 levels on average, borders included."""
    spec = ViewSpec(rotation=25, **_GEOMETRY)
    distances = _distances(spec, 100, [(96, 80)], 40)
    assert distances.max() < 1.2
    angles = [draw_view(96, 80, spec, view_generator(0, 0, k, 0)).angle for k in range(40)]
    assert min(angles) < -20 < 20 < max(angles)


def test_no_augmentation_is_the_image() -> None:
    image = np.asarray(shape_image(0, 40).crop((0, 0, 40, 40)))
    spec = ViewSpec(crop_scale=(1, 1), crop_ratio=(1, 1), **_PLAIN)
    np.testing.assert_array_equal(fast_view(image, spec, 40, view_generator(0, 0, 0, 0)), image)


def _slow_colors(draw: ViewDraw, pixels: list[list[float]]) -> list[list[float]]:
    """Every step by its own formula on every pixel, in the draw's order and without clipping.

    Hue: luma stays, and the chroma turns in the IQ plane by the share of a circle, clockwise; matrices of NTSC 1953
    (FCC), the one back to three digits as they are published.
    """

    def gray(pixel: list[float]) -> float:
        return sum(weight * value for weight, value in zip(_LUMA, pixel, strict=True))

    for name, amount in draw.color:
        mean_gray = sum(gray(pixel) for pixel in pixels) / len(pixels)
        made = []
        for pixel in pixels:
            if name == "brightness":
                made.append([amount * value for value in pixel])
            elif name == "contrast":
                made.append([amount * value + (1 - amount) * mean_gray for value in pixel])
            elif name == "saturation":
                made.append([amount * value + (1 - amount) * gray(pixel) for value in pixel])
            else:
                red, green, blue = pixel
                i = 0.5959 * red - 0.2746 * green - 0.3213 * blue
                q = 0.2115 * red - 0.5227 * green + 0.3112 * blue
                turned = complex(i, q) * np.exp(-2j * np.pi * amount)
                i, q, y = turned.real, turned.imag, gray(pixel)
                made.append([y + 0.956 * i + 0.619 * q, y - 0.272 * i - 0.647 * q, y - 1.106 * i + 1.703 * q])
        pixels = made
    return [[gray(pixel)] * 3 for pixel in pixels] if draw.grayscale else pixels


@pytest.mark.parametrize("grayscale", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_color_map_is_the_steps_one_after_the_other(steps: int, grayscale: bool) -> None:
    """All orders of all choices of steps, with strong amounts; the tolerance is for the published digits of hue."""
    draws = np.random.default_rng(steps)
    for names in itertools.permutations(COLOR_STEPS, steps):
        color = tuple((n, float(draws.uniform(-0.5, 0.5) if n == "hue" else draws.uniform(0.3, 1.7))) for n in names)
        draw = _colors(*color, grayscale=grayscale)
        pixels = draws.uniform(0, 255, (12, 3))
        expected = _slow_colors(draw, pixels.tolist())
        tolerance = 0.5 * 1.7**3 if "hue" in names else 1e-3
        np.testing.assert_allclose(_mapped(draw, pixels), expected, rtol=0, atol=tolerance)


def test_a_view_is_its_color_map_applied_to_what_was_cut_out() -> None:
    """Pixel by pixel with the slow formulas; only the last step clips."""
    spec = ViewSpec(crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, jitter=1, grayscale=0.3, blur=0, hue=0)
    for sample in range(30):
        image = np.random.default_rng(sample).integers(0, 256, (6, 6, 3), np.uint8)
        draw = draw_view(6, 6, spec, view_generator(0, 0, sample, 0))
        expected = np.clip(_slow_colors(draw, image.reshape(-1, 3).astype(float).tolist()), 0, 255)
        view = fast_view(image, spec, 6, view_generator(0, 0, sample, 0)).reshape(-1, 3)
        assert np.abs(view - expected).max() < 1


def test_grayscale_gives_equal_channels_after_any_color() -> None:
    for jitter in (0, 1):
        spec = ViewSpec(jitter=jitter, grayscale=1)
        for sample in range(30):
            view = fast_view(np.asarray(_natural(sample, 40, 30)), spec, 20, view_generator(0, 0, sample, 0))
            assert (view[..., 0] == view[..., 1]).all()
            assert (view[..., 1] == view[..., 2]).all()
            assert view.std() > 0


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("amount", [0.6, 0.9, 1.0, 1.15, 1.4])
def test_single_steps_are_torchvisions_where_nothing_clips(name: str, amount: float) -> None:
    """To one level, and to two for contrast, whose mean gray torchvision rounds."""
    adjust = getattr(functional, f"adjust_{name}")
    for number in range(6):
        pixels = np.random.default_rng(number).integers(60, 150, (20, 20, 3), np.uint8)
        expected = np.asarray(adjust(Image.fromarray(pixels), amount)).astype(int)
        assert 0 < expected.min() <= expected.max() < 255
        draw = _colors((name, amount))
        found = cv2.transform(pixels, color_map(draw, pixels.reshape(-1, 3).mean(axis=0)))
        assert np.abs(found.astype(int) - expected).max() <= (2 if name == "contrast" else 1)
        if amount == 1:
            np.testing.assert_array_equal(found, pixels)


def test_hue_keeps_luma_and_grays() -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (50, 3))
    grays = np.repeat(np.linspace(0, 255, 9)[:, None], 3, axis=1)
    for shift in np.linspace(-0.5, 0.5, 11):
        turned = _mapped(_colors(("hue", float(shift))), pixels)
        np.testing.assert_allclose(turned @ _LUMA, pixels @ _LUMA, rtol=0, atol=1e-3)
        np.testing.assert_allclose(_mapped(_colors(("hue", float(shift))), grays), grays, rtol=0, atol=1e-3)
        back = _mapped(_colors(("hue", float(shift)), ("hue", -float(shift))), pixels)
        np.testing.assert_allclose(back, pixels, rtol=0, atol=1e-3)
        if 0.05 < abs(shift) < 0.45:
            assert np.abs(turned - pixels).max() > 10
    # Half a circle: the complementary color of the same luma.
    opposite = 2 * np.repeat((pixels @ _LUMA)[:, None], 3, axis=1) - pixels
    np.testing.assert_allclose(_mapped(_colors(("hue", 0.5)), pixels), opposite, rtol=0, atol=1e-3)


def test_hue_turns_the_way_that_torchvision_turns_it() -> None:
    """From red over green to blue, as far as HSV and YIQ agree; the other way would be another view of the draw."""
    colors = [(200, 80, 80), (80, 200, 80), (80, 80, 200), (180, 140, 90), (90, 120, 170), (170, 90, 150)]
    same_way, other_way = [], []
    for color, shift in itertools.product(colors, (-0.1, -0.05, -0.02, 0.02, 0.05, 0.1)):
        image = Image.new("RGB", (1, 1), color)
        exact = np.asarray(functional.adjust_hue(image, shift)).reshape(1, 3).astype(float)
        for distances, turn in ((same_way, shift), (other_way, -shift)):
            distances.append(np.abs(_mapped(_colors(("hue", turn)), np.array([color], float)) - exact).mean())
    assert (np.array(same_way) < 0.9 * np.array(other_way)).all()
    assert np.mean(same_way) < 0.6 * np.mean(other_way)


def test_a_blur_is_torchvisions() -> None:
    """Of noise, the worst there is: to two levels of 255, for OpenCV's weights have eight bits."""
    spec = ViewSpec(**{**_PLAIN, "blur": 1}, crop_scale=(1, 1), crop_ratio=(1, 1))
    changed = 0.0
    for sample in range(40):
        image = Image.fromarray(np.random.default_rng(sample).integers(0, 256, (20, 20, 3), np.uint8))
        exact, fast = _both(image, spec, 20, 0, 0, sample)
        assert np.abs(exact - fast).max() <= 2
        assert np.abs(exact - fast).mean() < 0.7
        changed = max(changed, np.abs(fast - np.asarray(image)).max())
    assert changed > 50


@pytest.mark.parametrize(
    ("settings", "shapes", "size", "mean", "worst"),
    [
        ({"hue": 0, "jitter": 1}, [(96, 80)], 100, 1.6, 4),
        ({}, [(96, 80)], 100, 2.8, 13),
        ({}, [(96, 80), (160, 170), (200, 130)], 64, 4.3, 16),
    ],
    ids=["without-hue", "enlarged", "mixed"],
)
def test_views_are_close_to_the_exact_ones(
    settings: dict[str, Any], shapes: list[tuple[int, int]], size: int, mean: float, worst: float
) -> None:
    """Mean absolute difference in levels of 255 over 150 images; found 1.4, 2.5 and 3.8, the worst view 11.7."""
    distances = _distances(ViewSpec(**settings), size, shapes, 150)
    assert distances.mean() < mean
    assert distances.max() < worst


def test_distances_tell_other_draws_apart() -> None:
    """What the bounds above are worth: views of the same images by other draws are many times as far."""
    differences = []
    for sample in range(40):
        image = _natural(sample, 96, 80)
        exact = random_view(image, ViewSpec(), 64, view_generator(0, 0, sample, 0)).transpose(1, 2, 0).astype(float)
        fast = fast_view(np.asarray(image), ViewSpec(), 64, view_generator(0, 0, sample, 1)).astype(float)
        differences.append(np.abs(exact - fast).mean())
    assert np.mean(differences) > 25
