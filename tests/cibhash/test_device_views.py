"""Colors and blur of a batch of tensors: what OpenCV gives image by image, to a gray level."""

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from cibhash.device_views import apply_colors, blur_weights, color_draws
from cibhash.fast_views import color_map, cut_out, fast_view
from cibhash.specs import ViewSpec
from cibhash.view_draws import ViewDraw, draw_view, view_generator
from tests.datasets import shape_image

_IDENTITY = np.eye(3, 4, dtype=np.float32)
_DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]


def _noise(*shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _on_device(cut: list[npt.NDArray[np.uint8]], draws: list[ViewDraw], device: str = "cpu") -> npt.NDArray[np.int64]:
    """The finished views of images that are cut out, (N, H, W, 3)."""
    maps = [color_map(draw, view.reshape(-1, 3).mean(axis=0)) for draw, view in zip(draws, cut, strict=True)]
    colors = color_draws(maps, [draw.blur_sigma for draw in draws])
    images = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).to(device)
    finished = apply_colors(images, type(colors)(*(part.to(device) for part in colors)))
    assert finished.dtype == torch.uint8
    assert finished.shape == images.shape
    return finished.permute(0, 2, 3, 1).cpu().numpy().astype(np.int64)


@pytest.mark.parametrize("device", _DEVICES)
@pytest.mark.parametrize("size", [2, 3, 17, 32])
def test_views_are_the_fast_ones_to_a_level(size: int, device: str) -> None:
    """Many draws of shapes and of noise, every parameter its own for every image.

    OpenCV's fixed-point numbers are off by a level in colors and by another in a blur; both meet in few pixels.
    """
    spec = ViewSpec(rotation=10, jitter=0.8, grayscale=0.3, blur=0.6, blur_sigma=(0.1, 4.0))
    images = [np.asarray(shape_image(n)) if n % 2 else _noise(30, 40, 3, seed=n) for n in range(120)]
    draws = [draw_view(i.shape[1], i.shape[0], spec, view_generator(0, 0, n, 0)) for n, i in enumerate(images)]
    kinds = {(bool(draw.color), draw.grayscale, draw.blur_sigma > 0) for draw in draws}
    assert len(kinds) == 8
    found = _on_device([cut_out(image, draw, size) for image, draw in zip(images, draws, strict=True)], draws, device)
    expected = np.stack([fast_view(i, spec, size, view_generator(0, 0, n, 0)) for n, i in enumerate(images)])
    difference = np.abs(found - expected)
    for draw, view in zip(draws, difference, strict=True):
        steps = bool(draw.color or draw.grayscale) + bool(draw.blur_sigma)
        assert view.max() <= steps
    assert (difference > 1).mean() < 0.002
    assert difference.mean() < 0.15


def test_what_is_neither_colored_nor_blurred_stays() -> None:
    images = torch.from_numpy(_noise(5, 3, 7, 9))
    assert torch.equal(apply_colors(images, color_draws([_IDENTITY] * 5, [0.0] * 5)), images)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 1.0, 2.0, 30.0])
def test_blur_weights_are_those_of_a_gaussian(sigma: float) -> None:
    middle, side = blur_weights(sigma)
    density = [math.exp(-(x**2) / (2 * sigma**2)) for x in (-1, 0, 1)]
    assert (middle, side) == pytest.approx((density[1] / sum(density), density[0] / sum(density)), rel=1e-12)
    np.testing.assert_allclose(cv2.getGaussianKernel(3, sigma)[:, 0], [side, middle, side], rtol=0, atol=1e-6)
    assert middle + 2 * side == pytest.approx(1, rel=1e-12)


def test_no_sigma_is_no_blur() -> None:
    assert blur_weights(0.0) == (1.0, 0.0)
    assert blur_weights(0.01) == pytest.approx((1.0, 0.0))


