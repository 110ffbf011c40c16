"""The schedule's things by GET, from the read models."""

from uuid import UUID

from fastapi import APIRouter
from sqlalchemy import Column, Table
from starlette.responses import Response

from services.schedule import shapes, tables
from shared.openapi import QUERY, problems
from shared.queries import Cursor, Limit, check_there, list_things, show_thing
from shared.routes import At, Reader
from shared.shapes import Page

router = APIRouter(prefix="/schedule", responses=problems(*QUERY))


@router.get("/trips", tags=["trips"], response_model=Page[shapes.Trip], summary="The trips, by their first day")
async def list_trips(_: Reader, desk: At, cursor: Cursor = None, limit: Limit = 100) -> Response:
    """`{"items": [...], "next": cursor or null}`, as all lists."""
    return await list_things(desk.engine, tables.trips, tables.trips.c.starts_on, cursor=cursor, limit=limit)


@router.get("/trips/{trip}", tags=["trips"], response_model=shapes.Trip, summary="A trip")
async def show_trip(trip: UUID, call: Reader, desk: At) -> Response:
    """With its tag; If-None-Match is honoured, as for all things."""
    return await show_thing(desk.engine, call, tables.trips, "trip", trip)


@router.get(
    "/trips/{trip}/stops", tags=["stops"], response_model=Page[shapes.Stop], summary="The stops of a trip, by arrival"
)
async def list_stops(trip: UUID, _: Reader, desk: At, cursor: Cursor = None, limit: Limit = 100) -> Response:
    """Dropped ones included."""
    return await _of_trip(desk, tables.stops, tables.stops.c.arrives_at, trip, cursor, limit)


@router.get("/stops/{stop}", tags=["stops"], response_model=shapes.Stop, summary="A stop")
async def show_stop(stop: UUID, call: Reader, desk: At) -> Response:
    """With its tag."""
    return await show_thing(desk.engine, call, tables.stops, "stop", stop)


@router.get(
    "/trips/{trip}/movements",
    tags=["movements"],
    response_model=Page[shapes.Movement],
    summary="The movements of a trip, by departure",
)
async def list_movements(trip: UUID, _: Reader, desk: At, cursor: Cursor = None, limit: Limit = 100) -> Response:
    """Dropped ones included."""
    return await _of_trip(desk, tables.movements, tables.movements.c.departs_at, trip, cursor, limit)


@router.get("/movements/{movement}", tags=["movements"], response_model=shapes.Movement, summary="A movement")
async def show_movement(movement: UUID, call: Reader, desk: At) -> Response:
    """With its tag."""
    return await show_thing(desk.engine, call, tables.movements, "movement", movement)


@router.get(
    "/trips/{trip}/meetings",
    tags=["meetings"],
    response_model=Page[shapes.Meeting],
    summary="The meetings of a trip, by start",
)
async def list_meetings(trip: UUID, _: Reader, desk: At, cursor: Cursor = None, limit: Limit = 100) -> Response:
    """Cancelled ones included."""
    return await _of_trip(desk, tables.meetings, tables.meetings.c.starts_at, trip, cursor, limit)


@router.get("/meetings/{meeting}", tags=["meetings"], response_model=shapes.Meeting, summary="A meeting")
async def show_meeting(meeting: UUID, call: Reader, desk: At) -> Response:
    """With its tag."""
    return await show_thing(desk.engine, call, tables.meetings, "meeting", meeting)


async def _of_trip(
    desk: At, table: Table, order: Column[object], trip: UUID, cursor: str | None, limit: int
) -> Response:
    await check_there(desk.engine, tables.trips, "trip", trip)
    return await list_things(desk.engine, table, order, where=table.c.trip == trip, cursor=cursor, limit=limit)
