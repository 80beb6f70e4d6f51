"""Bits into packed codes and back.

Knows nothing of how bits arise, of torch and of search. Shapes: N images, B bits. Bit j of a packed code is byte j//8,
bit j%8 (little-endian within the byte); it is 1 where p > 0.5.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from cibhash.types import Codes


def pack_bits(bits: npt.ArrayLike) -> Codes:
    """Packs one bit per element into eight bits per byte.

    Args:
        bits: 0/1 or bool, (N, B), as a numpy array or a tensor on any device; B a positive multiple of 8.

    Returns:
        Packed codes, uint8 (N, B/8).

    Raises:
        ValueError: `bits` is not two-dimensional, B is not a positive multiple of 8, or a value is neither 0 nor 1.
    """
    tensor: Any = bits
    if hasattr(tensor, "detach"):
        # A torch tensor, told by its method so that numpy users need no torch; numpy has no bfloat16.
        bits = (tensor.detach().float() if tensor.is_floating_point() else tensor).cpu().numpy()
    bits_NB: npt.NDArray[Any] = np.asarray(bits)
    if bits_NB.ndim != 2:
        raise ValueError(f"bits have shape {bits_NB.shape}, expected (N, B)")
    check_code_length(bits_NB.shape[1])
    ones_NB = bits_NB if bits_NB.dtype == np.bool_ else bits_NB == 1
    if ones_NB is not bits_NB:
        wrong_NB = ~ones_NB & (bits_NB != 0)
        if wrong_NB.any():
            raise ValueError(f"bits contain {bits_NB[wrong_NB][0]}, expected only 0 and 1")
    return np.packbits(ones_NB, axis=1, bitorder="little")


def unpack_bits(packed: Codes) -> npt.NDArray[np.uint8]:
    """Unpacks codes into one 0/1 element per bit; the inverse of `pack_bits`.

    Args:
        packed: Packed codes, uint8 (N, B/8).

    Returns:
        uint8 (N, B), each 0 or 1.

    Raises:
        ValueError: `packed` is not a packed code array.
    """
    check_codes(packed, "packed")
    return np.unpackbits(packed, axis=1, bitorder="little")


def prefix(codes: Codes, bits: int) -> Codes:
    """Takes the first `bits` bits of every code, which are a shorter code of a nested encoder.

    Args:
        codes: Packed codes, uint8 (N, B/8).
        bits: Length of the prefix, a positive multiple of 8, at most B.

    Returns:
        Packed codes, uint8 (N, bits/8), contiguous.

    Raises:
        ValueError: `codes` is not a packed code array, or `bits` is not a possible prefix of it.
    """
    check_codes(codes, "codes")
    check_code_length(bits)
    if bits > 8 * codes.shape[1]:
        raise ValueError(f"a prefix of {bits} bits was asked of codes of {8 * codes.shape[1]} bits")
    return np.ascontiguousarray(codes[:, : bits // 8])


def check_code_length(bits: int) -> None:
    """Refuses a code length that cannot be packed.

    Raises:
        ValueError: `bits` is not a positive multiple of 8.
    """
    if bits <= 0 or bits % 8:
        raise ValueError(f"code length is {bits} bits, expected a positive multiple of 8")


def check_codes(codes: Codes, name: str) -> None:
    """Refuses what is not an array of packed codes; `name` is how the message calls it.

    Raises:
        ValueError: `codes` is not a numpy array of dtype uint8 and shape (N, bytes) with at least one byte per code.
    """
    if not isinstance(codes, np.ndarray):
        raise ValueError(f"{name} is {type(codes).__name__}, expected a numpy array of packed codes, uint8 (N, B/8)")  # noqa: TRY004
    if codes.dtype != np.uint8:
        raise ValueError(f"{name} has dtype {codes.dtype}, expected packed codes of dtype uint8")
    if codes.ndim != 2 or codes.shape[1] == 0:
        raise ValueError(f"{name} has shape {codes.shape}, expected packed codes of shape (N, B/8)")


def as_words(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Views packed rows as the fewest unsigned integers of equal size, for bitwise work on whole words.

    Args:
        codes: Packed codes or label masks, uint8 (N, bytes).

    Returns:
        (words, N), each word contiguous over N; the bits that pad a last word are zero.
    """
    width = codes.shape[1]
    size = next(size for size in (1, 2, 4, 8) if size >= min(width, 8))
    padded = np.pad(codes, ((0, 0), (0, -width % size))) if width % size else codes
    return np.ascontiguousarray(np.ascontiguousarray(padded).view(f"u{size}").T)
