"""One call to a deployment, up to a deadline: repeated when a replica dies, sent to another when the first hesitates.

Knows nothing of what is asked. Every method so called only reads, so it may be asked twice.
"""

import asyncio
import time
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cibhash.errors import BadImage
from cluster.runtime import root_cause
from cluster.service.schema import RequestRefused
from cluster.service.slots import Misplaced

RETRY_PAUSE_S = 0.05


class Unavailable(Exception):
    """A deployment that gave no answer, and why."""


async def call(
    handle: DeploymentHandle[Any], until: float, hedge_s: float | None, method: str, *arguments: object
) -> Any:
    """The answer of one replica; of the first of two, where the first asked hesitates longer than `hedge_s`.

    Raises:
        Unavailable: no answer until `until`, or the slot's shards cannot be loaded.
        RequestRefused, BadImage: what the replica says of the request itself.
    """
    started = time.monotonic()
    attempts = {asyncio.ensure_future(_attempt(handle, method, *arguments))}
    try:
        async with asyncio.timeout_at(until):
            if hedge_s is not None and not (await asyncio.wait(attempts, timeout=hedge_s))[0]:
                attempts.add(asyncio.ensure_future(_attempt(handle, method, *arguments)))
            while True:
                done, pending = await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED)
                answered = next((one for one in done if not isinstance(one.exception(), Unavailable)), None)
                if answered is not None or not pending:
                    return (answered or done.pop()).result()
                attempts = pending
    except TimeoutError:
        raise Unavailable(f"no answer within {time.monotonic() - started:.1f} s") from None
    finally:
        for one in attempts:
            one.cancel()


async def _attempt(handle: DeploymentHandle[Any], method: str, *arguments: object) -> Any:
    """What a replica answers; asked again, or its successor, when it dies or is not the one that is meant."""
    while True:
        response = getattr(handle, method).remote(*arguments)
        try:
            return await response
        except RayTaskError as error:
            cause = root_cause(error.cause or error)
            if isinstance(cause, (RequestRefused, BadImage)):
                raise cause from None
            if not isinstance(cause, Misplaced):
                raise Unavailable(f"{type(cause).__name__}: {cause}") from None
            await asyncio.sleep(RETRY_PAUSE_S)
        except (RayError, RayServeException):
            await asyncio.sleep(RETRY_PAUSE_S)
        except asyncio.CancelledError:
            response.cancel()
            raise
