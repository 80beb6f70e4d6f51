"""The demo's path, shortened: every stage in one session, and codes that beat both baselines."""

from pathlib import Path

import pytest
import yaml

import jobs
from cluster.config import DemoConfig
from cluster.demo import run_demo
from cluster.index.versions import open_index
from cluster.training_config import TrainConfig

pytestmark = pytest.mark.ray
EPOCHS = 22


def test_demo_beats_both_baselines_and_may_be_run_again(ray_local: None, tmp_path: Path) -> None:
    recipe = yaml.safe_load((Path(jobs.__file__).parent / "recipes" / "digits.yaml").read_text())
    training = TrainConfig.model_validate({**recipe, "dataset": "set by the demo", "output": "too", "epochs": EPOCHS})
    config = DemoConfig(output=str(tmp_path), serve=False)
    result = run_demo(config, training)
    assert set(result.map_at_k) == {"16", "32", "64"}
    for bits, found in result.map_at_k.items():
        best = max(result.baselines[name][bits] for name in ("itq", "random_hyperplanes"))
        assert found > best + 0.02, f"{bits} bits: mAP@{result.k} {found:.4f}, best baseline {best:.4f}"
    assert Path(result.report_uri).stat().st_size > 10_000
    assert open_index(result.index_uri).manifest.count == 1497
    assert list(result.stage_seconds) == ["pack", "train", "encode", "index", "evaluate"]

    again = run_demo(config, training)
    assert (again.map_at_k, again.encoder_digest) == (result.map_at_k, result.encoder_digest)
