"""Draws of views: by seed, epoch, sample and view alone, within their ranges and as often as they should."""

import dataclasses
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from cibhash.specs import ViewSpec
from cibhash.view_draws import ViewDraw, draw_view, view_generator

_ALL = {"flip": 1, "jitter": 1, "grayscale": 1, "blur": 1}


def _draws(count: int, spec: ViewSpec, width: int = 80, height: int = 60) -> list[ViewDraw]:
    return [draw_view(width, height, spec, view_generator(0, 0, sample, 0)) for sample in range(count)]


def test_a_generator_depends_on_seed_epoch_sample_and_view_alone() -> None:
    keys = list(itertools.product((0, 1, 2**31), (0, 1, 500), (0, 1, 2**40), (0, 1, 2)))
    first = {key: view_generator(*key).integers(2**62, size=3).tolist() for key in keys}
    assert len({tuple(numbers) for numbers in first.values()}) == len(keys)
    np.random.seed(1)
    for key in reversed(keys):
        assert view_generator(*key).integers(2**62, size=3).tolist() == first[key]


def test_draws_are_the_same_from_version_to_version() -> None:
    """Caches of views outlive a version of this package, and a run may continue under the next one."""
    draw = draw_view(80, 60, ViewSpec(rotation=10, jitter=1, blur=1), view_generator(1, 2, 3, 6))
    assert (draw.box, draw.flip, draw.grayscale) == ((16, 3, 68, 52), True, True)
    assert [name for name, _ in draw.color] == ["contrast", "hue", "brightness", "saturation"]
    found = [draw.angle, *(amount for _, amount in draw.color), draw.blur_sigma]
    recorded = [-2.150252116600533, 1.2468178076058876, -0.04291861471505801, 0.8891544210454525, 1.042099713801345]
    assert found == pytest.approx([*recorded, 0.7438114564183635], rel=1e-12)


def test_every_field_is_drawn_apart_from_the_others() -> None:
    """No two numbers of a view are correlated, those of its neighbors in sample, view and epoch neither."""
    # Of small crops, for large ones of a ratio that does not fit are drawn again.
    spec = ViewSpec(rotation=10, crop_scale=(0.2, 0.4), **{**_ALL, "flip": 0.5, "grayscale": 0.5})

    def numbers(*key: int) -> list[float]:
        draw = draw_view(80, 60, spec, view_generator(*key))
        left, top, right, bottom = draw.box
        amounts = [amount for _, amount in sorted(draw.color)]
        shape = [(right - left) * (bottom - top), (right - left) / (bottom - top)]
        first_step = draw.color[0][0]
        return [draw.angle, *shape, draw.flip, *amounts, draw.grayscale, draw.blur_sigma, first_step == "hue"]

    count = 1500
    own = np.array([numbers(0, 0, sample, 0) for sample in range(count)])
    for step in ((0, 0, 1, 0), (0, 0, 0, 1), (0, 1, 0, 0), (1, 0, 0, 0)):
        other = np.array([numbers(step[0], step[1], sample + step[2], step[3]) for sample in range(count)])
        across = np.corrcoef(own.T, other.T)[: own.shape[1], own.shape[1] :]
        assert np.abs(across).max() < 5 / np.sqrt(count)
    within = np.corrcoef(own.T)[~np.eye(own.shape[1], dtype=bool)]
    assert np.abs(within).max() < 5 / np.sqrt(count)


@pytest.mark.parametrize("field", ["flip", "jitter", "grayscale", "blur"])
@pytest.mark.parametrize("probability", [0.0, 0.2, 0.7, 1.0])
def test_steps_come_as_often_as_they_should(field: str, probability: float) -> None:
    count = 800
    draws = _draws(count, ViewSpec(**{**_ALL, field: probability}))
    made = {
        "flip": [draw.flip for draw in draws],
        "jitter": [bool(draw.color) for draw in draws],
        "grayscale": [draw.grayscale for draw in draws],
        "blur": [draw.blur_sigma > 0 for draw in draws],
    }
    tolerance = 5 * np.sqrt(probability * (1 - probability) / count)
    assert abs(np.mean(made[field]) - probability) <= tolerance
    assert all(all(value) for name, value in made.items() if name != field)


def _assert_uniform(values: list[float], low: float, high: float) -> None:
    """Within the range, and close to its distribution function everywhere (Kolmogorov's bound, p below 1e-6)."""
    assert low <= min(values)
    assert max(values) <= high
    shares = (np.sort(values) - low) / (high - low)
    assert np.abs(shares - np.arange(1, len(values) + 1) / len(values)).max() < 2.7 / np.sqrt(len(values))


