"""Exact search over all codes of a shard on a GPU.

Knows nothing of ids and rows. FAISS's search on a GPU is not used: which of several equally distant codes it returns is
undefined, and of codes nearly every answer ends inside such a group, so that it would have to be searched again.
"""

import threading

from cibhash import device_hamming
from cibhash.device_codes import device_codes
from cibhash.types import Codes, Distances, Ids

_TURN = threading.Lock()
"""A process searches one shard at a time on its device: one budget of scratch memory, however many threads ask."""


class DeviceFlat:
    """A copy of the codes on a device; safe to use from several threads."""

    def __init__(self, codes: Codes, device: str) -> None:
        """Takes packed codes uint8 (N, B/8) and copies them to the device, as torch names it.

        Raises:
            ConfigError: no such CUDA device, or the codes do not fit into its memory.
        """
        self._codes = device_codes(codes, device)

    def search(self, codes: Codes, k: int) -> tuple[Ids, Distances]:
        """Positions and distances (Q, k) of the k nearest; k is 1 to N."""
        with _TURN:
            return device_hamming.search(codes, self._codes, k)

    def range_search(self, codes: Codes, radius: int) -> tuple[Ids, Ids, Distances]:
        """Limits (Q + 1,), positions and distances of all codes within the inclusive radius."""
        with _TURN:
            return device_hamming.range_search(codes, self._codes, radius)
