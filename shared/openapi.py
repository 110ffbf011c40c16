"""The documentation of a service's API: OpenAPI at `/{service}/openapi.json`, a page to try it at `/{service}/docs`.

The page's script and style come from the package `fastapi-offline`, not from the internet: what documents a system
must be readable where the system runs.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from shared.errors import Refusal
from shared.problems import MEDIA_TYPE, STATUS, phrase

QUERY: Final = ("token-missing", "token-unknown", "scope-missing", "not-found", "invalid", "store-away")
"""What any query can answer."""
COMMAND: Final = (*QUERY, "wrong-state", "stale-version", "too-large", "media-type", "key-reused")
"""What any command can answer."""

_PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457. `slug` is stable; further members help to go on and differ by slug.",
    "required": ["type", "title", "status", "detail", "slug"],
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string", "description": "The status's phrase."},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong, for people."},
        "slug": {"type": "string", "enum": list(STATUS)},
    },
}
_HEADERS: Final = (
    ("Idempotency-Key", "post", "The same key and body give the first answer again, for 30 days.", "string"),
    ("If-Match", "post", 'The tag of the state that the command was made for ("3"); a stale one is refused.', "string"),
    ("Occurred-At", "post", "When it happened, if not now: the `time` of the messages. Any past instant.", "date-time"),
    ("X-Correlation-Id", "", "A UUID that stands in every event, message and log line that follows.", "uuid"),
)


def problems(*slugs: str) -> dict[int | str, dict[str, Any]]:
    """What a route gives as `responses=`: each slug under its status, with an example. KeyError for an unknown slug.

    `problems(*COMMAND, "outside-stay")`.
    """
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for slug in dict.fromkeys(slugs):
        by_status[STATUS[slug]].append(slug)
    return {
        status: {
            "description": f"{phrase(status)}: {', '.join(found)}",
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "examples": {slug: {"value": _example(slug)} for slug in found},
                }
            },
        }
        for status, found in sorted(by_status.items())
    }


def document(app: FastAPI, service: str) -> None:
    """Adds `/{service}/openapi.json` and `/{service}/docs`; the app itself is made with `openapi_url=None`."""
    if app.openapi_url is not None:
        raise ValueError("make the app with FastAPI(openapi_url=None): its documentation stands at /{service}/docs")

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    async def schema(_: Request) -> Response:
        return JSONResponse(app.openapi())

    async def page(_: Request) -> Response:
        return get_swagger_ui_html(
            openapi_url=f"/{service}/openapi.json",
            title=app.title,
            oauth2_redirect_url=None,
            swagger_js_url=f"/{service}/docs/swagger-ui-bundle.js",
            swagger_css_url=f"/{service}/docs/swagger-ui.css",
            swagger_favicon_url="data:,",
        )

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own documented way to extend the schema
    app.add_route(f"/{service}/openapi.json", schema, include_in_schema=False)
    app.add_route(f"/{service}/docs", page, include_in_schema=False)
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        app.add_route(f"/{service}/docs/{name}", _asset(name), include_in_schema=False)


def _described(app: FastAPI) -> dict[str, Any]:
    """FastAPI's schema, with the shape of refusals and the headers that the edge reads."""
    schema = get_openapi(
        title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes
    )
    schema.setdefault("components", {}).setdefault("schemas", {})["Problem"] = _PROBLEM
    for path in schema.get("paths", {}).values():
        for method, operation in path.items():
            if "security" in operation:
                operation.setdefault("parameters", []).extend(_headers(method))
    return schema


def _headers(method: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": description,
            "schema": {"type": "string"} if kind == "string" else {"type": "string", "format": kind},
        }
        for name, only, description, kind in _HEADERS
        if only in ("", method)
    ]


def _example(slug: str) -> dict[str, Any]:
    """A problem as it may look. `detail` is what the refusal's class says of itself."""
    classes = [Refusal]
    for one in classes:
        classes.extend(one.__subclasses__())
    said = next((one.__doc__ for one in reversed(classes) if getattr(one, "slug", None) == slug), None)
    status = STATUS[slug]
    return {
        "type": "about:blank",
        "title": phrase(status),
        "status": status,
        "detail": (said or HTTPStatus(status).description).split("\n")[0],
        "slug": slug,
    }


def _asset(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def asset(_: Request) -> Response:
        return FileResponse(_ASSETS / name, headers={"Cache-Control": "public, max-age=86400"})

    return asset


def _assets() -> Path:
    """The folder of the package's files. The package itself is not imported: it would make an app of its own kind."""
    spec = find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("fastapi_offline")
    return Path(spec.origin).parent / "static"


_ASSETS: Final = _assets()
