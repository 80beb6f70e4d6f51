"""Curves through measured points, and beyond them."""

import math

import pytest

from cluster.planning.curves import Curve, DistinctCurve, Point, RecallCurve


def test_lines_between_and_beyond_the_points() -> None:
    curve = Curve([Point(10, 5.0), Point(1, 1.0), Point(20, 25.0)])
    assert [curve.at(size) for size in (1, 5.5, 10, 15, 20, 30)] == [1.0, 3.0, 5.0, 15.0, 25.0, 45.0]
    assert curve.at(0.1) == pytest.approx(0.6)
    assert Curve([Point(10, 1.0), Point(20, 11.0)]).at(1) == 0.0


def test_beyond_the_points_it_may_rise_in_proportion_at_most() -> None:
    noisy = Curve([Point(10, 1.0), Point(20, 8.0)], in_proportion=True)
    assert (noisy.at(20), noisy.at(40)) == (8.0, 16.0)
    fixed = Curve([Point(10, 5.0), Point(20, 7.0)], in_proportion=True)
    assert fixed.at(30) == 9.0


def test_a_curve_never_falls_whatever_noise_there_is() -> None:
    curve = Curve([Point(1, 4.0), Point(2, 3.0), Point(3, 5.0), Point(4, 4.5)])
    values = [curve.at(size / 10) for size in range(1, 80)]
    assert values == sorted(values)
    assert (curve.at(2), curve.at(9)) == (4.0, 5.0)


def test_one_point_is_a_constant() -> None:
    assert Curve([Point(7, 2.0)]).at(700) == 2.0


@pytest.mark.parametrize("points", [[], [Point(1, 1.0), Point(1, 2.0)]])
def test_what_is_no_curve_is_refused(points: list[Point]) -> None:
    with pytest.raises(ValueError, match="points"):
        Curve(points)


def test_recall_is_lost_by_the_doubling_and_never_won_back() -> None:
    recall = RecallCurve([Point(1024, 0.98), Point(4096, 0.94)])
    assert recall.at(2048) == pytest.approx(0.96)
    assert recall.at(16384) == pytest.approx(0.90)
    assert recall.at(2**300) == 0.0
    assert RecallCurve([Point(1024, 0.9), Point(4096, 0.95)]).at(2**40) == pytest.approx(0.9)


def test_beyond_what_was_measured_only_what_is_found_unaided_is_believed() -> None:
    recall = RecallCurve([Point(1024, 1.0), Point(4096, 1.0)], unaided=0.5)
    assert (recall.at(4096), recall.at(4097)) == (1.0, 0.5)


def test_distinct_codes_grow_by_a_power_up_to_all_there_are() -> None:
    distinct = DistinctCurve([Point(100, 100), Point(10_000, 1000)], 2**16)
    assert distinct.at(1000) == pytest.approx(math.sqrt(100 * 1000))
    assert distinct.at(1_000_000) == pytest.approx(10_000)
    assert distinct.at(10**15) == 2**16
    every = DistinctCurve([Point(10, 10), Point(20, 20)], 2**64)
    assert every.at(10**9) == pytest.approx(10**9)
