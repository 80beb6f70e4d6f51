"""Configs: sound defaults, and every bad value refused with the field named in one line."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import cluster
from cluster.config import DemoConfig, EncodeConfig, JobConfig
from cluster.dedup_config import DedupConfig
from cluster.doctor_config import DoctorConfig
from cluster.drift_config import DriftConfig
from cluster.evaluation_config import EvaluateConfig
from cluster.index_config import IndexConfig, RetrieveConfig, ShardSearchConfig
from cluster.packing_config import AdoptConfig, PackConfig
from cluster.planning_config import PlanConfig
from cluster.reproduction_config import ReproduceConfig
from cluster.service_config import SearchConfig, ServeConfig
from cluster.training_config import SweepConfig, TrainConfig

_NEEDED: dict[type[JobConfig], dict[str, Any]] = {
    PackConfig: {"source": "a", "output": "b"},
    DoctorConfig: {"datasets": ("a",)},
    AdoptConfig: {"tar_shards": "a/{0..9}/x.tar", "output": "b"},
    TrainConfig: {"dataset": "a", "output": "b"},
    SweepConfig: {"dataset": "a", "output": "b"},
    EncodeConfig: {"encoder": "a", "dataset": "b", "output": "c"},
    IndexConfig: {"codes": "a", "output": "b"},
    ServeConfig: {"index": "a"},
    SearchConfig: {"query": ("a.jpg",), "index": "b"},
    RetrieveConfig: {"index": "a", "queries": "b", "output": "c"},
    EvaluateConfig: {"queries": "a", "database": "b", "output": "c"},
    DedupConfig: {"codes": ("a",), "output": "b"},
    DriftConfig: {"old": "a", "new": "b", "output": "c"},
    PlanConfig: {"codes": "a", "items": 1_000_000},
    ReproduceConfig: {"data": "a", "output": "b"},
    DemoConfig: {},
}

_BAD: list[tuple[type[JobConfig], dict[str, Any], str]] = [
    (TrainConfig, {"bits": (12,)}, "12 bits"),
    (TrainConfig, {"bits": "16,banana"}, "bits"),
    (TrainConfig, {"bits": (0,)}, "0 bits"),
    (TrainConfig, {"bits": (-8,)}, "-8 bits"),
    (TrainConfig, {"bits": (1024,)}, "1024 bits"),
    (TrainConfig, {"bits": (16, 16)}, "16,16"),
    (TrainConfig, {"bits": ()}, "at least one"),
    (TrainConfig, {"batch_size": 1}, "batch_size 1"),
    (TrainConfig, {"batch_size": 0}, "batch_size"),
    (TrainConfig, {"batch_size": 10, "num_workers": 4}, "batch_size 10"),
    (TrainConfig, {"num_workers": 2, "num_streams": 3, "batch_size": 6}, "num_streams 3"),
    (TrainConfig, {"num_workers": 0}, "num_workers"),
    (TrainConfig, {"epochs": 0}, "epochs"),
    (TrainConfig, {"learning_rate": 0}, "learning_rate"),
    (TrainConfig, {"learning_rate": float("nan")}, "learning_rate"),
    (TrainConfig, {"learning_rate": float("inf")}, "learning_rate"),
    (TrainConfig, {"temperature": -1}, "temperature"),
    (TrainConfig, {"temperature": float("inf")}, "temperature"),
    (TrainConfig, {"beta": -0.1}, "beta"),
    (TrainConfig, {"beta": float("nan")}, "beta"),
    (TrainConfig, {"code_sampling": "coin"}, "code_sampling"),
    (TrainConfig, {"seed": -1}, "seed"),
    (TrainConfig, {"seed": 2**64}, "seed"),
    (TrainConfig, {"seed": "x"}, "seed"),
    (TrainConfig, {"num_cached_views": 1}, "num_cached_views 1"),
    (TrainConfig, {"num_cached_views": -1}, "num_cached_views"),
    (TrainConfig, {"num_cached_views": 4, "backbone": {"train_from": "all"}}, "frozen"),
    (TrainConfig, {"backbone": {"image_size": 4}}, "image_size 4"),
    (TrainConfig, {"backbone": {"std": (0, 1, 1)}}, "std"),
    (TrainConfig, {"backbone": {"no_such": 1}}, "no_such"),
    (TrainConfig, {"views": {"flip": 2}}, "flip"),
    (TrainConfig, {"views": {"crop_scale": (0.9, 0.1)}}, "crop_scale"),
    (TrainConfig, {"views": {"no_such": 1}}, "no_such"),
    (TrainConfig, {"max_failures": -1}, "max_failures"),
    (TrainConfig, {"checkpoint_every": 0}, "checkpoint_every"),
    (TrainConfig, {"hidden": 0}, "hidden"),
    (TrainConfig, {"threads_per_worker": 0}, "threads_per_worker"),
    (TrainConfig, {"no_such_field": 1}, "no_such_field"),
    (TrainConfig, {"dataset": None}, "dataset"),
    (TrainConfig, {"ray": {"num_cpus": 0}}, "num_cpus"),
    (TrainConfig, {"rotation": 64}, "rotation 64 needs cached views"),
    (TrainConfig, {"neighbors": 5}, "neighbors 5 needs cached views"),
    (TrainConfig, {"neighbor_probability": 1.5}, "neighbor_probability"),
    (TrainConfig, {"num_cached_views": 4, "backbone": {"dropout": True}}, "dropout"),
    (TrainConfig, {"compiled": True, "backbone": {"train_from": "all"}}, "compiled needs a frozen backbone"),
    (TrainConfig, {"drop_last": False, "num_workers": 2}, "drop_last false needs num_workers 1"),
    (TrainConfig, {"negatives": "local", "batch_size": 2, "num_workers": 2}, "negatives local"),
    (TrainConfig, {"selection": "best"}, "selection"),
    (TrainConfig, {"monitor": {"on_collapse": "ignore"}}, "on_collapse"),
    (TrainConfig, {"monitor": {"every_steps": 0}}, "every_steps"),
    (TrainConfig, {"collective_timeout_s": 0}, "collective_timeout_s"),
    (TrainConfig, {"precision": "float16"}, "precision"),
    (TrainConfig, {"views": {"engine": "gpu"}}, "engine"),
    (SweepConfig, {"num_cached_views": 0}, "num_cached_views 0"),
    (SweepConfig, {"num_workers": 2}, "num_workers 2"),
    (SweepConfig, {"concurrent": 0}, "concurrent"),
    (SweepConfig, {"grid": {"momentum": (1,)}}, "momentum"),
    (SweepConfig, {"grid": {"seed": (0, 1)}, "backbone": {"weights": "none"}}, "grid.seed"),
    (DoctorConfig, {"datasets": ()}, "datasets"),
    (DoctorConfig, {"offenders": -1}, "offenders"),
    (DoctorConfig, {"fix": "b", "decode": False}, "fix needs to decode"),
    (PackConfig, {"samples_per_shard": 0}, "samples_per_shard"),
    (PackConfig, {"samples_per_shard": 5, "bytes_per_shard": "1MB"}, "exclude each other"),
    (PackConfig, {"bytes_per_shard": "a lot"}, "bytes_per_shard 'a lot'"),
    (PackConfig, {"bytes_per_shard": "0MB"}, "bytes_per_shard '0MB'"),
    (PackConfig, {"max_missing": 1.5}, "max_missing"),
    (PackConfig, {"seed": -1}, "seed"),
    (AdoptConfig, {"tar_shards": "a/{0..9}/x.tar", "output": ""}, "output is needed"),
    (EncodeConfig, {"batch_size": 0}, "batch_size"),
    (EncodeConfig, {"num_workers": 0}, "num_workers"),
    (EncodeConfig, {"max_quarantined": 1.5}, "max_quarantined"),
    (EncodeConfig, {"max_quarantined": -0.1}, "max_quarantined"),
    (EncodeConfig, {"max_quarantined": float("nan")}, "max_quarantined"),
    (IndexConfig, {"kind": "lsh"}, "kind"),
    (IndexConfig, {"shards": 0}, "shards"),
    (IndexConfig, {"codes": ""}, "codes: a code table is needed"),
    (IndexConfig, {"append": True, "compact": True}, "append and compact exclude each other"),
    (IndexConfig, {"append": True, "shards": 2}, "shards: not with --append"),
    (IndexConfig, {"compact": True}, "codes: --compact keeps the code tables"),
    (IndexConfig, {"shards": 2, "bytes_per_shard": "1MB"}, "shards and bytes_per_shard exclude each other"),
    (IndexConfig, {"bytes_per_shard": "much"}, "bytes_per_shard 'much': expected a size"),
    (ServeConfig, {"port": 0}, "port"),
    (ServeConfig, {"port": 70000}, "port"),
    (ServeConfig, {"replicas": 0}, "replicas"),
    (ServeConfig, {"shard_deadline_s": 0}, "shard_deadline_s"),
    (ServeConfig, {"shard_deadline_s": float("inf")}, "shard_deadline_s"),
    (ServeConfig, {"max_k": 0}, "max_k"),
    (ServeConfig, {"gpus_per_shard": 0.5}, "gpus_per_shard: only with --use-gpu"),
    (ServeConfig, {"use_gpu": True, "gpus_per_shard": 1.5}, "gpus_per_shard"),
    (RetrieveConfig, {"use_gpu": True, "gpus_per_shard": 0}, "gpus_per_shard"),
    (SearchConfig, {"query": ()}, "query"),
    (SearchConfig, {"index": ""}, "index and url"),
    (SearchConfig, {"url": "http://x"}, "index and url"),
    (SearchConfig, {"k": 3, "radius": 3}, "k and radius"),
    (SearchConfig, {"k": 0}, "k"),
    (SearchConfig, {"k": -1}, "k"),
    (SearchConfig, {"radius": -1}, "radius"),
    (RetrieveConfig, {"k": 0}, "k"),
    (EvaluateConfig, {"k": 0}, "k"),
    (EvaluateConfig, {"bits": (12,)}, "12 bits"),
    (EvaluateConfig, {"example_queries": -1}, "example_queries"),
    (EvaluateConfig, {"seed": -1}, "seed"),
    (DemoConfig, {"seed": -1}, "seed"),
    (DemoConfig, {"port": -1}, "port"),
]


@pytest.mark.parametrize(("cls", "change", "named"), _BAD, ids=lambda value: getattr(value, "__name__", str(value)))
def test_bad_values_name_their_field_in_one_line(cls: type[JobConfig], change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as caught:
        cls.model_validate({**_NEEDED[cls], **change})
    errors = caught.value.errors()
    lines = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in errors]
    assert any(named in line for line in lines)
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize("cls", _NEEDED, ids=lambda cls: cls.__name__)
def test_what_is_needed_is_needed_and_suffices(cls: type[JobConfig]) -> None:
    config = cls.model_validate(_NEEDED[cls])
    assert cls.model_validate(config.model_dump()) == config
    assert cls.model_validate_json(config.model_dump_json()) == config
    assert config.dry_run is False
    for name in _NEEDED[cls]:
        with pytest.raises(ValidationError):
            cls.model_validate({key: value for key, value in _NEEDED[cls].items() if key != name})
    with pytest.raises(ValidationError):
        config.dry_run = True  # type: ignore[misc]


@pytest.mark.parametrize("cls", _NEEDED, ids=lambda cls: cls.__name__)
def test_every_field_is_described(cls: type[JobConfig]) -> None:
    assert cls.__doc__
    assert all(field.description for field in cls.model_fields.values())


@pytest.mark.parametrize(
    ("given", "lengths"),
    [("16,32,64", (16, 32, 64)), ("16, 32", (16, 32)), (64, (64,)), ("8", (8,)), ([8, 16], (8, 16))],
)
def test_code_lengths_are_written_as_people_write_them(given: object, lengths: tuple[int, ...]) -> None:
    assert TrainConfig.model_validate({**_NEEDED[TrainConfig], "bits": given}).bits == lengths
    assert EvaluateConfig.model_validate({**_NEEDED[EvaluateConfig], "bits": given}).bits == lengths


@pytest.mark.parametrize(
    ("text", "size"),
    [("256MB", 256_000_000), ("1GiB", 2**30), ("1.5 kib", 1536), ("4096", 4096), ("2tb", 2 * 10**12), ("7B", 7)],
)
def test_sizes_are_written_as_people_write_them(text: str, size: int) -> None:
    config = PackConfig(source="a", output="b", bytes_per_shard=text)
    assert (config.shard_bytes, config.shard_samples) == (size, 0)


def test_shards_are_limited_by_count_unless_a_size_is_given() -> None:
    assert PackConfig(source="a", output="b").shard_samples == 5000
    assert PackConfig(source="a", output="b", samples_per_shard=7).shard_samples == 7


@pytest.mark.parametrize(
    ("shards", "output"),
    [
        ("s3://bucket/laion", "s3://bucket/laion"),
        ("s3://bucket/laion/{00000..00099}.tar", "s3://bucket/laion"),
        ("data/list.txt", "data"),
        ("data/00000.tar", "data"),
        ("{0..9}.tar", "."),
    ],
)
def test_a_dataset_is_adopted_beside_its_shards(shards: str, output: str) -> None:
    assert AdoptConfig(tar_shards=shards).output == output
    assert AdoptConfig(tar_shards=shards, output="elsewhere").output == "elsewhere"


def test_code_lengths_are_put_in_order() -> None:
    """The encoder wants them ascending, a person may write 64,16."""
    assert TrainConfig.model_validate({**_NEEDED[TrainConfig], "bits": "64,16"}).bits == (16, 64)
    assert EvaluateConfig.model_validate({**_NEEDED[EvaluateConfig], "bits": "64,16"}).bits == (16, 64)


@pytest.mark.parametrize(
    ("batch_size", "workers", "streams", "expected"),
    [
        *((64, 1, None, 8), (64, 2, None, 8), (64, 8, None, 8), (48, 3, None, 3), (64, 16, None, 16), (20, 1, None, 4)),
        *((16, 1, 1, 1), (16, 2, 4, 4), (16, 1, 4, 4)),
    ],
)
def test_streams_are_the_same_for_most_numbers_of_workers(
    batch_size: int, workers: int, streams: int | None, expected: int
) -> None:
    settings = {"num_workers": workers, "num_streams": streams, "batch_size": batch_size}
    assert TrainConfig.model_validate({**_NEEDED[TrainConfig], **settings}).streams == expected


def test_defaults_are_the_papers() -> None:
    config = TrainConfig.model_validate(_NEEDED[TrainConfig])
    assert (config.temperature, config.beta, config.batch_size, config.learning_rate) == (0.3, 0.001, 64, 0.001)
    assert (config.backbone.name, config.backbone.trainable, config.hidden) == ("vgg16.tv_in1k", False, 1024)
    assert (config.views.flip, config.views.jitter, config.views.grayscale, config.views.blur) == (0.5, 0.7, 0.2, 0.5)


def test_no_config_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = TrainConfig.model_validate(_NEEDED[TrainConfig])
    for name in TrainConfig.model_fields:
        monkeypatch.setenv(name.upper(), "3")
        monkeypatch.setenv(f"CIBHASH_{name.upper()}", "3")
    assert TrainConfig.model_validate(_NEEDED[TrainConfig]) == before
    assert os.environ["CIBHASH_SEED"] == "3"


def test_all_job_configs_are_tested_here() -> None:
    modules = [import_module(f"cluster.{path.stem}") for path in Path(cluster.__path__[0]).glob("*config.py")]
    found = {
        c
        for c in (value for module in modules for value in vars(module).values())
        if isinstance(c, type) and issubclass(c, JobConfig) and c not in (JobConfig, ShardSearchConfig)
    }
    assert found == set(_NEEDED)
