"""The messages: what other systems may rely on, by type and version.

A body is `{"trip", "<thing>", ...}`. What is new or reinstated carries the whole; any other carries the fields that
changed with their new values, and `was` with the old ones: a field that is absent did not change. Writers forbid what
is not declared, readers ignore it (`read`), and enumerations are open: a reader takes values that it has not heard of.
A class's docstring says when its message is sent.

Two topics a service: `cleared` has every field, `open` none that is INTERNAL here. Above the delegation level stands
what the contract's table does not list for it: notes, press access, whether a time is hard, contacts and titles of
persons, an address for a call other than a web address, why a person or a delegation left, and who has which link.

What stands in schemas/ is made from this (`python -m deploy.contracts`), and what was promised there stays.
"""

import dataclasses
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, ClassVar, TypeVar, cast
from uuid import UUID

from pydantic import Field

from shared.contract_values import (
    ABOVE_DELEGATION,
    INTERNAL,
    Degrees,
    Duration,
    Instant,
    Maybe,
    Value,
    WallTime,
    Zone,
    known,
)

TripStatus = Annotated[str, known("planned", "announced", "completed", "cancelled")]
ItemStatus = Annotated[str, known("planned", "dropped")]
MeetingStatus = Annotated[str, known("tentative", "confirmed", "cancelled")]
MeetingKind = Annotated[
    str,
    known(
        "bilateral",
        "multilateral",
        "pull-aside",
        "ceremony",
        "working-meal",
        "press-availability",
        "internal",
        "site-visit",
        "call",
    ),
]
PressTag = Annotated[str, known("closed", "spray-at-top", "pooled-spray", "open", "determined-by-host")]
MovementMode = Annotated[str, known("flight", "motorcade", "train", "helicopter")]
DelegationKind = Annotated[str, known("own", "host", "partner", "press")]
DelegationStatus = Annotated[str, known("registered", "dissolved")]
MemberFunction = Annotated[
    str, known("head", "principal", "member", "interpreter", "note-taker", "press", "security", "staff")
]
MemberStatus = Annotated[str, known("on-roster", "withdrawn")]
Level = Annotated[str, known("full", "delegation")]
Tz = Annotated[str, Field(description="the release of the IANA database that derived the instants", examples=["2023c"])]


class Place(Value):
    """A name for people, and the zone of its clocks."""

    place: str
    zone: Zone


class Venue(Value):
    """Where a meeting is held. `conference` is a URI."""

    name: str
    address: str | None
    geo: Degrees | None
    conference: str | None = Field(default=None, json_schema_extra={ABOVE_DELEGATION: "unless it is an https address"})

    def below(self) -> dict[str, Any]:
        """Any other address than one of the web holds a telephone number, or the address of a person."""
        kept = super().below()
        if self.conference is not None and not self.conference.lower().startswith("https://"):
            del kept["conference"]
        return kept


class Press(Value):
    """When cameras are set up (`preset`) and let in for the last time (`final`), by the meeting's clock."""

    tag: PressTag
    preset: WallTime | None
    final: WallTime | None


class Personal(Value):
    """The only place where personal data stands."""

    name: str
    title: str | None = INTERNAL
    contact: str | None = INTERNAL


# What can change together: with its new values it stands in a message, with the old ones in its `was`


class TripStep(Value):
    status: TripStatus


class TripEnd(TripStep):
    reason: str | None


class StopTimes(Value):
    arrives: Maybe[WallTime] = None
    departs: Maybe[WallTime] = None
    arrives_at: Maybe[Instant] = None
    departs_at: Maybe[Instant] = None
    tz: Maybe[Tz] = None


class StopPlan(StopTimes):
    place: Maybe[str] = None
    country: Maybe[str] = None
    zone: Maybe[Zone] = None
    host: UUID | None = None
    assumed: Maybe[bool] = None


class Drop(Value):
    status: ItemStatus
    reason: str | None = None


class MovementTimes(Value):
    departs: Maybe[WallTime] = None
    arrives: Maybe[WallTime] = None
    departs_at: Maybe[Instant] = None
    arrives_at: Maybe[Instant] = None
    tz: Maybe[Tz] = None


class MovementPlan(MovementTimes):
    mode: Maybe[MovementMode] = None
    label: Maybe[str] = None
    origin: Maybe[Place] = Field(default=None, alias="from")
    destination: Maybe[Place] = Field(default=None, alias="to")
    stop: UUID | None = None
    hard: Maybe[bool] = INTERNAL
    assumed: Maybe[bool] = None
    notes: str | None = INTERNAL


