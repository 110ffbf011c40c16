"""The HTTP edge that the three services share: who calls and with what, and how things and refusals are answered.

A route takes one dependency, `Annotated[Call, needs("planner")]`-like, and hands the `Call` on: time, ids and actor
come from here and from nowhere below. `install` gives an app all the rest.
"""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from typing import Any, Final, cast

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from shared.asgi import BodyGuard, RequestLog, trail_of
from shared.errors import Invalid, Refusal, ScopeMissing, TokenMissing, TokenUnknown
from shared.openapi import document
from shared.problems import STATUS, invalid_of, problem, unrouted_problem
from shared.tokens import Caller, Scope, TokenFile

__all__ = ["STATUS", "Call", "answer", "answer_list", "cursor_of", "install", "key_of", "needs", "problem", "reads"]

BODY_LIMIT: Final = 256 * 1024
CLOCK_ERROR: Final = timedelta(minutes=5)
_CURSOR_LIMIT: Final = 1024
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_TAG = re.compile(r'[ \t,]*(?P<weak>W/)?(?P<tag>"[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?:,|$)')  # RFC 9110, 8.8.3
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One request, as far as a command or query needs to know it.

    `actor` is the token's name. `now` is aware, UTC; `occurred_at` is when it happened in the world, as the caller
    says (`Occurred-At`), else `now`: schedules are mended, and trips loaded, afterwards too. `if_match` holds the tags
    with their quotes, or `("*",)`; None where the header was not sent, an empty tuple where it had weak tags only
    (they never match: RFC 9110, 13.1.1).
    `request_digest` is the SHA-256 over method, path and the canonical JSON of the body as it was sent.
    """

    actor: str
    scopes: frozenset[str]
    now: datetime
    occurred_at: datetime
    correlation_id: str
    traceparent: str
    idempotency_key: str | None
    request_digest: bytes
    if_match: tuple[str, ...] | None
    if_none_match: tuple[str, ...] | None

    def may(self, scope: Scope) -> bool:
        """Whether the caller holds the scope; a planner may read what staff may read."""
        return Caller(self.actor, self.scopes).may(scope)


def needs(*scopes: Scope) -> Any:
    """A dependency that gives the `Call` of a caller who holds one of the scopes:

    `async def plan(call: Annotated[Call, needs("planner")], ...)`. Raises TokenMissing, TokenUnknown, ScopeMissing,
    and Invalid for a header that cannot be read.
    """
    return Depends(_needs(scopes))


def reads() -> Any:
    """The dependency for queries: staff, or a planner."""
    return needs("staff")


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


def cursor_of(*key: str | int) -> str:
    """The opaque cursor of a row: base64url (no padding) of its sort key."""
    return urlsafe_b64encode(json.dumps(key, ensure_ascii=False, separators=(",", ":")).encode()).rstrip(b"=").decode()


def key_of(cursor: str | None, *kinds: type[str] | type[int]) -> tuple[Any, ...] | None:
    """The sort key in a cursor, its parts of the kinds that the list sorts by; None for the first page.

    Raises Invalid for what `cursor_of` cannot have made.
    """
    if cursor is None:
        return None
    try:
        if len(cursor) > _CURSOR_LIMIT:
            raise ValueError
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        key = json.loads(urlsafe_b64decode(padded))
    except (ValueError, RecursionError):
        key = None
    if not isinstance(key, list) or [type(part) for part in key] != list(kinds) or not all(map(_storable, key)):
        raise _wrong("query", "cursor", "not a cursor of this list")
    return tuple(key)


def install(app: FastAPI, *, service: str) -> None:
    """Gives an app the edge: middlewares, refusals as problem+json, and its documentation at `/{service}/docs`.

    The app is to be made with `FastAPI(openapi_url=None, ...)`, and to have its token file at `app.state.tokens`
    before the first request.
    """
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _refused)
    app.add_exception_handler(HTTPException, _refused)
    app.add_middleware(BodyGuard, limit=BODY_LIMIT)
    app.add_middleware(RequestLog, service=service)  # added last, so it stands outermost
    document(app, service)


class _Needs(SecurityBase):
    """A dependency that FastAPI also takes for a security scheme, so that the documentation tells of it."""

    def __init__(self, scopes: tuple[Scope, ...]) -> None:
        self.model = HTTPBearer(description="A token made by `python -m services token NAME SCOPE...`")
        self.scheme_name = "token"
        self.scopes = scopes

    async def __call__(self, request: Request) -> Call:
        caller = _caller(request)
        if not any(caller.may(scope) for scope in self.scopes):
            detail = f"this needs a token with the scope {' or '.join(self.scopes)}"
            raise ScopeMissing(detail, needed=list(self.scopes))
        trail = trail_of(request.scope)
        now = datetime.now(UTC)
        return Call(
            actor=caller.name,
            scopes=caller.scopes,
            now=now,
            occurred_at=_occurred_at(request, now),
            correlation_id=trail.correlation_id,
            traceparent=trail.traceparent,
            idempotency_key=_idempotency_key(request),
            request_digest=_digest(request.method, request.scope["path"], await request.body()),
            if_match=_if_match(request),
            if_none_match=_if_none_match(request),
        )


@cache
def _needs(scopes: tuple[Scope, ...]) -> _Needs:
    return _Needs(scopes)


async def _refused(request: Request, error: Exception) -> Response:
    match error:
        case Refusal():
            refusal = error
        case RequestValidationError():
            refusal = invalid_of(error)
        case _:
            return unrouted_problem(cast(HTTPException, error))
    request.scope["slug"] = refusal.slug  # for the line in the log
    return problem(refusal)


def _caller(request: Request) -> Caller:
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not bearer.strip():
        raise TokenMissing("this needs a bearer token")
    tokens: TokenFile = request.app.state.tokens
    if (caller := tokens.caller(bearer.strip())) is None:
        raise TokenUnknown("nobody has this bearer token")
    return caller


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise _wrong("header", "Idempotency-Key", "should be one key of 1 to 255 visible ASCII characters")
    return keys[0]


def _occurred_at(request: Request, now: datetime) -> datetime:
    """Order never comes from it, so any past is taken; what has not happened yet is not, but for a clock's error."""
    value = request.headers.get("occurred-at")
    if value is None:
        return now
    try:
        instant = datetime.fromisoformat(value)
        if len(value) < len("2023-11-07T09:25Z") or instant.tzinfo is None or instant > now + CLOCK_ERROR:
            raise ValueError
        return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _wrong("header", "Occurred-At", "should be a past instant like 2023-11-07T09:25:00Z") from None


