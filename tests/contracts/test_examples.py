"""An example of each message, type and version, as the message log gives it: the code makes it and readers take it."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, FormatChecker
from pydantic import TypeAdapter, ValidationError

from deploy.asyncapi import DEAD_LETTER_ATTRIBUTES
from deploy.contracts import MODELS
from deploy.schemas import ENVELOPE, envelope_schema, message_schema, type_of
from shared import contracts
from shared.contracts import bodies
from shared.contracts.parked import MessageParked
from shared.contracts.values import Instant, Message, Value
from shared.dead_letters import _record
from shared.messages import read_structured

HERE = Path(__file__).parent
SCHEMAS = HERE.parent.parent / "schemas"
EXAMPLES = sorted((HERE / "examples").glob("*.json"))
OURS = [path for path in EXAMPLES if not path.stem.startswith("MessageParked")]
PARKED = HERE / "examples" / "MessageParked.v1.json"

FORMATS = FormatChecker(("uuid", "date"))


@FORMATS.checks("date-time", raises=ValueError)
def _instant(text: object) -> bool:
    return TypeAdapter(Instant).validate_python(text) is not None


each = pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)


def example(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def stored_type(path: Path) -> str:
    return path.stem.removesuffix(".open")


def model_of(path: Path) -> type[Message]:
    return contracts.MESSAGES[path.stem.partition(".")[0]]


def schema_of(path: Path) -> dict[str, Any]:
    """As it is checked in: other systems have no other."""
    return example(SCHEMAS / "messages" / f"{stored_type(path)}.json")


def errors(schema: dict[str, Any], document: Any) -> list[str]:
    return [error.message for error in Draft7Validator(schema, format_checker=FORMATS).iter_errors(document)]


def test_every_message_and_version_has_its_examples() -> None:
    types = {type_of(cls) for cls in contracts.MESSAGES.values()}
    assert {f"{name}{form}" for name in types for form in ("", ".open")} <= {path.stem for path in OURS}
    assert PARKED in EXAMPLES


@each
def test_an_example_is_what_the_code_makes_of_the_stored_event(path: Path, telling: Mapping[str, Any]) -> None:
    told = telling[model_of(path).__name__]
    text = (HERE / "stored" / f"{stored_type(path)}.json").read_text(encoding="utf-8")
    event = told.event(stored_type(path), text)
    openly = path.stem.endswith(".open")
    assert told.message(event, openly=openly) == example(path)
    assert told.published.is_open(event.data)


@each
def test_a_reader_takes_an_example(path: Path) -> None:
    document = example(path)
    message = read_structured(document)
    assert f"{message.type}.v{message.version}" == stored_type(path)
    body = bodies.read(model_of(path), message.body)
    assert json.loads(body.model_dump_json(exclude_unset=True)) == document["data"]


@each
def test_an_example_fits_the_schemas(path: Path) -> None:
    document = example(path)
    assert errors(envelope_schema(), document) == []
    assert errors(schema_of(path), document["data"]) == []
    assert document["dataschema"] == schema_of(path)["$id"]


@each
def test_no_required_field_of_an_example_can_be_left_out(path: Path) -> None:
    schema, body = schema_of(path), example(path)["data"]
    for name in schema["required"]:
        without = {key: value for key, value in body.items() if key != name}
        assert errors(schema, without) == [f"{name!r} is a required property"]
        with pytest.raises(ValidationError):
            bodies.read(model_of(path), without)


@each
def test_a_reader_ignores_what_it_does_not_know_and_a_writer_forbids_it(path: Path) -> None:
    model, body = model_of(path), example(path)["data"]
    later = _with_more(body)
    assert bodies.read(model, later) == bodies.read(model, body)
    assert errors(schema_of(path), later) == []
    with pytest.raises(ValidationError):
        bodies.write(model, later, openly=True)


@each
def test_a_reader_takes_values_that_it_has_not_heard_of(path: Path) -> None:
    body = example(path)["data"]
    for name in ("status", "kind", "mode", "function", "level"):
        if name in body:
            later = {**body, name: "of-a-later-version"}
            assert getattr(bodies.read(model_of(path), later), name) == "of-a-later-version"
            assert errors(schema_of(path), later) == []


@each
def test_a_field_that_did_not_change_is_absent_and_never_null(path: Path) -> None:
    schema, body = schema_of(path), example(path)["data"]
    for name, field in schema["properties"].items():
        nullable = any(choice.get("type") == "null" for choice in field.get("anyOf", ()))
        null = {**body, name: None}
        assert (errors(schema, null) == []) is nullable, name
        if not nullable:
            with pytest.raises(ValidationError):
                bodies.read(model_of(path), null)


@each
def test_an_envelope_has_the_declared_attributes_and_no_others(path: Path) -> None:
    openly = path.stem.endswith(".open")
    attributes = set(ENVELOPE) - ({"causationid"} if openly else set())
    assert set(example(path)) == attributes | {"datacontenttype", "data"}
    assert not openly or "canary" not in path.read_text(encoding="utf-8")


def test_the_two_examples_of_an_event_differ_in_number_cause_and_body_alone() -> None:
    for path in OURS:
        if not path.stem.endswith(".open"):
            cleared, opened = example(path), example(path.with_name(f"{path.stem}.open.json"))
            assert opened["sequence"] == "00000000000000000017"
            assert {**cleared, "sequence": opened["sequence"], "data": opened["data"]} == {
                **opened,
                "causationid": cleared["causationid"],
            }


PARKED_ROW = {
    "topic": "attache.schedule.cleared",
    "number": 5,
    "offset": 207,
    "message_id": None,
    "slug": "undecodable",
    "parked_at": datetime(2023, 11, 7, 10, 5, 6, 789, tzinfo=timezone(timedelta(hours=9))),
}


def test_an_announcement_of_a_parked_message_is_as_its_example() -> None:
    expected = example(PARKED)
    record = _record("notifications", PARKED_ROW)
    headers = dict(record.headers)
    attributes = {name: headers[f"ce_{name}"] for name in DEAD_LETTER_ATTRIBUTES}
    assert {**attributes, "data": json.loads(record.body)} == expected
    assert set(headers) == {"content-type", *(f"ce_{name}" for name in DEAD_LETTER_ATTRIBUTES)}
    assert errors(message_schema(MessageParked), expected["data"]) == []
    assert bodies.read(MessageParked, expected["data"]).offset == 207


def test_an_announcement_of_what_only_the_producers_log_had_keeps_the_contract() -> None:
    record = _record("notifications", {**PARKED_ROW, "number": None, "offset": None, "message_id": "b", "slug": "s"})
    body = json.loads(record.body)
    assert errors(message_schema(MessageParked), body) == []
    assert (body["partition"], body["offset"], record.key) == (-1, -1, "attache.schedule.cleared/-1")


def test_every_model_is_frozen_and_says_when_it_is_sent() -> None:
    for model in MODELS:
        assert issubclass(model, Value)
        assert model.model_config["frozen"] is True
        assert (model.__doc__ or "").endswith(".")


def _with_more(body: Any) -> Any:
    """As a later version may write it: more in it, and in every part of it."""
    if not isinstance(body, dict):
        return body
    return {**{name: _with_more(value) for name, value in body.items()}, "of_a_later_version": {"any": ["thing"]}}
