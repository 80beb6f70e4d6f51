"""Fault points: nothing without the setting, refused without the flag, and a death that runs no clean-up."""

import subprocess
import sys
import time

import pytest

from cibhash.errors import ConfigError
from cluster.faults import EXIT_CODE, fault_point

_PROCESS = """
import atexit
from cluster.faults import fault_point
atexit.register(print, "cleaned up", flush=True)
try:
    for name in ("save.first", "save.second", "save.third"):
        fault_point(name)
        print(name, flush=True)
finally:
    print("finally", flush=True)
"""


def test_nothing_happens_without_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIBHASH_FAULT", raising=False)
    monkeypatch.setenv("CIBHASH_ALLOW_FAULTS", "1")
    fault_point("save.first")


@pytest.mark.parametrize("flag", [None, "", "0", "yes"])
def test_a_setting_without_the_flag_is_refused_at_every_point(
    monkeypatch: pytest.MonkeyPatch, flag: str | None
) -> None:
    monkeypatch.setenv("CIBHASH_FAULT", "save.first:exit")
    if flag is None:
        monkeypatch.delenv("CIBHASH_ALLOW_FAULTS", raising=False)
    else:
        monkeypatch.setenv("CIBHASH_ALLOW_FAULTS", flag)
    for name in ("save.first", "save.second"):
        with pytest.raises(ConfigError, match=r"save\.first:exit .* CIBHASH_ALLOW_FAULTS=1") as caught:
            fault_point(name)
        assert caught.value.exit_code == 2


def test_the_process_dies_at_the_named_point_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIBHASH_FAULT", "save.second:exit")
    monkeypatch.setenv("CIBHASH_ALLOW_FAULTS", "1")
    found = subprocess.run([sys.executable, "-c", _PROCESS], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (EXIT_CODE, "save.first\n", "")


def test_the_process_pauses_at_the_named_point_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIBHASH_ALLOW_FAULTS", "1")
    monkeypatch.setenv("CIBHASH_FAULT", "save.second:sleep=0.2")
    begun = time.monotonic()
    fault_point("save.second")
    assert time.monotonic() - begun >= 0.2
    monkeypatch.setenv("CIBHASH_FAULT", "save.second:sleep=100000")
    fault_point("save.first")


@pytest.mark.parametrize("action", ["", "stop", "exit=1", "sleep", "sleep=", "sleep=soon", "sleep=-1", "sleep=inf"])
def test_what_is_not_a_fault_is_refused(monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    monkeypatch.setenv("CIBHASH_ALLOW_FAULTS", "1")
    monkeypatch.setenv("CIBHASH_FAULT", f"save.first:{action}")
    with pytest.raises(ConfigError, match=rf"save\.first:{action}: expected POINT:exit or POINT:sleep=SECONDS"):
        fault_point("save.first")
