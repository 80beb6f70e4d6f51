"""The CIBHash objective: contrast between the codes of two views, and a bottleneck on their probabilities.

Knows nothing of encoders, data or optimizers. Shapes: N images on this rank, G images on all ranks, B bits.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from cibhash.gather import all_gather_with_gradient, rank, world_size
from cibhash.straight_through import bernoulli_straight_through, sign_straight_through
from cibhash.types import LossTerms

CodeSampling = Literal["threshold", "bernoulli", "relaxed"]
_EPSILON = 1e-8
_ANCHOR_ROWS = 256


def nt_xent(codes_a: Tensor, codes_b: Tensor, temperature: float, *, gather: bool = False) -> Tensor:
    """Contrastive loss of the codes of two views, over cosine similarities divided by the temperature.

    Every code is an anchor; the other view of its image is the positive, and the denominator holds all codes but
    the anchor itself, the positive included. A batch of one image has no negatives and a loss of zero.

    Source: released code of arXiv 2105.06138, in value and in gradient. The codes are normalized before the product:
    dividing the product of +1/-1 codes by B has the same value but another gradient.

    Args:
        codes_a: Codes of the first view, float (N, B), row i of image i.
        codes_b: Codes of the second view, same shape.
        temperature: Above 0.
        gather: Whether the codes of all ranks, gathered with gradient, are the negatives. The anchors are this rank's
            alone: the mean of the loss over ranks, and the mean of the gradients that DDP takes, are those of one
            process with the global batch. Every rank must have the same N.

    Returns:
        Scalar, mean over the 2N anchors, float32 (float64 for float64 codes), also under autocast.

    Raises:
        ValueError: the shapes are not two equal (N, B) with N and B above 0, or `temperature` is not above 0.
    """
    _check_pair(codes_a, codes_b, "codes")
    _check_temperature(temperature)
    codes_GVB = _global_codes(codes_a, codes_b, gather)
    return _nt_xent_of_global(codes_GVB, codes_a.shape[0], temperature, gather)


def bernoulli_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence of factorized Bernoulli codes, KL(p || q), averaged over images.

    Source: released code of arXiv 2105.06138, with its 1e-8 inside every logarithm. Nothing is detached here.

    Args:
        p: Bit probabilities, float (N, B), in [0, 1].
        q: Bit probabilities, same shape.

    Returns:
        Scalar, nats per image: the sum over bits, averaged over N. float32, or float64 for float64 probabilities.

    Raises:
        ValueError: the shapes are not two equal (N, B) with N and B above 0.
    """
    _check_pair(p, q, "probabilities")
    return _kl_per_bit(p, q).sum()


def cibhash_loss(
    p_a: Tensor,
    p_b: Tensor,
    *,
    temperature: float = 0.3,
    beta: float = 0.001,
    prefixes: Sequence[int] = (),
    code_sampling: CodeSampling = "threshold",
    kl_stopgrad: bool = True,
    gather: bool = False,
    generator: torch.Generator | None = None,
) -> LossTerms:
    """The CIBHash loss of a batch: `total = contrastive + beta * kl`.

    The contrastive term is `nt_xent` of the codes; the bottleneck is `bernoulli_kl` of each view from the other,
    averaged over both directions. With prefixes each term is its mean over the first K bits, for every K of them.

    Source: arXiv 2105.06138; the defaults are those of the released code.

    Args:
        p_a: Bit probabilities of the first view, float (N, B), in [0, 1].
        p_b: Bit probabilities of the second view, same shape.
        temperature: Of the contrastive term, above 0.
        beta: Weight of the bottleneck, at least 0.
        prefixes: Lengths in bits that shall each work as a code of their own; none means B alone.
        code_sampling: `threshold` sets a bit where p > 0.5 (released code), `bernoulli` draws it with probability p
            (paper), `relaxed` contrasts 2p - 1 itself, which is thresholded only at test (ablation).
        kl_stopgrad: Whether the bottleneck gives no gradient to its second argument.
        gather: Whether the contrastive term takes its negatives from all ranks; see `nt_xent`. The bottleneck is a
            mean over this rank's images, which DDP's average over ranks completes.
        generator: Source of the draws of `bernoulli`, on the device of the probabilities; unused otherwise. In the
            same state on every rank, with `gather` or without: each draws for the images of all and takes its own, so
            that the draws do not depend on the number of ranks.

    Returns:
        The three scalars, with gradient.

    Raises:
        ValueError: a shape, the temperature, beta, a prefix or `code_sampling` is not as above, or `bernoulli` has
            no generator.
    """
    _check_pair(p_a, p_b, "probabilities")
    _check_temperature(temperature)
    if not beta >= 0:
        raise ValueError(f"beta is {beta}, expected at least 0")
    num_images, bits = p_a.shape
    lengths = tuple(prefixes) or (bits,)
    for length in lengths:
        if not 0 < length <= bits:
            raise ValueError(f"prefix of {length} bits, expected between 1 and the code length {bits}")

    codes_a, codes_b = _sample_codes(torch.stack((p_a, p_b), dim=1), code_sampling, generator).unbind(1)
    codes_GVB = _global_codes(codes_a, codes_b, gather)
    prior_a, prior_b = (p_a.detach(), p_b.detach()) if kl_stopgrad else (p_a, p_b)
    kl_B = (_kl_per_bit(p_a, prior_b) + _kl_per_bit(p_b, prior_a)) / 2
    contrastive, kl = [], []
    for length in lengths:
        contrastive.append(_nt_xent_of_global(codes_GVB[:, :, :length], num_images, temperature, gather))
        kl.append(kl_B[:length].sum())
    mean_contrastive, mean_kl = torch.stack(contrastive).mean(), torch.stack(kl).mean()
    return LossTerms(mean_contrastive + beta * mean_kl, mean_contrastive, mean_kl)


