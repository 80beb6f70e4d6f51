"""Runs many Ray tasks with a bounded number of them unfinished, so that results never pile up.

Knows nothing of what the tasks compute.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray

Tag = TypeVar("Tag")
TASKS_PER_CPU = 2


def default_limit() -> int:
    """Tasks that keep the CPUs busy while finished results are taken.

    On one machine the real CPUs count: Ray's logical ones may be more, and every task at once is one more worker
    process with its imports.
    """
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    if sum(node["Alive"] for node in nodes) == 1:
        return max(2, os.cpu_count() or 1)
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(2, TASKS_PER_CPU * int(resources.get("CPU", 1)))


def named_call(task: Any, name: str, *arguments: Any, num_returns: int = 1) -> Callable[[], Any]:
    """A function that starts the remote function `task` under a name that the dashboard and errors show."""
    return lambda: task.options(name=name, num_returns=num_returns).remote(*arguments)


def completed(calls: Iterable[tuple[Tag, Callable[[], Any]]], limit: int) -> Iterator[tuple[Tag, Any]]:
    """Starts the calls in order and yields (tag, result) as they finish, in any order.

    Args:
        calls: Pairs of a tag and a function that starts one Ray task and returns its reference.
        limit: Tasks started and not yet yielded, at most.

    Raises:
        RayTaskError: the first failure of a task; tasks of lost workers were already retried by Ray.
    """
    pending: dict[Any, Tag] = {}
    for tag, start in calls:
        if len(pending) >= limit:
            yield _take(pending)
        pending[start()] = tag
    while pending:
        yield _take(pending)


def _take(pending: dict[Any, Tag]) -> tuple[Tag, Any]:
    (done, *_), _ = ray.wait(list(pending), num_returns=1)
    return pending.pop(done), ray.get(done)
