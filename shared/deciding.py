"""What every `decide` needs and no service owns: what a command really changes, and texts that must be there."""

from collections.abc import Mapping
from typing import TypeVar, cast

from shared.errors import Invalid, ReasonMissing

Fields = TypeVar("Fields", bound=Mapping[str, object])


def differing(thing: object, wanted: Fields) -> tuple[Fields, Fields]:
    """The fields of `wanted` whose value differs from the thing's, with their new and with their old values."""
    changed = {name: value for name, value in wanted.items() if value != getattr(thing, name)}
    was = {name: getattr(thing, name) for name in changed}
    return cast(Fields, changed), cast(Fields, was)


def required_reason(reason: str) -> str:
    """The reason without surrounding blanks; ReasonMissing if nothing is left."""
    if not reason.strip():
        raise ReasonMissing("This needs a reason.")
    return reason.strip()


def optional_reason(reason: str | None) -> str | None:
    """The reason without surrounding blanks; None if nothing is left."""
    return (reason or "").strip() or None


def required_text(name: str, text: str) -> None:
    """Invalid if the field `name` holds no visible text."""
    if not text.strip():
        raise Invalid.field(name, "must not be blank")
