"""The training loop: steps over any iterable of pairs of views, with or without a process group.

Knows nothing of Ray, of where views come from and of where checkpoints go. Every rank sees the same statistics of
every step, so whatever is decided from them is decided by all.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from torch import Tensor

from cibhash.errors import TrainingDiverged
from cibhash.gather import world_size
from cibhash.objective import CodeSampling, cibhash_loss
from cibhash.types import Ids, ViewBatch

_DRAWS = 5


@dataclass(frozen=True)
class Objective:
    """The CIBHash objective's settings, as `cibhash.objective.cibhash_loss` takes them."""

    prefixes: tuple[int, ...]
    temperature: float = 0.3
    beta: float = 0.001
    code_sampling: CodeSampling = "threshold"
    kl_stopgrad: bool = True
    negatives: Literal["global", "local"] = "global"
    """Whose codes are the negatives of an image: those of all workers' images, or of its own worker's alone."""


@dataclass(frozen=True)
class StepStats:
    """One step, over all workers."""

    epoch: int
    step: int
    """Within the epoch, from 0."""
    loss: float
    contrastive: float
    kl: float
    bit_entropy: float
    """Entropy of the bits' marginals over the global batch, mean over bits, in bits: 1 is balanced, 0 is constant."""
    minority: float
    """Mean over bits of how often the bit has its rarer value in the global batch: near 0 all codes are the same."""
    images: int
    """Of the global batch."""
    seconds: float
    """Since the step before, on this worker: waiting for views included."""


@dataclass(frozen=True)
class EpochStats:
    """Sums over the steps of one epoch so far; the means are over those steps."""

    epoch: int
    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of loss, contrastive term and KL."""
    bit_entropy: float = 0.0
    """Of the last step."""

    @property
    def loss(self) -> float:
        """Mean over the steps."""
        return self.sums[0] / max(self.steps, 1)

    @property
    def contrastive(self) -> float:
        """Mean over the steps."""
        return self.sums[1] / max(self.steps, 1)

    @property
    def kl(self) -> float:
        """Mean over the steps."""
        return self.sums[2] / max(self.steps, 1)

    def plus(self, step: StepStats) -> "EpochStats":
        """With one more step."""
        loss, contrastive, kl = self.sums
        return EpochStats(
            self.epoch,
            self.steps + 1,
            self.images + step.images,
            self.seconds + step.seconds,
            (loss + step.loss, contrastive + step.contrastive, kl + step.kl),
            step.bit_entropy,
        )


class NotFiniteLoss(TrainingDiverged):
    """A loss that is NaN or infinite; every rank raises it at the same step."""

    def __init__(self, message: str, epoch: int = 0, step: int = 0, ids: Ids | None = None) -> None:
        super().__init__(message)
        self.epoch, self.step = epoch, step
        self.ids = np.zeros(0, np.int64) if ids is None else ids
        """Of this rank's images of the step."""


def train_epoch(
    project: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[ViewBatch],
    objective: Objective,
    *,
    epoch: int,
    so_far: EpochStats | None = None,
    seed: int = 0,
    after_step: Callable[[StepStats, EpochStats], None] | None = None,
) -> EpochStats:
    """Trains one epoch, or the rest of one.

    Args:
        project: Maps stacked views (2N, ...) to logits (2N, B); a DDP module under a process group.
        optimizer: Over the parameters of `project`.
        batches: The steps that are left of the epoch, on the device of `project`.
        objective: Settings of the loss.
        epoch: From 0.
        so_far: Statistics of the steps of this epoch that were done before; default: none were.
        seed: Of Bernoulli code sampling, keyed by epoch and step: the draws do not depend on the number of workers.
        after_step: Called on every rank after every step, with its statistics and the epoch's so far.

    Returns:
        Statistics of the whole epoch.

    Raises:
        NotFiniteLoss: a worker's loss is not finite, before the optimizer has seen it.
    """
    stats = so_far or EpochStats(epoch)
    begun = time.monotonic()
    for batch in batches:
        generator = torch.Generator(batch.view_a.device).manual_seed(_draw_seed(seed, epoch, stats.steps))
        probabilities = torch.sigmoid(project(torch.cat([batch.view_a, batch.view_b])).float())
        p_a, p_b = probabilities.chunk(2)
        terms = cibhash_loss(
            p_a,
            p_b,
            temperature=objective.temperature,
            beta=objective.beta,
            prefixes=objective.prefixes,
            code_sampling=objective.code_sampling,
            kl_stopgrad=objective.kl_stopgrad,
            gather=world_size() > 1 and objective.negatives == "global",
            generator=generator,
        )
        optimizer.zero_grad(set_to_none=True)
        terms.total.backward()  # type: ignore[no-untyped-call]
        values = _over_workers(torch.stack([term.detach() for term in terms]), probabilities.detach())
        if not math.isfinite(values.sum()):
            raise NotFiniteLoss(
                f"the loss is {values[0]} at epoch {epoch}, step {stats.steps}", epoch, stats.steps, batch.ids
            )
        optimizer.step()
        now = time.monotonic()
        loss, contrastive, kl = (float(value) for value in values[:3])
        images = len(batch.view_a) * world_size()
        ones = values[3:]
        minority = float(np.minimum(ones, 1 - ones).mean())
        step = StepStats(epoch, stats.steps, loss, contrastive, kl, _bit_entropy(ones), minority, images, now - begun)
        stats, begun = stats.plus(step), now
        if after_step is not None:
            after_step(step, stats)
    return stats


def _over_workers(terms: Tensor, probabilities: Tensor) -> npt.NDArray[np.float64]:
    """Means over all workers, float64 (3 + B,): the three terms, and how often each bit is 1; one transfer."""
    values = torch.cat([terms.double(), (probabilities > 0.5).double().mean(0)])
    if world_size() > 1:
        torch.distributed.all_reduce(values)
    return values.cpu().numpy() / world_size()


def _bit_entropy(ones: npt.NDArray[np.float64]) -> float:
    """Mean over bits of the binary entropy of how often the bit is 1, in bits."""
    both = np.stack([ones, 1 - ones])
    return float(-np.sum(both * np.log2(both, out=np.zeros_like(both), where=both > 0)) / len(ones))


def _draw_seed(seed: int, epoch: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, step, _DRAWS]).generate_state(1, np.uint64)[0] >> 1)
