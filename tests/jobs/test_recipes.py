"""The packaged recipes: each is a config, says what it is, and goes with the others that it says it goes with."""

import functools
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from cibhash.backbones import build_backbone, mark_trained, resolve
from cibhash.errors import ConfigError
from cluster.training_config import TrainConfig
from jobs.config_loader import load_config
from jobs.recipe_file import merged, packaged_names, read_recipe

FOLDER = Path(__file__).parents[2] / "jobs" / "recipes"
NEEDED = ["--dataset", "d", "--output", "o"]
DEFAULTS = TrainConfig(dataset="d", output="o")
BACKBONES = ("resnet50", "vit_base", "dinov2_small", "clip_vit_base", "siglip_base")
NAMES = packaged_names()


@functools.cache
def load(*recipes: str) -> TrainConfig:
    return load_config(TrainConfig, [*recipes, *NEEDED], "cibhash train")


def changed(*recipes: str) -> dict[str, Any]:
    return load(*recipes).model_dump(exclude_defaults=True, exclude={"dataset", "output"})


def own_fields(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return content


def test_those_that_are_spoken_of_are_there() -> None:
    assert {"paper", "parity", "clean", "neighbour", "bernoulli", "ablation_relaxed", "ablation_no_kl"} < set(NAMES)
    assert {"digits", "cifar10_mobilenetv2", "cifar10_vgg16", "finetune_resnet50", *BACKBONES} < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_config_by_name_and_as_a_file(name: str) -> None:
    config = load(name)
    assert config == load(str(FOLDER / f"{name}.yaml"))
    assert config == TrainConfig.model_validate({**merged(read_recipe(name)), "dataset": "d", "output": "o"})


@pytest.mark.parametrize("name", NAMES)
def test_each_opens_with_a_line_and_a_command_that_parses(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    header = text[: re.search(r"^[^#]", text, re.M).start()]  # type: ignore[union-attr]
    first, second, *_ = header.splitlines()
    assert re.fullmatch(r"# [A-Z].{20,90}[.:]?", first)
    assert second == "#"
    joined = re.sub(r" \\\n#\s*", " ", header)
    (command,) = re.findall(r"^#   (?:cibhash train|ray job submit .* -m jobs.train) (.*)$", joined, re.M)
    words = shlex.split(command.replace("RECIPE ...", "resnet50"))
    assert name in words
    load_config(TrainConfig, words, "cibhash train")


def test_paper_states_the_defaults() -> None:
    assert load("paper") == DEFAULTS
    stated = own_fields("paper")
    assert stated["backbone"].keys() == DEFAULTS.model_dump()["backbone"].keys()
    assert stated["views"].keys() == DEFAULTS.model_dump()["views"].keys()
    assert stated.keys() >= {"epochs", "batch_size", "learning_rate", "temperature", "beta", "code_sampling", "hidden"}
    assert "bits" not in stated


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("digits", "finetune_resnet50")])
def test_paper_undoes_the_method_of_any_other(name: str) -> None:
    """What is left is no setting of the method but how much and where."""
    left = {"bits", "num_workers", "num_streams", "checkpoint_every", "monitor"}
    assert changed(name, "paper").keys() <= left


def test_parity_is_the_released_code() -> None:
    config = load("parity")
    assert changed("parity") == {
        "backbone": {"dropout": True},
        "views": {"engine": "pillow"},
        "drop_last": False,
        "num_streams": 1,
        "checkpoint_every": 20,
        "selection": "oracle",
        "monitor": {"on_collapse": "warn"},
    }
    assert (config.num_workers, config.negatives, config.streams) == (1, "global", 1)
    assert (config.code_sampling, config.kl_stopgrad, config.num_cached_views) == ("threshold", True, 0)
    traps = [line for line in (FOLDER / "parity.yaml").read_text().splitlines() if re.match(r" *[a-z_]+: \S", line)]
    assert all("#" in line for line in traps if not line.startswith(("extends", "  name", "num_workers")))


def test_clean_answers_every_trap_of_parity_by_the_default() -> None:
    assert load("clean") == load("paper") == DEFAULTS
    stated = own_fields("clean")
    layout = {"num_streams", "checkpoint_every"}  # how one worker's run is laid out: no trap
    for name, value in changed("parity").items():
        if name not in layout:
            assert stated[name].keys() >= value.keys() if isinstance(value, dict) else name in stated
    assert load("parity", "clean").model_dump(exclude=layout) == DEFAULTS.model_dump(exclude=layout)


def test_neighbour_sets_its_own_and_nothing_else() -> None:
    assert own_fields("neighbour") == {
        "rotation": 256,
        "neighbors": 10,
        "neighbor_probability": 0.5,
        "weight_average": 0.998,
        "num_cached_views": 16,
        "epochs": 40,
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ablation_relaxed", {"code_sampling": "relaxed"}),
        ("ablation_no_kl", {"beta": 0.0}),
        ("bernoulli", {"code_sampling": "bernoulli"}),
    ],
)
def test_variants_change_one_setting(name: str, expected: dict[str, Any]) -> None:
    assert changed(name) == expected
    for base in ("parity", "digits", "resnet50"):
        assert load(base, name).model_dump() == {**load(base).model_dump(), **expected}


@pytest.mark.parametrize("backbone", [*BACKBONES, "cifar10_mobilenetv2"])
def test_backbones_go_with_neighbour_and_parity(backbone: str) -> None:
    alone, both = load(backbone), load(backbone, "neighbour")
    assert both.model_dump() == {**alone.model_dump(), **own_fields("neighbour")}
    assert alone.num_cached_views == 8
    assert load("parity", backbone).backbone == alone.backbone
    with pytest.raises(ConfigError, match="num_cached_views makes views without dropout"):
        load("parity", "neighbour")


@pytest.mark.parametrize(
    ("first", "second"), itertools.permutations(["resnet50", "clip_vit_base", "cifar10_mobilenetv2", "digits"], 2)
)
def test_a_backbone_leaves_nothing_of_the_one_before(first: str, second: str) -> None:
    left = merged([*read_recipe(first), *read_recipe(second)])["backbone"]
    alone = merged(read_recipe(second))["backbone"]
    assert {**left, "options": None} == {**alone, "options": None}
    if second != "cifar10_mobilenetv2":
        assert left["options"] == {}


@pytest.mark.parametrize("name", [name for name in NAMES if "backbone" in own_fields(name)])
def test_backbones_are_known(name: str) -> None:
    assert len(resolve(load(name).backbone).mean) == 3


def test_fine_tuning_starts_at_a_stage_that_there_is() -> None:
    config = load("finetune_resnet50")
    assert (config.backbone.train_from, config.backbone_learning_rate) == ("layer4", 0.0001)
    backbone = build_backbone(config.backbone, weights="none")
    mark_trained(backbone, config.backbone.train_from)
    trained = {name.split(".")[0] for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained == {"layer4"}


def test_cifar10_recipes_keep_the_recorded_settings() -> None:
    config = load("cifar10_mobilenetv2")
    assert (config.bits, config.epochs, config.batch_size, config.num_cached_views) == ((16, 32, 64), 60, 64, 8)
    assert (config.temperature, config.beta, config.learning_rate) == (0.3, 0.001, 0.001)
    assert (config.backbone.image_size, config.backbone.mean) == (96, (0.5, 0.5, 0.5))
    assert (config.backbone.options, config.checkpoint_every) == ({"pad_type": "same"}, 20)
    assert load("cifar10_vgg16") == DEFAULTS
