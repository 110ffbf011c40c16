"""Who calls and with what: one request, as far as commands and queries need to know it.

A route takes one dependency, `Annotated[Call, needs("planner")]`-like, and hands the `Call` on: time, ids and actor
come from here and from nowhere below.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from typing import Any, Final

from fastapi import Depends
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.requests import Request

from shared.asgi import trail_of
from shared.errors import Invalid, ScopeMissing, TokenMissing, TokenUnknown
from shared.oidc import Oidc
from shared.tokens import Caller, Scope, TokenFile

CLOCK_ERROR: Final = timedelta(minutes=5)
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


class _Needs(SecurityBase):
    """A dependency that FastAPI also takes for a security scheme, so that the documentation tells of it."""

    def __init__(self, scopes: tuple[Scope, ...]) -> None:
        self.model = HTTPBearer(
            description="A token made by `python -m services token NAME SCOPE...`, or one of the OpenID Connect issuer"
        )
        self.scheme_name = "token"
        self.scopes = scopes

    async def __call__(self, request: Request) -> Call:
        caller = await _caller(request)
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


async def _caller(request: Request) -> Caller:
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    bearer = bearer.strip()
    if scheme.lower() != "bearer" or not bearer:
        raise TokenMissing("this needs a bearer token")
    oidc: Oidc | None = getattr(request.app.state, "oidc", None)
    if oidc is not None and oidc.takes(bearer):
        return await oidc.caller(bearer)
    tokens: TokenFile = request.app.state.tokens
    if (caller := tokens.caller(bearer)) is None:
        raise TokenUnknown("nobody has this bearer token")
    return caller


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise _wrong_header("Idempotency-Key", "should be one key of 1 to 255 visible ASCII characters")
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
        raise _wrong_header("Occurred-At", "should be a past instant like 2023-11-07T09:25:00Z") from None


def _if_match(request: Request) -> tuple[str, ...] | None:
    values = request.headers.getlist("if-match")
    if not values:
        return None
    tags = _tags(", ".join(values))
    if tags is None:
        raise _wrong_header("If-Match", 'should be a list of quoted entity tags ("3"), or *')
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


def _wrong_body(message: str, kind: str) -> Invalid:
    return Invalid(f"body: {message}", errors=[{"loc": ["body"], "msg": message, "type": kind}])


def _wrong_header(name: str, message: str) -> Invalid:
    return Invalid(f"{name}: {message}", errors=[{"loc": ["header", name], "msg": message, "type": "value_error"}])
