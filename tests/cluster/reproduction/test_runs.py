"""Which trainings a row needs, and what makes a run another one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cibhash.errors import ConfigError
from cluster.manifests import DatasetManifest
from cluster.reproduction.at_hand import Data
from cluster.reproduction.paper_table import Row, load_table
from cluster.reproduction.runs import Run, plan_runs
from cluster.reproduction_config import ReproduceConfig
from jobs.reproduce import training_of

TABLE = load_table()


def dataset(split: str) -> DatasetManifest:
    return DatasetManifest(name="tiny", split=split, shards=())


def plan(folder: Path, name: str, *, weights: bytes = b"w", data: Data | None = None, **fields: Any) -> tuple[Run, ...]:
    row: Row = next(row for row in TABLE.rows if row.name == name)
    (folder / "mine.safetensors").write_bytes(weights)
    config = ReproduceConfig(data="data", output=str(folder / "out"), **fields)
    found = data or Data(str(folder / "data"), {split: dataset(split) for split in row.splits}, "")
    return plan_runs(
        config, row, TABLE.protocols[row.protocol], training_of(row), found, str(folder / "mine.safetensors")
    )


def test_a_nested_row_trains_once_per_seed_and_the_papers_once_per_length(tmp_path: Path) -> None:
    nested = plan(tmp_path, "cifar10-mobilenetv2")
    assert [(run.bits, run.seed, run.training.bits) for run in nested] == [
        ((16, 32, 64), seed, (16, 32, 64)) for seed in (0, 1, 2)
    ]
    single = plan(tmp_path, "cifar10-vgg16", seeds=(4, 5))
    assert [(run.bits, run.seed) for run in single] == [((bits,), seed) for bits in (16, 32, 64) for seed in (4, 5)]
    assert [run.baselines for run in single] == [True, False] * 3
    assert {run.training.seed for run in single} == {4, 5}
    assert [run.bits for run in plan(tmp_path, "cifar10-vgg16", bits=(32,))] == [(32,)]
    assert not any(run.baselines for run in plan(tmp_path, "cifar10-vgg16-no-kl"))
    assert plan(tmp_path, "mscoco-vgg16")[0].k == 5000


def test_parity_keeps_its_one_worker_its_epochs_and_its_labelled_choice(tmp_path: Path) -> None:
    runs = plan(tmp_path, "cifar10-official-vgg16-parity", num_workers=4, use_gpu=True)
    assert [run.training.epochs for run in runs] == [80, 60, 60]
    for run in runs:
        assert (run.training.num_workers, run.training.streams, run.training.drop_last) == (1, 1, False)
        assert run.training.selection == "oracle"
        assert run.training.monitor.dataset == str(tmp_path / "data" / "validation")
        assert run.training.use_gpu
    assert {run.training.num_workers for run in plan(tmp_path, "cifar10-vgg16", num_workers=4)} == {4}


def test_what_decides_the_result_decides_the_folder(tmp_path: Path) -> None:
    (first, second, _) = plan(tmp_path, "cifar10-mobilenetv2")
    assert first.output.startswith(str(tmp_path / "out/runs/cifar10-mobilenetv2/16-32-64-seed0-"))
    assert first.training.output == f"{first.output}/encoder"
    assert first.training.view_cache == second.training.view_cache == str(tmp_path / "out/views")
    same = ({"num_workers": 2}, {"threads_per_worker": 7}, {"rows": "x"}, {"seeds": (0,)}, {"compiled": True})
    for fields in same:
        assert plan(tmp_path, "cifar10-mobilenetv2", **fields)[0].digest == first.digest
    for fields in ({"epochs": 3}, {"precision": "bfloat16"}, {"weights": b"other"}):
        assert plan(tmp_path, "cifar10-mobilenetv2", **fields)[0].output != first.output
    assert plan(tmp_path, "cifar10-mobilenetv2-no-kl")[0].digest != first.digest
    assert second.digest != first.digest


@pytest.mark.parametrize("split", ["train", "query", "database"])
def test_other_images_are_another_run(tmp_path: Path, split: str) -> None:
    first = plan(tmp_path, "cifar10-mobilenetv2")[0]
    moved = dataclasses.replace(first.data, folder=str(tmp_path / "elsewhere"))
    assert plan(tmp_path, "cifar10-mobilenetv2", data=moved)[0].digest == first.digest
    shard = {"uri": "s.tar", "bytes": 1, "sha256": "0" * 64, "count": 1, "first_id": 0}
    other = DatasetManifest.model_validate({"name": "tiny", "split": split, "shards": [shard]})
    data = dataclasses.replace(first.data, datasets={**first.data.datasets, split: other})
    assert plan(tmp_path, "cifar10-mobilenetv2", data=data)[0].digest != first.digest


def test_settings_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^row cifar10-mobilenetv2: batch_size 64 is not a multiple of num_streams 3"
    ):
        plan(tmp_path, "cifar10-mobilenetv2", num_workers=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": ""}, "data: the folder"),
        ({"data": "d"}, "output: a folder is needed"),
        ({"data": "d", "output": "o", "seeds": "1,1"}, "seeds 1,1"),
        ({"data": "d", "output": "o", "bits": "12"}, "12 bits"),
    ],
)
def test_configs_that_cannot_work(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReproduceConfig(**fields)


def test_listing_touches_nothing() -> None:
    assert ReproduceConfig(data="d", list=True).dry_run
    assert not ReproduceConfig(data="d", output="o").dry_run
