"""Where a piece of work runs: in the event loop when it is short, else in a thread.

Knows nothing of the work. Handing over to a thread and back costs more than a small request needs altogether, on a busy
machine above all; what takes longer must not keep other requests and health checks waiting.
"""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

SHORT_BODY = 2**14
"""Bytes of a request that are parsed in the event loop, about 0.1 ms."""
SHORT_ANSWER = 256
"""Neighbors that are merged and written as JSON in the event loop, about 0.5 ms."""
SHORT_SEARCH = 2**20
"""Comparisons of codes that a replica makes in the event loop, about 0.2 ms in compiled code."""

P = ParamSpec("P")
T = TypeVar("T")


async def run(is_short: bool, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns."""
    return work(*args, **kwargs) if is_short else await asyncio.to_thread(work, *args, **kwargs)
