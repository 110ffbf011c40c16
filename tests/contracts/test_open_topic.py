"""What stands above the delegation level is not on the open topic, in whatever event it comes."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from services.schedule.meeting import MeetingMoved, MeetingRescheduled, MeetingRevised
from services.schedule.movement import MovementChanged
from shared import contracts
from shared.contracts import bodies
from shared.contracts.meeting import MeetingScheduled, Venue
from shared.contracts.member import MemberChanged

INTERNAL = {
    "Movement": {"hard", "notes"},
    "Meeting": {"hard", "notes", "press", "venue.conference"},
    "Delegation": {"reason"},
    "Member": {"personal.title", "personal.contact", "reason"},
    "FeedLink": {"label", "cleared", "creator", "reason"},
}
"""By the first word of a type, as the contract's table of levels has it; written anew here, not taken from the code."""


def internal(name: str) -> set[str]:
    """The paths in a body that only the cleared topic may have."""
    paths = next((paths for word, paths in INTERNAL.items() if name.startswith(word)), set[str]())
    return paths | {f"was.{path}" for path in paths}


def opened_by_the_table(name: str, cleared: dict[str, Any]) -> dict[str, Any]:
    """What of a cleared body may be open: no internal field, and no field of which that leaves the old value."""
    opened: dict[str, Any] = _without(internal(name), cleared)
    for field, before in list(opened.get("was", {}).items()):
        if opened[field] == before:
            del opened[field], opened["was"][field]
    return opened


def bodies_of(event: Any, telling: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    """Type, cleared and open body; None where the open topic does not carry the event."""
    name = type(event).__name__
    told = telling[name]
    stored = told.as_stored(told.codec.encode(event)[0], event)
    opened = json.loads(told.published.body(stored, True)) if told.published.is_open(event) else None
    return name, json.loads(told.published.body(stored, False)), opened


def test_no_open_message_holds_a_canary_and_each_stands_in_a_cleared_one(
    journey: list[Any], telling: Mapping[str, Any]
) -> None:
    seen = 0
    for event in journey:
        told = telling[type(event).__name__]
        stored = told.as_stored(told.codec.encode(event)[0], event)
        seen += json.dumps(told.message(stored, openly=False)).count("canary")
        assert "canary" not in json.dumps(told.message(stored, openly=True))
    assert seen > 30


def test_an_open_message_is_the_cleared_one_without_what_stands_above(
    journey: list[Any], telling: Mapping[str, Any]
) -> None:
    for event in journey:
        name, cleared, opened = bodies_of(event, telling)
        if opened is not None:
            assert opened == opened_by_the_table(name, cleared)


def test_an_event_that_says_nothing_below_is_not_on_the_open_topic(
    journey: list[Any], telling: Mapping[str, Any]
) -> None:
    hidden = [
        (type(event).__name__, sorted(event.changed)) for event in journey if bodies_of(event, telling)[2] is None
    ]
    assert hidden == [
        ("MovementChanged", ["notes"]),
        ("MeetingRescheduled", ["hard"]),
        ("MeetingMoved", ["venue"]),
        ("MeetingMoved", ["venue"]),
        ("MeetingRevised", ["notes", "press"]),
        ("MemberChanged", ["personal"]),
    ]


def test_what_differs_above_alone_is_not_told_as_a_change(journey: list[Any], telling: Mapping[str, Any]) -> None:
    """That something about a person changed is a fact too."""
    changed = [bodies_of(event, telling)[2] for event in journey if type(event).__name__ == "MemberChanged"]
    assert changed[2] is not None
    assert changed[2].keys() == {"trip", "member", "delegation", "function", "was"}
    assert changed[2]["was"] == {"function": "note-taker"}


@pytest.mark.parametrize("conference", ["tel:+81-3", "mailto:a@b.test", "sip:a@b.test", "callto:a", "http://a.test"])
def test_an_address_for_a_call_is_open_only_if_it_is_one_of_the_web(conference: str) -> None:
    venue = {"name": "Ministry", "address": None, "geo": None}
    assert Venue.model_validate({**venue, "conference": conference}).below() == venue
    web = {**venue, "conference": "HTTPS://meet.test/1"}
    assert Venue.model_validate(web).below() == web


def test_a_writer_forbids_what_is_not_declared(journey: list[Any]) -> None:
    for event in journey:
        model = contracts.MESSAGES[type(event).__name__]
        with pytest.raises(ValidationError):
            bodies.write(model, {**bodies.flattened(event), "secret_hash": "canary"}, openly=False)


@pytest.mark.parametrize("kind", [MeetingMoved, MeetingRescheduled, MeetingRevised, MovementChanged])
def test_no_change_is_stored_without_its_old_value(kind: type, journey: list[Any]) -> None:
    event = next(event for event in journey if type(event) is kind)
    body = bodies.flattened(event)
    forgotten = next(iter(body["was"]))
    body["was"] = {name: value for name, value in body["was"].items() if name != forgotten}
    with pytest.raises(ValueError, match=f"lacks {forgotten}"):
        bodies.opens(contracts.MESSAGES[kind.__name__], body)


def test_no_whole_is_stored_that_lacks_something(journey: list[Any]) -> None:
    body = bodies.flattened(next(event for event in journey if type(event).__name__ == "MeetingScheduled"))
    del body["notes"]
    with pytest.raises(ValueError, match="MeetingScheduled lacks notes"):
        bodies.opens(MeetingScheduled, body)


def test_an_event_of_the_past_is_told_though_its_message_has_more_fields_now(journey: list[Any]) -> None:
    body = bodies.flattened(next(event for event in journey if type(event).__name__ == "MeetingScheduled"))
    del body["press"]
    for openly in (False, True):
        assert "press" not in json.loads(bodies.write(MeetingScheduled, body, openly=openly))


def test_no_half_of_a_person_is_stored() -> None:
    whole = {"name": "Lee Min", "title": None, "contact": None}
    body = {"trip": "11111111-0000-4000-8000-000000000001", "member": "66666666-0000-4000-8000-000000000001"}
    body["delegation"] = "55555555-0000-4000-8000-000000000001"
    with pytest.raises(ValueError, match=r"MemberChanged lacks personal\.contact"):
        bodies.opens(
            MemberChanged,
            {**body, "personal": {"name": "Lee", "title": None}, "was": {"personal": whole}},
        )


def _without(paths: set[str], body: Any, path: str = "") -> Any:
    if not isinstance(body, dict):
        return body
    return {
        name: _without(paths, value, f"{path}{name}.")
        for name, value in body.items()
        if f"{path}{name}" not in paths or (name == "conference" and str(value).startswith("https://"))
    }
