"""Things, and lists of things, from read models: their rows hold the thing as it is shown, its id and its revision."""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Query
from sqlalchemy import Column, Table, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.responses import Response

from shared.call import Call
from shared.errors import Invalid, NotFound
from shared.http import answer, answer_list

Cursor = Annotated[str | None, Query(description="`next` of the page before")]
Limit = Annotated[int, Query(ge=1, le=500)]
_CURSOR_LIMIT: Final = 1024


async def show_thing(engine: AsyncEngine, call: Call, table: Table, kind: str, thing: UUID) -> Response:
    """One thing, with its tag. Raises `NotFound`."""
    async with engine.connect() as connection:
        found = await connection.execute(select(table.c.thing, table.c.revision).where(table.c.id == thing))
        row = found.one_or_none()
    if row is None:
        raise NotFound(f"there is no {kind} {thing}")
    return answer(row.thing, etag=row.revision, call=call)


async def check_there(engine: AsyncEngine, table: Table, kind: str, thing: UUID) -> None:
    """Before the list of what belongs to a thing. Raises `NotFound`."""
    async with engine.connect() as connection:
        if await connection.scalar(select(table.c.id).where(table.c.id == thing)) is None:
            raise NotFound(f"there is no {kind} {thing}")


async def list_things(
    engine: AsyncEngine, table: Table, order: Column[Any], *, where: Any = None, cursor: str | None, limit: int
) -> Response:
    """A page of things by `order` (an instant or a text) and id. Raises `Invalid` for a cursor of another list."""
    query = select(table.c.thing, order, table.c.id).order_by(order, table.c.id).limit(limit + 1)
    if where is not None:
        query = query.where(where)
    if (after := key_of(cursor, str, str)) is not None:
        query = query.where(tuple_(order, table.c.id) > tuple_(*_bound(order, after)))
    async with engine.connect() as connection:
        rows = (await connection.execute(query)).all()
    page = rows[:limit]
    following = _cursor(page[-1]) if len(rows) > limit else None
    return answer_list([row.thing for row in page], next=following)


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
        raise _wrong_cursor()
    return tuple(key)


def _cursor(row: Any) -> str:
    sort = row[1].isoformat() if isinstance(row[1], datetime) else row[1]
    return cursor_of(sort, str(row[2]))


def _bound(order: Column[Any], after: tuple[Any, ...]) -> tuple[Any, UUID]:
    try:
        sort = _instant(after[0]) if order.type.python_type is datetime else after[0]
        return sort, UUID(after[1])
    except (ValueError, OverflowError):
        raise _wrong_cursor() from None


def _instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError("an instant has an offset")
    return instant.astimezone(UTC)


def _storable(part: str | int) -> bool:
    """Whether PostgreSQL could compare with it at all, as `bigint` or `text` (no U+0000, no lone surrogate)."""
    if isinstance(part, int):
        return -(2**63) <= part < 2**63
    return re.search("[\0\ud800-\udfff]", part) is None


def _wrong_cursor() -> Invalid:
    message = "not a cursor of this list"
    wrong = {"loc": ["query", "cursor"], "msg": message, "type": "value_error"}
    return Invalid(f"cursor: {message}", errors=[wrong])