class WheelsUp(Value):
    left_at: Instant | None


class WheelsDown(Value):
    landed_at: Instant | None


class MeetingRetiming(Value):
    start: Maybe[WallTime] = None
    starts_at: Instant
    ends_at: Instant
    tz: Maybe[Tz] = None


class MeetingTimes(Value):
    start: Maybe[WallTime] = None
    zone: Maybe[Zone] = None
    duration: Maybe[Duration] = None
    starts_at: Maybe[Instant] = None
    ends_at: Maybe[Instant] = None
    tz: Maybe[Tz] = None
    assumed: Maybe[bool] = None


class MeetingRescheduling(MeetingTimes):
    hard: Maybe[bool] = INTERNAL


class MeetingMove(MeetingTimes):
    stop: Maybe[UUID] = None
    venue: Venue | None = None


class MeetingText(Value):
    title: Maybe[str] = None
    kind: Maybe[MeetingKind] = None
    topics: Maybe[tuple[str, ...]] = None
    notes: str | None = INTERNAL
    press: Press | None = INTERNAL


class MeetingStep(Value):
    status: MeetingStatus


class MeetingEnd(MeetingStep):
    reason: str | None


class Invited(Value):
    delegations: tuple[UUID, ...]


class DelegationName(Value):
    name: str


class DelegationHead(Value):
    head: UUID | None


class Precedence(Value):
    order: tuple[UUID, ...]
    head: UUID | None = None


class Dissolution(Value):
    status: DelegationStatus
    head: UUID | None = None
    order: Maybe[tuple[UUID, ...]] = None
    reason: str | None = INTERNAL


class MemberPart(Value):
    function: Maybe[MemberFunction] = None
    personal: Maybe[Personal] = None


class Withdrawal(Value):
    status: MemberStatus
    reason: str | None = INTERNAL


class FeedLinkEnd(Value):
    revoked_at: Instant | None
    reason: str | None = INTERNAL


# Messages of the schedule service


class Message(Value):
    """A body. Every one names its trip."""

    VERSION: ClassVar[int] = 1

    trip: UUID


class TripPlanned(Message):
    """A trip was planned."""

    title: str
    principals: tuple[str, ...] = Field(description="offices, never names")
    home: Place
    starts_on: date
    ends_on: date
    status: TripStatus
    reason: str | None


class TripAnnounced(TripStep, Message):
    """The plan was given out."""

    was: TripStep


class TripCompleted(TripStep, Message):
    """The principals are home."""

    was: TripStep


class TripCancelled(TripEnd, Message):
    """The trip does not take place, or broke off; messages about its items follow."""

    was: TripEnd


class StopMessage(Message):
    stop: UUID


class StopAdded(StopMessage):
    """A city came onto the route."""

    place: str
    country: str
    zone: Zone
    arrives: WallTime
    departs: WallTime
    arrives_at: Instant
    departs_at: Instant
    tz: Tz
    host: UUID | None = Field(description="the delegation that receives the trip here")
    assumed: bool = Field(description="its times are not known for certain")
    status: ItemStatus
    reason: str | None


class StopChanged(StopPlan, StopMessage):
    """A planner changed the stay."""

    was: StopPlan


class StopRetimed(StopTimes, StopMessage):
    """A newer time zone database puts the same wall times at other instants."""

    was: StopTimes


class StopDropped(Drop, StopMessage):
    """The city left the route, or the trip was cancelled."""

    was: Drop


class MovementMessage(Message):
    movement: UUID


class MovementAdded(MovementMessage):
    """A travel leg was planned."""

    mode: MovementMode
    label: str
    origin: Place = Field(alias="from")
    destination: Place = Field(alias="to")
    stop: UUID | None = Field(description="the stop that it arrives at")
    departs: WallTime
    arrives: WallTime
    departs_at: Instant
    arrives_at: Instant
    tz: Tz
    hard: Maybe[bool] = INTERNAL
    assumed: bool = Field(description="its times are not known for certain")
    notes: str | None = INTERNAL
    left_at: Instant | None
    landed_at: Instant | None
    status: ItemStatus
    reason: str | None


class MovementChanged(MovementPlan, MovementMessage):
    """A planner changed the leg."""

    was: MovementPlan


class MovementRetimed(MovementTimes, MovementMessage):
    """A newer time zone database puts the same wall times at other instants."""

    was: MovementTimes


