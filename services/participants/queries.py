"""The participants' things by GET, from the read models."""

from uuid import UUID

from fastapi import APIRouter
from starlette.responses import Response

from services.participants import shapes, tables
from shared.openapi import QUERY, problems
from shared.queries import Cursor, Limit, check_there, list_things, show_thing
from shared.routes import At, Reader
from shared.shapes import Page

router = APIRouter(prefix="/participants", responses=problems(*QUERY))


@router.get(
    "/trips/{trip}/delegations",
    tags=["delegations"],
    response_model=Page[shapes.Delegation],
    summary="The delegations of a trip, by name",
)
async def list_delegations(trip: UUID, _: Reader, desk: At, cursor: Cursor = None, limit: Limit = 100) -> Response:
    """Dissolved ones included; none for a trip that is not known here."""
    table = tables.delegations
    return await list_things(desk.engine, table, table.c.name, where=table.c.trip == trip, cursor=cursor, limit=limit)


@router.get("/delegations/{delegation}", tags=["delegations"], response_model=shapes.Delegation, summary="A delegation")
async def show_delegation(delegation: UUID, call: Reader, desk: At) -> Response:
    """With its tag."""
    return await show_thing(desk.engine, call, tables.delegations, "delegation", delegation)


@router.get(
    "/delegations/{delegation}/members",
    tags=["members"],
    response_model=Page[shapes.Member],
    summary="The members, by function",
)
async def list_members(delegation: UUID, _: Reader, desk: At, cursor: Cursor = None, limit: Limit = 100) -> Response:
    """Withdrawn ones included; the precedence is the delegation's `order`."""
    await check_there(desk.engine, tables.delegations, "delegation", delegation)
    table = tables.members
    return await list_things(
        desk.engine, table, table.c.function, where=table.c.delegation == delegation, cursor=cursor, limit=limit
    )


@router.get("/members/{member}", tags=["members"], response_model=shapes.Member, summary="A member")
async def show_member(member: UUID, call: Reader, desk: At) -> Response:
    """With its tag."""
    return await show_thing(desk.engine, call, tables.members, "member", member)
