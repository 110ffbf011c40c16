"""The HTTP edge that the three services share: how things and refusals are answered. `install` gives it to an app."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from fastapi.telemetry import TelemetryConfig
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from shared.asgi import BodyGuard, HeadAsGet, RequestLog
from shared.call import Call
from shared.errors import Refusal
from shared.openapi import document
from shared.problems import invalid_of, problem, unrouted_problem
from shared.tally import Requests
from shared.tracing import OFF, Tracing

BODY_LIMIT: Final = 256 * 1024
NO_TELEMETRY: Final[TelemetryConfig] = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False}
"""The framework's spans would carry each request's path, and with it the secrets of feeds: see `shared.tracing`."""


def answer(
    thing: bytes | str | Mapping[str, Any],
    *,
    status: int = 200,
    etag: int | str | None = None,
    location: str | None = None,
    call: Call | None = None,
) -> Response:
    """A thing (its JSON, or what is to become JSON), with the strong tag of its revision.

    With `call` given, a query whose If-None-Match holds the tag is answered with 304 and no body.
    """
    headers = {"Cache-Control": "private, no-cache"}
    if etag is not None:
        headers["ETag"] = f'"{etag}"' if isinstance(etag, int) else etag
    if location is not None:
        headers["Location"] = location
    if etag is not None and call is not None and _held(call.if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(_json(thing), status, headers=headers, media_type="application/json")


def answer_list(
    items: Iterable[bytes | str | Mapping[str, Any]],
    *,
    next: str | None,  # noqa: A002  the name that the list's own member has
) -> Response:
    """A list: `{"items": [...], "next": cursor or null}`."""
    body = b'{"items":[' + b",".join(map(_json, items)) + b'],"next":' + to_json(next) + b"}"
    return Response(body, headers={"Cache-Control": "private, no-cache"}, media_type="application/json")


def install(app: FastAPI, *, service: str, requests: Requests | None = None, tracing: Tracing = OFF) -> None:
    """Gives an app the edge: middlewares, refusals as problem+json, and its documentation at `/{service}/docs`.

    The app is to be made with `FastAPI(openapi_url=None, telemetry=NO_TELEMETRY, ...)`, and to have its token file at
    `app.state.tokens` before the first request; `app.state.oidc` is an issuer's word, where one is configured. What is
    answered is counted in `requests`.
    """
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _refused)
    app.add_exception_handler(HTTPException, _refused)
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyGuard, limit=BODY_LIMIT)
    # added last, so it stands outermost
    app.add_middleware(RequestLog, service=service, requests=requests or Requests(), tracing=tracing)
    document(app, service)


async def _refused(request: Request, error: Exception) -> Response:
    match error:
        case Refusal():
            refusal = error
        case RequestValidationError():
            refusal = invalid_of(error)
        case HTTPException(status_code=405):
            return unrouted_problem(HTTPException(405, headers={"Allow": ", ".join(_methods_at(request))}))
        case _:
            return unrouted_problem(cast(HTTPException, error))
    request.scope["slug"] = refusal.slug  # for the line in the log
    return problem(refusal)


def _methods_at(request: Request) -> list[str]:
    """What the address takes: the framework itself names the methods of its first route alone."""
    taken: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        if route.matches(request.scope)[0] != Match.NONE:
            taken |= route.methods or set()
    return sorted(taken | {"HEAD"} if "GET" in taken else taken)


def _held(wanted: tuple[str, ...] | None, etag: str) -> bool:
    return wanted is not None and (etag in wanted or "*" in wanted)


def _json(thing: bytes | str | Mapping[str, Any]) -> bytes:
    match thing:
        case bytes():
            return thing
        case str():
            return thing.encode()
        case _:
            return to_json(thing)
