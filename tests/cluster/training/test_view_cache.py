"""The view cache: the features that its name promises, kept and shared; only what is missing or damaged is made."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cibhash.encoder import EncoderSpec, new_encoder
from cibhash.errors import DataError, ManifestMismatch
from cibhash.fast_views import fast_view
from cibhash.images import decode_image
from cibhash.shards import SourceImage
from cibhash.specs import BackboneSpec
from cibhash.view_draws import view_generator
from cibhash.views import eval_view
from cluster.datasets import open_dataset, shard_samples
from cluster.training.view_cache import cache_views, view_cache
from cluster.training.view_making import PLAIN
from cluster.training_config import TrainConfig
from tests.datasets import make_dataset, shape_dataset, shape_sources


def _config(dataset: str, output: Path, **settings: Any) -> TrainConfig:
    fixed = {
        "dataset": dataset,
        "output": str(output),
        "backbone": {"name": "test_resnet", "weights": "none", "image_size": 32},
        "num_cached_views": 2,
        "batch_size": 2,
        "threads_per_worker": 1,
        "seed": 5,
        "view_seed": 6,
    }
    return TrainConfig.model_validate({**fixed, **settings})


def _expected(config: TrainConfig, view: int) -> list[np.ndarray]:
    """Features of one view, shard by shard, of the backbone that the run's encoder has."""
    encoder = new_encoder(EncoderSpec(config.backbone, config.bits), seed=config.seed).eval()
    found = []
    for shard in open_dataset(config.dataset).shards:
        views = []
        for sample in shard_samples(config.dataset, shard):
            image = decode_image(sample.image)
            if view == PLAIN:
                views.append(eval_view(image, 32))
            else:
                draws = view_generator(config.view_seed, 0, sample.id, view)
                views.append(fast_view(np.asarray(image), config.views, 32, draws).transpose(2, 0, 1))
        with torch.inference_mode():
            found.append(encoder.features(torch.from_numpy(np.stack(views))).numpy())
    return found


@pytest.mark.ray
def test_features_are_those_of_the_views_and_what_is_whole_is_kept(ray_local: None, tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", [4, 1])
    manifest = open_dataset(dataset)
    config = _config(dataset, tmp_path / "out")
    cache = cache_views(config, manifest)
    assert cache == view_cache(config, manifest)
    assert (cache.counts, cache.views) == ((4, 1), (PLAIN, 0, 1))
    for view in cache.views:
        for shard, expected in enumerate(_expected(config, view)):
            found = cache.read(shard, view)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(cache.read(0, 0), cache.read(0, 1))
    files = sorted(Path(cache.folder).iterdir())
    assert len(files) == 2 * 2 * 3  # each with its record
    contents = {path: path.read_bytes() for path in files}

    flipped, cut, unrecorded = (Path(cache.uri(*place)) for place in ((0, 0), (0, 1), (1, PLAIN)))
    flipped.write_bytes(contents[flipped][:-1] + bytes([contents[flipped][-1] ^ 1]))
    cut.write_bytes(contents[cut][:-1])
    Path(f"{unrecorded}.json").unlink()
    for place in ((0, 0), (0, 1), (1, PLAIN)):
        with pytest.raises(ManifestMismatch, match=cache.uri(*place)) as caught:
            cache.read(*place)
        assert caught.value.exit_code == 3
    whole = set(files) - {path for made in (flipped, cut, unrecorded) for path in (made, Path(f"{made}.json"))}
    times = {path: path.stat().st_mtime_ns for path in whole}

    more = cache_views(_config(dataset, tmp_path / "out", num_cached_views=3, num_workers=2, num_streams=2), manifest)
    assert more.folder == cache.folder
    assert {path: path.read_bytes() for path in files} == contents
    assert {path: path.stat().st_mtime_ns for path in whole} == times
    assert len(list(Path(cache.folder).iterdir())) == 2 * 2 * 4
    for shard, expected in enumerate(_expected(config, 2)):
        np.testing.assert_allclose(more.read(shard, 2), expected, rtol=1e-4, atol=1e-5)

    times = {path: path.stat().st_mtime_ns for path in Path(cache.folder).iterdir()}
    cache_views(config, manifest)
    assert {path: path.stat().st_mtime_ns for path in Path(cache.folder).iterdir()} == times


@pytest.mark.ray
def test_a_bad_image_is_named(ray_local: None, tmp_path: Path) -> None:
    bad = SourceImage("broken/one", "jpg", b"<html>", ())
    dataset = make_dataset(tmp_path / "data", [shape_sources(2), [*shape_sources(1, 2), bad]])
    with pytest.raises(DataError, match=f"{dataset}.*'broken/one'") as caught:
        cache_views(_config(dataset, tmp_path / "out"), open_dataset(dataset))
    assert type(caught.value) is DataError
    assert "\n" not in str(caught.value)


def test_the_folder_is_named_after_all_that_decides_the_content_and_nothing_else(tmp_path: Path) -> None:
    dataset, other = shape_dataset(tmp_path / "data", [2]), shape_dataset(tmp_path / "other", [3])
    manifest = open_dataset(dataset)
    folder = view_cache(_config(dataset, tmp_path / "out"), manifest).folder
    for same in (
        {"bits": (8,)},
        {"epochs": 3},
        {"learning_rate": 0.5},
        {"num_workers": 2, "num_streams": 2},
        {"hidden": 7},
        {"num_cached_views": 9},
        {"rotation": 4},
        {"neighbors": 1},
        {"view_cache": str(tmp_path / "out/views")},
    ):
        assert view_cache(_config(dataset, tmp_path / "out", **same), manifest).folder == folder
    backbone = {"name": "test_resnet", "weights": "none", "image_size": 40}
    changed: list[dict[str, Any]] = [
        {"seed": 6},
        {"view_seed": 5},
        {"backbone": backbone},
        {"views": {"flip": 0.1}},
        {"precision": "bfloat16"},
    ]
    folders = {view_cache(_config(dataset, tmp_path / "out", **other), manifest).folder for other in changed}
    folders.add(view_cache(_config(other, tmp_path / "out"), open_dataset(other)).folder)
    assert len(folders - {folder}) == 6


def test_pretrained_features_are_shared_by_seeds(tmp_path: Path) -> None:
    """And two copies of the weights are the same weights."""
    dataset = shape_dataset(tmp_path / "data", [2])
    encoder = new_encoder(EncoderSpec(BackboneSpec("test_resnet", "none", 32), (8,)), seed=0)
    folders = set()
    for name, seed in (("a", 0), ("a", 1), ("b", 2)):
        path = tmp_path / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in encoder.backbone.state_dict().items()}, path)
        backbone = {"name": "test_resnet", "weights": str(path), "image_size": 32}
        config = _config(
            dataset, tmp_path / f"run-{seed}", backbone=backbone, seed=seed, view_cache=str(tmp_path / "v")
        )
        folders.add(view_cache(config, open_dataset(dataset)).folder)
    assert len(folders) == 1
    assert folders.pop().startswith(str(tmp_path / "v"))
