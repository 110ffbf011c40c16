"""What is told of a stop: one city of a trip."""

from typing import Annotated
from uuid import UUID

from pydantic import Field

from shared.contracts.values import Instant, Maybe, Message, Tz, Value, WallTime, Zone, known

ItemStatus = Annotated[str, known("planned", "dropped")]


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


MESSAGES: tuple[type[Message], ...] = (StopAdded, StopChanged, StopDropped, StopRetimed)
