"""What is told of a movement: a travel leg, and what came of it."""

from typing import Annotated
from uuid import UUID

from pydantic import Field

from shared.contracts.stop import Drop, ItemStatus
from shared.contracts.trip import Place
from shared.contracts.values import INTERNAL, Instant, Maybe, Message, Tz, Value, WallTime, known

MovementMode = Annotated[str, known("flight", "motorcade", "train", "helicopter")]


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


MESSAGES: tuple[type[Message], ...] = (
    MovementAdded,
    MovementChanged,
    MovementDropped,
    MovementRetimed,
    WheelsUpReported,
    WheelsDownReported,
)
