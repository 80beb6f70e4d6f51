"""How many requests are answered at a time, who waits for a turn, and that nobody new comes in once the service ends.

Knows nothing of HTTP. A refusal costs the machine a fifth of an answer, so those who come back at once would take from
the others: they wait a while, in the order in which they came, and are refused only then.
"""

import asyncio
from collections import deque

WAITING_PER_TURN = 4
"""So many wait for every one that is answered; those beyond are refused at once."""


class Admission:
    """For one event loop."""

    def __init__(self, max_in_flight: int, max_wait_s: float) -> None:
        """Lets so many in at a time; the others wait so long at most."""
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self.closed = False
        """Nobody is let in any more."""
        self._max_wait_s = max_wait_s
        self._waiting: deque[asyncio.Future[bool]] = deque()

    async def admitted(self) -> bool:
        """Whether the caller may go on, at once or after a while; it then must `leave`."""
        if self.closed or len(self._waiting) >= WAITING_PER_TURN * self.max_in_flight:
            return False
        if self.in_flight < self.max_in_flight:  # then nobody waits: whoever leaves hands the turn on
            self.in_flight += 1
            return True
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait({turn}, timeout=self._max_wait_s)
        except asyncio.CancelledError:
            if turn.done() and turn.result():
                self.leave()
            raise
        finally:
            if not turn.done():
                self._waiting.remove(turn)
        return turn.done() and turn.result()

    def leave(self) -> None:
        """Ends the caller's turn; the one who waits longest is next."""
        self.in_flight -= 1
        if self._waiting:
            self.in_flight += 1
            self._waiting.popleft().set_result(True)

    def close(self) -> None:
        """Refuses all who wait and all who come; those who were let in go on."""
        self.closed = True
        while self._waiting:
            self._waiting.popleft().set_result(False)
