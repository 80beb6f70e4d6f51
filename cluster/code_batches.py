"""A search for many codes as several requests, whose answers must come from one version of the index.

Knows nothing of how a request is sent. A service may change over to another version between two requests: what was
answered from another version than the last answer is asked again.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cibhash.binary import check_codes
from cibhash.types import PADDING_DISTANCE, PADDING_ID, Codes, Neighbors, RangeNeighbors
from cluster.service_errors import ServiceUnavailable

VERSION_ROUNDS = 4
"""How often at most the batches of a search are asked until all are answered from one version."""


class BatchAnswer(NamedTuple):
    """What one request brought."""

    neighbors: RangeNeighbors
    index_version: str


def code_batches(codes: Codes, k: int | None, radius: int | None, batch_size: int) -> list[Codes]:
    """The codes of each request.

    Raises:
        ValueError: they are not packed codes, or not exactly one of `k` and `radius` is given.
    """
    check_codes(codes, "codes")
    if (k is None) == (radius is None):
        raise ValueError("exactly one of k and radius is needed")
    return [codes[start : start + batch_size] for start in range(0, len(codes), batch_size)]


def unasked(num_batches: int, answers: Mapping[int, BatchAnswer]) -> list[int]:
    """Numbers of the batches that have no answer."""
    return [number for number in range(num_batches) if number not in answers]


def forget_stale(answers: dict[int, BatchAnswer], asked: Sequence[int]) -> None:
    """Drops answers of another version than the last of those just asked for: the service changed over meanwhile."""
    if asked:
        latest = answers[asked[-1]].index_version
        for number in [number for number, answer in answers.items() if answer.index_version != latest]:
            del answers[number]


def joined_answers(
    url: str, num_batches: int, answers: Mapping[int, BatchAnswer], k: int | None
) -> Neighbors | RangeNeighbors:
    """All answers as one, padded where `k` was asked for.

    Raises:
        ServiceUnavailable: some are missing, for none of their version was to be had.
    """
    if unasked(num_batches, answers):
        raise ServiceUnavailable(f"{url}: the index changes all the time: no answers from one version")
    joined = _joined([answers[number].neighbors for number in range(num_batches)])
    return joined if k is None else _padded(joined, k)


def _joined(answers: Sequence[RangeNeighbors]) -> RangeNeighbors:
    counts = np.concatenate([np.zeros(1, np.int64), *(np.diff(answer.limits) for answer in answers)])
    ids = np.concatenate([np.empty(0, np.int64), *(answer.ids for answer in answers)])
    distances = np.concatenate([np.empty(0, np.int32), *(answer.distances for answer in answers)])
    return RangeNeighbors(np.cumsum(counts), ids, distances)


def _padded(found: RangeNeighbors, k: int) -> Neighbors:
    counts = np.diff(found.limits)
    shape = (len(counts), k)
    padded = Neighbors(np.full(shape, PADDING_ID, np.int64), np.full(shape, PADDING_DISTANCE, np.int32))
    real = np.arange(k) < counts[:, None]
    padded.ids[real], padded.distances[real] = found.ids, found.distances
    return padded
