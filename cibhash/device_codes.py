"""Packed codes on a torch device, as a GPU, for a search there.

Knows nothing of searching. Shapes: N codes, B bits, W words of 64 bits per code.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cibhash.binary import as_words, check_codes
from cibhash.errors import ConfigError
from cibhash.hamming import id_order
from cibhash.types import Codes, Ids

MAX_BITS = 512
_UPLOAD_CODES = 2**22


@dataclass(frozen=True)
class DeviceCodes:
    """A database on a device; made by `device_codes`."""

    words: Tensor
    """int64 (W, N), each word contiguous over N, in the order of the ids; the bits that pad a last word are zero."""
    bits: int
    """Code length."""
    ids: Ids | None
    """int64 (N,) ascending; None where they are the positions."""
    order: Ids | None
    """int64 (N,): which of the codes as they were given is at each position; None where they are in order."""

    def __len__(self) -> int:
        return self.words.shape[1]


def check_device(device: str | torch.device) -> torch.device:
    """The device, which is there.

    Raises:
        ConfigError: it is a CUDA device and not there.
        ValueError: there is no such kind of device.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r}: {str(error).splitlines()[0]}") from None
    if found.type == "cuda":
        if not torch.cuda.is_available():
            why = "there is no driver or no GPU" if torch.version.cuda else "this torch is built without CUDA"
            raise ConfigError(f"no CUDA device: {found} was asked for, but torch {torch.__version__} sees none, {why}")
        if (found.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"no CUDA device: {found} was asked for, torch sees {torch.cuda.device_count()}")
    return found


def device_codes(codes: Codes, device: str | torch.device, *, ids: Ids | None = None) -> DeviceCodes:
    """Copies a database to a device, 8 bytes there for every 64 bits or part of them.

    Args:
        codes: Packed codes, uint8 (N, B/8), of 8 to 512 bits; may be mapped from a file.
        device: As torch names it: `cpu`, `cuda`, `cuda:1`.
        ids: Id of each code, int64 (N,), in any order; 0 to N - 1 if absent.

    Raises:
        ConfigError: no such CUDA device, or the codes do not fit into its memory.
        ValueError: `codes` is not a packed code array or too wide, or `ids` do not fit.
    """
    check_codes(codes, "database")
    bits = 8 * codes.shape[1]
    if bits > MAX_BITS:
        raise ValueError(f"codes of {bits} bits, expected at most {MAX_BITS} on a device")
    order, sorted_ids = (None, None) if ids is None else id_order(ids, len(codes))
    target = check_device(device)
    shape = (-(-bits // 64), len(codes))
    try:
        words = torch.empty(shape, dtype=torch.int64, device=target)
    except torch.OutOfMemoryError:
        raise ConfigError(f"{target}: no room for {len(codes)} codes, {8 * shape[0] * shape[1]} bytes") from None
    for columns in ranges(len(codes), _UPLOAD_CODES):
        words[:, columns] = to_words(codes[columns] if order is None else codes[order[columns]]).to(target)
    return DeviceCodes(words, bits, sorted_ids, order)


def to_words(codes: npt.NDArray[np.uint8]) -> Tensor:
    """Packed codes or label masks, uint8 (N, bytes), as int64 (W, N); the bits that pad a last word are zero."""
    missing = max(8, codes.shape[1] + -codes.shape[1] % 8) - codes.shape[1]
    padded = np.pad(codes, ((0, 0), (0, missing))) if missing else codes
    # torch warns of memory that cannot be written, as that of a mapped file.
    return torch.from_numpy(np.require(as_words(padded).view(np.int64), requirements=("A", "W")))


def ranges(count: int, step: int) -> Iterator[slice]:
    """Ranges of at most `step`, together 0 to `count`."""
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))