def _kl_per_bit(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of every bit, averaged over images, (B,)."""
    p_NB, q_NB = _at_least_float32(p), _at_least_float32(q)
    ones_NB = p_NB * (torch.log(p_NB + _EPSILON) - torch.log(q_NB + _EPSILON))
    zeros_NB = (1 - p_NB) * (torch.log(1 - p_NB + _EPSILON) - torch.log(1 - q_NB + _EPSILON))
    return (ones_NB + zeros_NB).mean(dim=0)


def _sample_codes(p_NVB: Tensor, code_sampling: str, generator: torch.Generator | None) -> Tensor:
    if code_sampling == "threshold":
        return sign_straight_through(p_NVB)
    if code_sampling == "relaxed":
        return 2 * p_NVB - 1
    if code_sampling != "bernoulli":
        raise ValueError(f"code_sampling is {code_sampling!r}, expected 'threshold', 'bernoulli' or 'relaxed'")
    if generator is None:
        raise ValueError("code_sampling 'bernoulli' needs a generator, got None")
    first, rows = rank() * len(p_NVB), world_size() * len(p_NVB)
    return bernoulli_straight_through(p_NVB, generator, first_row=first, num_rows=rows)


def _global_codes(codes_a: Tensor, codes_b: Tensor, gather: bool) -> Tensor:
    """Both views of every image, (G, 2, B), in one collective: two could run backward in another order per rank."""
    codes_NVB = _at_least_float32(torch.stack((codes_a, codes_b), dim=1))
    return all_gather_with_gradient(codes_NVB) if gather else codes_NVB


def _nt_xent_of_global(codes_GVB: Tensor, num_images: int, temperature: float, gather: bool) -> Tensor:
    # Autocast would compute the logits in half precision, whatever the dtype of the codes.
    with torch.autocast(codes_GVB.device.type, enabled=False):
        units = normalize(codes_GVB.transpose(0, 1).flatten(0, 1), dim=1)
        loss: Tensor = _NtXent.apply(units, rank() * num_images if gather else 0, num_images, temperature)
        return loss


class _NtXent(torch.autograd.Function):
    """NT-Xent with its gradient, by blocks of anchors: the whole matrix of logits is never there."""

    @staticmethod
    def forward(ctx: Any, units: Tensor, first: int, num_images: int, temperature: float) -> Tensor:
        """The mean over the anchors.

        Args:
            ctx: Of autograd.
            units: (2G, B) codes of length 1: all first views, then all second views.
            first: Image of the first anchor.
            num_images: N, whose two views each are anchors.
            temperature: Above 0.
        """
        total, gradient = units.new_zeros(()), torch.zeros_like(units)
        num_global = len(units) // 2
        for own, other in ((0, num_global), (num_global, 0)):
            for start in range(first, first + num_images, _ANCHOR_ROWS):
                stop = min(start + _ANCHOR_ROWS, first + num_images)
                anchors = units[own + start : own + stop]
                logits = torch.mm(anchors, units.T).div_(temperature)
                logits[:, own + start : own + stop].fill_diagonal_(-torch.inf)
                log_p = torch.log_softmax(logits, 1)
                total -= log_p[:, other + start : other + stop].diagonal().sum()
                if ctx.needs_input_grad[0]:
                    p = log_p.exp_()
                    p[:, other + start : other + stop].diagonal().sub_(1)
                    gradient[own + start : own + stop].addmm_(p, units)
                    gradient.addmm_(p.T, anchors)
        ctx.save_for_backward(gradient.div_(2 * num_images * temperature))
        return total / (2 * num_images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient to the codes."""
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None, None


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_pair(a: Tensor, b: Tensor, name: str) -> None:
    if a.shape != b.shape or a.ndim != 2 or a.numel() == 0:
        raise ValueError(f"{name} have shapes {tuple(a.shape)} and {tuple(b.shape)}, expected two equal (N, B)")


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected above 0")