class MovementDropped(Drop, MovementMessage):
    """The leg is not travelled, or the trip was cancelled."""

    was: Drop


class WheelsUpReported(WheelsUp, MovementMessage):
    """It left, or left at another instant than was reported before."""

    was: WheelsUp


class WheelsDownReported(WheelsDown, MovementMessage):
    """It landed, or landed at another instant than was reported before."""

    was: WheelsDown


class MeetingMessage(Message):
    meeting: UUID


class MeetingScheduled(MeetingMessage):
    """A meeting came onto the programme."""

    stop: UUID
    title: str
    kind: MeetingKind
    status: MeetingStatus
    start: WallTime
    zone: Zone
    duration: Duration
    starts_at: Instant
    ends_at: Instant
    tz: Tz
    venue: Venue | None
    topics: tuple[str, ...]
    notes: str | None = INTERNAL
    press: Press | None = INTERNAL
    hard: Maybe[bool] = INTERNAL
    assumed: bool = Field(description="its time is not known for certain")
    delegations: tuple[UUID, ...] = Field(description="the invited ones, in their order")
    reason: str | None


class MeetingReinstated(MeetingScheduled):
    """A cancelled meeting is held after all, with the status that it had."""


class MeetingRescheduled(MeetingRescheduling, MeetingMessage):
    """It is held at another time, at the same place."""

    was: MeetingRescheduling


class MeetingRetimed(MeetingRetiming, MeetingMessage):
    """A newer time zone database puts the same wall time at another instant."""

    was: MeetingRetiming


class MeetingMoved(MeetingMove, MeetingMessage):
    """It is held at another venue, stop or both, perhaps at another time."""

    was: MeetingMove


class MeetingRevised(MeetingText, MeetingMessage):
    """What it is about changed, not where and when."""

    was: MeetingText


class MeetingConfirmed(MeetingStep, MeetingMessage):
    """A tentative meeting is sure to be held."""

    was: MeetingStep


class MeetingCancelled(MeetingEnd, MeetingMessage):
    """It is not held, or the trip was cancelled."""

    was: MeetingEnd


class DelegationInvited(Invited, MeetingMessage):
    """A delegation was invited to a meeting."""

    delegation: UUID
    was: Invited


class DelegationUninvited(Invited, MeetingMessage):
    """A delegation is not invited any more."""

    delegation: UUID
    was: Invited


# Messages of the participants service


class DelegationMessage(Message):
    delegation: UUID


class DelegationRegistered(DelegationMessage):
    """A delegation takes part in the trip."""

    name: str
    kind: DelegationKind
    status: DelegationStatus
    head: UUID | None = Field(description="the member who leads")
    order: tuple[UUID, ...] = Field(description="its live members by precedence")
    reason: str | None = INTERNAL


class DelegationRenamed(DelegationName, DelegationMessage):
    """The same people have another name."""

    was: DelegationName


class HeadNamed(DelegationHead, DelegationMessage):
    """Somebody leads it now."""

    was: DelegationHead


class MembersReordered(Precedence, DelegationMessage):
    """The precedence was set, somebody joined at its end, or somebody left it (and the lead, if it was the head)."""

    was: Precedence


class DelegationDissolved(Dissolution, DelegationMessage):
    """It takes part no more; messages about its members follow."""

    was: Dissolution


class MemberMessage(Message):
    member: UUID
    delegation: UUID


class MemberAdded(MemberMessage):
    """A person came onto a delegation's roster."""

    person: UUID = Field(description="the same for one person on several delegations or trips")
    function: MemberFunction
    personal: Personal
    status: MemberStatus
    reason: str | None = INTERNAL


class MemberChanged(MemberPart, MemberMessage):
    """A member has another function, or what is personal of them changed."""

    was: MemberPart


class MemberWithdrawn(Withdrawal, MemberMessage):
    """A member left the roster, or the delegation was dissolved."""

    was: Withdrawal


# Messages of the notifications service


class FeedLinkMessage(Message):
    """A link's secret, or a hash of it, is on no topic."""

    feed_link: UUID


class FeedLinkIssued(FeedLinkMessage):
    """Somebody got the right to read a delegation's feed."""

    delegation: UUID
    level: Level
    label: Maybe[str] = INTERNAL
    cleared: Maybe[bool] = INTERNAL
    alarm: Duration | None = Field(description="how long before a start clients are to ring")
    creator: Maybe[str] = INTERNAL
    expires_at: Instant
    revoked_at: Instant | None
    reason: str | None = INTERNAL


