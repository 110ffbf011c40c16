"""The messages: what other systems may rely on, by type and version.

A body is `{"trip", "<thing>", ...}`. What is new or reinstated carries the whole; any other carries the fields that
changed with their new values, and `was` with the old ones: a field that is absent did not change. Writers forbid what
is not declared, readers ignore it (`read`), and enumerations are open: a reader takes values that it does not know.

Two topics a service: `cleared` has every field, `open` none that is declared `above_delegation` here.
"""

import dataclasses
from datetime import date, timedelta
from typing import Annotated, Any, TypeVar, cast
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NaiveDatetime


def known(*values: str) -> Any:
    """An open enumeration: these are known today, others may come."""
    return Field(json_schema_extra={"examples": list(values)})


ABOVE_DELEGATION = {"above_delegation": True}
Internal = Field(default=None, json_schema_extra={**ABOVE_DELEGATION})

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
Mode = Annotated[str, known("flight", "motorcade", "train", "helicopter")]
DelegationKind = Annotated[str, known("own", "host", "partner", "press")]
DelegationStatus = Annotated[str, known("registered", "dissolved")]
Function = Annotated[
    str, known("head", "principal", "member", "interpreter", "note-taker", "press", "security", "staff")
]
MemberStatus = Annotated[str, known("on-roster", "withdrawn")]
Level = Annotated[str, known("full", "delegation")]
Tz = Annotated[str, Field(description="release of the IANA database that derived the instants", examples=["2023c"])]


class Value(BaseModel):
    """A part of a body."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True, from_attributes=True
    )


class Place(Value):
    place: str
    zone: str


class Venue(Value):
    """`geo` is latitude, longitude in degrees (WGS 84)."""

    name: str
    address: str | None = None
    geo: tuple[float, float] | None = None
    conference: str | None = None


class Press(Value):
    """`preset` and `final` are wall times in the meeting's zone."""

    tag: PressTag
    preset: NaiveDatetime | None = None
    final: NaiveDatetime | None = None


class Personal(Value):
    """The only place where personal data stands."""

    name: str
    title: str | None = Internal
    contact: str | None = Internal


# -- what changes together ------------------------------------------------------------------------------------------


class Outcome(Value):
    reason: str | None = None


class TripOutcome(Outcome):
    status: TripStatus | None = None


class ItemOutcome(Outcome):
    status: ItemStatus | None = None


class StopFields(Value):
    place: str | None = None
    country: str | None = None
    zone: str | None = None
    arrives: NaiveDatetime | None = None
    departs: NaiveDatetime | None = None
    arrives_at: AwareDatetime | None = None
    departs_at: AwareDatetime | None = None
    tz: Tz | None = None
    host: UUID | None = None
    assumed: bool | None = None


class MovementFields(Value):
    mode: Mode | None = None
    label: str | None = None
    origin: Place | None = Field(default=None, alias="from")
    destination: Place | None = Field(default=None, alias="to")
    stop: UUID | None = None
    departs: NaiveDatetime | None = None
    arrives: NaiveDatetime | None = None
    departs_at: AwareDatetime | None = None
    arrives_at: AwareDatetime | None = None
    tz: Tz | None = None
    hard: bool | None = Internal
    assumed: bool | None = None
    notes: str | None = Internal


class WheelsUp(Value):
    left_at: AwareDatetime | None = None


class WheelsDown(Value):
    landed_at: AwareDatetime | None = None


class MeetingTimes(Value):
    start: NaiveDatetime | None = None
    zone: str | None = None
    duration: timedelta | None = None
    starts_at: AwareDatetime | None = None
    ends_at: AwareDatetime | None = None
    tz: Tz | None = None
    hard: bool | None = Internal
    assumed: bool | None = None


class MeetingPlace(MeetingTimes):
    stop: UUID | None = None
    venue: Venue | None = None


