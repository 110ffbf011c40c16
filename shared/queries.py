"""Things, and lists of things, from read models: their rows hold the thing as it is shown, its id and its revision."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query
from sqlalchemy import Column, Table, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.responses import Response

from shared.errors import Invalid, NotFound
from shared.http import Call, answer, answer_list, cursor_of, key_of

Cursor = Annotated[str | None, Query(description="`next` of the page before")]
Limit = Annotated[int, Query(ge=1, le=500)]


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


def _cursor(row: Any) -> str:
    sort = row[1].isoformat() if isinstance(row[1], datetime) else row[1]
    return cursor_of(sort, str(row[2]))


def _bound(order: Column[Any], after: tuple[Any, ...]) -> tuple[Any, UUID]:
    try:
        sort = _instant(after[0]) if order.type.python_type is datetime else after[0]
        return sort, UUID(after[1])
    except (ValueError, OverflowError):
        raise Invalid("cursor: not a cursor of this list") from None


def _instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError("an instant has an offset")
    return instant.astimezone(UTC)
