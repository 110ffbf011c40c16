"""Every event has a message that fits it exactly: nothing lacks, nothing is declared that cannot come."""

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from deploy.schemas import message_schema
from services.notifications import feed_link
from services.notifications.feed_link import SECRET_FIELDS, FeedLinkRotated
from services.participants import delegation, member
from services.schedule import meeting, movement, stop, trip
from services.schedule.venue import Press
from shared import contracts
from shared.contracts.meeting import MeetingScheduled
from shared.contracts.values import is_internal

NAMES = {"origin": "from", "destination": "to"}
CLASSES: dict[str, Any] = {
    cls.__name__: cls for kind in (trip, stop, movement, meeting, delegation, member, feed_link) for cls in kind.EVENTS
}
FIELDS: dict[str, Any] = {
    name: hints.get("whole", hints.get("changed")) for name, cls in CLASSES.items() for hints in (get_type_hints(cls),)
}
WHOLE = [name for name, cls in CLASSES.items() if "whole" in get_type_hints(cls)]
CHANGES = [name for name in CLASSES if name not in WHOLE and CLASSES[name] is not FeedLinkRotated]


def ids(name: str) -> set[str]:
    return set(get_type_hints(CLASSES[name])) - {"whole", "changed", "was"}


def declared(name: str) -> set[str]:
    return set(contracts.MESSAGES[name].model_fields) - ids(name) - {"was"}


def changes(name: str, journey: list[Any]) -> list[set[str]]:
    return [set(event.changed) for event in journey if type(event) is CLASSES[name]]


def test_every_event_has_a_message_and_every_message_an_event() -> None:
    assert set(CLASSES) == set(contracts.MESSAGES)


def test_every_event_can_really_happen(journey: list[Any]) -> None:
    assert {type(event).__name__ for event in journey} == set(CLASSES)


@pytest.mark.parametrize("name", WHOLE)
def test_a_message_of_what_is_new_has_every_field_and_its_ids(name: str, journey: list[Any]) -> None:
    fields = set(get_type_hints(FIELDS[name])) - SECRET_FIELDS
    assert declared(name) | ids(name) == fields | ids(name)
    assert all(set(event.whole) - SECRET_FIELDS == fields for event in journey if type(event) is CLASSES[name])


@pytest.mark.parametrize("name", CHANGES)
def test_a_message_of_a_change_declares_what_can_change_and_no_more(name: str, journey: list[Any]) -> None:
    was: Any = contracts.MESSAGES[name].model_fields["was"].annotation
    assert declared(name) == set(was.model_fields) == set[str]().union(*changes(name, journey))


@pytest.mark.parametrize("name", CHANGES)
def test_a_message_of_a_change_requires_what_always_changes(name: str, journey: list[Any]) -> None:
    was: Any = contracts.MESSAGES[name].model_fields["was"].annotation
    internal = {name for name, field in was.model_fields.items() if is_internal(field.json_schema_extra)}
    always = set.intersection(*changes(name, journey)) - internal
    assert {field for field in declared(name) if contracts.MESSAGES[name].model_fields[field].is_required()} == always
    assert {field for field, info in was.model_fields.items() if info.is_required()} == always


def test_a_rotation_tells_that_it_happened_and_nothing_else() -> None:
    assert set(contracts.MESSAGES["FeedLinkRotated"].model_fields) == {"trip", "feed_link"}


def test_a_cleared_message_tells_what_was_stored(journey: list[Any], telling: Mapping[str, Any]) -> None:
    for event in journey:
        told = telling[type(event).__name__]
        stored_type, text = told.codec.encode(event)
        data = json.loads(text)
        content = data.pop("whole", None) or data.pop("changed")
        expected = {**_renamed(data), **_renamed(content)}
        if isinstance(event, FeedLinkRotated):
            expected.pop("was")
        assert json.loads(told.published.body(told.as_stored(stored_type, event), False)) == expected


def test_the_known_values_of_a_message_are_those_of_the_trade() -> None:
    for name in WHOLE:
        schema = message_schema(contracts.MESSAGES[name])
        for field, hint in get_type_hints(FIELDS[name]).items():
            if get_origin(hint) is Literal:
                assert tuple(schema["properties"][field]["examples"]) == get_args(hint), (name, field)
    press = message_schema(MeetingScheduled)["definitions"]["Press"]
    assert tuple(press["properties"]["tag"]["examples"]) == get_args(get_type_hints(Press)["tag"])


def _renamed(value: Any) -> Any:
    """As it is called outside, and without what no message carries."""
    if not isinstance(value, dict):
        return value
    return {NAMES.get(name, name): _renamed(part) for name, part in value.items() if name not in SECRET_FIELDS}
