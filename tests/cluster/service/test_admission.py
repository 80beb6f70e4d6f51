"""Turns are given in order, waiting ends, and a closed door lets nobody in; without Ray."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cluster.service.admission import WAITING_PER_TURN, Admission
from tests.patience import HANG_S


def in_a_loop(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), HANG_S))


def test_turns_are_handed_on_in_order() -> None:
    async def work() -> None:
        admission, order = Admission(2, HANG_S), list[int]()

        async def one(number: int) -> None:
            assert await admission.admitted()
            order.append(number)
            await asyncio.sleep(0)
            assert admission.in_flight <= 2
            admission.leave()

        await asyncio.gather(*map(one, range(2 + 2 * WAITING_PER_TURN)))
        assert order == sorted(order)
        assert admission.in_flight == 0

    in_a_loop(work)


def test_waiting_ends_and_is_bounded() -> None:
    async def work() -> None:
        admission = Admission(1, 0.01)
        assert await admission.admitted()
        assert not await admission.admitted()
        patient = Admission(1, HANG_S)
        assert await patient.admitted()
        waiting = [asyncio.create_task(patient.admitted()) for _ in range(WAITING_PER_TURN)]
        await asyncio.sleep(0)
        assert not await patient.admitted(), "more than may wait: refused at once"
        patient.leave()
        assert await waiting[0]
        for task in waiting[1:]:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        patient.leave()
        assert patient.in_flight == 0
        assert await patient.admitted()

    in_a_loop(work)


def test_a_turn_given_to_one_who_has_left_is_not_lost() -> None:
    async def work() -> None:
        admission = Admission(1, HANG_S)
        assert await admission.admitted()
        gone, next_one = (asyncio.create_task(admission.admitted()) for _ in range(2))
        await asyncio.sleep(0)
        admission.leave()  # the turn is that of the first, which is cancelled before it hears of it
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert await next_one
        assert admission.in_flight == 1

    in_a_loop(work)


def test_closed_lets_nobody_in_and_those_who_are_in_go_on() -> None:
    async def work() -> None:
        admission = Admission(1, HANG_S)
        assert await admission.admitted()
        waiting = asyncio.create_task(admission.admitted())
        await asyncio.sleep(0)
        admission.close()
        assert not await waiting
        assert not await admission.admitted()
        assert admission.in_flight == 1
        admission.leave()
        assert admission.in_flight == 0
        assert not await admission.admitted()

    in_a_loop(work)