class MeetingText(Value):
    title: str | None = None
    kind: MeetingKind | None = None
    topics: tuple[str, ...] | None = None
    notes: str | None = Internal
    press: Press | None = Internal


class MeetingOutcome(Outcome):
    status: MeetingStatus | None = None


class Invited(Value):
    delegations: tuple[UUID, ...] | None = None


class DelegationFields(Outcome):
    name: str | None = None
    kind: DelegationKind | None = None
    status: DelegationStatus | None = None
    head: UUID | None = None
    order: tuple[UUID, ...] | None = None


class MemberFields(Outcome):
    function: Function | None = None
    personal: Personal | None = None
    status: MemberStatus | None = None


# -- messages of the schedule service -------------------------------------------------------------------------------


class Message(Value):
    """A body. Every one names its trip."""

    trip: UUID


class TripPlanned(Message):
    title: str
    principals: tuple[str, ...]
    home: Place
    starts_on: date
    ends_on: date
    status: TripStatus
    reason: str | None


class TripAnnounced(Message, TripOutcome):
    was: TripOutcome


class TripCompleted(Message, TripOutcome):
    was: TripOutcome


class TripCancelled(Message, TripOutcome):
    was: TripOutcome


class StopMessage(Message):
    stop: UUID


class StopAdded(StopMessage):
    place: str
    country: str
    zone: str
    arrives: NaiveDatetime
    departs: NaiveDatetime
    arrives_at: AwareDatetime
    departs_at: AwareDatetime
    tz: Tz
    host: UUID | None
    assumed: bool
    status: ItemStatus
    reason: str | None


class StopChanged(StopMessage, StopFields):
    was: StopFields


class StopRetimed(StopMessage, StopFields):
    was: StopFields


class StopDropped(StopMessage, ItemOutcome):
    was: ItemOutcome


class MovementMessage(Message):
    movement: UUID


class MovementAdded(MovementMessage):
    mode: Mode
    label: str
    origin: Place = Field(alias="from")
    destination: Place = Field(alias="to")
    stop: UUID | None
    departs: NaiveDatetime
    arrives: NaiveDatetime
    departs_at: AwareDatetime
    arrives_at: AwareDatetime
    tz: Tz
    hard: bool | None = Internal
    assumed: bool
    notes: str | None = Internal
    left_at: AwareDatetime | None
    landed_at: AwareDatetime | None
    status: ItemStatus
    reason: str | None


class MovementChanged(MovementMessage, MovementFields):
    was: MovementFields


class MovementRetimed(MovementMessage, MovementFields):
    was: MovementFields


class MovementDropped(MovementMessage, ItemOutcome):
    was: ItemOutcome


class WheelsUpReported(MovementMessage, WheelsUp):
    was: WheelsUp


class WheelsDownReported(MovementMessage, WheelsDown):
    was: WheelsDown


class MeetingMessage(Message):
    meeting: UUID


class MeetingScheduled(MeetingMessage):
    stop: UUID
    title: str
    kind: MeetingKind
    status: MeetingStatus
    start: NaiveDatetime
    zone: str
    duration: timedelta
    starts_at: AwareDatetime
    ends_at: AwareDatetime
    tz: Tz
    venue: Venue | None
    topics: tuple[str, ...]
    notes: str | None = Internal
    press: Press | None = Internal
    hard: bool | None = Internal
    assumed: bool
    delegations: tuple[UUID, ...]
    reason: str | None


class MeetingReinstated(MeetingScheduled):
    pass


class MeetingRescheduled(MeetingMessage, MeetingTimes):
    was: MeetingTimes


class MeetingRetimed(MeetingMessage, MeetingTimes):
    was: MeetingTimes


class MeetingMoved(MeetingMessage, MeetingPlace):
    was: MeetingPlace


class MeetingRevised(MeetingMessage, MeetingText):
    was: MeetingText


class MeetingConfirmed(MeetingMessage, MeetingOutcome):
    was: MeetingOutcome


