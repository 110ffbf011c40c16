"""A message's body, read and written."""

import dataclasses
from typing import Any, TypeVar, cast

from shared.contracts.values import Message, Value

M = TypeVar("M", bound=Value)


def read(model: type[M], body: object) -> M:
    """A body as a reader takes it: what is not declared is ignored. Raises `pydantic.ValidationError`."""
    return model.model_validate(body, extra="ignore")


def opens(model: type[Message], body: dict[str, Any]) -> bool:
    """Whether there is anything left to tell on the open topic; asked before an event is stored.

    Raises ValueError for what could not be told: something undeclared, or a whole or a `was` that lacks something.
    """
    message = model.model_validate(body)
    if missing := _missing(message):
        raise ValueError(f"{model.__name__} lacks {', '.join(missing)}")
    opened = _opened(message)
    return "was" not in opened or bool(opened["was"])


def write(model: type[Message], body: dict[str, Any], *, openly: bool) -> bytes:
    """The JSON of a body for the cleared or the open topic; what is not declared is a `pydantic.ValidationError`.

    An event of the past may lack what was added to its message since, and is told as it is.
    """
    message = model.model_validate(body)
    told = model.model_validate(_opened(message)) if openly else message
    return told.model_dump_json(exclude_unset=True).encode()


def flattened(event: object) -> dict[str, Any]:
    """A stored event's fields as a body: what stands in its `whole` or `changed` stands beside its ids."""
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(cast(Any, event))}
    content = fields.pop("whole", None) or fields.pop("changed", {})
    return {**fields, **content}


def _missing(message: Message) -> list[str]:
    was = getattr(message, "was", None)
    if was is None:
        return message.missing()
    changed = message.model_fields_set & set(type(was).model_fields)
    return sorted(changed ^ was.model_fields_set) + _parts_missing(message, was)


def _parts_missing(*values: Value) -> list[str]:
    """What a place, venue or person in a change lacks: each is told whole."""
    parts = [(name, getattr(value, name)) for value in values for name in value.model_fields_set - {"was"}]
    return [f"{name}.{path}" for name, part in parts if isinstance(part, Value) for path in part.missing()]


def _opened(message: Message) -> dict[str, Any]:
    """The fields for the open topic. What differs above the delegation level alone did not change there."""
    opened = message.below()
    for name, before in list(opened.get("was", {}).items()):
        if name in opened and opened[name] == before:
            del opened[name], opened["was"][name]
    return opened