def _if_match(request: Request) -> tuple[str, ...] | None:
    values = request.headers.getlist("if-match")
    if not values:
        return None
    tags = _tags(", ".join(values))
    if tags is None:
        raise _wrong("header", "If-Match", 'should be a list of quoted entity tags ("3"), or *')
    return tuple(tag for weak, tag in tags if not weak)


def _if_none_match(request: Request) -> tuple[str, ...] | None:
    """Compared weakly (RFC 9110, 13.1.2). What cannot be read is as if it were not there: the answer is then whole."""
    values = request.headers.getlist("if-none-match")
    if not values or request.method not in ("GET", "HEAD"):
        return None
    return tuple(tag for _, tag in _tags(", ".join(values)) or ()) or None


def _tags(value: str) -> Sequence[tuple[bool, str]] | None:
    """The tags of a list, each with whether it is weak; `*` alone as one tag; None for what is no list of tags."""
    if value.strip() == "*":
        return [(False, "*")]
    tags: list[tuple[bool, str]] = []
    position = 0
    while position < len(value):
        found = _TAG.match(value, position)
        if found is None:
            return None
        tags.append((found["weak"] is not None, found["tag"]))
        position = found.end()
    return tags or None


def _held(wanted: tuple[str, ...] | None, etag: str) -> bool:
    return wanted is not None and (etag in wanted or "*" in wanted)


def _digest(method: str, path: str, body: bytes) -> bytes:
    return sha256(b"\n".join((method.encode(), path.encode(), _canonical(body)))).digest()


def _canonical(body: bytes) -> bytes:
    """The body's JSON with sorted keys and no spaces; nothing for no body. Raises Invalid for what is no JSON.

    NaN and infinities are no JSON, and U+0000 is text that PostgreSQL cannot keep: better refused here than there.
    """
    if not body:
        return b""
    try:
        text = json.dumps(json.loads(body, parse_constant=_no_constant), sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        raise _wrong_body("not JSON", "json_invalid") from None
    if _NUL.search(text):
        raise _wrong_body("text holds the character U+0000", "value_error")
    return text.encode()


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _storable(part: str | int) -> bool:
    """Whether PostgreSQL could compare with it at all, as `bigint` or `text` (no U+0000, no lone surrogate)."""
    if isinstance(part, int):
        return -(2**63) <= part < 2**63
    return re.search("[\0\ud800-\udfff]", part) is None


def _wrong_body(message: str, kind: str) -> Invalid:
    return Invalid(f"body: {message}", errors=[{"loc": ["body"], "msg": message, "type": kind}])


def _wrong(part: str, name: str, message: str) -> Invalid:
    return Invalid(f"{name}: {message}", errors=[{"loc": [part, name], "msg": message, "type": "value_error"}])


def _json(thing: bytes | str | Mapping[str, Any]) -> bytes:
    match thing:
        case bytes():
            return thing
        case str():
            return thing.encode()
        case _:
            return to_json(thing)
