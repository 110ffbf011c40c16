"""What the bodies and things of every service's API are made of: pydantic bases and the few types they share."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, NaiveDatetime

_WALL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?")


def _wall_text(value: object) -> object:
    # pydantic would also take numbers, dates alone and fractions of a second
    if isinstance(value, str) and not _WALL.fullmatch(value):
        raise ValueError('a wall time is written "2023-11-07T18:25:00", without an offset')
    if not isinstance(value, str | datetime):
        raise ValueError('a wall time is a text like "2023-11-07T18:25:00"')
    return value


def _instant_text(value: object) -> object:
    if not isinstance(value, str | datetime):
        raise ValueError('an instant is a text like "2023-11-07T09:25:00Z"')
    return value


def _utc(value: datetime) -> datetime:
    return value.astimezone(UTC)


def _duration_text(value: object) -> object:
    if not isinstance(value, str | timedelta) or (isinstance(value, str) and not value.startswith("P")):
        raise ValueError('a duration is an ISO 8601 text like "PT45M"')
    return value


WallTime = Annotated[NaiveDatetime, BeforeValidator(_wall_text), Field(examples=["2023-11-07T18:25:00"])]
Instant = Annotated[
    AwareDatetime, BeforeValidator(_instant_text), AfterValidator(_utc), Field(examples=["2023-11-07T09:25:00Z"])
]
Duration = Annotated[timedelta, BeforeValidator(_duration_text), Field(examples=["PT45M"])]
Zone = Annotated[str, Field(max_length=64, examples=["Asia/Tokyo"], description="an IANA name")]
Line = Annotated[str, Field(max_length=300)]
Prose = Annotated[str, Field(max_length=10_000)]
Fold = Annotated[
    int | None, Field(ge=0, le=1, description="which of the two, for a wall time that was twice (or never)")
]
ABSENT: Any = Field(default_factory=lambda: None)
"""The default of a patch's field: it may be absent, which is not the same as null (`Body.changes` leaves it out)."""


class Shape(BaseModel):
    """A thing, or a part of one, as it goes out; also read from a state's attributes."""

    model_config = ConfigDict(frozen=True, from_attributes=True, extra="forbid", validate_by_name=True)

    @classmethod
    def shown(cls, state: object) -> dict[str, Any]:
        """The JSON object of a state."""
        return cls.model_validate(state).model_dump(mode="json", by_alias=True)

    def value(self) -> Any:
        """The value of the trade that this part stands for; shapes that come in override it."""
        raise NotImplementedError


class Body(BaseModel):
    """A command's body. What is not declared is refused: a misspelt field would otherwise be lost in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True)

    def values(self, *without: str) -> dict[str, Any]:
        """Every field by name, as values of the trade; `without` are fields that the command does not have."""
        return {name: _value(getattr(self, name)) for name in type(self).model_fields if name not in without}

    def changes(self, *without: str) -> dict[str, Any]:
        """The fields that were sent: what is absent stays as it is."""
        return {name: _value(getattr(self, name)) for name in self.model_fields_set if name not in without}


class Nothing(Body):
    """A command without fields; the body may be absent."""


class Reason(Body):
    """Why; a blank one is refused as `reason-missing`."""

    reason: Prose = ""


NewId = Annotated[UUID | None, Field(default=None, description="chosen by the caller, else made here")]


def _value(field: object) -> Any:
    if isinstance(field, Shape):
        return field.value()
    if isinstance(field, list):
        return tuple(field)
    return field
