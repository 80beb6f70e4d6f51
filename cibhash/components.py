"""Connected components of a graph given by its edges, by arrays alone.

Knows nothing of what the nodes are.
"""

import numpy as np

from cibhash.types import Ids


class Components:
    """Components of a graph whose edges come in portions, in any order and split anyhow.

    Every component is named by its smallest node.
    """

    def __init__(self, num_nodes: int) -> None:
        """Begins with every node by itself."""
        self._smallest = np.arange(num_nodes, dtype=np.int64)

    @property
    def smallest(self) -> Ids:
        """int64 (N,): the smallest node of each node's component."""
        return self._smallest

    def join(self, first: Ids, second: Ids) -> None:
        """Adds edges, int64 (E,) each.

        In every round each component hooks onto the smallest one that it touches, so their number at least halves.
        """
        names = self._smallest
        first, second = names[first], names[second]
        while (apart := first != second).any():
            first, second = first[apart], second[apart]
            np.minimum.at(names, np.maximum(first, second), np.minimum(first, second))
            while not np.array_equal(names, names := names[names]):
                pass
            first, second = names[first], names[second]
        self._smallest = names

    def edges(self) -> tuple[Ids, Ids]:
        """Fewer edges than nodes that make the same components: from its smallest node to every other one."""
        others = np.flatnonzero(self._smallest != np.arange(len(self._smallest)))
        return self._smallest[others], others
