"""Recipe and command line become a config, or one line that says what is wrong."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cibhash.errors import ConfigError
from cluster.config import DemoConfig, EncodeConfig, JobConfig
from cluster.evaluation_config import EvaluateConfig
from cluster.index_config import IndexConfig, RetrieveConfig
from cluster.packing_config import PackConfig
from cluster.service_config import SearchConfig, ServeConfig
from cluster.training_config import TrainConfig
from jobs.config_loader import load_config
from tests.patience import HANG_S

NEEDED = ["--dataset", "d", "--output", "o"]
RECIPES = sorted(Path(__file__).parents[2].glob("jobs/recipes/*.yaml"))


def changed(cls: type[JobConfig], argv: list[str]) -> dict[str, Any]:
    return load_config(cls, argv, "cibhash x").model_dump(exclude_defaults=True)


def recipe(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("cls", "command", "expected"),
    [
        (PackConfig, "digits --output o", {"source": "digits", "output": "o"}),
        (PackConfig, "--output o digits", {"source": "digits", "output": "o"}),
        (
            TrainConfig,
            "--dataset d --output o --bits 16,32,64 --num-workers 4",
            {"dataset": "d", "output": "o", "bits": (16, 32, 64), "num_workers": 4},
        ),
        (TrainConfig, "--dataset d --output o --bits 16 32", {"dataset": "d", "output": "o", "bits": (16, 32)}),
        (EncodeConfig, "--encoder e --dataset d --output o", {"encoder": "e", "dataset": "d", "output": "o"}),
        (IndexConfig, "--codes c --output o --kind flat --shards 3", {"codes": "c", "output": "o", "shards": 3}),
        (IndexConfig, "--output o --append", {"output": "o", "append": True}),
        (
            IndexConfig,
            "--output o --compact --bytes-per-shard 1GiB",
            {"output": "o", "compact": True, "bytes_per_shard": "1GiB"},
        ),
        (ServeConfig, "--index i --encoder e --port 81", {"index": "i", "encoder": "e", "port": 81}),
        (SearchConfig, "a.jpg key:b --index i --k 5", {"query": ("a.jpg", "key:b"), "index": "i", "k": 5}),
        (SearchConfig, "code:00ff --url u --radius 0", {"query": ("code:00ff",), "url": "u", "radius": 0}),
        (
            RetrieveConfig,
            "--index i --queries q --output o --k 7",
            {"index": "i", "queries": "q", "output": "o", "k": 7},
        ),
        (
            EvaluateConfig,
            "--queries q --database d --output o --k 50 --bits 16,32",
            {"queries": "q", "database": "d", "output": "o", "k": 50, "bits": (16, 32)},
        ),
        (DemoConfig, "--no-serve", {"serve": False}),
        (DemoConfig, "--serve --dry-run", {"dry_run": True}),
    ],
)
def test_documented_forms(cls: type[JobConfig], command: str, expected: dict[str, Any]) -> None:
    assert changed(cls, command.split()) == expected


def test_nested_overrides() -> None:
    argv = ["--backbone.name", "resnet50", "--views.flip", "0.0", "--views.crop-scale", "0.2", "1"]
    argv += ["--ray.num-cpus", "3", "--backbone.options", "pad_type=same", "depth=3"]
    assert changed(TrainConfig, [*NEEDED, *argv]) == {
        "dataset": "d",
        "output": "o",
        "backbone": {"name": "resnet50", "options": {"pad_type": "same", "depth": 3}},
        "views": {"flip": 0.0, "crop_scale": (0.2, 1.0)},
        "ray": {"num_cpus": 3},
    }


RECIPE = """\
dataset: from-file
bits: [16, 32]
learning_rate: 1e-4
backbone: {name: resnet18, options: {pad_type: same}}
views:
  crop_scale: [0.3, 1]
