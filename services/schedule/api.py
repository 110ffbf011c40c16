"""The schedule's commands over HTTP: a body becomes a command, the rules decide on it, and the thing is the answer.

Every route is the same three steps. What the rules need to know is read inside the command's transaction, after the
trip has been locked, so it cannot change before the events are stored. `new_in` is the trip of what is new; anything
else is asked for its own.
"""

from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import APIRouter, Body
from starlette.responses import Response

from services.schedule import meeting as meetings
from services.schedule import movement as movements
from services.schedule import shapes
from services.schedule import stop as stops
from services.schedule import trip as trips
from services.schedule.projections import (
    MEETING,
    MODELS,
    MOVEMENT,
    STOP,
    TRIP,
    check_delegations,
    engagements,
    trip_facts,
)
from services.schedule.stay import Engagement
from shared.call import Call
from shared.command import Answer, Desk, Kind, Transaction, answer_with
from shared.openapi import COMMAND, problems
from shared.routes import At, Planner, response
from shared.shapes import Nothing, Reason

TIMES = ("zone-unknown", "zone-abbreviated", "wall-time-skipped", "wall-time-repeated")
NO_FIELDS = Nothing()


Empty = Annotated[Nothing, Body()]

router = APIRouter(prefix="/schedule")
for_trips: dict[str, Any] = {"tags": ["trips"], "responses": problems(*COMMAND, *TIMES[:2], "reason-missing")}
for_stops: dict[str, Any] = {
    "tags": ["stops"],
    "responses": problems(*COMMAND, *TIMES, "stops-overlap", "meetings-outside-stay", "not-yet-known"),
}
for_movements: dict[str, Any] = {"tags": ["movements"], "responses": problems(*COMMAND, *TIMES)}
for_meetings: dict[str, Any] = {
    "tags": ["meetings"],
    "responses": problems(*COMMAND, *TIMES, "outside-stay", "reason-missing", "not-yet-known"),
}


@router.post("/trips", status_code=201, response_model=shapes.Trip, summary="PlanTrip", **for_trips)
async def plan_trip(body: shapes.PlanTrip, call: Planner, desk: At) -> Response:
    """A trip begins as a plan that nobody has announced."""
    trip = body.id or uuid4()
    return await _on_trip(call, desk, trips.PlanTrip(trip=trip, **body.values("id")))


@router.post("/trips/{trip}/announce", response_model=shapes.Trip, summary="AnnounceTrip", **for_trips)
async def announce_trip(trip: UUID, call: Planner, desk: At, _: Empty = NO_FIELDS) -> Response:
    """The plan is public."""
    return await _on_trip(call, desk, trips.AnnounceTrip(trip=trip))


@router.post("/trips/{trip}/complete", response_model=shapes.Trip, summary="CompleteTrip", **for_trips)
async def complete_trip(trip: UUID, call: Planner, desk: At, _: Empty = NO_FIELDS) -> Response:
    """Wheels down at home. Its items can still be mended."""
    return await _on_trip(call, desk, trips.CompleteTrip(trip=trip))


@router.post("/trips/{trip}/cancel", response_model=shapes.Trip, summary="CancelTrip", **for_trips)
async def cancel_trip(trip: UUID, call: Planner, desk: At, body: Reason = Reason()) -> Response:
    """All of its live items are cancelled or dropped in the same act, for the same reason."""
    return await _on_trip(call, desk, trips.CancelTrip(trip=trip, reason=body.reason))


@router.post("/trips/{trip}/stops", status_code=201, response_model=shapes.Stop, summary="AddStop", **for_stops)
async def add_stop(trip: UUID, body: shapes.AddStop, call: Planner, desk: At) -> Response:
    """One city, from arrival to departure by its own clocks."""
    return await _on_stop(call, desk, stops.AddStop(trip=trip, stop=body.id or uuid4(), **body.values("id")))


