"""Equal images and equal keys, within datasets and across them, out of the digests of all images.

Knows nothing of shards and of names: a row is an image, rows of a dataset lie together, and in shard order. The driver
holds 32 bytes per image, and about 80 while it sorts: 8 GB for a hundred million images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.doctor.scan import Digests

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Repeats:
    """Rows that repeat an earlier one."""

    rows: Rows
    """int64 (R,), ascending."""
    firsts: Rows
    """int64 (R,): the row that each repeats."""


@dataclass(frozen=True)
class Shared:
    """Images that two datasets share."""

    first: int
    """Number of the dataset whose rows are counted."""
    second: int
    repeats: Repeats
    """Rows of the first dataset, each with the first equal row of the second."""


class EqualRows:
    """Groups of rows with equal digests; groups of one are left out."""

    def __init__(self, digests: Digests, starts: Sequence[int]) -> None:
        """Sorts the digests.

        Args:
            digests: uint64 (N,) or (N, D).
            starts: First row of each dataset, ascending, and N at the end.
        """
        columns = digests[:, None] if digests.ndim == 1 else digests
        order = np.lexsort(columns.T[::-1]) if len(columns) else np.empty(0, np.int64)
        equal = np.zeros(len(order) + 1, bool)  # a sorted row equals the one before it
        equal[1:-1] = True
        for column in columns.T:
            values = column[order]
            equal[1:-1] &= values[1:] == values[:-1]
        grouped = equal[1:] | equal[:-1]
        self.rows: Rows = order[grouped]
        """Group by group, ascending within each."""
        self.heads: Rows = np.flatnonzero(~equal[:-1][grouped])
        """Where each group begins in `rows`."""
        sizes = np.diff(np.append(self.heads, len(self.rows)))
        self.group: Rows = np.repeat(np.arange(len(self.heads)), sizes)
        self.dataset: Rows = np.searchsorted(np.asarray(starts), self.rows, side="right") - 1
        """Of each of `rows`."""

    def within(self) -> Repeats:
        """Rows that repeat an earlier one of their dataset."""
        firsts = _firsts(self.rows, self.group * (int(self.dataset.max(initial=0)) + 1) + self.dataset)
        return _sorted(self.rows[firsts != self.rows], firsts[firsts != self.rows])

    def across(self) -> list[Shared]:
        """Every pair of datasets that share something."""
        number_of_datasets = int(self.dataset.max(initial=-1)) + 1
        first_rows = np.full((number_of_datasets, len(self.heads)), -1, np.int64)
        for dataset in range(number_of_datasets):
            mine = np.flatnonzero(self.dataset == dataset)[::-1]
            first_rows[dataset, self.group[mine]] = self.rows[mine]
        found = []
        for first in range(number_of_datasets):
            mine = self.dataset == first
            rows, groups = self.rows[mine], self.group[mine]
            for second in range(number_of_datasets):
                there = first_rows[second, groups]
                if second != first and (there >= 0).any():
                    found.append(Shared(first, second, _sorted(rows[there >= 0], there[there >= 0])))
        return found

    def in_conflict(self, values: Digests) -> Repeats:
        """Rows whose value differs from that of the first row of their group that has one.

        Args:
            values: uint64 (N,); 0: the row has none.
        """
        having = np.flatnonzero(values[self.rows] != 0)
        rows, group = self.rows[having], self.group[having]
        firsts = _firsts(rows, group)
        differs = values[rows] != values[firsts]
        return _sorted(rows[differs], firsts[differs])


def _firsts(rows: Rows, kind: Rows) -> Rows:
    """Per row the first row of its run of equal kinds."""
    is_head = np.append(True, kind[1:] != kind[:-1])[: len(kind)]
    firsts: Rows = rows[np.flatnonzero(is_head)[np.cumsum(is_head) - 1]]
    return firsts


def _sorted(rows: Rows, firsts: Rows) -> Repeats:
    order = np.argsort(rows, kind="stable")
    return Repeats(rows[order], firsts[order])
