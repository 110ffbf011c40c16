"""What is told of a meeting: where, when and what about it is, and who is invited."""

from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from shared.contracts.values import (
    ABOVE_DELEGATION,
    INTERNAL,
    Degrees,
    Duration,
    Instant,
    Maybe,
    Message,
    Tz,
    Value,
    WallTime,
    Zone,
    known,
)

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


MESSAGES: tuple[type[Message], ...] = (
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