@router.post("/stops/{stop}/change", response_model=shapes.Stop, summary="ChangeStop", **for_stops)
async def change_stop(stop: UUID, body: shapes.ChangeStop, call: Planner, desk: At) -> Response:
    """What is absent stays as it is; another zone takes the meetings with it. No live meeting may be left outside."""
    command = stops.ChangeStop(
        stop=stop,
        changes=body.changes("arrives_fold", "departs_fold"),
        arrives_fold=body.arrives_fold,
        departs_fold=body.departs_fold,
    )
    return await _on_stop(call, desk, command)


@router.post("/stops/{stop}/drop", response_model=shapes.Stop, summary="DropStop", **for_stops)
async def drop_stop(stop: UUID, call: Planner, desk: At, body: shapes.Drop = shapes.Drop()) -> Response:
    """The stop stays in the feeds, marked."""
    return await _on_stop(call, desk, stops.DropStop(stop=stop, reason=body.reason))


@router.post(
    "/trips/{trip}/movements", status_code=201, response_model=shapes.Movement, summary="AddMovement", **for_movements
)
async def add_movement(trip: UUID, body: shapes.AddMovement, call: Planner, desk: At) -> Response:
    """A travel leg: departs by the clocks of one zone, arrives by those of another."""
    label = body.label or f"{body.origin.place} to {body.destination.place}"
    command = movements.AddMovement(trip=trip, movement=body.id or uuid4(), label=label, **body.values("id", "label"))
    return await _on_movement(call, desk, command)


@router.post("/movements/{movement}/change", response_model=shapes.Movement, summary="ChangeMovement", **for_movements)
async def change_movement(movement: UUID, body: shapes.ChangeMovement, call: Planner, desk: At) -> Response:
    """What is absent stays as it is."""
    command = movements.ChangeMovement(
        movement=movement,
        changes=body.changes("arrives_fold", "departs_fold"),
        arrives_fold=body.arrives_fold,
        departs_fold=body.departs_fold,
    )
    return await _on_movement(call, desk, command)


@router.post("/movements/{movement}/drop", response_model=shapes.Movement, summary="DropMovement", **for_movements)
async def drop_movement(movement: UUID, call: Planner, desk: At, body: shapes.Drop = shapes.Drop()) -> Response:
    """The movement stays in the feeds, marked."""
    return await _on_movement(call, desk, movements.DropMovement(movement=movement, reason=body.reason))


@router.post(
    "/movements/{movement}/wheels-up", response_model=shapes.Movement, summary="ReportWheelsUp", **for_movements
)
async def report_wheels_up(movement: UUID, body: shapes.Wheels, call: Planner, desk: At) -> Response:
    """When it left; a second report corrects the first."""
    return await _on_movement(call, desk, movements.ReportWheelsUp(movement=movement, at=body.at))


@router.post(
    "/movements/{movement}/wheels-down", response_model=shapes.Movement, summary="ReportWheelsDown", **for_movements
)
async def report_wheels_down(movement: UUID, body: shapes.Wheels, call: Planner, desk: At) -> Response:
    """When it landed; a second report corrects the first."""
    return await _on_movement(call, desk, movements.ReportWheelsDown(movement=movement, at=body.at))


@router.post(
    "/trips/{trip}/meetings", status_code=201, response_model=shapes.Meeting, summary="ScheduleMeeting", **for_meetings
)
async def schedule_meeting(trip: UUID, body: shapes.ScheduleMeeting, call: Planner, desk: At) -> Response:
    """Anything on the programme. It lies within the stay at its stop."""
    command = meetings.ScheduleMeeting(trip=trip, meeting=body.id or uuid4(), **body.values("id"))
    return await _on_meeting(call, desk, command)


@router.post(
    "/meetings/{meeting}/reschedule", response_model=shapes.Meeting, summary="RescheduleMeeting", **for_meetings
)
async def reschedule_meeting(meeting: UUID, body: shapes.RescheduleMeeting, call: Planner, desk: At) -> Response:
    """Another time. What is absent stays as it is."""
    return await _on_meeting(
        call, desk, meetings.RescheduleMeeting(meeting=meeting, changes=body.changes("fold"), fold=body.fold)
    )


@router.post("/meetings/{meeting}/move", response_model=shapes.Meeting, summary="MoveMeeting", **for_meetings)
async def move_meeting(meeting: UUID, body: shapes.MoveMeeting, call: Planner, desk: At) -> Response:
    """Another venue or stop; another stop usually needs another start."""
    return await _on_meeting(
        call, desk, meetings.MoveMeeting(meeting=meeting, changes=body.changes("fold"), fold=body.fold)
    )


@router.post("/meetings/{meeting}/revise", response_model=shapes.Meeting, summary="ReviseMeeting", **for_meetings)
async def revise_meeting(meeting: UUID, body: shapes.ReviseMeeting, call: Planner, desk: At) -> Response:
    """Title, kind, topics, notes, press tag."""
    return await _on_meeting(call, desk, meetings.ReviseMeeting(meeting=meeting, changes=body.changes()))


@router.post("/meetings/{meeting}/confirm", response_model=shapes.Meeting, summary="ConfirmMeeting", **for_meetings)
async def confirm_meeting(meeting: UUID, call: Planner, desk: At, _: Empty = NO_FIELDS) -> Response:
    """From tentative to confirmed."""
    return await _on_meeting(call, desk, meetings.ConfirmMeeting(meeting=meeting))


@router.post("/meetings/{meeting}/cancel", response_model=shapes.Meeting, summary="CancelMeeting", **for_meetings)
async def cancel_meeting(meeting: UUID, call: Planner, desk: At, body: Reason = Reason()) -> Response:
    """It keeps its identity, stays in the feeds, marked, and can be reinstated."""
    return await _on_meeting(call, desk, meetings.CancelMeeting(meeting=meeting, reason=body.reason))


@router.post("/meetings/{meeting}/reinstate", response_model=shapes.Meeting, summary="ReinstateMeeting", **for_meetings)
async def reinstate_meeting(meeting: UUID, call: Planner, desk: At, _: Empty = NO_FIELDS) -> Response:
    """A cancelled meeting takes place after all."""
    return await _on_meeting(call, desk, meetings.ReinstateMeeting(meeting=meeting))


@router.post(
    "/meetings/{meeting}/invite-delegation", response_model=shapes.Meeting, summary="InviteDelegation", **for_meetings
)
async def invite_delegation(meeting: UUID, body: shapes.Invite, call: Planner, desk: At) -> Response:
    """The meeting appears in the delegation's feed."""
    return await _on_meeting(call, desk, meetings.InviteDelegation(meeting=meeting, delegation=body.delegation))


@router.post(
    "/meetings/{meeting}/uninvite-delegation",
    response_model=shapes.Meeting,
    summary="UninviteDelegation",
    **for_meetings,
)
async def uninvite_delegation(meeting: UUID, body: shapes.Invite, call: Planner, desk: At) -> Response:
    """The meeting leaves the delegation's feed."""
    return await _on_meeting(call, desk, meetings.UninviteDelegation(meeting=meeting, delegation=body.delegation))


async def _on_trip(call: Call, desk: Desk, command: trips.Command) -> Response:
    planned = isinstance(command, trips.PlanTrip)

    async def act(transaction: Transaction) -> Answer:
        trip = await (transaction.load if planned else transaction.get)(TRIP, command.trip)
        state = transaction.record(TRIP, command.trip, trips.decide(command, trip))
        if isinstance(command, trips.CancelTrip):
            await _cancel_items(transaction, state.reason or command.reason)
        return answer_with(TRIP, state, 201 if planned else 200)

    answer = await desk.execute(call, command.trip, act, name=type(command).__name__)
    return response(answer, f"/schedule/trips/{command.trip}")


async def _on_stop(call: Call, desk: Desk, command: stops.Command) -> Response:
    new_in = command.trip if isinstance(command, stops.AddStop) else None
    trip = new_in or await MODELS.trip_of(desk.engine, STOP.name, command.stop)

    async def act(transaction: Transaction) -> Answer:
        facts = await trip_facts(transaction.connection, trip)
        stop = await (transaction.load if new_in else transaction.get)(STOP, command.stop)
        followers = await _followers(transaction, command, stop)
        held = {each.meeting: each for each in await engagements(transaction.connection, command.stop)}
        held |= {thing: engaged for thing, (_, engaged) in followers.items() if engaged is not None}
        events = stops.decide(command, stop, facts.status, facts.stays, tuple(held.values()))
        after = transaction.record(STOP, command.stop, events)
        for thing, (rescheduled, _) in followers.items():
            transaction.record(MEETING, thing, rescheduled)
        if after.host and (stop is None or stop.host != after.host):
            await check_delegations(transaction.connection, trip, {after.host})
        return answer_with(STOP, after, 201 if new_in else 200)

    answer = await desk.execute(call, trip, act, name=type(command).__name__)
    return response(answer, f"/schedule/stops/{command.stop}")


async def _followers(
    transaction: Transaction, command: stops.Command, stop: stops.Stop | None
) -> dict[UUID, tuple[list[meetings.Event], Engagement | None]]:
    """What another zone of a stop means for its meetings, and when each then is, in the same act."""
    if stop is None or not isinstance(command, stops.ChangeStop):
        return {}
    zone = command.changes.get("zone", stop.zone)
    followers: dict[UUID, tuple[list[meetings.Event], Engagement | None]] = {}
    for thing in await MODELS.ids(transaction.connection, MEETING.name, stop=stop.id) if zone != stop.zone else ():
        meeting = await transaction.load(MEETING, thing)
        if meeting is not None and (events := meetings.follow_stop(meeting, stop.zone, zone)):
            followers[thing] = (events, meetings.evolve(meeting, events[0]).engagement)
    return followers


async def _on_movement(call: Call, desk: Desk, command: movements.Command) -> Response:
    new_in = command.trip if isinstance(command, movements.AddMovement) else None
    trip = new_in or await MODELS.trip_of(desk.engine, MOVEMENT.name, command.movement)

    async def act(transaction: Transaction) -> Answer:
        facts = await trip_facts(transaction.connection, trip)
        movement = await (transaction.load if new_in else transaction.get)(MOVEMENT, command.movement)
        events = movements.decide(command, movement, facts.status, facts.stays)
        return answer_with(MOVEMENT, transaction.record(MOVEMENT, command.movement, events), 201 if new_in else 200)

    answer = await desk.execute(call, trip, act, name=type(command).__name__)
    return response(answer, f"/schedule/movements/{command.movement}")


async def _on_meeting(call: Call, desk: Desk, command: meetings.Command) -> Response:
    new_in = command.trip if isinstance(command, meetings.ScheduleMeeting) else None
    trip = new_in or await MODELS.trip_of(desk.engine, MEETING.name, command.meeting)

    async def act(transaction: Transaction) -> Answer:
        facts = await trip_facts(transaction.connection, trip)
        meeting = await (transaction.load if new_in else transaction.get)(MEETING, command.meeting)
        events = meetings.decide(command, meeting, facts.status, facts.stays)
        after = transaction.record(MEETING, command.meeting, events)
        invited = set(after.delegations) - set(meeting.delegations if meeting else ())
        await check_delegations(transaction.connection, trip, invited)
        return answer_with(MEETING, after, 201 if new_in else 200)

    answer = await desk.execute(call, trip, act, name=type(command).__name__)
    return response(answer, f"/schedule/meetings/{command.meeting}")


async def _cancel_items(transaction: Transaction, reason: str) -> None:
    """In the same act: a cancelled trip leaves nothing alive."""
    falls: dict[Kind[Any, Any], Any] = {
        STOP: stops.fall_with_trip,
        MOVEMENT: movements.fall_with_trip,
        MEETING: meetings.fall_with_trip,
    }
    for kind, fall in falls.items():
        for thing in await MODELS.ids(transaction.connection, kind.name, trip=transaction.trip):
            state: Any = await transaction.load(kind, thing)
            transaction.record(kind, thing, fall(state, reason))