class FeedLinkRotated(FeedLinkMessage):
    """The link has another secret; nothing else is told of that."""


class FeedLinkRevoked(FeedLinkEnd, FeedLinkMessage):
    """The link opens nothing any more."""

    was: FeedLinkEnd


class MessageParked(Value):
    """A consumer could not take a message and keeps it, with all that follow under its key, until it is redriven."""

    VERSION: ClassVar[int] = 1

    topic: str
    partition: int
    offset: int
    id: str | None = Field(description="the id of the message, where it could be read")
    slug: str = Field(description="what is wrong with it")


SCHEDULE: tuple[type[Message], ...] = (
    TripPlanned,
    TripAnnounced,
    TripCompleted,
    TripCancelled,
    StopAdded,
    StopChanged,
    StopDropped,
    StopRetimed,
    MovementAdded,
    MovementChanged,
    MovementDropped,
    MovementRetimed,
    WheelsUpReported,
    WheelsDownReported,
    MeetingScheduled,
    MeetingRescheduled,
    MeetingMoved,
    MeetingRevised,
    MeetingConfirmed,
    MeetingCancelled,
    MeetingReinstated,
    MeetingRetimed,
    DelegationInvited,
    DelegationUninvited,
)
PARTICIPANTS: tuple[type[Message], ...] = (
    DelegationRegistered,
    DelegationRenamed,
    HeadNamed,
    MembersReordered,
    DelegationDissolved,
    MemberAdded,
    MemberChanged,
    MemberWithdrawn,
)
NOTIFICATIONS: tuple[type[Message], ...] = (FeedLinkIssued, FeedLinkRotated, FeedLinkRevoked)
SERVICES: Mapping[str, tuple[type[Message], ...]] = {
    "schedule": SCHEDULE,
    "participants": PARTICIPANTS,
    "notifications": NOTIFICATIONS,
}
"""Who sends what. `MessageParked` is sent by each, on its dead-letter topic."""
MESSAGES: dict[str, type[Message]] = {cls.__name__: cls for classes in SERVICES.values() for cls in classes}
"""By the name in `attache.<name>.v<version>`."""

M = TypeVar("M", bound=Value)


def read(model: type[M], body: object) -> M:
    """A body as a reader takes it: what is not declared is ignored. Raises `pydantic.ValidationError`."""
    return model.model_validate(body, extra="ignore")


def opens(model: type[Message], body: dict[str, Any]) -> bool:
    """Whether there is anything left to tell on the open topic; asked before an event is stored.

    Raises ValueError for what could not be told: something undeclared, or a whole or a `was` that lacks something.
    """
    message = model.model_validate(body)
    if missing := _missing(message):
        raise ValueError(f"{model.__name__} lacks {', '.join(missing)}")
    opened = _opened(message)
    return "was" not in opened or bool(opened["was"])


def write(model: type[Message], body: dict[str, Any], *, openly: bool) -> bytes:
    """The JSON of a body for the cleared or the open topic; what is not declared is a `pydantic.ValidationError`.

    An event of the past may lack what was added to its message since, and is told as it is.
    """
    message = model.model_validate(body)
    told = model.model_validate(_opened(message)) if openly else message
    return told.model_dump_json(exclude_unset=True).encode()


def flattened(event: object) -> dict[str, Any]:
    """A stored event's fields as a body: what stands in its `whole` or `changed` stands beside its ids."""
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(cast(Any, event))}
    content = fields.pop("whole", None) or fields.pop("changed", {})
    return {**fields, **content}


def _missing(message: Message) -> list[str]:
    was = getattr(message, "was", None)
    if was is None:
        return message.missing()
    changed = message.model_fields_set & set(type(was).model_fields)
    return sorted(changed ^ was.model_fields_set) + _parts_missing(message, was)


def _parts_missing(*values: Value) -> list[str]:
    """What a place, venue or person in a change lacks: each is told whole."""
    parts = [(name, getattr(value, name)) for value in values for name in value.model_fields_set - {"was"}]
    return [f"{name}.{path}" for name, part in parts if isinstance(part, Value) for path in part.missing()]


def _opened(message: Message) -> dict[str, Any]:
    """The fields for the open topic. What differs above the delegation level alone did not change there."""
    opened = message.below()
    for name, before in list(opened.get("was", {}).items()):
        if name in opened and opened[name] == before:
            del opened[name], opened["was"][name]
    return opened
