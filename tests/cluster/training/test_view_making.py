"""Batches of views by every engine: each image's own, whatever batch it is in."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cibhash.errors import DataError
from cibhash.fast_views import fast_view
from cibhash.specs import ViewSpec
from cibhash.types import Sample
from cibhash.view_draws import view_generator
from cibhash.views import eval_view, random_view
from cluster.training.view_making import PLAIN, Views, decoded, make_views
from tests.datasets import encoded, png, shape_image

_CPU = torch.device("cpu")
_ENGINES = ("pillow", "opencv", "device")
_IMAGES = [shape_image(n, 30 + n) for n in range(12)]
_IDS = [5 * n + 2**33 for n in range(12)]


def _views(engine: Any, *, view: int = 0, rows: slice = slice(None), size: int = 16, **key: int) -> Views:
    spec = dataclasses.replace(ViewSpec(rotation=10), engine=engine)
    return make_views(_IMAGES[rows], _IDS[rows], spec, size, **{"seed": 4, "epoch": 2, "view": view, **key})


@pytest.mark.parametrize("engine", _ENGINES)
@pytest.mark.parametrize("size", [2, 16, 50])
@pytest.mark.parametrize("view", [0, 1])
def test_views_are_those_of_seed_epoch_id_and_view(engine: str, size: int, view: int) -> None:
    """Pillow's and OpenCV's to the bit, the device's to two levels."""
    found = _views(engine, view=view, size=size).on(_CPU)
    assert found.dtype == torch.uint8
    assert found.shape == (12, 3, size, size)
    spec = ViewSpec(rotation=10)
    for image, number, made in zip(_IMAGES, _IDS, found.numpy(), strict=True):
        generator = view_generator(4, 2, number, view)
        if engine == "pillow":
            np.testing.assert_array_equal(made, random_view(image, spec, size, generator))
            continue
        expected = fast_view(np.asarray(image), spec, size, generator).transpose(2, 0, 1)
        difference = np.abs(made.astype(int) - expected)
        assert difference.max() <= (0 if engine == "opencv" else 2)
        assert difference.mean() < 1


@pytest.mark.parametrize("engine", _ENGINES)
def test_the_batch_has_no_part_in_a_view(engine: str) -> None:
    together = _views(engine).on(_CPU)
    apart = [_views(engine, rows=rows).on(_CPU) for rows in (slice(0, 1), slice(1, 8), slice(8, 12))]
    assert torch.equal(together, torch.cat(apart))


@pytest.mark.parametrize("engine", _ENGINES)
def test_other_keys_give_other_views(engine: str) -> None:
    base = _views(engine).on(_CPU)
    assert torch.equal(base, _views(engine).on(_CPU))
    for key in ({"seed": 5}, {"epoch": 3}, {"view": 1}):
        other = _views(engine, **key).on(_CPU)
        assert all(not torch.equal(one, two) for one, two in zip(base, other, strict=True))


def test_only_the_device_engine_leaves_something_to_do() -> None:
    """Its images are only cut out: colors and blur come later."""
    assert _views("pillow").colors is None
    assert _views("opencv").colors is None
    made = _views("device")
    assert made.colors is not None
    assert made.colors.maps.shape == (12, 3, 4)
    assert not torch.equal(made.images, made.on(_CPU))
    plain = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
    spec = ViewSpec(engine="device", **plain)  # type: ignore[arg-type]
    uncolored = make_views(_IMAGES, _IDS, spec, 16, seed=0, epoch=0, view=0)
    assert torch.equal(uncolored.on(_CPU), uncolored.images)


@pytest.mark.parametrize("engine", _ENGINES)
def test_the_plain_view_is_the_one_that_is_encoded(engine: str) -> None:
    """By any engine, seed and epoch: Pillow's resize, as a query is resized."""
    found = _views(engine, view=PLAIN).on(_CPU).numpy()
    for image, made in zip(_IMAGES, found, strict=True):
        np.testing.assert_array_equal(made, eval_view(image, 16))
    other = _views(engine, view=PLAIN, seed=9, epoch=9).on(_CPU).numpy()
    np.testing.assert_array_equal(found, other)


def test_images_of_any_shape_are_in_one_batch() -> None:
    images = [Image.new("RGB", shape, (9, 8, 7)) for shape in ((1, 1), (1, 300), (300, 1), (20, 10))]
    spec: dict[str, Any] = {"jitter": 0, "grayscale": 0}
    for engine in _ENGINES:
        views = make_views(images, range(4), ViewSpec(engine=engine, **spec), 8, seed=0, epoch=0, view=0).on(_CPU)  # type: ignore[arg-type]
        assert (views.float().mean(dim=(0, 2, 3)) == torch.tensor([9.0, 8.0, 7.0])).all()


def test_a_sample_is_decoded_as_a_query_is() -> None:
    sample = Sample(0, "key", png(Image.new("RGBA", (3, 2), (200, 100, 0, 0))), (), 0)
    assert np.asarray(decoded("data", sample)).tolist() == [[[255, 255, 255]] * 3] * 2


@pytest.mark.parametrize(
    "image", [b"", b"no image", encoded(shape_image(0), "JPEG")[:200]], ids=["empty", "text", "cut"]
)
def test_a_sample_that_cannot_be_decoded_is_named(image: bytes) -> None:
    with pytest.raises(DataError, match=r"^s3://bucket/data: key 'a/b': .+") as caught:
        decoded("s3://bucket/data", Sample(7, "a/b", image, (), 0))
    assert caught.value.exit_code == 3
    assert type(caught.value) is DataError
    assert "\n" not in str(caught.value)
