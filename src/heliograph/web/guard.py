"""What stands before every page: only reading, and headers that let a page load nothing but its own files."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["SECURITY_HEADERS", "ReadOnlyGuard"]

_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}
SECURITY_HEADERS = {
    "content-security-policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_READING = ("GET", "HEAD")


class ReadOnlyGuard:
    """Answers 405 to whatever is not a read, and adds the security headers to every answer.

    Args:
        app: what answers the reads.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
        elif scope["method"] not in _READING:
            refusal = PlainTextResponse(
                "This server only shows things; it takes GET and HEAD.\n", 405, {"allow": ", ".join(_READING)}
            )
            await refusal(scope, receive, send_guarded)
        else:
            await self.app(scope, receive, send_guarded)