def _slow_view(image: npt.NDArray[np.uint8], matrix: npt.NDArray[np.float64], sigma: float) -> list[list[list[float]]]:
    """One image (3, H, W), pixel by pixel: colors, clipped and rounded; then nine weights around every pixel."""
    _, height, width = image.shape
    mapped = [[[0.0] * width for _ in range(height)] for _ in range(3)]
    for out in range(3):
        for row in range(height):
            for column in range(width):
                value = float(matrix[out, 3])
                value += sum(float(matrix[out, c]) * float(image[c, row, column]) for c in range(3))
                mapped[out][row][column] = min(max(float(round(value)), 0.0), 255.0)
    if not sigma:
        return mapped

    def mirrored(position: int, length: int) -> int:
        return -position if position < 0 else 2 * (length - 1) - position if position >= length else position

    weights = {(dy, dx): math.exp(-(dy**2 + dx**2) / (2 * sigma**2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    total = sum(weights.values())
    return [
        [
            [
                sum(
                    weight * plane[mirrored(row + dy, height)][mirrored(column + dx, width)]
                    for (dy, dx), weight in weights.items()
                )
                / total
                for column in range(width)
            ]
            for row in range(height)
        ]
        for plane in mapped
    ]


@pytest.mark.parametrize("shape", [(2, 2), (2, 7), (5, 2), (4, 6)])
@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.8, 3.0])
def test_the_batch_is_the_formula_pixel_by_pixel(shape: tuple[int, int], sigma: float) -> None:
    """Strong colors, so that many values clip; what is left over is the last rounding."""
    draws, images = np.random.default_rng(1), _noise(6, 3, *shape)
    maps = [(np.eye(3, 4) + draws.normal(size=(3, 4)) * (0.6, 0.6, 0.6, 60)).astype(np.float32) for _ in range(6)]
    found = apply_colors(torch.from_numpy(images), color_draws(maps, [sigma] * 6)).numpy().astype(float)
    clipped = 0
    for image, matrix, view in zip(images, maps, found, strict=True):
        expected = np.array(_slow_view(image, matrix.astype(np.float64), sigma))
        assert np.abs(view - expected).max() < 0.51
        clipped += int(((expected == 0) | (expected == 255)).sum())
    assert clipped > 0


def test_every_image_has_parameters_of_its_own() -> None:
    """In a batch as alone, in any order and any layout of memory."""
    spec = ViewSpec(jitter=1, blur=0.5)
    cut = [_noise(9, 9, 3, seed=n) for n in range(12)]
    draws = [draw_view(9, 9, spec, view_generator(0, 0, n, 0)) for n in range(12)]
    together = _on_device(cut, draws)
    for n in range(12):
        np.testing.assert_array_equal(together[n], _on_device([cut[n]], [draws[n]])[0])
    np.testing.assert_array_equal(together[::-1], _on_device(cut[::-1], draws[::-1]))
    maps = [color_map(draw, np.full(3, 100.0)) for draw in draws]
    images, colors = torch.from_numpy(_noise(12, 3, 9, 9)), color_draws(maps, [d.blur_sigma for d in draws])
    last: Tensor = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(apply_colors(images, colors), apply_colors(last, colors))


def test_images_are_left_as_they_are() -> None:
    images = torch.from_numpy(_noise(3, 3, 5, 5))
    before = images.clone()
    maps: list[Any] = [np.full((3, 4), 0.1, np.float32)] * 3
    assert not torch.equal(apply_colors(images, color_draws(maps, [1.0] * 3)), before)
    assert torch.equal(images, before)


def test_draws_are_stacked_in_float32() -> None:
    colors = color_draws([_IDENTITY, 2 * _IDENTITY], [0.0, 1.0])
    assert (colors.maps.dtype, tuple(colors.maps.shape)) == (torch.float32, (2, 3, 4))
    assert (colors.blur.dtype, tuple(colors.blur.shape)) == (torch.float32, (2, 2))
    assert colors.maps[1, 0, 0] == 2
    assert colors.blur[0].tolist() == [1, 0]
