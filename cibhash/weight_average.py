"""A running average of the weights of what learns: less noise of the last steps in the codes, at no cost in steps.

Knows nothing of losses and optimizers. Source: Polyak & Juditsky 1992; exponential, with a shorter memory at the start,
so that the first weights are soon forgotten.
"""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import nn

LEARNED, AVERAGE = "learned", "average"


def with_average(learned: nn.Module) -> nn.ModuleDict:
    """What learns, as it is, beside a copy that is to follow it; checkpoints hold both."""
    average = copy.deepcopy(learned).requires_grad_(False)
    return nn.ModuleDict({LEARNED: learned, AVERAGE: average})


@torch.no_grad()
def follow(pair: nn.ModuleDict, decay: float, steps_done: int) -> None:
    """Moves the average towards what was learned: `average = d * average + (1 - d) * learned`.

    Args:
        pair: From `with_average`.
        decay: Of a step, in [0, 1); d is that, or `steps / (steps + 9)` while that is less.
        steps_done: Optimizer steps so far, this one included.
    """
    weight = 1 - min(decay, steps_done / (steps_done + 9))
    averages, learned = pair[AVERAGE].state_dict(), pair[LEARNED].state_dict()
    floats = [name for name, value in averages.items() if value.is_floating_point()]
    torch._foreach_lerp_([averages[name] for name in floats], [learned[name] for name in floats], weight)
    for name in averages.keys() - set(floats):
        averages[name].copy_(learned[name])


def take_average(part: nn.Module) -> None:
    """Replaces what was learned by its average; does nothing to a module without one."""
    if isinstance(part, nn.ModuleDict):
        part[LEARNED].load_state_dict(part[AVERAGE].state_dict())


@contextlib.contextmanager
def swapped_in(part: nn.Module) -> Iterator[None]:
    """The average in place of what was learned while the block runs; nothing changes for a module without one."""
    if not isinstance(part, nn.ModuleDict):
        yield
        return
    learned = {name: value.clone() for name, value in part[LEARNED].state_dict().items()}
    take_average(part)
    try:
        yield
    finally:
        part[LEARNED].load_state_dict(learned)