def test_amounts_are_uniform_in_their_ranges() -> None:
    spec = ViewSpec(rotation=25, brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1, blur_sigma=(0.1, 2.0), **_ALL)
    draws = _draws(1500, spec)
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.7, 1.3),
        ("saturation", 0.8, 1.2),
        ("hue", -0.1, 0.1),
    ):
        _assert_uniform([dict(draw.color)[name] for draw in draws], low, high)
    _assert_uniform([draw.blur_sigma for draw in draws], 0.1, 2.0)
    _assert_uniform([draw.angle for draw in draws], -25, 25)


def test_color_steps_come_in_every_order_alike() -> None:
    count = 2400
    orders = Counter(tuple(name for name, _ in draw.color) for draw in _draws(count, ViewSpec(jitter=1)))
    assert set(orders) == set(itertools.permutations(("brightness", "contrast", "saturation", "hue")))
    # A hundred each on average.
    assert max(abs(times - 100) for times in orders.values()) < 5 * 10


def test_steps_of_strength_zero_are_left_out() -> None:
    names = ("brightness", "contrast", "saturation", "hue")
    for kept in itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(5)):
        spec = ViewSpec(jitter=1, **{name: 0.1 if name in kept else 0.0 for name in names})  # type: ignore[arg-type]
        for draw in _draws(20, spec):
            assert sorted(name for name, _ in draw.color) == sorted(kept)
    assert all(draw.angle == 0 for draw in _draws(20, ViewSpec()))


def test_crops_are_those_of_torchvision_in_distribution() -> None:
    """Area, ratio and place: the means over many crops of an image that is not square."""
    scale, ratio, count = (0.3, 0.9), (0.5, 2.0), 3000
    spec = ViewSpec(crop_scale=scale, crop_ratio=ratio)
    ours = np.array([draw.box for draw in _draws(count, spec, 200, 120)], float)
    image = Image.new("RGB", (200, 120))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)]
    theirs = np.array([(left, top, left + width, top + height) for top, left, height, width in found], float)

    def measures(boxes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        left, top, right, bottom = boxes.T
        width, height = right - left, bottom - top
        return np.stack([left, top, width, height, width * height, np.log(width / height), left == 0, top == 0])

    a, b = measures(ours), measures(theirs)
    error = np.sqrt((a.var(axis=1) + b.var(axis=1)) / count)
    assert (np.abs(a.mean(axis=1) - b.mean(axis=1)) < 5 * error).all()
    np.testing.assert_allclose(a.std(axis=1)[:6], b.std(axis=1)[:6], rtol=0.1)


def test_every_place_of_a_crop_is_as_likely() -> None:
    """A quarter of 12 x 10 pixels, as a square: eight places across and six down, the last ones included."""
    count = 4800
    boxes = [draw.box for draw in _draws(count, ViewSpec(crop_scale=(0.25, 0.25), crop_ratio=(1, 1)), 12, 10)]
    assert {(right - left, bottom - top) for left, top, right, bottom in boxes} == {(5, 5)}
    places = Counter((left, top) for left, top, _, _ in boxes)
    assert set(places) == set(itertools.product(range(8), range(6)))
    # A hundred each on average.
    assert max(abs(times - 100) for times in places.values()) < 5 * 10


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 40), (40, 30), (16, 16), (7, 5)])
def test_crops_lie_within_the_image(shape: tuple[int, int]) -> None:
    width, height = shape
    for draw in _draws(100, ViewSpec(), width, height):
        left, top, right, bottom = draw.box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert all(type(edge) is int for edge in draw.box)


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (1000, 3), (2, 100)])
def test_where_no_crop_fits_it_is_torchvisions_central_one(shape: tuple[int, int]) -> None:
    spec = ViewSpec()
    top, left, height, width = RandomResizedCrop.get_params(
        Image.new("RGB", shape), list(spec.crop_scale), list(spec.crop_ratio)
    )
    for draw in _draws(10, spec, *shape):
        assert draw.box == (left, top, left + width, top + height)


def test_the_engine_has_no_part_in_the_draws() -> None:
    for engine in ("pillow", "device"):
        spec: Any = dataclasses.replace(ViewSpec(rotation=10), engine=engine)
        assert _draws(20, spec) == _draws(20, ViewSpec(rotation=10))
