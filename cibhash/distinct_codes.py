"""Equal codes brought together: which rows have which of the distinct codes.

Knows nothing of ids and of search.
"""

from typing import NamedTuple

import numpy as np

from cibhash.binary import as_words
from cibhash.types import Codes, Ids


class DistinctCodes(NamedTuple):
    """Rows by their code: those of distinct code c are `order[starts[c]:starts[c + 1]]`, ascending."""

    order: Ids
    """int64 (N,)."""
    starts: Ids
    """int64 (D + 1,), the last is N."""


def distinct_codes(codes: Codes) -> DistinctCodes:
    """Groups the rows of packed codes uint8 (N, B/8) by code; distinct codes come in the order of their words."""
    words = as_words(codes)
    order = np.lexsort(words).astype(np.int64, copy=False)
    is_first = np.ones(len(codes), np.bool_)
    is_first[1:] = np.any(words[:, order[1:]] != words[:, order[:-1]], axis=0)
    return DistinctCodes(order, np.append(np.flatnonzero(is_first), len(codes)))
