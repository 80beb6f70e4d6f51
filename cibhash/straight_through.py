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


def bernoulli_straight_through(
    p: Tensor, generator: torch.Generator, *, first_row: int = 0, num_rows: int | None = None
) -> Tensor:
    """Codes drawn as +1 with probability p and -1 otherwise, whose gradient goes to `p` unchanged.

    Source: arXiv 2105.06138, b ~ Bernoulli(p) with a straight-through estimator, here as 2b - 1.

    Args:
        p: Bit probabilities, float (N, ...).
        generator: Source of the draws, on the device of `p`.
        first_row: Which row of a larger batch, for which all draws are made, the first row of `p` is.
        num_rows: Rows of that larger batch; default: N.

    Returns:
        Codes of +1 and -1, same shape and dtype; NaN where p is NaN.
    """
    # Half precision has too few uniform values to hit small probabilities.
    dtype = torch.promote_types(p.dtype, torch.float32)
    shape = (num_rows or len(p), *p.shape[1:])
    uniform = torch.rand(shape, generator=generator, dtype=dtype, device=p.device)
    return _with_identity_gradient(uniform[first_row : first_row + len(p)] < p, p)


def _with_identity_gradient(ones_NB: Tensor, p_NB: Tensor) -> Tensor:
    codes_NB = ones_NB.to(p_NB.dtype) * 2 - 1
    return codes_NB + (p_NB - p_NB.detach())
