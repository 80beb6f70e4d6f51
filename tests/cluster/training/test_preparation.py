"""What is made before the first step: held-out images, rotation and neighbors, each as it is defined."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cibhash.encoder import EncoderSpec, HashEncoder, new_encoder
from cibhash.errors import ConfigError
from cibhash.fast_views import fast_view
from cibhash.images import decode_image
from cibhash.view_draws import view_generator
from cibhash.views import eval_view
from cluster.datasets import open_dataset, shard_samples
from cluster.training.preparation import (
    cached_source,
    fill_rotation,
    held_out_features,
    held_out_slice,
    keys_of,
    prepare,
)
from cluster.training.view_cache import view_cache
from cluster.training.view_making import PLAIN
from cluster.training_config import TrainConfig
from tests.cluster.training.conftest import FinishedRun
from tests.datasets import make_dataset, plain_sources, shape_dataset, shape_sources

_CPU = torch.device("cpu")
_COUNTS = (100, 5, 106)
"""Images per shard of the run of which the preparations are looked at."""


def _config(dataset: str, output: Path | str = "unused", **settings: Any) -> TrainConfig:
    fixed = {
        "dataset": dataset,
        "output": str(output),
        "bits": (8,),
        "hidden": 8,
        "backbone": {"name": "test_resnet", "weights": "none", "image_size": 32},
        "batch_size": 8,
        "threads_per_worker": 1,
        "monitor": {"images": 500},
    }
    return TrainConfig.model_validate({**fixed, **settings})


def _encoder(config: TrainConfig) -> HashEncoder:
    return new_encoder(EncoderSpec(config.backbone, config.bits, config.hidden, config.rotation), seed=config.seed)


def _views(config: TrainConfig, uri: str, ids: list[int], view: int) -> torch.Tensor:
    """One view of some images of a dataset, uint8 (N, 3, H, W)."""
    images = {s.id: decode_image(s.image) for shard in open_dataset(uri).shards for s in shard_samples(uri, shard)}
    size, made = config.backbone.image_size, []
    for number in ids:
        if view == PLAIN:
            made.append(eval_view(images[number], size))
        else:
            draws = view_generator(config.view_seed, 0, number, view)
            made.append(fast_view(np.asarray(images[number]), config.views, size, draws).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(made))


def _features(encoder: HashEncoder, images: torch.Tensor) -> torch.Tensor:
    encoder.eval()
    with torch.no_grad():
        return encoder.fixed_head(encoder.features(images))


@pytest.mark.parametrize(
    ("num_images", "asked", "expected"), [(199, 500, 0), (200, 500, 20), (306, 25, 25), (306, 0, 0)]
)
def test_a_tenth_at_most_is_held_out_and_never_fewer_than_20(
    tmp_path: Path, num_images: int, asked: int, expected: int
) -> None:
    uri = make_dataset(tmp_path, [plain_sources(num_images // 2), plain_sources(num_images - num_images // 2, 200)])
    config = _config(uri, monitor={"images": asked})
    held_out = held_out_slice(config, open_dataset(uri))
    ids = held_out.ids.tolist()
    assert len(ids) == len(set(ids)) == expected
    assert ids == sorted(ids)
    assert set(ids) <= set(range(num_images))
    assert held_out.from_training == frozenset(ids)
    again, other = (
        held_out_slice(config.model_copy(update=seeds), open_dataset(uri)) for seeds in ({"seed": 5}, {"view_seed": 5})
    )
    assert again.ids.tolist() == ids, "the seed of the run does not decide"
    assert other.ids.tolist() != ids or not ids
    if not expected:
        assert held_out_features(config, open_dataset(uri), _encoder(config), held_out, _CPU) is None


def test_images_of_another_dataset_take_nothing_from_the_training(tmp_path: Path) -> None:
    uri, other = shape_dataset(tmp_path / "train", (10,)), shape_dataset(tmp_path / "other", (15, 15))
    config = _config(uri, monitor={"images": 25, "dataset": other})
    held_out = held_out_slice(config, open_dataset(uri))
    assert (len(held_out.ids), held_out.from_training) == (25, frozenset())
    encoder = _encoder(config)
    found = held_out_features(config, open_dataset(uri), encoder, held_out, _CPU)
    assert found is not None
    for view, features in zip((PLAIN, 0, 1), found.views, strict=True):
        expected = _features(encoder, _views(config, other, held_out.ids.tolist(), view))
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert found.labels is not None
    np.testing.assert_array_equal(found.labels, held_out.ids[:, None] % 4 == np.arange(4))


def test_an_encoder_that_learns_below_the_head_is_given_pixels(tmp_path: Path) -> None:
    uri = make_dataset(tmp_path, [plain_sources(120), plain_sources(120, 120)])
    backbone = {"name": "convnet-small", "weights": "none", "image_size": 16, "train_from": "all"}
    config = _config(uri, backbone=backbone)
    held_out = held_out_slice(config, open_dataset(uri))
    found = held_out_features(config, open_dataset(uri), _encoder(config), held_out, _CPU)
    assert found is not None
    assert found.labels is None
    for view, images in zip((PLAIN, 0, 1), found.views, strict=True):
        assert images.dtype == torch.uint8
        assert torch.equal(images, _views(config, uri, held_out.ids.tolist(), view))


def test_keys_are_those_of_the_ids_in_their_order(tmp_path: Path) -> None:
    uri = shape_dataset(tmp_path, (3, 4, 5))
    assert keys_of(uri, np.array([11, 3, 0])) == ["shape-00000", "shape-00003", "shape-00011"]
    assert keys_of(uri, np.zeros(0, np.int64)) == []


@dataclass(frozen=True)
class _Prepared:
    config: TrainConfig
    features: np.ndarray
    """(V, N, D), as the encoder's backbone gives them now."""
    held_out: list[int]


