"""Probabilities into codes of +1 and -1 whose gradient passes straight through.

Knows nothing of losses and encoders. Shapes: N images, B bits.
"""

import torch
from torch import Tensor


def sign_straight_through(p_NB: Tensor) -> Tensor:
    """Codes +1 where p > 0.5 and -1 elsewhere, whose gradient goes to `p_NB` unchanged.

    Source: released code of arXiv 2105.06138, where p = 0.5 gave 0; here it gives -1.

    Args:
        p_NB: Bit probabilities, float (N, B).

    Returns:
        Codes of +1 and -1, same shape and dtype; NaN where p is NaN, so that a diverged run shows.
    """
    return _with_identity_gradient(p_NB > 0.5, p_NB)


def bernoulli_straight_through(p_NB: Tensor, generator: torch.Generator) -> Tensor:
    """Codes drawn as +1 with probability p and -1 otherwise, whose gradient goes to `p_NB` unchanged.

    Source: arXiv 2105.06138, b ~ Bernoulli(p) with a straight-through estimator, here as 2b - 1.

    Args:
        p_NB: Bit probabilities, float (N, B).
        generator: Source of the draws, on the device of `p_NB`.

    Returns:
        Codes of +1 and -1, same shape and dtype; NaN where p is NaN.
    """
    # Half precision has too few uniform values to hit small probabilities.
    dtype = torch.promote_types(p_NB.dtype, torch.float32)
    uniform_NB = torch.rand(p_NB.shape, generator=generator, dtype=dtype, device=p_NB.device)
    return _with_identity_gradient(uniform_NB < p_NB, p_NB)


def _with_identity_gradient(ones_NB: Tensor, p_NB: Tensor) -> Tensor:
    codes_NB = ones_NB.to(p_NB.dtype) * 2 - 1
    return codes_NB + (p_NB - p_NB.detach())
