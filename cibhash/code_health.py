"""Health of the codes of a held-out slice: balance, entropy and redundancy of bits, distinct codes, agreement of views.

Knows nothing of encoders, training and limits; `cibhash.collapse` says what is too little. Shapes: N images, B bits.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cibhash.binary import pack_bits, unpack_bits

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CodeHealth:
    """Statistics of the codes of N images, and of a second view of each; shares are between 0 and 1."""

    num_images: int
    bits: int
    balance_deviation: float
    """Mean over bits of |share of ones - 0.5|: 0 is balanced, 0.5 is constant."""
    least_balanced_bit: int
    """Index of the bit whose share of ones is farthest from 0.5; the first of equals."""
    least_balanced_share: float
    """Its share of ones."""
    bit_entropy: float
    """Mean over bits of the entropy of the bit, in bits: 1 is balanced, 0 is constant."""
    mean_mutual_information: float
    """Mean over all pairs of different bits, in bits. Independent bits give about 0.72 / N, the bias of counts."""
    max_mutual_information: float
    """The largest over those pairs: 1 where two balanced bits are equal or opposite in every code."""
    num_dead_bits: int
    """Bits with one value in all N codes."""
    unique_ratio: float
    """Distinct codes divided by N."""
    largest_tie_block: float
    """Images that share the most frequent code, divided by N."""
    alignment: float
    """Mean share of equal bits of the two views of an image."""
    alignment_gap: float
    """Alignment less the mean share of equal bits of a first view and the second view of another image."""


def code_health(bits_a: npt.ArrayLike, bits_b: npt.ArrayLike) -> CodeHealth:
    """Statistics of the codes of the first view, and of how far the second view keeps them.

    Args:
        bits_a: 0/1 or bool, (N, B), as a numpy array or a tensor on any device; N at least 2, B a multiple of 8.
        bits_b: Bits of a second view of the same images, same shape.

    Raises:
        ValueError: a shape or value is not as above, or the shapes differ.
    """
    codes_a, codes_b = pack_bits(bits_a), pack_bits(bits_b)
    a_NB, b_NB = unpack_bits(codes_a), unpack_bits(codes_b)
    if a_NB.shape != b_NB.shape or len(a_NB) < 2:
        raise ValueError(f"bits have shapes {a_NB.shape} and {b_NB.shape}, expected two equal (N, B) with N at least 2")
    num_images, bits = a_NB.shape
    num_ones_B = a_NB.sum(axis=0, dtype=np.int64)
    # Integers, so that 3 of 10 and 7 of 10 are equally far from the middle.
    imbalance_B = np.abs(2 * num_ones_B - num_images)
    least_balanced = int(np.argmax(imbalance_B))
    information_P = _pairwise_mutual_information(a_NB)
    _, tie_blocks = np.unique(codes_a, axis=0, return_counts=True)
    alignment = float((a_NB == b_NB).mean())
    return CodeHealth(
        num_images=num_images,
        bits=bits,
        balance_deviation=float(imbalance_B.mean()) / (2 * num_images),
        least_balanced_bit=least_balanced,
        least_balanced_share=float(num_ones_B[least_balanced]) / num_images,
        bit_entropy=float(_bit_entropy(num_ones_B / num_images).mean()),
        mean_mutual_information=float(information_P.mean()),
        max_mutual_information=float(information_P.max()),
        num_dead_bits=int(np.sum(imbalance_B == num_images)),
        unique_ratio=len(tie_blocks) / num_images,
        largest_tie_block=int(tie_blocks.max()) / num_images,
        alignment=alignment,
        alignment_gap=alignment - _agreement_of_different_images(a_NB, b_NB),
    )


def mutual_information(both_BB: npt.NDArray[np.float64 | np.int64], num_images: int) -> _Floats:
    """I(X; Y) = H(X) + H(Y) - H(X, Y) of all pairs of bits, in bits, from counts that add up over parts of the codes.

    Args:
        both_BB: Codes in which both bits are 1, (B, B); the diagonal counts the ones of each bit.
        num_images: N, at least 1.

    Returns:
        float64 (B, B), symmetric; the diagonal is the entropy of each bit. Independent bits give about 0.72 / N.
    """
    ones_B = np.diagonal(both_BB)
    first_BB, second_BB = ones_B[:, None] - both_BB, ones_B[None, :] - both_BB
    neither_BB = num_images - both_BB - first_BB - second_BB
    joint_BB = sum(_surprise(count_BB / num_images) for count_BB in (both_BB, first_BB, second_BB, neither_BB))
    entropy_B = _bit_entropy(ones_B / num_images)
    # Rounding may leave -1e-16 where the information is 0.
    return np.maximum(entropy_B[:, None] + entropy_B[None, :] - joint_BB, 0)


def _pairwise_mutual_information(bits_NB: npt.NDArray[np.uint8]) -> _Floats:
    """Of all B (B - 1) / 2 pairs of different bits."""
    # float64 counts are exact, and its matrix product is many times faster than one of integers.
    ones_NB = bits_NB.astype(np.float64)
    return mutual_information(ones_NB.T @ ones_NB, len(bits_NB))[np.triu_indices(bits_NB.shape[1], k=1)]


def _agreement_of_different_images(a_NB: npt.NDArray[Any], b_NB: npt.NDArray[Any]) -> float:
    """Mean share of equal bits over all pairs of a first view and another image's second view, from counts of ones."""
    num_images = len(a_NB)
    ones_a, ones_b = (bits_NB.sum(axis=0, dtype=np.int64) for bits_NB in (a_NB, b_NB))
    all_pairs = ones_a * ones_b + (num_images - ones_a) * (num_images - ones_b)
    same_image = (a_NB == b_NB).sum(axis=0, dtype=np.int64)
    return float((all_pairs - same_image).mean()) / (num_images * (num_images - 1))


def _bit_entropy(share: _Floats) -> _Floats:
    return _surprise(share) + _surprise(1 - share)


def _surprise(probability: _Floats) -> _Floats:
    """-p log2 p, and 0 where p is 0."""
    positive = np.where(probability > 0, probability, 1)
    surprise: _Floats = -positive * np.log2(positive)
    return surprise
