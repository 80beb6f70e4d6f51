"""What every request passes first: bearer token, body cap, load limit, upload deadline; and what every answer carries.

Knows nothing of search; how many are let in is `admission`'s. Tokens are kept only as SHA-256 digests and compared in
constant time; open paths are matched exactly after decoding, so no spelling of a path opens another one.
"""

import asyncio
import contextlib
import hashlib
import hmac

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.service.admission import Admission
from cluster.service.schema import RequestRefused
from cluster.tokens import read_tokens

OPEN_PATHS = frozenset({"/", "/page.css", "/page.js", "/docs", "/openapi.json", "/healthz", "/readyz"})
READY_PATH = "/readyz"
UPLOAD_DEADLINE_S = 30.0
RETRY_AFTER_S = 1
"""What a client is told that comes while the service is busy or ends."""
DRAIN_BYTES, DRAIN_S = 64 * 2**20, 10.0
"""How much of a refused body is read and dropped; a client still sending would see a reset instead of the reason."""
_SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def token_digests(token_file: str) -> tuple[str, ...]:
    """SHA-256 digests of the tokens in a file.

    Raises:
        ConfigError: the file cannot be read or holds no token.
    """
    return tuple(hashlib.sha256(token.encode()).hexdigest() for token in read_tokens(token_file))


class Guard:
    """ASGI middleware; without digests every caller is let in."""

    def __init__(self, app: ASGIApp, digests: tuple[str, ...], max_body_bytes: int, admission: Admission) -> None:
        self._app = app
        self._digests = digests
        self._max_body_bytes, self._admission = max_body_bytes, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401, 413 and, when busy, 503 itself; a body that grows past the cap or stalls raises in `receive`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SECURITY_HEADERS)
            await send(message)

        path = scope["path"]
        refusal = self._refusal(path, Headers(scope=scope))
        takes_turn = refusal is None and path not in OPEN_PATHS
        if refusal is None and (
            (self._admission.closed and path == READY_PATH) or (takes_turn and not await self._admission.admitted())
        ):
            refusal, takes_turn = self._come_back(), False
        if refusal is not None:
            await _drain(receive)
            await refusal(scope, receive, guarded_send)
            return
        try:
            await self._app(scope, self._capped(receive), guarded_send)
        finally:
            if takes_turn:
                self._admission.leave()

    def _refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        if self._digests and path not in OPEN_PATHS and not self._is_known(headers.get("authorization", "")):
            challenge = {"WWW-Authenticate": "Bearer"}
            return JSONResponse({"error": "a valid bearer token is needed"}, 401, challenge)
        declared = headers.get("content-length", "0")
        if (
            not (declared.isascii() and declared.isdigit())
            or len(declared) > 18
            or int(declared) > self._max_body_bytes
        ):
            return JSONResponse({"error": self._too_large(f"{declared[:20]} bytes declared")}, 413)
        return None

    def _come_back(self) -> JSONResponse:
        admission = self._admission
        busy = f"busy: {admission.in_flight} requests are being answered, at most {admission.max_in_flight} at a time"
        reason = "shutting down" if admission.closed else busy
        return JSONResponse({"error": reason}, 503, {"Retry-After": str(RETRY_AFTER_S)})

    def _is_known(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        given = hashlib.sha256(token.strip().encode()).hexdigest()
        known = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(known)

    def _too_large(self, found: str) -> str:
        return f"body: {found}, at most {self._max_body_bytes}"

    def _capped(self, receive: Receive) -> Receive:
        deadline = asyncio.get_running_loop().time() + UPLOAD_DEADLINE_S
        received, complete = 0, False

        async def capped() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise RequestRefused(408, f"body: not complete after {UPLOAD_DEADLINE_S:.0f} s") from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self._max_body_bytes:
                if not complete:
                    await _drain(receive)
                raise RequestRefused(413, self._too_large(f"{received} bytes and more"))
            return message

        return capped


async def _drain(receive: Receive) -> None:
    dropped = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while dropped < DRAIN_BYTES:
                message = await receive()
                dropped += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
