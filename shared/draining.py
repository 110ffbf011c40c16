"""How a serving process ends on SIGTERM: it hands its work over, serves on for a moment, and then lets go.

1. Readiness is red ("stopping"), and relay and consumer end at once: another process leads and reads from then on.
2. For `SERVE_ON_SECONDS` requests are still taken, and every answer closes its connection: a proxy learns of the end
   by itself, and keeps no connection that could be cut under a request.
3. Nothing new is accepted, from a moment on when nobody waits to be let in; who was let in last has `LAST_SECONDS` to
   say what is wanted. A connection that is cut there is a command that the proxy cannot send again without harm.
4. What is under way has `GRACE_SECONDS`, and the rest of the background ends.

A second signal, or Ctrl-C, leaves the second and the third step out.
"""

import asyncio
import select
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from types import FrameType

import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SERVE_ON_SECONDS = 4.0
"""Longer than the proxy keeps an unused connection (deploy/proxy/Caddyfile: 3 s)."""
LAST_SECONDS = 0.5
QUIET_TURNS = 3
TURNS = 100
"""The loop turns so often all the same where the process stood still for that long."""
GRACE_SECONDS = 20


class Closing:
    """Pure ASGI middleware: while `on`, each answer asks for its connection to be closed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.on = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def last(message: Message) -> None:
            if self.on and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, receive, last)


class DrainingServer(uvicorn.Server):
    """uvicorn's server with that end. `hand_over` is called first; it is not waited for before requests are."""

    def __init__(self, app: ASGIApp, hand_over: Callable[[], Awaitable[None]]) -> None:
        self._closing = Closing(app)
        self._hand_over = hand_over
        self._hurry = False
        config = uvicorn.Config(
            self._closing,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  a signal's handler
        """The first signal asks for the end; a second one, or Ctrl-C, for a quick one, and two of that for none."""
        self.force_exit = self.force_exit or (self.should_exit and sig == signal.SIGINT)
        self._hurry = self._hurry or self.should_exit or sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Steps 1 to 4."""
        self._closing.on = True
        handing_over = asyncio.ensure_future(self._hand_over())
        await self._wait(SERVE_ON_SECONDS)
        if not self._hurry:
            await self._let_the_last_in(sockets or [])
        await super().shutdown(sockets)
        await handing_over

    async def _let_the_last_in(self, sockets: Sequence[socket.socket]) -> None:
        """Step 3. What waits in a listening socket when it is closed is reset, and uvicorn closes who is silent yet."""
        waiting = select.poll()
        for listening in sockets:
            waiting.register(listening, select.POLLIN)
        until, quiet, turns = time.monotonic() + LAST_SECONDS, 0, 0
        # whom asyncio lets in has a transport a turn of the loop later, and none where the server was closed before
        while quiet < QUIET_TURNS and (turns < TURNS or time.monotonic() < until):
            quiet, turns = 0 if waiting.poll(0) else quiet + 1, turns + 1
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        for listening in sockets:
            listening.close()
        await self._wait(LAST_SECONDS)
        for _ in range(QUIET_TURNS):  # what has come while the process stood still
            await asyncio.sleep(0)

    async def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._hurry and time.monotonic() < until:
            await asyncio.sleep(0.1)
