"""What messages are made of, whatever they tell: absence, audiences, times, and values that later versions may extend.

Every model is frozen, forbids what it does not declare (`bodies.read` ignores it) and dumps by alias.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, TypeVar
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, NaiveDatetime
from pydantic_core import CoreSchema

T = TypeVar("T")

ABOVE_DELEGATION = "x-above-delegation"
"""The mark, in models and in their JSON Schemas, of a field that only the cleared topic carries."""

INTERNAL: Any = Field(default=None, json_schema_extra={ABOVE_DELEGATION: True})
"""The default of a field above the delegation level."""


@dataclass(frozen=True)
class _NotNull:
    """None stands for an absent field in Python; null in JSON would be a value, and this field has no such value."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        return schema["schema"] if schema["type"] == "nullable" else schema


Maybe = Annotated[T | None, _NotNull()]
"""A field that may be absent, and is never null."""


def _utc(instant: datetime) -> datetime:
    return instant.astimezone(UTC)


def _all_alike(schema: dict[str, Any]) -> None:
    """A pair in words that every draft of JSON Schema knows."""
    schema["items"] = schema.pop("prefixItems")[0]


WallTime = Annotated[
    NaiveDatetime,
    Field(
        description="what the clock on the wall shows",
        examples=["2023-11-07T18:25:00"],
        json_schema_extra={"format": "local-date-time", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d$"},
    ),
]
Instant = Annotated[AwareDatetime, AfterValidator(_utc), Field(examples=["2023-11-07T09:25:00Z"])]
Duration = Annotated[timedelta, Field(examples=["PT45M"])]
Zone = Annotated[str, Field(description="an IANA name", examples=["Asia/Tokyo"])]
Tz = Annotated[str, Field(description="the release of the IANA database that derived the instants", examples=["2023c"])]
Degrees = Annotated[
    tuple[float, float],
    Field(
        description="latitude and longitude in degrees (WGS 84)",
        examples=[[35.66, 139.74]],
        json_schema_extra=_all_alike,
    ),
]


def known(*values: str) -> Any:
    """An open enumeration: these are known today, others may come, and a reader takes them."""
    return Field(json_schema_extra={"examples": list(values)})


class Value(BaseModel):
    """A part of a body. It is always told whole: what changes inside it changes it as one."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True, from_attributes=True
    )

    def below(self) -> dict[str, Any]:
        """The fields that are set, by name, without what stands above the delegation level."""
        kept: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            if name in self.model_fields_set and not is_internal(info.json_schema_extra):
                field = getattr(self, name)
                kept[name] = field.below() if isinstance(field, Value) else field
        return kept

    def missing(self) -> list[str]:
        """The fields that are not told, as paths ("venue.geo")."""
        fields = type(self).model_fields
        return [name for name in fields if name not in self.model_fields_set] + [
            f"{name}.{inner}"
            for name in fields
            if isinstance(part := getattr(self, name), Value)
            for inner in part.missing()
        ]


class Message(Value):
    """A body. Every one names its trip."""

    VERSION: ClassVar[int] = 1

    trip: UUID


def is_internal(extra: object) -> bool:
    """Whether a field with this `json_schema_extra` is never on an open topic, whatever its value."""
    return isinstance(extra, Mapping) and extra.get(ABOVE_DELEGATION) is True
