"""The schedule's things as the API shows them, and the bodies of its commands."""

from datetime import date
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AliasChoices, Field

from services.schedule import venue
from services.schedule.meeting import MeetingKind
from services.schedule.movement import MovementMode
from services.schedule.trip import Place as PlaceValue
from shared.shapes import (
    ABSENT,
    Body,
    Day,
    Duration,
    Flag,
    Fold,
    Instant,
    Line,
    NewId,
    Prose,
    Shape,
    WallTime,
    Zone,
    example,
)


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


class PlanTrip(
    Body,
    json_schema_extra=example(
        {
            "title": "Secretary of State, November 2023",
            "principals": ["Secretary of State"],
            "home": {"place": "Washington", "zone": "America/New_York"},
            "starts_on": "2023-11-02",
            "ends_on": "2023-11-10",
        }
    ),
):
    id: NewId
    title: Line = Field(examples=["Secretary of State, November 2023"])
    principals: Annotated[list[Line], Field(max_length=20, examples=[["Secretary of State"]])]
    home: Place
    starts_on: Day
    ends_on: Day


class AddStop(
    Body,
    json_schema_extra=example(
        {
            "place": "Tokyo",
            "country": "Japan",
            "zone": "Asia/Tokyo",
            "arrives": "2023-11-07T10:00:00",
            "departs": "2023-11-08T17:00:00",
        }
    ),
):
    id: NewId
    place: Line = Field(examples=["Tokyo"])
    country: Line = Field(examples=["Japan"])
    zone: Zone
    arrives: WallTime = Field(examples=["2023-11-07T10:00:00"])
    arrives_fold: Fold = None
    departs: WallTime = Field(examples=["2023-11-08T17:00:00"])
    departs_fold: Fold = None
    host: UUID | None = None
    assumed: Flag = False


class ChangeStop(Body, json_schema_extra=example({"departs": "2023-11-08T18:30:00", "assumed": True})):
    place: Line = ABSENT
    country: Line = ABSENT
    zone: Zone = ABSENT
    arrives: WallTime = ABSENT
    arrives_fold: Fold = None
    departs: WallTime = ABSENT
    departs_fold: Fold = None
    host: UUID | None = ABSENT
    assumed: Flag = ABSENT


class Drop(Body, json_schema_extra=example({"reason": "The aircraft goes straight on."})):
    reason: Prose | None = None


class AddMovement(
    Body,
    json_schema_extra=example(
        {
            "mode": "flight",
            "label": "Tel Aviv to Amman",
            "from": {"place": "Tel Aviv", "zone": "Asia/Jerusalem"},
            "to": {"place": "Amman", "zone": "Asia/Amman"},
            "departs": "2023-11-03T19:30:00",
            "arrives": "2023-11-03T21:10:00",
        }
    ),
):
    id: NewId
    mode: MovementMode
    label: Line | None = Field(default=None, examples=["Tel Aviv to Amman"], description="else from and to")
    origin: Origin
    destination: Destination
    stop: UUID | None = Field(default=None, description="the stop that it arrives at")
    departs: WallTime = Field(examples=["2023-11-03T19:30:00"])
    departs_fold: Fold = None
    arrives: WallTime = Field(examples=["2023-11-03T21:10:00"])
    arrives_fold: Fold = None
    hard: Flag = False
    assumed: Flag = False
    notes: Prose | None = None


class ChangeMovement(
    Body, json_schema_extra=example({"departs": "2023-11-03T19:45:00", "arrives": "2023-11-03T21:25:00"})
):
    mode: MovementMode = ABSENT
    label: Line = ABSENT
    origin: Origin = ABSENT
    destination: Destination = ABSENT
    stop: UUID | None = ABSENT
    departs: WallTime = ABSENT
    departs_fold: Fold = None
    arrives: WallTime = ABSENT
    arrives_fold: Fold = None
    hard: Flag = ABSENT
    assumed: Flag = ABSENT
    notes: Prose | None = ABSENT


class Wheels(Body, json_schema_extra=example({"at": "2023-11-03T17:34:00Z"})):
    at: Instant


class ScheduleMeeting(
    Body,
    json_schema_extra=example(
        {
            "stop": "7c0e5a52-4c2e-4f7b-9a53-2f7c0a1d9b10",
            "title": "Foreign Minister Kamikawa",
            "kind": "bilateral",
            "start": "2023-11-07T18:25:00",
            "duration": "PT45M",
            "venue": {"name": "Iikura Guest House", "geo": [35.66, 139.74]},
            "topics": ["The Indo-Pacific"],
        }
    ),
):
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
    hard: Flag = False
    assumed: Flag = False
    delegations: Annotated[list[UUID], Field(max_length=100)] = []


class RescheduleMeeting(Body, json_schema_extra=example({"start": "2023-11-07T18:40:00", "duration": "PT30M"})):
    start: WallTime = ABSENT
    zone: Zone = ABSENT
    fold: Fold = None
    duration: Duration = ABSENT
    hard: Flag = ABSENT
    assumed: Flag = ABSENT


class MoveMeeting(Body, json_schema_extra=example({"venue": {"name": "Ministry of Foreign Affairs"}})):
    stop: UUID = ABSENT
    venue: Venue | None = ABSENT
    start: WallTime = ABSENT
    zone: Zone = ABSENT
    fold: Fold = None
    duration: Duration = ABSENT
    assumed: Flag = ABSENT


class ReviseMeeting(
    Body,
    json_schema_extra=example(
        {"topics": ["The Indo-Pacific", "Japan's G7 presidency"], "press": {"tag": "spray-at-top"}}
    ),
):
    title: Line = ABSENT
    kind: MeetingKind = ABSENT
    topics: Annotated[list[Line], Field(max_length=50)] = ABSENT
    notes: Prose | None = ABSENT
    press: Press | None = ABSENT


class Invite(Body, json_schema_extra=example({"delegation": "0b8f6f0e-2a9d-4b0a-8d9e-6f5f1c3a7e21"})):
    delegation: UUID
