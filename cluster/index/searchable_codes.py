"""What every kind of index does with the codes of a shard.

Knows nothing of ids and rows, and of how it is done.
"""

from typing import Protocol

from cibhash.types import Codes, Distances, Ids


class SearchableCodes(Protocol):
    """N codes that can be searched by position, from several threads too.

    Answers come in the order of (distance, position), and every distance is the Hamming distance.
    """

    def search(self, codes: Codes, k: int) -> tuple[Ids, Distances]:
        """Positions and distances (Q, k) of the k nearest; k is 1 to N. Approximate kinds may miss some of them."""
        ...

    def range_search(self, codes: Codes, radius: int) -> tuple[Ids, Ids, Distances]:
        """Limits (Q + 1,), positions and distances of all codes within the inclusive radius; exact for every kind."""
        ...
