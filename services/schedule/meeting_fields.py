"""What a meeting is made of: its fields, by the command that sets them, and what is wrong with them in themselves."""

from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from typing_extensions import TypedDict

from services.schedule.venue import Press, Venue, check_press, check_venue
from shared.deciding import required_text
from shared.errors import Invalid

LONGEST = timedelta(hours=72)
"""A longer meeting is taken for a slip of the unit."""

LiveStatus = Literal["tentative", "confirmed"]
MeetingStatus = Literal["tentative", "confirmed", "cancelled"]
MeetingKind = Literal[
    "bilateral",
    "multilateral",
    "pull-aside",
    "ceremony",
    "working-meal",
    "press-availability",
    "internal",
    "site-visit",
    "call",
]


class MeetingTiming(TypedDict, total=False):
    """What RescheduleMeeting sets; `start` is a wall time (naive) in `zone`."""

    start: datetime
    zone: str
    duration: timedelta
    hard: bool
    assumed: bool


class MeetingPlace(TypedDict, total=False):
    """What MoveMeeting sets: another stop usually needs another start."""

    stop: UUID
    venue: Venue | None
    start: datetime
    zone: str
    duration: timedelta
    assumed: bool


class MeetingText(TypedDict, total=False):
    """What ReviseMeeting sets; `notes` are internal."""

    title: str
    kind: MeetingKind
    topics: tuple[str, ...]
    notes: str | None
    press: Press | None


class MeetingFields(TypedDict, total=False):
    """What an event sets; `starts_at` and `ends_at` are instants (UTC), derived by the tz database release `tz`."""

    stop: UUID
    title: str
    kind: MeetingKind
    status: MeetingStatus
    start: datetime
    zone: str
    duration: timedelta
    starts_at: datetime
    ends_at: datetime
    tz: str
    venue: Venue | None
    topics: tuple[str, ...]
    notes: str | None
    press: Press | None
    hard: bool
    assumed: bool
    delegations: tuple[UUID, ...]
    reason: str | None


def check_fields(fields: MeetingFields) -> None:
    """Invalid for a value that is wrong in itself, whatever else is so."""
    if "title" in fields:
        required_text("title", fields["title"])
    if "duration" in fields:
        _check_duration(fields["duration"])
    if venue := fields.get("venue"):
        check_venue(venue)
    if press := fields.get("press"):
        check_press(press)
    invited = fields.get("delegations", ())
    if len(set(invited)) < len(invited):
        raise Invalid.field("delegations", "a delegation is named twice")


def _check_duration(duration: timedelta) -> None:
    if not timedelta(0) < duration <= LONGEST:
        longest = f"{LONGEST // timedelta(hours=1)} hours"
        raise Invalid.field("duration", f"a meeting takes some time, and no more than {longest}")
    if duration.microseconds:
        raise Invalid.field("duration", "a duration has whole seconds")