class MeetingCancelled(MeetingMessage, MeetingOutcome):
    was: MeetingOutcome


class DelegationInvited(MeetingMessage, Invited):
    delegation: UUID
    was: Invited


class DelegationUninvited(MeetingMessage, Invited):
    delegation: UUID
    was: Invited


# -- messages of the participants service ---------------------------------------------------------------------------


class DelegationMessage(Message):
    delegation: UUID


class DelegationRegistered(DelegationMessage):
    name: str
    kind: DelegationKind
    status: DelegationStatus
    head: UUID | None
    order: tuple[UUID, ...]
    reason: str | None


class DelegationRenamed(DelegationMessage, DelegationFields):
    was: DelegationFields


class HeadNamed(DelegationMessage, DelegationFields):
    was: DelegationFields


class MembersReordered(DelegationMessage, DelegationFields):
    was: DelegationFields


class DelegationDissolved(DelegationMessage, DelegationFields):
    was: DelegationFields


class MemberMessage(Message):
    member: UUID
    delegation: UUID


class MemberAdded(MemberMessage):
    person: UUID
    function: Function
    personal: Personal
    status: MemberStatus
    reason: str | None


class MemberChanged(MemberMessage, MemberFields):
    was: MemberFields


class MemberWithdrawn(MemberMessage, MemberFields):
    was: MemberFields


# -- messages of the notifications service --------------------------------------------------------------------------


class FeedLinkMessage(Message):
    """A link's secret, or a hash of it, is on no topic; who holds which label and clearance is not on the open one."""

    feed_link: UUID


class FeedLinkEnd(Value):
    revoked_at: AwareDatetime | None = None
    reason: str | None = Internal


class FeedLinkIssued(FeedLinkMessage):
    delegation: UUID
    level: Level
    label: str | None = Internal
    cleared: bool | None = Internal
    alarm: timedelta | None
    creator: str | None = Internal
    expires_at: AwareDatetime
    revoked_at: AwareDatetime | None
    reason: str | None = Internal


class FeedLinkRotated(FeedLinkMessage):
    """It has another secret; nothing else is told of that."""


class FeedLinkRevoked(FeedLinkMessage, FeedLinkEnd):
    was: FeedLinkEnd


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
MESSAGES: dict[str, type[Message]] = {cls.__name__: cls for cls in (*SCHEDULE, *PARTICIPANTS, *NOTIFICATIONS)}
"""By the name in `attache.<name>.v1`."""

M = TypeVar("M", bound=Message)


def read(model: type[M], body: object) -> M:
    """A body as a reader takes it: what is not declared is ignored. Raises `pydantic.ValidationError`."""
    return model.model_validate(body, extra="ignore")


def write(model: type[Message], body: dict[str, Any], *, openly: bool) -> bytes:
    """The JSON of a body for the cleared or the open topic; what is not declared is an error."""
    message = model.model_validate(body)
    if openly:
        return model.model_validate(_opened(message)).model_dump_json(exclude_unset=True).encode()
    return message.model_dump_json(exclude_unset=True).encode()


def opens(model: type[Message], body: dict[str, Any]) -> bool:
    """Whether there is anything left to tell on the open topic once what stands above the delegation level is gone."""
    opened = _opened(model.model_validate(body))
    if "was" not in model.model_fields:
        return True
    return any(opened[name] != before for name, before in opened["was"].items())


def flattened(event: object) -> dict[str, Any]:
    """A stored event's fields as a body: what stands in its `whole` or `changed` stands beside its ids."""
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(cast(Any, event))}
    content = fields.pop("whole", None) or fields.pop("changed", {})
    return {**fields, **content}


def _opened(value: BaseModel) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name in value.model_fields_set:
        extra = type(value).model_fields[name].json_schema_extra
        if isinstance(extra, dict) and extra.get("above_delegation"):
            continue
        field = getattr(value, name)
        kept[name] = _opened(field) if isinstance(field, BaseModel) else field
    return kept