"""


def test_command_line_wins_over_file_and_file_over_defaults(tmp_path: Path) -> None:
    path = recipe(tmp_path, RECIPE)
    expected = {
        "dataset": "from-file",
        "output": "o",
        "bits": (16, 32),
        "learning_rate": 1e-4,
        "backbone": {"name": "resnet18", "options": {"pad_type": "same"}},
        "views": {"crop_scale": (0.3, 1.0)},
    }
    assert changed(TrainConfig, [path, "--output", "o"]) == expected
    overridden = changed(
        TrainConfig, [path, "--output", "o", "--bits", "8,24,64", "--backbone.image-size", "64", "--dataset", "other"]
    )
    backbone = {"name": "resnet18", "options": {"pad_type": "same"}, "image_size": 64}
    assert overridden == {**expected, "bits": (8, 24, 64), "dataset": "other", "backbone": backbone}


def test_later_recipes_win_and_options_win_over_all(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yml"
    first.write_text("epochs: 7\nseed: 1\nviews: {flip: 0.1, hue: 0.2}\nbackbone: {options: {a: 1, b: 2}}\n")
    second.write_text("epochs: 8\nviews: {hue: 0.3}\nmonitor: {images: 30}\nbackbone: {options: {b: 3}}\n")
    needed = {"dataset": "d", "output": "o"}
    both = {
        **needed,
        "epochs": 8,
        "seed": 1,
        "views": {"flip": 0.1, "hue": 0.3},
        "monitor": {"images": 30},
        "backbone": {"options": {"a": 1, "b": 3}},
    }
    assert changed(TrainConfig, [str(first), str(second), *NEEDED]) == both
    other_way = changed(TrainConfig, [str(second), str(first), *NEEDED])
    assert (other_way["epochs"], other_way["views"]) == (7, {"flip": 0.1, "hue": 0.2})
    options = ["--epochs", "9", "--views.flip", "0.4", "--monitor.every-steps", "5"]
    assert changed(TrainConfig, [str(first), str(second), *NEEDED, *options]) == {
        **both,
        "epochs": 9,
        "views": {"flip": 0.4, "hue": 0.3},
        "monitor": {"images": 30, "every_steps": 5},
    }


def test_names_and_files_mix_for_training(tmp_path: Path) -> None:
    path = recipe(tmp_path, "epochs: 3\nbits: 24\n")
    config = load_config(TrainConfig, ["dinov2_small", "neighbour", path, *NEEDED], "cibhash train")
    assert (config.backbone.name, config.rotation, config.num_cached_views) == (
        "vit_small_patch14_dinov2.lvd142m",
        256,
        16,
    )
    assert (config.epochs, config.bits) == (3, (24,))


class _Longer(TrainConfig):
    """A job that takes the settings of training and more."""

    more: int = 1
    """One more."""


def test_a_job_that_extends_training_takes_its_recipes() -> None:
    assert changed(_Longer, ["neighbour", *NEEDED, "--more", "2"])["rotation"] == 256


def test_other_jobs_take_files_only(tmp_path: Path) -> None:
    path = recipe(tmp_path, "k: 5\nindex: i\n")
    assert changed(SearchConfig, [path, "digits", "neighbour"])["query"] == ("digits", "neighbour")
    assert load_config(PackConfig, ["digits", "--output", "o"], "cibhash pack").source == "digits"
    with pytest.raises(ConfigError, match=r"unexpected argument 'neighbour'$"):
        load_config(EncodeConfig, ["neighbour", "--encoder", "e", *NEEDED], "cibhash encode")


def test_a_mistake_names_the_one_recipe_that_makes_it(tmp_path: Path) -> None:
    good, bad, above = (tmp_path / name for name in ("good.yaml", "bad.yaml", "above.yaml"))
    good.write_text("epochs: 3\n")
    bad.write_text("views: {flip: 2}\n")
    above.write_text("extends: bad.yaml\nviews: {flip: 0.5}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, [str(good), str(above), *NEEDED], "cibhash train")
    assert str(caught.value) == f"recipe {bad}: views: flip 2.0: expected 0 to 1"


def test_environment_is_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPOCHS", "3")
    monkeypatch.setenv("CIBHASH_EPOCHS", "3")
    assert "epochs" not in changed(TrainConfig, NEEDED)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--datset d --output o", "unknown option --datset: did you mean --dataset?"),
        ("--dataset d --output o --views.flpi 0", "unknown option --views.flpi: did you mean --views.flip?"),
        ("--dataset d", "missing: --output"),
        ("", "missing: --dataset, --output"),
        ("--dataset d --output o --epochs many", "--epochs 'many': expected an integer"),
        ("--dataset d --output o --views.flip x", "--views.flip 'x': expected a number"),
        ("--dataset d --output o --epochs", "--epochs: expected INT"),
        ("--dataset d --output o --epochs 0", "epochs 0: input should be greater than 0"),
        ("--dataset d --output o --ray.num-cpus 0", "ray.num_cpus 0: input should be greater than 0"),
        ("--dataset d --output o --bits 12", "12 bits: a code length is a multiple of 8 from 8 to 512"),
        ("--dataset d --output o --bits 16,16", "16,16: a code length is named twice"),
        ("--dataset d --output o --backbone.image-size 4", "image_size 4: expected 8 to 1024 pixels"),
        ("--dataset d --output o --code-sampling coin", "--code-sampling coin: expected threshold or bernoulli"),
        ("--dataset d --output o stray", "unexpected argument 'stray'"),
        ("--dataset d --output o late.yaml", "unexpected argument 'late.yaml': a recipe comes first"),
        ("--dataset d --output o --backbone.options x", "--backbone.options: 'x': expected NAME=VALUE"),
        ("--dataset d --output o neighbour", "unexpected argument 'neighbour': a recipe comes first"),
        ("nowhere.yaml", "recipe nowhere.yaml: no such file"),
        ("digits.yaml", "recipe digits.yaml: no such file: did you mean the packaged digits?"),
        ("neigbour --dataset d", "unknown recipe 'neigbour': did you mean neighbour? packaged are ablation_no_kl, "),
        ("data/train --output o", "unknown recipe 'data/train': packaged are ablation_no_kl, "),
        ("parity neighbour --dataset d --output o", "num_cached_views makes views without dropout"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(command: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, command.split(), "cibhash train")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epohcs: 3", "unknown field epohcs: did you mean epochs?"),
        ("backbone: {nmae: x}", "unknown field backbone.nmae: did you mean backbone.name?"),
        ("ray: {adress: x}", "unknown field ray.adress: did you mean ray.address?"),
        ("epochs: many", "epochs 'many': input should be a valid integer"),
        ("epochs: true", "epochs true: expected a value"),
        ("epochs:", "epochs None: input should be a valid integer"),
        ("backbone: {image_size: 4}", "backbone: image_size 4: expected 8 to 1024 pixels"),
        ("- epochs", "list at the top, expected fields"),
        ("epochs: 3\nepochs: 4", "line 2: field 'epochs' comes twice"),
        ("views: {flip: 0,\n flip: 1}", "line 2: field 'flip' comes twice"),
        ("epochs: [", "line 1: "),
        ("x: !!python/object/apply:os.system ['true']", "line 1: could not determine a constructor"),
        ("1: 2", "field 1: expected a name"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = recipe(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, [path, *NEEDED], "cibhash train")
    assert path in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_help_shows_every_field_with_meaning_and_the_files_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, RECIPE)
    with pytest.raises(SystemExit) as caught:
        load_config(TrainConfig, [path, "--help"], "cibhash train")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in TrainConfig.model_fields.keys() - {"backbone", "views", "ray"}:
        assert f"--{name.replace('_', '-')}" in text
    assert "--views.blur-sigma" in text
    assert "--ray.num-cpus" in text
    assert "Width of the head's hidden layer. (default: 1024)" in text
    assert "(default: resnet18)" in text
    assert "One length is the paper's plain code. (default: 16,32)" in text


def test_help_of_training_lists_the_packaged_recipes_in_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_config(TrainConfig, ["resnet50", "neighbour", "--help"], "cibhash train")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: cibhash train [RECIPE ...]")
    assert "Defaults below are those of resnet50, neighbour." in lines
    for path in RECIPES:
        (line,) = (line for line in lines if line.startswith(f"  {path.stem} "))
        assert line.split(maxsplit=1)[1] == path.read_text().splitlines()[0].removeprefix("# ")
        assert len(line) <= 120
    with pytest.raises(SystemExit):
        load_config(EncodeConfig, ["--help"], "cibhash encode")
    assert "neighbour" not in capsys.readouterr().out


def test_help_is_light() -> None:
    code = (
        "import sys, jobs.train; code = jobs.train.main(['neighbour', '--help']);"
        "print(code, [name for name in ('torch', 'ray', 'timm', 'numpy', 'cv2') if name in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True
    ).stdout
    assert out.splitlines()[-1] == "0 []"


def test_importing_the_command_list_is_light() -> None:
    code = (
        "import sys, jobs.cli; jobs.cli.overview();"
        "print([name for name in ('torch', 'ray', 'pydantic', 'tyro') if name in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True
    ).stdout
    assert out.strip() == "[]"
