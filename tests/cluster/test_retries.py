"""Patience with a failing call: growing random waits, a limit on attempts and on time, and a count."""

import pytest

from cluster import retries
from cluster.retries import Limits, Patience, add_retries, note_retry, retries_since


def _waits(limits: Limits, monkeypatch: pytest.MonkeyPatch, asked_s: float = 0.0) -> list[float]:
    monkeypatch.setattr(retries, "LIMITS", limits)
    patience = Patience()
    return list(iter(lambda: patience.wait_s(asked_s), None))


def test_waits_grow_to_a_limit_and_are_drawn_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(attempts=9, first_wait_s=1.0, longest_wait_s=10.0, deadline_s=1e6)
    ceilings = [1, 2, 4, 8, 10, 10, 10, 10]
    runs = [_waits(limits, monkeypatch) for _ in range(200)]
    for number, ceiling in enumerate(ceilings):
        drawn = [run[number] for run in runs]
        assert all(0 <= wait <= ceiling for wait in drawn)
        assert min(drawn) < ceiling / 5
        assert max(drawn) > ceiling * 4 / 5
    assert {len(run) for run in runs} == {len(ceilings)}


def test_what_is_asked_for_is_waited_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(attempts=4, first_wait_s=0.001, longest_wait_s=10.0, deadline_s=1e6)
    assert _waits(limits, monkeypatch, asked_s=3.0) == [3.0] * 3
    assert _waits(limits, monkeypatch, asked_s=1e9) == [10.0] * 3


def test_the_deadline_ends_it_before_the_attempts_do(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    monkeypatch.setattr(retries, "LIMITS", Limits(attempts=1000, first_wait_s=1.0, longest_wait_s=1.0, deadline_s=100))
    patience = Patience()
    assert patience.wait_s() is not None
    now_s[0] = 90.0
    assert patience.wait_s() is not None
    now_s[0] = 100.0
    assert patience.wait_s(asked_s=1.0) is None
    patience.reset()
    assert patience.wait_s() is not None


def test_jitter_leaves_the_global_generator_alone() -> None:
    import random

    state = random.getstate()
    Patience().wait_s()
    assert random.getstate() == state


def test_retries_are_counted_by_operation_and_logged(capfd: pytest.CaptureFixture[str]) -> None:
    before = retries.retries()
    note_retry("GetObject", "s3://bucket/a", "503 SlowDown", 0.25)
    note_retry("GetObject", "s3://bucket/b", "ReadTimeoutError", 0.5)
    add_retries({"PutObject": 3, "GetObject": 1})
    assert retries_since(before) == {"GetObject": 3, "PutObject": 3}
    first, _ = capfd.readouterr().err.splitlines()
    assert "warning: " in first
    assert first.endswith("operation=GetObject at=s3://bucket/a reason=503 SlowDown wait_s=0.25")