@pytest.fixture(scope="module")
def prepared(neighbor_run: FinishedRun) -> _Prepared:
    """What the run has prepared: cached views, rotation and neighbors."""
    config = neighbor_run.config
    encoder, numbers = _encoder(config).eval(), list(range(sum(_COUNTS)))
    with torch.no_grad():
        features = [encoder.features(_views(config, config.dataset, numbers, view)).numpy() for view in range(3)]
    held_out = held_out_slice(config, open_dataset(config.dataset))
    return _Prepared(config, np.stack(features), held_out.ids.tolist())


def _filled(config: TrainConfig) -> HashEncoder:
    encoder = _encoder(config)
    fill_rotation(config, open_dataset(config.dataset), encoder)
    return encoder


def _rotated(features: np.ndarray) -> np.ndarray:
    """Principal components by SVD of two views of every image, mean length 20, largest entry of each positive."""
    fitted = features[:2].reshape(-1, features.shape[-1]).astype(np.float64)
    mean = fitted.mean(0)
    components = np.linalg.svd(fitted - mean, full_matrices=False)[2][:8]
    components *= np.sign(components[np.arange(8), np.abs(components).argmax(1)])[:, None]
    scale = 20 / np.linalg.norm((fitted - mean) @ components.T, axis=1).mean()
    return (features - mean) @ components.T * scale


@pytest.mark.ray
def test_the_encoder_gets_the_principal_components_of_the_cached_features(prepared: _Prepared) -> None:
    encoder = _filled(prepared.config)
    found = encoder.fixed_head(torch.from_numpy(prepared.features)).detach().numpy()
    np.testing.assert_allclose(found, _rotated(prepared.features), rtol=1e-3, atol=2e-2)


@pytest.mark.ray
def test_training_gets_the_rotated_features_of_what_is_not_held_out(prepared: _Prepared) -> None:
    config, dataset = prepared.config, open_dataset(prepared.config.dataset)
    held_out = held_out_slice(config, dataset)
    source = cached_source(config, dataset, _filled(config), held_out)
    kept = [number for number in range(sum(_COUNTS)) if number not in prepared.held_out]
    assert len(prepared.held_out) == 21
    assert source.ids.tolist() == kept
    np.testing.assert_allclose(source.features, _rotated(prepared.features)[:, kept], rtol=1e-3, atol=2e-2)

    unit = prepared.features.astype(np.float64).mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    centered = unit - unit.mean(0)
    centered /= np.linalg.norm(centered, axis=1, keepdims=True)
    similarity = centered @ centered.T
    np.fill_diagonal(similarity, -np.inf)
    assert source.neighbors is not None
    assert source.neighbors.shape == (len(kept), 3)
    places = {number: row for row, number in enumerate(kept)}
    for row, number in enumerate(kept):
        nearest = np.argsort(-similarity[number], kind="stable")[:3].tolist()
        assert source.neighbors[row].tolist() == [places.get(other, -1) for other in nearest]
    assert (source.neighbors == -1).any()


@pytest.mark.ray
def test_the_monitor_gets_the_rotated_features_of_what_is_held_out(prepared: _Prepared) -> None:
    config, dataset = prepared.config, open_dataset(prepared.config.dataset)
    encoder = _filled(config)
    found = held_out_features(config, dataset, encoder, held_out_slice(config, dataset), _CPU)
    assert found is not None
    for view, features in zip((PLAIN, 0, 1), found.views, strict=True):
        expected = _features(encoder, _views(config, config.dataset, prepared.held_out, view))
        torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)
    assert found.labels is not None
    np.testing.assert_array_equal(found.labels, np.array(prepared.held_out)[:, None] % 4 == np.arange(4))


@pytest.mark.ray
def test_preparing_again_changes_no_file_and_too_much_is_refused(prepared: _Prepared) -> None:
    config, dataset = prepared.config, open_dataset(prepared.config.dataset)
    folder = Path(view_cache(config, dataset).folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    for same in ({}, {"bits": (8,), "hidden": 5}, {"epochs": 7}):
        prepare(config.model_copy(update=same), dataset)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == times
    for name, value in (("rotation", 97), ("neighbors", 211)):
        with pytest.raises(ConfigError, match=str(value)):
            prepare(config.model_copy(update={name: value}), dataset)


def test_without_cached_views_there_is_nothing_to_prepare(tmp_path: Path) -> None:
    uri = make_dataset(tmp_path / "data", [shape_sources(8)])
    prepare(_config(uri, tmp_path / "out"), open_dataset(uri))
    assert not (tmp_path / "out").exists()
