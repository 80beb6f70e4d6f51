"""The view cache: the features that its name promises, kept and reused; only the missing files are made again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cibhash.encoder import EncoderSpec, new_encoder
from cibhash.images import decode_image
from cibhash.views import random_view, view_generator
from cluster.config import TrainConfig
from cluster.datasets import open_dataset, shard_samples
from cluster.training.view_cache import cache_views, load_views
from tests.datasets import shape_dataset


def _config(dataset: str, output: Path, **settings: Any) -> TrainConfig:
    fixed = {
        "dataset": dataset,
        "output": str(output),
        "backbone": {"name": "test_resnet", "weights": "none", "image_size": 32},
        "num_cached_views": 3,
        "batch_size": 2,
        "threads_per_worker": 1,
        "seed": 5,
    }
    return TrainConfig.model_validate({**fixed, **settings})


@pytest.mark.ray
def test_cached_features_are_those_of_the_views(ray_local: None, tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", [4, 1])
    manifest = open_dataset(dataset)
    config = _config(dataset, tmp_path / "out")
    folder = cache_views(config, manifest)
    found = load_views(folder, 2, 3)
    assert found.shape == (3, 5, 96)
    assert found.dtype == np.float32

    encoder = new_encoder(EncoderSpec(config.backbone, config.bits), seed=5).eval()
    samples = [s for shard in manifest.shards for s in shard_samples(dataset, shard)]
    for view in range(3):
        views = [
            random_view(decode_image(s.image), config.views, 32, view_generator(5, 0, s.id, view)) for s in samples
        ]
        with torch.inference_mode():
            expected = encoder.features(torch.from_numpy(np.stack(views))).numpy()
        np.testing.assert_allclose(found[view], expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found[0], found[1])

    files = sorted(Path(folder).iterdir())
    assert len(files) == 6
    times = {path: path.stat().st_mtime_ns for path in files}
    content = files[3].read_bytes()
    files[3].unlink()
    assert cache_views(config, manifest) == folder
    assert sorted(Path(folder).iterdir()) == files
    assert files[3].read_bytes() == content
    assert all(path.stat().st_mtime_ns == times[path] for path in files if path != files[3])


@pytest.mark.ray
def test_the_cache_is_named_after_all_that_decides_it(ray_local: None, tmp_path: Path) -> None:
    """What only the head sees does not matter; another seed, backbone or augmentation makes another cache."""
    dataset = shape_dataset(tmp_path / "data", [2])
    manifest = open_dataset(dataset)
    base: dict[str, Any] = {"num_cached_views": 2}
    folder = cache_views(_config(dataset, tmp_path / "out", **base), manifest)
    for same in ({"bits": (8,)}, {"epochs": 3}, {"learning_rate": 0.5}, {"num_workers": 2}, {"hidden": 7}):
        assert cache_views(_config(dataset, tmp_path / "out", **base, **same), manifest) == folder
    backbone = {"name": "test_resnet", "weights": "none", "image_size": 40}
    for other in ({"seed": 6}, {"backbone": backbone}, {"views": {"flip": 0.1}}):
        assert cache_views(_config(dataset, tmp_path / "out", **base, **other), manifest) != folder
