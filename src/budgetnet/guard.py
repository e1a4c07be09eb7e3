"""What stands between a server of ours and whoever reaches it: bounds on connections, bytes and time, and who may ask.

On uvicorn, which bounds the size of headers and little else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from budgetnet.errors import ConfigError, reason

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

AGAIN = {"retry-after": "1"}
"""Headers of a refusal that need not last."""

_CLOSE = {"connection": "close"}
_HEADER_BYTES = 16 << 10
_SHUTDOWN_SECONDS = 3
# Scripts, styles and pictures of the server's own and nothing else; not to be framed, sniffed, or read by other sites.
_SECURITY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may ask of a server at most."""

    body_bytes: int = 16 << 20
    """Of a request."""
    requests: int = 16
    """Whose bodies are read or worked on at a time: with `body_bytes` what bounds the memory."""
    connections: int = 128
    """Whose requests are heard; as many again are told to come back, and the rest is hung up on."""
    header_seconds: float = 10.0
    """From the connection to the end of the first request's header."""
    body_seconds: float = 20.0
    """From the end of the header to the end of the body."""
    answer_seconds: float = 30.0
    """From the end of the header to the end of the answer."""
    idle_seconds: float = 15.0
    """From an answer to the next request of the same connection."""


class Guard:
    """An application of ASGI around another, which only sees requests that keep to the limits and may be asked.

    - The Host must be an address, localhost or a name that the server was given: a page of a stranger's, whose name is
      made to lead to this machine (DNS rebinding), has another.
    - What a page posts must come from a page of this server, by its Origin.
    - Bodies are counted as they come in, and late ones given up.

    A refusal is JSON: {"error": one line}.
    """

    def __init__(self, app: ASGIApp, limits: Limits, names: Collection[str] = ()):
        """Guard `app`; `names` are the hosts that it may be called by, beside addresses and localhost."""
        self._app, self._limits = app, limits
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] != "http":
            return
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(raw=message["headers"]).update(_SECURITY)
            await send(message)

        headers = Headers(scope=scope)
        body = _Body(receive, headers, self._limits)
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                if refusal := self._refusal(scope["method"], headers):
                    await body.discard()
                    await refusal(scope, receive, answer)
                else:
                    await self._app(scope, body.receive, answer)
        except ClientDisconnect:
            return  # nobody is left to be answered
        except HTTPException as error:  # of the body's, where the application leaves it to us
            if not started:
                await problem(error.status_code, error.detail, _CLOSE)(scope, receive, answer)
        except TimeoutError:
            if not started:
                late = problem(503, "the answer took too long: try again when less is going on", AGAIN | _CLOSE)
                await late(scope, receive, answer)

    def _refusal(self, method: str, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        if not self._known(host):
            return problem(421, f"Host is {_short(host)}, expected an address, {' or '.join(sorted(self._names))}")
        origin, own = headers.get("origin"), [f"{scheme}://{host.lower()}" for scheme in ("http", "https")]
        if method not in ("GET", "HEAD") and origin is not None and origin.lower() not in own:
            return problem(403, f"Origin is {_short(origin)}, expected a page of this server's own, or no page")
        return None

    def _known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True


class _Body:
    """A request's body as it comes in, within the limits."""

    def __init__(self, receive: Receive, headers: Headers, limits: Limits):
        self._receive, self._limits = receive, limits
        self._end = asyncio.get_running_loop().time() + limits.body_seconds
        self._declared = int(headers.get("content-length", "0"))
        self._unasked = "expect" in headers  # the client waits for a sign before it sends the body
        self._bytes, self._complete = 0, False

    async def receive(self) -> Message:
        """The next part.

        Raises:
            HTTPException: it is too much (413) or too late (408).
        """
        if self._complete:
            return await self._receive()
        if self._declared <= self._limits.body_bytes:
            message = await self._next()
            if self._bytes <= self._limits.body_bytes:
                return message
        await self.discard()
        raise HTTPException(413, f"the body is larger than {self._limits.body_bytes:,} bytes", _CLOSE)

    async def discard(self) -> None:
        """Read on without keeping anything, so that a client that is still sending can hear the refusal.

        One that sends several times what is allowed, or takes too long, need not hear it.
        """
        enough = 4 * self._limits.body_bytes
        with suppress(HTTPException):
            while not (self._complete or self._unasked) and max(self._bytes, self._declared) <= enough:
                await self._next()

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError as error:
            self._complete = True
            seconds = self._limits.body_seconds
            raise HTTPException(408, f"the body was not there within {seconds:g} seconds", _CLOSE) from error
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        return message


def problem(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer that says what is wrong, in one line."""
    return JSONResponse({"error": " ".join(message.split())}, status, headers)


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """Take a port, so that whoever connects from now on is answered once the server runs.

    Args:
        host: an address or name of this machine.
        port: 1 to 65535, or 0 for any that is free.

    Returns:
        The socket, and the URL that it is reached by.

    Raises:
        ConfigError: there is no such host here, or the port cannot be had.
    """
    if not 0 <= port < 65536:
        raise ConfigError(f"port is {port}, expected 1 to 65535, or 0 for any that is free")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"host is {host!r} ({reason(error)}), expected an address of this machine") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a port stays taken a while after use
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {reason(error)}; --port 0 takes one that is free"
        ) from error
    host = f"[{host}]" if ":" in host else host
    return listener, f"http://{host}:{listener.getsockname()[1]}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine itself can reach a listening socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def run(app: ASGIApp, listener: socket.socket, limits: Limits) -> None:
    """Serve until the process is interrupted (KeyboardInterrupt) or terminated; requests at work get three seconds."""
    server(app, limits).run([listener])


def server(app: ASGIApp, limits: Limits) -> Any:
    """The uvicorn server that `run` runs."""
    import uvicorn

    config = uvicorn.Config(
        app,
        http=_protocol(limits),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="error",  # the tracebacks of our own errors; what clients do wrong is their business
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )
    return uvicorn.Server(config)


def _protocol(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's protocol, in which a connection that is too many or takes too long is closed."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Bounded(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._within(limits.header_seconds)
            if len(self.connections) > 2 * limits.connections:
                transport.abort()
            elif len(self.connections) > limits.connections:
                self.app = _busy

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before and not self.cycle.response_complete:
                # The guard answers in time; this is for clients that do not take the answer.
                self._within(limits.answer_seconds + limits.idle_seconds)

        def on_response_complete(self) -> None:
            self._within(limits.idle_seconds)
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._deadline:
                self._deadline.cancel()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True  # what came is no body; whoever waits for it shall not wait on
                self.cycle.message_event.set()
            if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
                text = b'{"error":"found no request of HTTP/1.1 with a header of at most %d bytes"}' % _HEADER_BYTES
                head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
                self.transport.write(head + b"content-length: %d\r\n\r\n" % len(text) + text)
            self.transport.close()

        def _within(self, seconds: float) -> None:
            """Hang up unless the next thing happens in so many seconds."""
            if self._deadline:
                self._deadline.cancel()
            self._deadline = self.loop.call_later(seconds, self.transport.abort)

    return Bounded


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    await problem(503, "too many connections: try again in a moment", AGAIN | _CLOSE)(scope, receive, send)


def _short(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")
