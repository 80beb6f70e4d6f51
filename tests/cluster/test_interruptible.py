"""An interrupt ends what is waited for, whatever the function does about signals."""

import os
import signal
import threading

import pytest

from cluster.interruptible import interruptible


def test_answers_and_errors_come_through() -> None:
    assert interruptible(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0)


def test_an_interrupt_is_not_swallowed(interrupts: None) -> None:
    release = threading.Event()

    def greedy() -> None:
        assert threading.current_thread() is not threading.main_thread()
        with pytest.raises(ValueError, match="main thread"):
            signal.signal(signal.SIGINT, lambda *_: None)
        os.kill(os.getpid(), signal.SIGINT)
        release.wait(60)

    try:
        with pytest.raises(KeyboardInterrupt):
            interruptible(greedy)
    finally:
        release.set()
