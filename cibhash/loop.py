"""The training loop: one epoch over any iterable of pairs of views, with or without a process group.

Knows nothing of Ray, of where views come from and of where checkpoints go.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed
from torch import Tensor

from cibhash.errors import TrainingDiverged
from cibhash.gather import world_size
from cibhash.objective import cibhash_loss


@dataclass(frozen=True)
class Objective:
    """The CIBHash objective's settings, as `cibhash.objective.cibhash_loss` takes them."""

    prefixes: tuple[int, ...]
    temperature: float = 0.3
    beta: float = 0.001
    code_sampling: Literal["threshold", "bernoulli"] = "threshold"


@dataclass(frozen=True)
class EpochStats:
    """Means over the steps of one epoch and over all workers."""

    epoch: int
    steps: int
    loss: float
    contrastive: float
    kl: float
    bit_entropy: float
    """Entropy of the bits' marginals over the epoch's last batch, mean over bits, in bits: 1 is balanced, 0 is dead."""


def train_epoch(
    project: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    pairs: Iterable[tuple[Tensor, Tensor]],
    objective: Objective,
    *,
    epoch: int,
    generator: torch.Generator | None = None,
) -> EpochStats:
    """Trains one epoch; codes are gathered over workers with gradient, so negatives are the global batch's.

    Args:
        project: Maps stacked views (2N, ...) to logits (2N, B); a DDP module under a process group.
        optimizer: Over the parameters of `project`.
        pairs: Per step two views (N, ...) of the same N images, on the device of `project`.
        objective: Settings of the loss.
        epoch: For messages and statistics.
        generator: Of Bernoulli code sampling.

    Raises:
        TrainingDiverged: the loss is not finite; names epoch and step.
    """
    sums, steps = torch.zeros(3, dtype=torch.float64), 0
    probabilities = torch.empty(0)
    for view_a, view_b in pairs:
        probabilities = torch.sigmoid(project(torch.cat([view_a, view_b])))
        p_a, p_b = probabilities.chunk(2)
        terms = cibhash_loss(
            p_a,
            p_b,
            temperature=objective.temperature,
            beta=objective.beta,
            prefixes=objective.prefixes,
            code_sampling=objective.code_sampling,
            gather=world_size() > 1,
            generator=generator,
        )
        values = torch.stack([term.detach().double().cpu() for term in terms])
        if not math.isfinite(float(values[0])):
            raise TrainingDiverged(f"the loss is {float(values[0])} at epoch {epoch}, step {steps}")
        optimizer.zero_grad(set_to_none=True)
        terms.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        sums += values
        steps += 1
    means = sums / max(steps, 1)
    if world_size() > 1:
        on_device = means.to(probabilities.device)
        torch.distributed.all_reduce(on_device)
        means = on_device.cpu() / world_size()
    loss, contrastive, kl = means.tolist()
    return EpochStats(epoch, steps, loss, contrastive, kl, _bit_entropy(probabilities))


def _bit_entropy(probabilities: Tensor) -> float:
    """Mean over bits of the binary entropy of how often the bit is 1, in bits."""
    ones = (probabilities > 0.5).double().mean(0)
    terms = torch.special.entr(ones) + torch.special.entr(1 - ones)
    return float(terms.mean() / math.log(2)) if len(probabilities) else 0.0
