"""Which shards of an index version each deployment of the service holds.

Knows nothing of what is in them. A service has a fixed number of slots, a deployment each; a version may have more or
fewer shards.
"""

from collections.abc import Sequence
from typing import NamedTuple

from cibhash.errors import CIBHashError


class Placement(NamedTuple):
    """What the slots of a service are of. While it is deployed anew, replicas of before and after are asked alike."""

    index_uri: str
    num_slots: int


class Misplaced(CIBHashError):
    """A replica holds something else than what it is asked about; another one may not."""


def deal(counts: Sequence[int], num_slots: int) -> tuple[tuple[int, ...], ...]:
    """The shards of every slot: each goes where the fewest codes are so far; those of before stay when some are added.

    Args:
        counts: Codes per shard.
        num_slots: At least 1.

    Returns:
        Per slot the numbers of its shards, ascending; as many slots as shards have one each.
    """
    slots: list[list[int]] = [[] for _ in range(num_slots)]
    loads = [(0, 0)] * num_slots
    for number, count in enumerate(counts):
        slot = loads.index(min(loads))
        slots[slot].append(number)
        loads[slot] = (loads[slot][0] + count, loads[slot][1] + 1)
    return tuple(map(tuple, slots))
