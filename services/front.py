"""The three services behind one address, in one process, and the page at `/` that links all of it."""

import contextlib
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import httpx
import structlog
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.embedded import CannotStart
from services.notifications.shelf import Shelf
from services.page import POLICY, Overview, State, page
from shared.errors import NotFound
from shared.problems import problem, unrouted_problem

SHELF_SECONDS = 5.0
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}

log = structlog.get_logger()


class Front:
    """ASGI: hands each request to the app whose name begins its path. `apps` are the services by name.

    `look` asks the API what the page shows of the trip; None while there is none.
    """

    def __init__(self, apps: Mapping[str, FastAPI]) -> None:
        self.state = State()
        self.look: Callable[[], Awaitable[Overview]] | None = None
        self._services = apps
        feeds = apps["notifications"]
        self._apps: dict[str, ASGIApp] = {**apps, "feeds": feeds, "robots.txt": feeds}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run every service's lifespan. Raises `CannotStart`, which names the service."""
        async with contextlib.AsyncExitStack() as stack:
            for name, app in self._services.items():
                try:
                    await stack.enter_async_context(app.router.lifespan_context(app))
                except Exception as error:
                    log.exception("service.failed", service=name)
                    said = str(error).strip().split("\n")[0]
                    raise CannotStart(f"the service {name} did not start: {type(error).__name__}: {said}") from error
            yield

    async def shelved(self) -> None:
        """Until the feeds are served from what is rendered by now."""
        shelf: Shelf = self._services["notifications"].state.shelf
        await shelf.look_again(SHELF_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        app = self._apps.get(scope["path"].lstrip("/").partition("/")[0]) or await self._own(scope)
        await app(scope, receive, send)

    async def _own(self, scope: Scope) -> Response:
        if scope["path"] != "/":
            return problem(NotFound("there is nothing at this address"))
        if scope["method"] not in ("GET", "HEAD"):
            return unrouted_problem(HTTPException(405, headers={"Allow": "GET, HEAD"}))
        if not is_ours(Headers(scope=scope).get("host", "")):
            return problem(NotFound("this page is shown under the machine's own address only"))
        return HTMLResponse(page(self.state, tuple(self._services), await self._look()), headers=HEADERS)

    async def _look(self) -> Overview | None:
        if self.look is None:
            return None
        try:
            return await self.look()
        except (httpx.HTTPError, KeyError, ValueError) as error:
            log.warning("page.incomplete", error=type(error).__name__)
            return None


def is_ours(host: str) -> bool:
    """Whether a Host header is an address or `localhost`.

    A name of somebody else's that leads here (DNS rebinding) would let their page read this one, addresses and all.
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if name == "localhost":
        return True
    try:
        return bool(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return False
