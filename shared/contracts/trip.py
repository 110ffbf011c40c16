"""What is told of a trip."""

from datetime import date
from typing import Annotated

from pydantic import Field

from shared.contracts.values import Message, Value, Zone, known

TripStatus = Annotated[str, known("planned", "announced", "completed", "cancelled")]


class Place(Value):
    """A name for people, and the zone of its clocks."""

    place: str
    zone: Zone


class TripStep(Value):
    status: TripStatus


class TripEnd(TripStep):
    reason: str | None


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


MESSAGES: tuple[type[Message], ...] = (TripPlanned, TripAnnounced, TripCompleted, TripCancelled)
