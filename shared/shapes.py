"""What the bodies and things of every service's API are made of: pydantic bases and the few types they share."""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NaiveDatetime,
    Strict,
    WithJsonSchema,
)

T = TypeVar("T", bound=BaseModel)


def _written(pattern: str, kind: type, said: str) -> BeforeValidator:
    """Of all that pydantic takes (numbers, bare dates, seconds since 1970 as text) only this; values of ours pass."""
    written = re.compile(pattern, re.ASCII)

    def check(value: object) -> object:
        if isinstance(value, kind) or (isinstance(value, str) and written.fullmatch(value)):
            return value
        raise ValueError(said)

    return BeforeValidator(check)


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("an instant at the very edge of the calendar") from None


_DAY = r"\d{4}-\d\d-\d\d"
_WALL = _DAY + r"T\d\d:\d\d(:\d\d)?"
Day = Annotated[date, _written(_DAY, date, 'a day is written "2023-11-07"'), Field(examples=["2023-11-07"])]
WallTime = Annotated[
    NaiveDatetime,
    _written(_WALL, datetime, 'a wall time is written "2023-11-07T18:25:00", without an offset'),
    # JSON Schema's format date-time wants an offset
    WithJsonSchema({"type": "string", "pattern": f"^{_WALL}$", "examples": ["2023-11-07T18:25:00"]}),
    Field(description="by the clocks of the zone, without an offset"),
]
Instant = Annotated[
    AwareDatetime,
    _written(
        _DAY + r"[Tt]\d\d:\d\d(:\d\d(\.\d{1,6})?)?([Zz]|[+-]\d\d:\d\d)",
        datetime,
        'an instant is written "2023-11-07T09:25:00Z", with an offset',
    ),
    AfterValidator(_utc),
    Field(examples=["2023-11-07T09:25:00Z"]),
]
Duration = Annotated[
    timedelta,
    _written(r"P[0-9DTHMSW.]+", timedelta, 'a duration is written "PT45M" (ISO 8601)'),
    Field(examples=["PT45M"]),
]
Flag = Annotated[bool, Strict()]
Zone = Annotated[str, Field(max_length=64, examples=["Asia/Tokyo"], description="an IANA name")]
Line = Annotated[str, Field(max_length=300)]
Prose = Annotated[str, Field(max_length=10_000)]
Fold = Annotated[Literal[0, 1] | None, Field(description="which of the two, for a wall time that was twice (or never)")]
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


class Page(BaseModel, Generic[T]):
    """A page of a list; `next` is the cursor of the page after it."""

    items: list[T]
    next: str | None


class Body(BaseModel):
    """A command's body. What is not declared is refused: a misspelt field would otherwise be lost in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True)

    def values(self, *without: str) -> dict[str, Any]:
        """Every field by name, as values of the trade; `without` are fields that the command does not have."""
        return {name: _value(getattr(self, name)) for name in type(self).model_fields if name not in without}

    def changes(self, *without: str) -> Any:
        """The fields that were sent, as the patch that the command takes: what is absent stays as it is."""
        return {name: _value(getattr(self, name)) for name in self.model_fields_set if name not in without}


def example(body: dict[str, Any]) -> dict[str, Any]:
    """A body as it may be sent, for the documentation."""
    return {"examples": [body]}


class Nothing(Body, json_schema_extra=example({})):
    """A command without fields; the body may be absent."""


class Reason(Body, json_schema_extra=example({"reason": "The host is called away."})):
    """Why; a blank one is refused as `reason-missing`."""

    reason: Prose = ""


NewId = Annotated[UUID | None, Field(default=None, description="chosen by the caller, else made here")]


def _value(field: object) -> Any:
    if isinstance(field, Shape):
        return field.value()
    if isinstance(field, list):
        return tuple(field)
    return field
