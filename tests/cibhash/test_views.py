"""Views: drawn by seed, epoch, sample and view alone, within the ranges of their specification."""

import itertools

import numpy as np
import pytest
from PIL import Image

from cibhash.specs import ViewSpec
from cibhash.view_draws import view_generator
from cibhash.views import eval_view, random_view
from tests.datasets import shape_image

_PLAIN = {"flip": 0, "jitter": 0, "grayscale": 0, "blur": 0}


def _view(spec: ViewSpec, *key: int, image: Image.Image | None = None, size: int = 16) -> np.ndarray:
    seed, epoch, sample, view = (*key, 0, 0, 0, 0)[:4]
    return random_view(image or shape_image(1), spec, size, view_generator(seed, epoch, sample, view))


def test_a_view_depends_on_seed_epoch_sample_and_view_alone() -> None:
    spec = ViewSpec()
    keys = list(itertools.product((0, 1, 2**31), (0, 1), (0, 1, 2**40), (0, 1, 2)))
    views = {key: _view(spec, *key).tobytes() for key in keys}
    assert len(set(views.values())) == len(keys)
    assert all(_view(spec, *key).tobytes() == view for key, view in reversed(views.items()))


def test_global_random_state_has_no_part() -> None:
    import random

    import torch

    spec, views = ViewSpec(rotation=20), []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        views.append(b"".join(_view(spec, 3, epoch).tobytes() for epoch in range(20)))
    assert views[0] == views[1]


@pytest.mark.parametrize("size", [8, 16, 33])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (40, 30), (16, 16)])
def test_shape_and_type(size: int, shape: tuple[int, int]) -> None:
    image = Image.new("RGB", shape, (10, 20, 30))
    for epoch in range(10):
        view = _view(ViewSpec(rotation=30), 0, epoch, image=image, size=size)
        assert view.shape == (3, size, size)
        assert view.dtype == np.uint8
        assert view.flags.c_contiguous


def test_eval_view_is_pillows_antialiased_resize() -> None:
    image = shape_image(2, 90)
    for size in (8, 32, 200):
        expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        np.testing.assert_array_equal(eval_view(image, size), expected)
        assert eval_view(image, size).dtype == np.uint8


def _coordinates(side: int) -> Image.Image:
    """Red and green tell the column and the row."""
    ramp = np.linspace(0, 255, side).round().astype(np.uint8)
    return Image.fromarray(
        np.stack(
            [np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side)), np.zeros((side, side), np.uint8)], axis=2
        )
    )


def test_crops_stay_within_area_and_ratio() -> None:
    """The corner pixels of a view tell what was cut out."""
    spec = ViewSpec(crop_scale=(0.3, 0.6), crop_ratio=(0.5, 2.0), **_PLAIN)
    image, areas, ratios = _coordinates(256), [], []
    for epoch in range(300):
        view = _view(spec, 0, epoch, image=image, size=256).astype(int)
        width, height = view[0].max() - view[0].min() + 1, view[1].max() - view[1].min() + 1
        areas.append(width * height / 256**2)
        ratios.append(width / height)
    assert 0.28 < min(areas) < 0.33
    assert 0.57 < max(areas) < 0.62
    assert 0.48 < min(ratios) < 0.6
    assert 1.7 < max(ratios) < 2.1
    assert abs(np.mean(np.log(ratios))) < 0.12


def test_crops_reach_every_border() -> None:
    image = _coordinates(64)
    views = [_view(ViewSpec(**_PLAIN), 0, epoch, image=image, size=64).astype(int) for epoch in range(200)]
    assert min(view[0].min() for view in views) == 0
    assert max(view[0].max() for view in views) == 255
    assert min(view[1].min() for view in views) == 0
    assert max(view[1].max() for view in views) == 255


