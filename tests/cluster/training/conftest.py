"""Training runs that several test files look at, each made once."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

from cluster.training.trainer import TrainResult, train
from cluster.training_config import TrainConfig
from tests.datasets import shape_dataset


@dataclass(frozen=True)
class FinishedRun:
    """A run that nothing disturbed."""

    config: TrainConfig
    result: TrainResult


@pytest.fixture(scope="session")
def quick_ray(ray_local: None) -> Iterator[None]:
    """Ray Train looks after its workers more often, and waits less for those that hang to say goodbye."""
    patience = "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patched.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        patched.setenv(patience, "1")
        ENV_VARS_TO_PROPAGATE.add(patience)
        yield
        ENV_VARS_TO_PROPAGATE.remove(patience)


@pytest.fixture(scope="session")
def neighbor_run(quick_ray: None, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A frozen timm backbone with cached views, rotation and neighbors, by two workers."""
    folder = tmp_path_factory.mktemp("neighbor-run")
    settings = {
        "dataset": shape_dataset(folder / "data", (100, 5, 106)),
        "output": str(folder / "out"),
        "view_cache": str(folder / "views"),
        "bits": (8, 16),
        "backbone": {"name": "test_resnet", "weights": "none", "image_size": 32},
        "hidden": 24,
        "num_cached_views": 3,
        "rotation": 8,
        "neighbors": 3,
        "weight_average": 0.9,
        "epochs": 4,
        "batch_size": 16,
        "num_streams": 2,
        "num_workers": 2,
        "threads_per_worker": 1,
        "checkpoint_every": 1,
        "metrics_every": 1,
        "seed": 4,
    }
    config = TrainConfig.model_validate(settings)
    return FinishedRun(config, train(config))
