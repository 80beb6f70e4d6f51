"""Something a replica serves that may fail to load, and is then tried again.

Knows nothing of what is loaded. A replica with it starts in any case, so the reason of a failure reaches whoever asks
instead of drowning in Ray Serve's restarts.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from cibhash.errors import CIBHashError

T = TypeVar("T")
RELOAD_PAUSE_S = 5.0


class Reloading(Generic[T]):
    """Holds what `load` returns; loads at once, and after a failure again on request, at most every few seconds."""

    def __init__(self, load: Callable[[], T]) -> None:
        self._load = load
        self._value: T | None = None
        self._failure: CIBHashError | None = None
        self._tried_s = 0.0
        self._lock = asyncio.Lock()
        self._try()

    def _try(self) -> None:
        try:
            self._value, self._failure = self._load(), None
        except CIBHashError as error:
            self._failure = error
        self._tried_s = time.monotonic()

    async def get(self) -> T:
        """The value.

        Raises:
            CIBHashError: why there is none.
        """
        if self._value is None:
            async with self._lock:
                if self._value is None and time.monotonic() - self._tried_s > RELOAD_PAUSE_S:
                    await asyncio.to_thread(self._try)
        if self._value is None:
            raise self._failure or RuntimeError("nothing was loaded")
        return self._value
