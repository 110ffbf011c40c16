"""Pure ASGI middlewares: what stands before every route.

Starlette's own `BaseHTTPMiddleware` runs the app in another task, which loses context variables and hides a caller who
has gone; these do not.
"""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID, uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import trace_context
from shared.database import is_away, is_full
from shared.errors import MediaType, Refusal, StoreAway, TooLarge
from shared.logs import mask
from shared.problems import FULL, internal_problem, problem
from shared.tally import Answered, Requests
from shared.tracing import OFF, Tracing

_LOG = structlog.stdlib.get_logger(__name__)
_JSON = re.compile(r"application/(?:[!#$&^_.+a-z0-9-]+\+)?json", re.IGNORECASE)
_QUIET: Final = ("/healthz", "/readyz", "/metrics")
_GONE: Final = 499
"""The caller went away before an answer: no status of HTTP, but what logs have used for it since nginx."""


@dataclass(frozen=True, slots=True)
class Trail:
    """What ties a request to what led to it and to what follows from it."""

    correlation_id: str
    traceparent: str


def trail_of(scope: Scope) -> Trail:
    """The trail that `RequestLog` laid; a new one where it does not stand before the app."""
    trail = scope.get("trail")
    if isinstance(trail, Trail):
        return trail
    headers = Headers(scope=scope)
    return _trail(headers, _traceparent(headers))


class BodyGuard:
    """Takes a request's body whole before the app sees it: no larger than `limit` bytes, and JSON where it is a POST's.

    Content-Length is believed where it is too large; what really comes is counted all the same. Commands are small,
    so nothing is lost by holding one back until it is there.
    """

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        bodiless = "content-length" not in headers and "transfer-encoding" not in headers
        if bodiless and scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._body(headers, receive)
            if scope["method"] == "POST":
                _check_media_type(headers, body)
        except Refusal as refusal:
            await _refuse(refusal, scope, receive, send)
            return
        await self.app(scope, _replaying(body, receive), send)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        too_large = TooLarge(f"a body has {self.limit} bytes at most", limit=self.limit)
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self.limit:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            if len(body) > self.limit:
                raise too_large
            if not message.get("more_body", False):
                return bytes(body)


class HeadAsGet:
    """Answers HEAD as the app answers GET, without the content (RFC 9110, 9.3.2), where a route takes GET alone.

    The framework would answer 405, or want a route of its own for it, which then stood in the documentation too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def sender(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
            elif not message.get("more_body", False):
                await send({"type": "http.response.body"})

        asked = {**scope, "method": "GET"}  # a copy: the server looks into its own for what it may send
        try:
            await self.app(asked, receive, sender)
        finally:
            scope.update(asked, method="HEAD")  # the route, for who tells of the request


class RequestLog:
    """One line and one count for each request, and an answer to what the app could not answer.

    Binds `service`, `correlation_id` and `trace_id` for every line that is logged meanwhile. Takes `traceparent` (W3C
    Trace Context, level 1) and `X-Correlation-Id` (a UUID) from the caller, or makes them. A database that is away is
    answered with `store-away`, any other failure with `internal`; how it came about stands in the log alone.
    """

    def __init__(self, app: ASGIApp, *, service: str, requests: Requests, tracing: Tracing = OFF) -> None:
        self.app = app
        self.service = service
        self.requests = requests
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        tracing = OFF if scope["path"].endswith(_QUIET) else self.tracing
        headers = Headers(scope=scope)
        with tracing.request(scope["method"], _traceparent(headers)) as span:
            trail = scope["trail"] = _trail(headers, span.traceparent)
            status = await self._inside(trail, scope, receive, send)
            span.answered(_template(scope), status)  # the route is known by now

    async def _inside(self, trail: Trail, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer, and log it; returns the status."""
        status = _GONE
        began = time.perf_counter()

        async def sender(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Correlation-Id"] = trail.correlation_id
            await send(message)

        bound = {"correlation_id": trail.correlation_id, "service": self.service}
        bound["trace_id"] = trace_context.trace_id(trail.traceparent)
        with structlog.contextvars.bound_contextvars(**bound):
            try:
                await self.app(scope, receive, sender)
            except ClientDisconnect:
                pass
            except Exception as error:  # noqa: BLE001  whatever it is, it is logged and answered here
                await _answer_failure(error, scope, receive, sender, started=status != _GONE)
            finally:
                seconds = time.perf_counter() - began
                self.requests.note(_answered(scope, status), seconds)
                _log_answered(scope, status, seconds)
        return status


async def _answer_failure(error: Exception, scope: Scope, receive: Receive, send: Send, *, started: bool) -> None:
    """Log what was raised, once, and answer it; where an answer has begun, only the server can still break it off."""
    if is_away(error):
        scope["slug"] = StoreAway.slug
        _LOG.warning("store.missed", route=_route(scope), error=type(error).__name__, said=str(error))
        response = problem(StoreAway(FULL if is_full(error) else "the database does not answer; try again"))
    else:
        scope["slug"] = "internal"
        _LOG.error("http.failed", route=_route(scope), exc_info=error)
        response = internal_problem()
    if started:
        raise error
    await response(scope, receive, send)


def _log_answered(scope: Scope, status: int, seconds: float) -> None:
    route = _route(scope)
    log = _LOG.debug if status < 400 and route.endswith(_QUIET) else _LOG.info
    slug = {"slug": scope["slug"]} if "slug" in scope else {}
    log("http.answered", method=scope["method"], route=route, status=status, ms=round(seconds * 1000, 1), **slug)


def _answered(scope: Scope, status: int) -> Answered:
    """What is counted of a request. A route that is posted to is a command, and its summary the command's name."""
    command = getattr(_chosen(scope), "summary", None) if scope["method"] == "POST" else None
    return Answered(scope["method"], _template(scope), command, status, scope.get("slug"))


def _route(scope: Scope) -> str:
    """The template of the route's path, or, where none was found, the path itself. No feed's secret is ever in it."""
    # quoted, so that no blank in a wrong path ends what is masked
    return mask(_template(scope) or quote(scope["path"][:500], safe="/:@!$&'()*+,;=~"))


def _template(scope: Scope) -> str | None:
    chosen = _chosen(scope)
    template = getattr(chosen, "path_format", None) or getattr(chosen, "path", None)
    return template if isinstance(template, str) else None


def _chosen(scope: Scope) -> Any:
    return scope.get("fastapi", {}).get("effective_route_context") or scope.get("route")


def _trail(headers: Headers, traceparent: str | None) -> Trail:
    return Trail(_correlation_id(headers.getlist("x-correlation-id")), traceparent or trace_context.new())


def _correlation_id(given: Iterable[str]) -> str:
    try:
        (one,) = given
        return str(UUID(one))
    except ValueError:
        return str(uuid4())


def _traceparent(headers: Headers) -> str | None:
    """The caller's traceparent, if there is one and it is right."""
    given = headers.getlist("traceparent")
    return trace_context.read(given[0]) if len(given) == 1 else None


def _check_media_type(headers: Headers, body: bytes) -> None:
    given = headers.get("content-type")
    if given is None:
        if body:
            raise MediaType("a body needs the content type application/json")
    elif not _JSON.fullmatch(given.partition(";")[0].strip()):
        raise MediaType("the content type is not application/json")


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    scope["slug"] = refusal.slug
    response = problem(refusal)
    response.headers["Connection"] = "close"  # the rest of the body is not read, so nothing can follow it
    await response(scope, receive, send)


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, then what the server has to say (that the caller went away)."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
