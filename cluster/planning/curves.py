"""What was measured at a few sizes as a function of size: lines between the points, and beyond them.

Knows nothing of what is measured.
"""

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """What was measured at one size."""

    size: float
    value: float


class Curve:
    """Never falls: a point below one before it is raised to it, for what falls with size is noise.

    Between two points it is the line through them. Beyond the largest the line through the last two goes on; below the
    smallest the first one does, but never below 0. A single point is a constant.
    """

    def __init__(self, points: Sequence[Point], *, in_proportion: bool = False) -> None:
        """Takes points.

        Args:
            points: At least one, of different sizes.
            in_proportion: Beyond the largest it rises in proportion to the size at most, as what has a fixed cost and
                one by size does: more would be noise.

        Raises:
            ValueError: no points, or two of one size.
        """
        ordered = sorted(points)
        if not ordered or any(first.size == second.size for first, second in itertools.pairwise(ordered)):
            raise ValueError(f"{len(ordered)} points, expected at least one, of different sizes")
        highest = itertools.accumulate((point.value for point in ordered), max)
        self._in_proportion = in_proportion
        self.points = tuple(Point(point.size, value) for point, value in zip(ordered, highest, strict=True))

    def at(self, size: float) -> float:
        """The value at a size."""
        if len(self.points) == 1:
            return self.points[0].value
        place = bisect.bisect_right([point.size for point in self.points], size)
        first, second = self.points[min(max(place, 1), len(self.points) - 1) - 1 :][:2]
        slope = (second.value - first.value) / (second.size - first.size)
        if self._in_proportion and size > second.size > 0:
            return second.value + min(slope, second.value / second.size) * (size - second.size)
        return max(0.0, first.value + slope * (size - first.size))


class RecallCurve:
    """Share of the nearest that is found: what is missed grows by as much per doubling as between the largest sizes."""

    def __init__(self, points: Sequence[Point], unaided: float = 1.0) -> None:
        """Takes what was found.

        Args:
            points: At least one, of different sizes above 0, with values from 0 to 1.
            unaided: The most that is believed beyond the largest size.
        """
        self._missed = Curve([Point(math.log2(size), 1.0 - found) for size, found in points])
        self._largest, self._unaided = max(size for size, _ in points), unaided

    def at(self, count: float) -> float:
        """The share at a number of codes, at least 1."""
        found = max(0.0, 1.0 - min(1.0, self._missed.at(math.log2(count))))
        return min(found, self._unaided) if count > self._largest else found


class DistinctCurve:
    """How many of so many codes are distinct: a power of their number between two points and beyond the last."""

    def __init__(self, points: Sequence[Point], most: float) -> None:
        """Takes at least one point, of different sizes above 0, with values from 1; `most` is all that there are."""
        self._powers = Curve([Point(math.log(size), math.log(value)) for size, value in points])
        self._most = most

    def at(self, count: float) -> float:
        """Distinct codes among `count`, at least 1."""
        expected = math.exp(min(self._powers.at(math.log(count)), 700.0))
        return max(1.0, min(expected, count, self._most))
