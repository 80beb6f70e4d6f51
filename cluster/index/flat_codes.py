"""Exact search over all codes of a shard: compiled code where there is any, else FAISS.

Knows nothing of ids and rows. Both give the same answers.
"""

from cibhash import hamming
from cibhash.native.library import Level, library
from cibhash.types import Codes, Distances, Ids
from cluster.index.faiss_flat import FaissFlat
from cluster.index.searchable_codes import SearchableCodes


class CompiledFlat:
    """Searches the codes where they lie, in memory or in a file that is mapped into it."""

    def __init__(self, codes: Codes, threads: int) -> None:
        """Takes packed codes uint8 (N, B/8); a search shares its queries among the threads."""
        self._codes, self._threads = codes, threads

    def search(self, codes: Codes, k: int) -> tuple[Ids, Distances]:
        """Positions and distances (Q, k) of the k nearest; k is 1 to N."""
        return hamming.search(codes, self._codes, k, threads=self._threads)

    def range_search(self, codes: Codes, radius: int) -> tuple[Ids, Ids, Distances]:
        """Limits (Q + 1,), positions and distances of all codes within the inclusive radius."""
        return hamming.range_search(codes, self._codes, radius, threads=self._threads)


def flat_codes(codes: Codes, threads: int) -> SearchableCodes:
    """What searches these codes fastest on this machine: without AVX2 that is FAISS."""
    compiled = library()
    fast = compiled is not None and compiled.cibhash_level() >= Level.AVX2
    return CompiledFlat(codes, threads) if fast else FaissFlat(codes, threads)
