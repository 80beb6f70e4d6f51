"""The README's commands are commands: each parses as written, and the files it names are there."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from cluster import config, doctor_config, packing_config, planning_config, training_config
from jobs.cli import COMMANDS
from jobs.config_loader import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MODELS = vars(config) | vars(doctor_config) | vars(packing_config) | vars(planning_config) | vars(training_config)
CONFIGS = {command: MODELS[f"{command.capitalize()}Config"] for command in COMMANDS}


def written_commands() -> list[str]:
    """Every `$ ...` line, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", README)
    return [line.strip().removeprefix("$ ") for line in text.splitlines() if line.strip().startswith("$ ")]


def jobs_in(command: str) -> list[tuple[str, list[str]]]:
    """The jobs that a shell line runs: `cibhash X ...` or `python -m jobs.X ...`."""
    found = []
    for part in re.split(r"&&|;|\|", command):
        words = shlex.split(part)
        for at, word in enumerate(words):
            if word == "cibhash":
                found.append((words[at + 1], words[at + 2 :]))
            elif word.startswith("jobs.") and words[at - 1] == "-m":
                found.append((word.removeprefix("jobs."), words[at + 1 :]))
    return found


JOBS = [job for command in written_commands() for job in jobs_in(command)]


def test_every_stage_is_shown() -> None:
    assert {name for name, _ in JOBS} >= set(COMMANDS) - {"demo"}


@pytest.mark.parametrize(("name", "arguments"), JOBS, ids=[f"{n}-{name}" for n, (name, _) in enumerate(JOBS)])
def test_command_parses(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = [word for word in arguments if word != "&"]
    found = load_config(CONFIGS[name], arguments, f"cibhash {name}")
    assert found.dry_run is ("--dry-run" in arguments)
    assert callable(import_module(f"jobs.{name}").main)


def test_nothing_is_left_to_be_filled_in() -> None:
    assert "@@" not in README + (ROOT / "tests" / "benchmarks" / "RESULTS.md").read_text()


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []
