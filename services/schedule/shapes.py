"""The schedule's things as the API shows them, and the bodies of its commands."""

from datetime import date
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AliasChoices, Field

from services.schedule import venue
from services.schedule.meeting import MeetingKind
from services.schedule.movement import MovementMode
from services.schedule.trip import Place as PlaceValue
from shared.shapes import ABSENT, Body, Duration, Fold, Instant, Line, NewId, Prose, Shape, WallTime, Zone


class Place(Shape):
    place: Line = Field(examples=["Washington"])
    zone: Zone = Field(examples=["America/New_York"])

    def value(self) -> PlaceValue:
        return PlaceValue(place=self.place, zone=self.zone)


class Venue(Shape):
    name: Line = Field(examples=["Iikura Guest House"])
    address: Line | None = None
    geo: tuple[float, float] | None = Field(default=None, description="latitude, longitude in degrees")
    conference: Line | None = Field(default=None, description="a URI to take part from afar")

    def value(self) -> venue.Venue:
        return venue.Venue(name=self.name, address=self.address, geo=self.geo, conference=self.conference)


class Press(Shape):
    tag: venue.PressTag
    preset: WallTime | None = None
    final: WallTime | None = None

    def value(self) -> venue.Press:
        return venue.Press(tag=self.tag, preset=self.preset, final=self.final)


Origin = Annotated[Place, Field(validation_alias=AliasChoices("from", "origin"), serialization_alias="from")]
Destination = Annotated[Place, Field(validation_alias=AliasChoices("to", "destination"), serialization_alias="to")]


class Trip(Shape):
    id: UUID
    title: str
    principals: tuple[str, ...]
    home: Place
    starts_on: date
    ends_on: date
    status: str
    reason: str | None


class Stop(Shape):
    id: UUID
    trip: UUID
    place: str
    country: str
    zone: str
    arrives: WallTime
    departs: WallTime
    arrives_at: Instant
    departs_at: Instant
    tz: str
    host: UUID | None
    assumed: bool
    status: str
    reason: str | None


class Movement(Shape):
    id: UUID
    trip: UUID
    mode: str
    label: str
    origin: Origin
    destination: Destination
    stop: UUID | None
    departs: WallTime
    arrives: WallTime
    departs_at: Instant
    arrives_at: Instant
    tz: str
    hard: bool
    assumed: bool
    notes: str | None
    left_at: Instant | None
    landed_at: Instant | None
    status: str
    reason: str | None


class Meeting(Shape):
    id: UUID
    trip: UUID
    stop: UUID
    title: str
    kind: str
    status: str
    start: WallTime
    zone: str
    duration: Duration
    starts_at: Instant
    ends_at: Instant
    tz: str
    venue: Venue | None
    topics: tuple[str, ...]
    notes: str | None
    press: Press | None
    hard: bool
    assumed: bool
    delegations: tuple[UUID, ...]
    reason: str | None


class PlanTrip(Body):
    id: NewId
    title: Line = Field(examples=["Secretary of State, November 2023"])
    principals: Annotated[list[Line], Field(max_length=20, examples=[["Secretary of State"]])]
    home: Place
    starts_on: date
    ends_on: date


class AddStop(Body):
    id: NewId
    place: Line = Field(examples=["Tokyo"])
    country: Line = Field(examples=["Japan"])
    zone: Zone
    arrives: WallTime = Field(examples=["2023-11-07T10:00:00"])
    arrives_fold: Fold = None
    departs: WallTime = Field(examples=["2023-11-08T17:00:00"])
    departs_fold: Fold = None
    host: UUID | None = None
    assumed: bool = False


class ChangeStop(Body):
    place: Line = ABSENT
    country: Line = ABSENT
    zone: Zone = ABSENT
    arrives: WallTime = ABSENT
    arrives_fold: Fold = None
    departs: WallTime = ABSENT
    departs_fold: Fold = None
    host: UUID | None = ABSENT
    assumed: bool = ABSENT


class Drop(Body):
    reason: Prose | None = None


class AddMovement(Body):
    id: NewId
    mode: MovementMode
    label: Line = Field(examples=["Tel Aviv to Amman"])
    origin: Origin
    destination: Destination
    stop: UUID | None = Field(default=None, description="the stop that it arrives at")
    departs: WallTime = Field(examples=["2023-11-03T19:30:00"])
    departs_fold: Fold = None
    arrives: WallTime = Field(examples=["2023-11-03T21:10:00"])
    arrives_fold: Fold = None
    hard: bool = False
    assumed: bool = False
    notes: Prose | None = None


class ChangeMovement(Body):
    mode: MovementMode = ABSENT
    label: Line = ABSENT
    origin: Origin = ABSENT
    destination: Destination = ABSENT
    stop: UUID | None = ABSENT
    departs: WallTime = ABSENT
    departs_fold: Fold = None
    arrives: WallTime = ABSENT
    arrives_fold: Fold = None
    hard: bool = ABSENT
    assumed: bool = ABSENT
    notes: Prose | None = ABSENT


class Wheels(Body):
    at: Instant


class ScheduleMeeting(Body):
    id: NewId
    stop: UUID
    title: Line = Field(examples=["Foreign Minister Kamikawa"])
    kind: MeetingKind
    status: Literal["tentative", "confirmed"] = "tentative"
    start: WallTime
    zone: Zone | None = Field(default=None, description="the stop's unless given")
    fold: Fold = None
    duration: Duration
    venue: Venue | None = None
    topics: Annotated[list[Line], Field(max_length=50)] = []
    notes: Prose | None = Field(default=None, description="internal")
    press: Press | None = None
    hard: bool = False
    assumed: bool = False
    delegations: Annotated[list[UUID], Field(max_length=100)] = []


class RescheduleMeeting(Body):
    start: WallTime = ABSENT
    zone: Zone = ABSENT
    fold: Fold = None
    duration: Duration = ABSENT
    hard: bool = ABSENT
    assumed: bool = ABSENT


class MoveMeeting(Body):
    stop: UUID = ABSENT
    venue: Venue | None = ABSENT
    start: WallTime = ABSENT
    zone: Zone = ABSENT
    fold: Fold = None
    duration: Duration = ABSENT
    assumed: bool = ABSENT


class ReviseMeeting(Body):
    title: Line = ABSENT
    kind: MeetingKind = ABSENT
    topics: Annotated[list[Line], Field(max_length=50)] = ABSENT
    notes: Prose | None = ABSENT
    press: Press | None = ABSENT


class Invite(Body):
    delegation: UUID
