"""Runs what would take over the interrupt key in a thread, where it cannot: an interrupt then ends the job as one.

Knows nothing of what is run. Ray Train and Ray Tune catch SIGINT in the main thread and end as if all were well.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_POLL_S = 0.5


def interruptible(function: Callable[[], T]) -> T:
    """What `function` returns or raises; an interrupt is raised at once, the thread ends with the process."""
    answers: list[T] = []
    failures: list[BaseException] = []

    def call() -> None:
        try:
            answers.append(function())
        except BaseException as error:
            failures.append(error)

    thread: Any = threading.Thread(target=call, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
    if failures:
        raise failures[0]
    return answers[0]
