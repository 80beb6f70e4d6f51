"""Hamming distances between codes on a torch device.

Knows nothing of blocks, budgets and orders. Shapes: q queries, n codes, B bits, W words of 64 bits per code. Codes are
int64 (W, n); the bits that pad a last word are zero.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_PRODUCT_QUERIES = 8
"""Queries from which on a matrix product repays unpacking the codes."""

_PRODUCT_TYPES = {"cuda": torch.float16}
"""By kind of device, what it multiplies fast; float32 elsewhere. Both are exact here."""


def bytes_per_code(num_queries: int, bits: int) -> int:
    """Device memory at most that distances from so many queries take per code, while they are made and after."""
    return 40 * num_queries if num_queries < _PRODUCT_QUERIES else 8 * (num_queries + bits)


def distances_from(query_words: Tensor, bits: int) -> Callable[[Tensor], Tensor]:
    """The function from codes (W, n) to their distances from these queries (W, q).

    Distances (q, n) are whole numbers of an integer or a floating type. For many queries they are matrix products, for
    few the bits that differ are counted.
    """
    if query_words.shape[1] < _PRODUCT_QUERIES:
        return lambda words: _count_differences(query_words, words)
    halves_qB = _signs(query_words, bits) * -0.5

    def by_product(words: Tensor) -> Tensor:
        # Of codes of +1 and -1 the product is B - 2 distance. With halves on one side all sums are multiples of 0.5 up
        # to 256, which float16 holds exactly, as it does the distances: the order of summation does not matter.
        return (halves_qB @ _signs(words, bits).T).add_(bits / 2)

    return by_product


def _count_differences(query_words: Tensor, words: Tensor) -> Tensor:
    bytes_qn = _count_bytes(query_words[0][:, None] ^ words[0])
    for query_word, word in zip(query_words[1:], words[1:], strict=True):
        bytes_qn += _count_bytes(query_word[:, None] ^ word)
    return _sum_bytes(bytes_qn)


def _signs(words: Tensor, bits: int) -> Tensor:
    """Codes (W, n) as +1 and -1, floating (n, B)."""
    # A single code counts as contiguous whatever its stride, but only a copy has one that can be viewed as bytes.
    bytes_n = words.T.clone(memory_format=torch.contiguous_format).view(torch.uint8)[:, : bits // 8]
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device)
    ones = ((bytes_n[:, :, None] >> shifts) & 1).reshape(-1, bits)
    return ones.to(_PRODUCT_TYPES.get(words.device.type, torch.float32)).mul_(2).sub_(1)


def _count_bytes(words: Tensor) -> Tensor:
    """In every byte of int64 the number of its ones, in place: torch does not count bits."""
    words -= (words >> 1) & 0x5555555555555555
    fours = (words >> 2) & 0x3333333333333333
    words &= 0x3333333333333333
    words += fours
    words += words >> 4
    words &= 0x0F0F0F0F0F0F0F0F
    return words


def _sum_bytes(words: Tensor) -> Tensor:
    """Sum of the bytes of int64, each at most 64, int16; changes the words."""
    odd = (words >> 8) & 0x00FF00FF00FF00FF
    words &= 0x00FF00FF00FF00FF
    words += odd
    words += words >> 16
    words += words >> 32
    words &= 0xFFFF
    return words.to(torch.int16)