def test_no_augmentation_is_the_whole_image() -> None:
    image = shape_image(0, 40).crop((0, 0, 40, 40))
    spec = ViewSpec(crop_scale=(1, 1), crop_ratio=(1, 1), **_PLAIN)
    np.testing.assert_array_equal(_view(spec, image=image), eval_view(image, 16))


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_flips_and_grays_come_as_often_as_they_should(probability: float) -> None:
    ramp = np.zeros((20, 20, 3), np.uint8)
    ramp[:, :, 0] = np.linspace(0, 250, 20).astype(np.uint8)
    image, count = Image.fromarray(ramp), 800
    tolerance = 5 * np.sqrt(probability * (1 - probability) / count)
    flipped = [
        bool(v[0, 0, 0] > v[0, 0, -1])
        for v in (_view(ViewSpec(**{**_PLAIN, "flip": probability}), 0, e, image=image) for e in range(count))
    ]
    assert abs(np.mean(flipped) - probability) <= tolerance
    gray = [
        bool((v[0] == v[1]).all() and (v[1] == v[2]).all())
        for v in (_view(ViewSpec(**{**_PLAIN, "grayscale": probability}), 0, e, image=image) for e in range(count))
    ]
    assert abs(np.mean(gray) - probability) <= tolerance


def test_jitter_and_blur_change_as_often_as_they_should() -> None:
    image, count = shape_image(1), 400
    whole = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "flip": 0, "grayscale": 0}
    unchanged = _view(ViewSpec(**whole, jitter=0, blur=0), image=image)
    for name, probability in (("jitter", 0.7), ("blur", 0.5)):
        spec = ViewSpec(**{**whole, "jitter": 0, "blur": 0, name: probability})
        changed = [not np.array_equal(_view(spec, 0, e, image=image), unchanged) for e in range(count)]
        assert abs(np.mean(changed) - probability) < 5 * np.sqrt(probability * (1 - probability) / count)


def test_brightness_stays_within_its_range() -> None:
    spec = ViewSpec(
        crop_scale=(1, 1),
        crop_ratio=(1, 1),
        flip=0,
        grayscale=0,
        blur=0,
        jitter=1,
        brightness=0.4,
        contrast=0,
        saturation=0,
        hue=0,
    )
    image = Image.new("RGB", (16, 16), (100, 100, 100))
    values = [int(_view(spec, 0, epoch, image=image)[0, 8, 8]) for epoch in range(300)]
    assert 59 <= min(values) < 65
    assert 135 < max(values) <= 141


def test_rotation_stays_within_its_range() -> None:
    """A bar through the center of a dark square turns by at most the given angle, to both sides."""
    side = 101
    bar = np.zeros((side, side, 3), np.uint8)
    bar[48:53] = 255
    spec = ViewSpec(rotation=20, crop_scale=(1, 1), crop_ratio=(1, 1), **_PLAIN)
    angles = []
    for epoch in range(150):
        view = _view(spec, 0, epoch, image=Image.fromarray(bar), size=side)[0].astype(float)
        rows, columns = np.mgrid[:side, :side] - side // 2
        moments = (view * rows * columns).sum(), (view * (columns**2 - rows**2)).sum()
        angles.append(np.degrees(0.5 * np.arctan2(2 * moments[0], moments[1])))
    assert -21 < min(angles) < -16
    assert 16 < max(angles) < 21


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"flip": -0.1}, "flip"),
        ({"flip": 1.1}, "flip"),
        ({"jitter": 2}, "jitter"),
        ({"grayscale": float("nan")}, "grayscale"),
        ({"blur": -1}, "blur"),
        ({"brightness": 1.5}, "brightness"),
        ({"contrast": -0.5}, "contrast"),
        ({"saturation": 7}, "saturation"),
        ({"hue": 0.6}, "hue"),
        ({"crop_scale": (0, 1)}, "crop_scale"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale"),
        ({"crop_ratio": (0, 1)}, "crop_ratio"),
        ({"crop_ratio": (2, 1)}, "crop_ratio"),
        ({"blur_sigma": (0, 1)}, "blur_sigma"),
        ({"blur_sigma": (2, 1)}, "blur_sigma"),
        ({"rotation": -1}, "rotation"),
        ({"rotation": 181}, "rotation"),
        ({"crop_ratio": (0.5, float("inf"))}, "crop_ratio"),
        ({"blur_sigma": (0.5, float("inf"))}, "blur_sigma"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ViewSpec(**settings)  # type: ignore[arg-type]
