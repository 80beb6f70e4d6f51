"""Gathers a tensor over the ranks of a process group with its gradient; without a group, everything is rank 0 of 1.

Knows nothing of losses or of who started the group. Shapes: N rows on each rank, W ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's rank in the default group, 0 without one."""
    return dist.get_rank() if _has_group() else 0


def world_size() -> int:
    """Number of ranks of the default group, 1 without one."""
    return dist.get_world_size() if _has_group() else 1


def all_gather_with_gradient(x: Tensor) -> Tensor:
    """Concatenates the tensors of all ranks in rank order, keeping the gradient to each.

    The backward pass sums, over all ranks, the gradients that their losses give to this rank's rows. It is a
    collective: if one rank runs it, all must, in the same order as their other collectives.

    Args:
        x: (N, ...) with the same shape and dtype on every rank, and the same `requires_grad`. Finding out whether
            ranks differ would cost a collective of its own and is not done: unequal shapes fail or hang inside the
            backend, so equal batches per rank are the caller's duty.

    Returns:
        (W * N, ...): rows `rank * N` to `(rank + 1) * N` are this rank's. `x` itself when W is 1.

    Raises:
        ValueError: `x` has no dimension to gather along.
    """
    if x.ndim == 0:
        raise ValueError("a scalar cannot be gathered along its first dimension, expected shape (N, ...)")
    if world_size() == 1:
        return x
    gathered: Tensor = _AllGather.apply(x)
    return gathered


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gathered = x.new_empty((world_size() * x.shape[0], *x.shape[1:]))
        dist.all_gather_into_tensor(gathered, x.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        own = gradient.new_empty((gradient.shape[0] // world_size(), *gradient.shape[1:]))
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own
