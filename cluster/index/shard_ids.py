"""The ids of the codes of an index shard: an array, or a range, which costs no memory.

Knows nothing of files. Ids ascend and are unique, so the order of ids is that of positions.
"""

import numpy as np

from cibhash.types import Ids

AscendingIds = Ids | range
"""int64 (N,), ascending and unique, or a range with step 1."""


def compact(ids: Ids) -> AscendingIds:
    """The same ids as a range where they are contiguous."""
    if not len(ids):
        return range(0)
    first, last = int(ids[0]), int(ids[-1])
    return range(first, last + 1) if last - first + 1 == len(ids) else ids


def as_array(ids: AscendingIds, start: int = 0, stop: int | None = None) -> Ids:
    """The ids from one position up to another as int64; of an array, a view."""
    part = ids[start:stop]
    return np.arange(part.start, part.stop, dtype=np.int64) if isinstance(part, range) else part


def ids_at(ids: AscendingIds, positions: Ids) -> Ids:
    """The ids at some positions, each at least 0 and below N, in the shape of `positions`."""
    return positions + ids.start if isinstance(ids, range) else ids[positions]


def positions_of(ids: AscendingIds, wanted: Ids) -> Ids:
    """Where each wanted id stands, int64; -1 where it is none of `ids`."""
    if isinstance(ids, range):
        return np.where((wanted >= ids.start) & (wanted < ids.stop), wanted - ids.start, -1)
    places = np.searchsorted(ids, wanted)
    inside = places < len(ids)
    inside[inside] = ids[places[inside]] == wanted[inside]
    return np.where(inside, places, -1)
