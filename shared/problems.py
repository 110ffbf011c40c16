"""How a refusal looks from outside: problem+json (RFC 9457), one status for each slug.

`type` is `about:blank`, so `title` is the status's own phrase; what tells refusals apart is the stable member `slug`,
and what helps to go on are the refusal's own members.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from shared.errors import Invalid, NotFound, Refusal, StoreAway

STATUS: Final[Mapping[str, int]] = {
    "token-missing": 401,
    "token-unknown": 401,
    "scope-missing": 403,
    "level-not-allowed": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "outside-stay": 409,
    "stops-overlap": 409,
    "meetings-outside-stay": 409,
    "wrong-state": 409,
    "not-yet-known": 409,
    "stale-version": 412,
    "too-large": 413,
    "media-type": 415,
    "invalid": 422,
    "zone-unknown": 422,
    "zone-abbreviated": 422,
    "wall-time-skipped": 422,
    "wall-time-repeated": 422,
    "reason-missing": 422,
    "key-reused": 422,
    "internal": 500,
    "store-away": 503,
    "issuer-away": 503,
}
MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER: Final[Mapping[str, int]] = {"not-yet-known": 1, "store-away": 5, "issuer-away": 10}
"""Seconds: another service's news takes about one, a database a few."""
FULL: Final = "the database's disk is full, so nothing was done: make room there, and try again"
"""What `store-away` says where the operator has something to do."""
ERRORS_SHOWN: Final = 50
"""A body of 256 KiB can be wrong in thousands of places; nobody reads past these."""


def phrase(status: int) -> str:
    """A status's phrase (RFC 9110), the same on every Python: the library's own changed with 3.13."""
    return {413: "Content Too Large", 422: "Unprocessable Content"}.get(status) or HTTPStatus(status).phrase


def problem(refusal: Refusal, *, status: int | None = None) -> Response:
    """The answer to a refused request. `status` is only for what has two (`not-found` as 410)."""
    headers = {}
    if (wait := RETRY_AFTER.get(refusal.slug)) is not None:
        headers["Retry-After"] = str(wait)
    if refusal.slug == "token-missing":
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.slug == "token-unknown":
        headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'  # RFC 6750, 3.1
    return _response(
        refusal.slug, refusal.detail, status=status or STATUS[refusal.slug], members=refusal.members, headers=headers
    )


def internal_problem() -> Response:
    """The answer to a request that failed by our fault. What went wrong stands in the log, not here."""
    return _response("internal", "the service failed; its log says how", status=STATUS["internal"])


def unrouted_problem(error: HTTPException) -> Response:
    """The answer where no route took the request, or the framework refused it itself (as RFC 9110 wants it)."""
    match error.status_code:
        case 404:
            return problem(NotFound("there is nothing at this address"))
        case 405:
            detail = "this address does not take this method"
            return _response("method-not-allowed", detail, status=405, headers=error.headers)
        case 503:
            return problem(StoreAway("the service cannot answer just now"))
        case status if 400 <= status < 500:
            return problem(Invalid("the request cannot be read"))
        case _:
            return internal_problem()


def invalid_of(error: RequestValidationError) -> Invalid:
    """What does not fit, the way pydantic lists it, without the values: a value may be what must not be echoed."""
    errors: Sequence[Any] = error.errors()
    shown = [
        {
            "loc": [part if isinstance(part, int) else str(part) for part in one.get("loc", ())],
            "msg": str(one.get("msg", "")),
            "type": str(one.get("type", "")),
        }
        for one in errors[:ERRORS_SHOWN]
    ]
    first = f"{'.'.join(map(str, shown[0]['loc']))}: {shown[0]['msg']}" if shown else "the request does not fit"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Invalid(first + more, errors=shown)


def _response(
    slug: str,
    detail: str,
    *,
    status: int,
    members: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = {
        **(members or {}),
        "type": "about:blank",
        "title": phrase(status),
        "status": status,
        "detail": detail,
        "slug": slug,
    }
    content = to_json(body, serialize_unknown=True)
    return Response(content, status, headers={"Cache-Control": "no-store", **(headers or {})}, media_type=MEDIA_TYPE)
