"""The sweep: every setting of the grid once, ranked without labels, continued after an interruption."""

import json
from pathlib import Path
from typing import Any

import pytest

from cibhash.encoder import load_encoder
from cibhash.errors import ConfigError
from cluster.training.sweep import grid_settings, sweep
from cluster.training_config import SweepConfig
from tests.datasets import shape_dataset


def _config(dataset: str, output: Path, **settings: Any) -> SweepConfig:
    fixed = {
        "dataset": dataset,
        "output": str(output),
        "bits": (8, 16),
        "backbone": {"name": "test_resnet", "weights": "none", "image_size": 32},
        "rotation": 16,  # also centers the features of random weights, on which the codes would collapse
        "hidden": 24,
        "epochs": 2,
        "batch_size": 16,
        "num_cached_views": 2,
        "threads_per_worker": 1,
        "checkpoint_every": 1,
        "grid": {"temperature": (0.2, 0.4), "beta": (0.001, 0.1)},
    }
    return SweepConfig.model_validate({**fixed, **settings})


def test_the_grid_is_all_combinations_or_a_seeded_sample(tmp_path: Path) -> None:
    config = _config("data", tmp_path)
    assert grid_settings(config) == [
        {"temperature": temperature, "beta": beta} for temperature in (0.2, 0.4) for beta in (0.001, 0.1)
    ]
    some = grid_settings(config.model_copy(update={"max_trials": 3}))
    assert len(some) == 3
    assert some == grid_settings(config.model_copy(update={"max_trials": 3}))
    assert all(setting in grid_settings(config) for setting in some)
    with pytest.raises(ConfigError, match="one setting"):
        grid_settings(_config("data", tmp_path, grid={"temperature": (0.3,), "beta": ()}))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_cached_views": 0, "rotation": 0}, "num_cached_views 0"),
        ({"num_workers": 2, "num_streams": 2}, "num_workers 2"),
    ],
)
def test_a_sweep_needs_cached_views_and_one_process_per_trial(settings: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        _config("data", Path("out"), **settings)


def test_a_setting_that_cannot_work_is_refused_before_any_work(tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", (40,))
    with pytest.raises(ValueError, match="batch_size 1 "):
        sweep(_config(dataset, tmp_path / "sweep", grid={"temperature": (), "beta": (), "batch_size": (1, 16)}))
    assert not (tmp_path / "sweep").exists()


@pytest.mark.ray
def test_trials_are_run_once_ranked_without_labels_and_leave_encoders(ray_local: None, tmp_path: Path) -> None:
    dataset = shape_dataset(tmp_path / "data", (200, 60))
    config = _config(dataset, tmp_path / "sweep")
    result = sweep(config)
    assert (result.trials, result.failed) == (4, 0)
    scores = [trial.sep10 for trial in result.table]
    assert None not in scores
    assert scores == sorted(scores, reverse=True)
    assert {tuple(trial.setting.items()) for trial in result.table} == {
        (("temperature", t), ("beta", b)) for t in (0.2, 0.4) for b in (0.001, 0.1)
    }
    assert len({trial.encoder_digest for trial in result.table}) == 4
    best = load_encoder(Path(result.best_encoder_uri))
    assert best.digest == result.best_encoder_digest == result.table[0].encoder_digest
    assert best.spec.objective["temperature"] == result.best["temperature"]
    table = (tmp_path / "sweep/sweep.md").read_text().splitlines()
    assert len(table) == 2 + 4
    assert table[2].startswith(f"| {result.best['temperature']:g} | {result.best['beta']:g} |")
    assert "<svg" in (tmp_path / "sweep/sweep.svg").read_text()

    kept = sorted((tmp_path / "sweep/trials").glob("*/trial.json"))
    assert len(kept) == 4
    changed = json.loads(kept[0].read_text()) | {"sep10": 99.0}
    kept[0].write_text(json.dumps(changed))
    kept[1].unlink()
    again = sweep(config)
    assert again.table[0].sep10 == 99.0, "a trial that has its record is not run again"
    assert {trial.encoder_digest for trial in again.table} == {trial.encoder_digest for trial in result.table}
