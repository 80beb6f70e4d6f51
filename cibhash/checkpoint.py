"""Training checkpoints: trained weights, optimizer state and progress in a folder that vouches for itself.

Knows nothing of where the folder is kept. `progress.json` is written last and holds the digests of the others.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cibhash.errors import ManifestMismatch, NotFound
from cibhash.loop import EpochStats

WEIGHTS, OPTIMIZER, PROGRESS = "weights.safetensors", "optimizer.pt", "progress.json"
FILES = (WEIGHTS, OPTIMIZER, PROGRESS)


@dataclass(frozen=True)
class Progress:
    """Where training stands: random draws are keyed by seed, epoch and step, so there is no other state."""

    epoch: EpochStats
    """The epoch to go on with, and what it has done so far."""
    steps_done: int
    """Since the beginning."""


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Writes a checkpoint of what is trained."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}, folder / WEIGHTS)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    content = {**asdict(progress), "sha256": {name: _digest(folder / name) for name in (WEIGHTS, OPTIMIZER)}}
    (folder / PROGRESS).write_text(json.dumps(content) + "\n")


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Progress:
    """Restores weights and, if given, the optimizer, once all files have proved to be the ones that were saved.

    Raises:
        NotFound: a half-written checkpoint.
        ManifestMismatch: a file differs from its digest.
    """
    try:
        content: dict[str, Any] = json.loads((folder / PROGRESS).read_bytes())
        epoch = EpochStats(**{**content["epoch"], "sums": tuple(content["epoch"]["sums"])})
        progress, digests = Progress(epoch, content["steps_done"]), dict(content["sha256"])
    except FileNotFoundError:
        raise NotFound(f"{folder}: not a complete checkpoint: {PROGRESS} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestMismatch(f"{folder / PROGRESS}: not a checkpoint's record: {error!r}") from None
    for name in (WEIGHTS, OPTIMIZER):
        expected = digests.get(name, "")
        found = _digest(folder / name)
        if found != expected:
            raise ManifestMismatch(f"{folder / name}: sha256 {found[:16]}..., {PROGRESS} says {expected[:16]}...")
    model.load_state_dict(load_file(folder / WEIGHTS))
    if optimizer is not None:
        optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True))
    return progress


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise NotFound(f"{path}: missing from its checkpoint") from None
