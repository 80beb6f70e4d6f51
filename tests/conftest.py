"""Fixtures of the whole suite: one private Ray for all tests marked `ray`, tiny datasets made in code."""

import signal
from collections.abc import Iterator

import pytest

from cluster.config import RayConfig
from cluster.runtime import ray_session


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A private local Ray with 16 logical CPUs, shared by the session."""
    with ray_session(RayConfig(num_cpus=16)):
        yield


@pytest.fixture
def interrupts() -> Iterator[None]:
    """An interrupt raises KeyboardInterrupt, even where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
