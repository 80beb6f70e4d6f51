"""The classes of the queries: means over the queries of each label.

Knows nothing of codes. A query with several labels counts for each of them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cibhash.relevance import NO_LABEL
from cibhash.types import Ids
from cluster.code_tables import label_lists
from cluster.evaluation.results import QueryClass

MAX_CLASSES = 1000
"""With more of them, results are not told apart by class."""


@dataclass(frozen=True)
class QueryClasses:
    """Which queries have which label."""

    labels: Ids
    """int64 (C,), ascending."""
    counts: npt.NDArray[np.int64]
    """Queries of each, (C,)."""
    members: npt.NDArray[np.int64]
    """int64 (2, M): positions of query and class, each pair once."""

    def means(self, values: npt.NDArray[np.float64]) -> tuple[float, ...]:
        """Means over the queries of each class of what each query has, float64 (Q,)."""
        queries, classes = self.members
        sums = np.bincount(classes, weights=values[queries], minlength=len(self.labels))
        return tuple((sums / self.counts).tolist())

    def first_label(self, num_queries: int) -> Ids:
        """The smallest label of each query, int64 (Q,), -1 for none."""
        labels = np.full(num_queries, NO_LABEL, np.int64)
        queries, places = self.members[:, ::-1]
        labels[queries] = self.labels[places]
        return labels

    def records(self, names: dict[str, str]) -> tuple[QueryClass, ...]:
        """What results say of the classes."""
        pairs = zip(self.labels.tolist(), self.counts.tolist(), strict=True)
        return tuple(QueryClass(label=one, name=names.get(str(one), ""), queries=count) for one, count in pairs)


def query_classes(table: pa.Table) -> QueryClasses:
    """The classes of the rows of a table with the column `labels`; none where there are more than `MAX_CLASSES`."""
    limits, values = label_lists(table)
    labels, places = np.unique(values, return_inverse=True)
    if len(labels) > MAX_CLASSES:
        return QueryClasses(labels[:0], np.empty(0, np.int64), np.empty((2, 0), np.int64))
    queries = np.repeat(np.arange(len(limits) - 1), np.diff(limits))
    members = np.unique(np.stack([queries, places]), axis=1)
    return QueryClasses(labels, np.bincount(members[1], minlength=len(labels)), members)
