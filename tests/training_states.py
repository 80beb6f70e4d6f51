"""A tiny training that can be looked up at any step, for tests that save and restore it."""

import torch
from torch import nn

from cibhash.checkpoint import Progress
from cibhash.loop import EpochStats
from cibhash.selection import CheckpointScores
from cluster.training.checkpoints import CheckpointStore


def trained(step: int) -> tuple[nn.Module, torch.optim.Optimizer, Progress]:
    """A small model after so many steps, its optimizer, and where its training stands."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for number in range(step):
        optimizer.zero_grad()
        model(torch.full((2, 5), number / 7)).square().sum().backward()
        optimizer.step()
    epoch = EpochStats(step // 4, step % 4, step % 4 * 8, 0.25 * step, (step / 3, step / 7, 0.1), 0.3)
    return model, optimizer, Progress(epoch, step)


def save(store: CheckpointStore, step: int, sep10: float | None = None) -> None:
    """Saves the training as it is after so many steps."""
    scores = None if sep10 is None else CheckpointScores(sep10, -sep10)
    store.save(*trained(step), scores)
