"""Checkpoints: what is saved comes back, and nothing damaged or unfinished is loaded."""

from pathlib import Path

import pytest
import torch
from torch import nn

from cibhash.checkpoint import OPTIMIZER, PROGRESS, WEIGHTS, Progress, load_checkpoint, save_checkpoint
from cibhash.errors import ManifestMismatch, NotFound


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
    save_checkpoint(tmp_path, model, optimizer, Progress(epochs_done=2, steps_done=4))
    resumed, resumed_optimizer = _trained(0)
    assert load_checkpoint(tmp_path, resumed, resumed_optimizer) == Progress(2, 4)
    for one in ((model, optimizer), (resumed, resumed_optimizer)):
        _step(*one, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_weights_alone_can_be_restored(tmp_path: Path) -> None:
    model, optimizer = _trained(2)
    save_checkpoint(tmp_path, model, optimizer, Progress(1, 2))
    other, _ = _trained(0)
    load_checkpoint(tmp_path, other)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER])
@pytest.mark.parametrize("damage", ["flip", "cut", "longer"])
def test_damage_is_found_before_anything_is_loaded(tmp_path: Path, name: str, damage: str) -> None:
    model, optimizer = _trained(2)
    save_checkpoint(tmp_path, model, optimizer, Progress(1, 2))
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
    save_checkpoint(tmp_path, model, optimizer, Progress(1, 1))
    (tmp_path / name).unlink()
    with pytest.raises(NotFound, match=name):
        load_checkpoint(tmp_path, model, optimizer)


def test_a_broken_progress_record_is_a_mismatch(tmp_path: Path) -> None:
    model, optimizer = _trained(1)
    save_checkpoint(tmp_path, model, optimizer, Progress(1, 1))
    for content in ('{"epochs_done": 1,', "{}", "[]"):
        (tmp_path / PROGRESS).write_text(content)
        with pytest.raises(ManifestMismatch, match=PROGRESS):
            load_checkpoint(tmp_path, model, optimizer)


def test_optimizer_state_never_runs_code(tmp_path: Path) -> None:
    """A pickle bomb with a matching digest is refused all the same."""
    import hashlib
    import json

    model, optimizer = _trained(1)
    save_checkpoint(tmp_path, model, optimizer, Progress(1, 1))
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
