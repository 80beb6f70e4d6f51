"""Checkpoints: what is saved comes back, and nothing damaged or unfinished is loaded."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cibhash.checkpoint import OPTIMIZER, PROGRESS, WEIGHTS, Progress, load_checkpoint, save_checkpoint
from cibhash.errors import ManifestMismatch, NotFound
from cibhash.loop import EpochStats

_PROGRESS = Progress(EpochStats(2, 3, 48, 1.5, (0.1 + 0.2, 1 / 3, 1e-17), 0.7), 23)
"""Inside an epoch, with numbers that a rounded text would change."""


def _trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        _step(model, optimizer, steps)
    return model, optimizer


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        images = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()


def test_training_goes_on_from_a_checkpoint_as_if_never_interrupted(tmp_path: Path) -> None:
    """Buffers and Adam's moments included: the next steps give the same bits."""
    model, optimizer = _trained(4)
    save_checkpoint(tmp_path, model, optimizer, _PROGRESS)
    resumed, resumed_optimizer = _trained(0)
    assert load_checkpoint(tmp_path, resumed, resumed_optimizer) == _PROGRESS
    for one in ((model, optimizer), (resumed, resumed_optimizer)):
        _step(*one, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_weights_alone_can_be_restored(tmp_path: Path) -> None:
    model, optimizer = _trained(2)
    save_checkpoint(tmp_path, model, optimizer, _PROGRESS)
    other, _ = _trained(0)
    load_checkpoint(tmp_path, other)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER])
@pytest.mark.parametrize("damage", ["flip", "cut", "longer"])
def test_damage_is_found_before_anything_is_loaded(tmp_path: Path, name: str, damage: str) -> None:
    model, optimizer = _trained(2)
    save_checkpoint(tmp_path, model, optimizer, _PROGRESS)
    content = bytearray((tmp_path / name).read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes({"flip": content, "cut": content[:-7], "longer": content + b"x"}[damage])
    fresh, fresh_optimizer = _trained(0)
    before = [p.clone() for p in fresh.parameters()]
    with pytest.raises(ManifestMismatch, match=rf"{name}.*sha256"):
        load_checkpoint(tmp_path, fresh, fresh_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, fresh.parameters(), strict=True))


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, PROGRESS])
def test_an_unfinished_checkpoint_is_not_found(tmp_path: Path, name: str) -> None:
    model, optimizer = _trained(1)
    save_checkpoint(tmp_path, model, optimizer, _PROGRESS)
    (tmp_path / name).unlink()
    with pytest.raises(NotFound, match=name):
        load_checkpoint(tmp_path, model, optimizer)


def test_a_broken_progress_record_is_a_mismatch(tmp_path: Path) -> None:
    model, optimizer = _trained(1)
    save_checkpoint(tmp_path, model, optimizer, _PROGRESS)
    good = json.loads((tmp_path / PROGRESS).read_text())
    broken: list[Any] = ["[]", "{}", '{"epoch": {"epoch": 1,', "null"]
    for changes in (
        {"epoch": {"epochs_done": 1}},
        {"epoch": 3},
        {"epoch": {**good["epoch"], "unknown": 1}},
        {"epoch": {**good["epoch"], "sums": 1.0}},
        {"sha256": 7},
    ):
        broken.append(json.dumps({**good, **changes}))
    broken += [json.dumps({name: value for name, value in good.items() if name != left_out}) for left_out in good]
    for content in broken:
        (tmp_path / PROGRESS).write_text(content)
        with pytest.raises(ManifestMismatch, match=PROGRESS):
            load_checkpoint(tmp_path, model, optimizer)
    (tmp_path / PROGRESS).write_text(json.dumps(good))
    assert load_checkpoint(tmp_path, model, optimizer) == _PROGRESS


def test_progress_comes_back_with_all_its_digits(tmp_path: Path) -> None:
    """The loop goes on adding to these sums."""
    model, optimizer = _trained(0)
    for progress in (_PROGRESS, Progress(EpochStats(0), 0), Progress(EpochStats(7), 140)):
        save_checkpoint(tmp_path, model, optimizer, progress)
        found = load_checkpoint(tmp_path, model)
        assert found == progress
        assert isinstance(found.epoch, EpochStats)
        assert isinstance(found.epoch.sums, tuple)
        assert (found.epoch.loss, found.epoch.kl) == (progress.epoch.loss, progress.epoch.kl)


def test_a_file_that_the_record_does_not_vouch_for_is_refused(tmp_path: Path) -> None:
    model, optimizer = _trained(1)
    for name in (WEIGHTS, OPTIMIZER):
        save_checkpoint(tmp_path, model, optimizer, _PROGRESS)
        record = json.loads((tmp_path / PROGRESS).read_text())
        del record["sha256"][name]
        (tmp_path / PROGRESS).write_text(json.dumps(record))
        with pytest.raises(ManifestMismatch, match=name):
            load_checkpoint(tmp_path, model, optimizer)


def test_a_later_checkpoint_replaces_an_earlier_one_in_its_folder(tmp_path: Path) -> None:
    model, optimizer = _trained(1)
    save_checkpoint(tmp_path, model, optimizer, _PROGRESS)
    _step(model, optimizer, 2)
    save_checkpoint(tmp_path, model, optimizer, Progress(EpochStats(3), 24))
    other, other_optimizer = _trained(0)
    assert load_checkpoint(tmp_path, other, other_optimizer) == Progress(EpochStats(3), 24)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))


def test_optimizer_state_never_runs_code(tmp_path: Path) -> None:
    """A pickle bomb with a matching digest is refused all the same."""
    model, optimizer = _trained(1)
    save_checkpoint(tmp_path, model, optimizer, _PROGRESS)
    torch.save(_Touch(str(tmp_path / "executed")), tmp_path / OPTIMIZER)
    record = json.loads((tmp_path / PROGRESS).read_text())
    record["sha256"][OPTIMIZER] = hashlib.sha256((tmp_path / OPTIMIZER).read_bytes()).hexdigest()
    (tmp_path / PROGRESS).write_text(json.dumps(record))
    with pytest.raises(Exception):  # noqa: B017
        load_checkpoint(tmp_path, model, optimizer)
    assert not (tmp_path / "executed").exists()


class _Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")
