"""The three services behind one address, in one process, and a page at `/` that links all of it."""

import contextlib
import html
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.errors import NotFound
from shared.problems import problem

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #8884; vertical-align: top }
code { overflow-wrap: anywhere } .note { opacity: .75 }
"""


@dataclass(kw_only=True)
class State:
    """What the page at `/` shows. `feeds` are as in run.json."""

    status: str = "starting"
    trip: str | None = None
    feeds: list[Mapping[str, Any]] = field(default_factory=list)


class Front:
    """ASGI: hands each request to the app whose name begins its path. `apps` are the services by name."""

    def __init__(self, apps: Mapping[str, FastAPI]) -> None:
        self.state = State()
        self._apps: dict[str, ASGIApp] = dict(apps)
        self._apps |= {"feeds": apps["notifications"], "robots.txt": apps["notifications"]}
        self._services = apps

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run every service's lifespan."""
        async with contextlib.AsyncExitStack() as stack:
            for app in self._services.values():
                await stack.enter_async_context(app.router.lifespan_context(app))
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        name = scope["path"].split("/", 2)[1]
        app = self._apps.get(name)
        if app is None:
            app = self._page() if scope["path"] == "/" else problem(NotFound("there is nothing at this address"))
        await app(scope, receive, send)

    def _page(self) -> Response:
        return HTMLResponse(index(self.state, tuple(self._services)), headers={"Cache-Control": "no-store"})


def index(state: State, services: tuple[str, ...]) -> str:
    """The page at `/`: the feeds with their addresses, and each service's API. It refreshes itself until all is ready."""
    refresh = "" if state.status == "ready" else '<meta http-equiv="refresh" content="2">'
    feeds = "".join(_row(feed) for feed in state.feeds)
    apis = "".join(
        f'<li><a href="/{name}/docs">{name}</a> '
        f'(<a href="/{name}/openapi.json">OpenAPI</a>, <a href="/{name}/readyz">readiness</a>, '
        f'<a href="/{name}/metrics">metrics</a>)</li>'
        for name in services
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Attaché</title>{refresh}'
        '<meta name="viewport" content="width=device-width"><meta name="referrer" content="no-referrer">'
        f'<meta name="robots" content="noindex"><style>{_STYLE}</style></head><body>'
        f'<h1>Attaché</h1><p class="note" role="status">{html.escape(state.status)}</p>'
        "<h2>Feeds</h2><p>Subscribe to an address in any calendar; whoever holds it can read the feed.</p>"
        f"<table><thead><tr><th>Delegation</th><th>Kind</th><th>Level</th><th>Address</th></tr></thead>"
        f"<tbody>{feeds}</tbody></table><h2>APIs</h2><ul>{apis}</ul></body></html>"
    )


def _row(feed: Mapping[str, Any]) -> str:
    url = html.escape(feed["url"])
    webcal = html.escape("webcal:" + feed["url"].split(":", 1)[1])
    return (
        f"<tr><td>{html.escape(feed['delegation'])}</td><td>{html.escape(feed['kind'])}</td>"
        f'<td>{html.escape(feed["level"])}</td><td><a href="{url}"><code>{url}</code></a> '
        f'(<a href="{webcal}">subscribe</a>)</td></tr>'
    )
