"""The generated files, and the promises that they hold: in step with the code, and kept."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft7Validator

from deploy.asyncapi import asyncapi, topics_of
from deploy.contracts import FOLDER, MODELS, PROMISES, ROOT, events_table, files, find_problems, write
from deploy.promises import broken, promise
from deploy.schemas import Schema, message_schema, type_of
from shared import contracts
from shared.bus import Topic
from shared.contracts.meeting import MeetingScheduled
from shared.service import Service
from shared.settings import Settings
from shared.wiring import Footing, make_service

SCHEMAS = ROOT / FOLDER
SCHEDULED = "MeetingScheduled.v1"


@pytest.fixture
def schema() -> Schema:
    """One message's schema, to be changed."""
    return deepcopy(message_schema(MeetingScheduled))


def breaks(schema: Schema) -> list[str]:
    """What another schema of the message would break."""
    return broken({SCHEDULED: promise(message_schema(MeetingScheduled))}, {SCHEDULED: promise(schema)})


def test_the_checked_in_files_are_what_the_code_says() -> None:
    assert find_problems(SCHEMAS) == []


def test_every_schema_is_one() -> None:
    for model in MODELS:
        Draft7Validator.check_schema(json.loads((SCHEMAS / "messages" / f"{type_of(model)}.json").read_text()))
    Draft7Validator.check_schema(json.loads((SCHEMAS / "envelope.json").read_text()))


def test_a_file_that_differs_lacks_or_is_left_over_is_found(tmp_path: Path) -> None:
    write(tmp_path)
    assert find_problems(tmp_path) == []
    (tmp_path / "envelope.json").write_text("{}")
    (tmp_path / "messages" / "TripPlanned.v1.json").unlink()
    (tmp_path / "messages" / "TripUpdated.v1.json").write_text("{}")
    assert [problem.partition(" is ")[0] for problem in find_problems(tmp_path)] == [
        "schemas/envelope.json",
        "schemas/messages/TripPlanned.v1.json",
        "schemas/messages/TripUpdated.v1.json",
    ]
    write(tmp_path)
    assert find_problems(tmp_path) == []


def test_a_broken_promise_is_found_and_writing_does_not_mend_it(tmp_path: Path) -> None:
    write(tmp_path)
    promised = json.loads((tmp_path / PROMISES).read_text())
    promised["TripPlanned.v1"]["budget"] = "maybe number"
    promised["TripSold.v1"] = {"trip": "always string uuid"}
    (tmp_path / PROMISES).write_text(json.dumps(promised, indent=2, ensure_ascii=False) + "\n")
    expected = ["TripPlanned.v1: budget is gone", "TripSold.v1 is not sent any more"]
    write(tmp_path)
    assert find_problems(tmp_path) == expected


def test_a_new_type_or_an_optional_field_breaks_nothing(schema: Schema) -> None:
    schema["properties"]["seats"] = {
        "type": "object",
        "properties": {"each": {"type": "integer"}},
        "required": ["each"],
    }
    assert breaks(schema) == []
    assert broken({}, {SCHEDULED: promise(schema)}) == []


def test_a_field_that_goes_breaks_old_readers(schema: Schema) -> None:
    del schema["properties"]["title"]
    del schema["definitions"]["Venue"]["properties"]["geo"]
    assert breaks(schema) == [f"{SCHEDULED}: title is gone", f"{SCHEDULED}: venue.geo is gone"]


def test_a_field_that_may_be_absent_from_now_on_breaks_old_readers(schema: Schema) -> None:
    schema["required"].remove("zone")
    assert breaks(schema) == [f"{SCHEDULED}: zone was always string, and is maybe string"]


def test_a_field_that_is_required_from_now_on_breaks_readers_of_the_past(schema: Schema) -> None:
    schema["properties"]["seats"] = {"type": "integer"}
    schema["required"] += ["seats", "notes"]
    assert breaks(schema) == [
        f"{SCHEDULED}: notes was maybe null | string, cleared, and is always null | string, cleared",
        f"{SCHEDULED}: seats is new and required",
    ]


def test_another_type_breaks_readers_at_any_depth(schema: Schema) -> None:
    schema["properties"]["topics"]["items"] = {"type": "integer"}
    schema["properties"]["starts_at"] = {"type": "string", "format": "date"}
    schema["properties"]["stop"] = {"anyOf": [{"type": "string", "format": "uuid"}, {"type": "null"}]}
    schema["definitions"]["Press"]["properties"]["tag"] = {"type": "boolean"}
    assert sorted(breaks(schema)) == [
        f"{SCHEDULED}: press.tag was always string, and is always boolean",
        f"{SCHEDULED}: starts_at was always string date-time, and is always string date",
        f"{SCHEDULED}: stop was always string uuid, and is always null | string uuid",
        f"{SCHEDULED}: topics was always [string], and is always [integer]",
    ]


def test_another_audience_breaks_a_promise(schema: Schema) -> None:
    del schema["properties"]["hard"]["x-above-delegation"]
    assert breaks(schema) == [f"{SCHEDULED}: hard was maybe boolean, cleared, and is maybe boolean"]


def test_more_known_values_and_other_words_break_nothing(schema: Schema) -> None:
    schema["properties"]["kind"] = {"type": "string", "examples": ["reception"]}
    schema["description"] = "Said better."
    assert breaks(schema) == []


def test_the_document_has_the_topics_that_the_services_make() -> None:
    channels = [channel["bindings"]["kafka"] for channel in _document()["channels"].values()]
    made = [topic for service in contracts.SERVICES for topic in _service(service).topics]
    assert made == [topic for service in contracts.SERVICES for topic in topics_of(service)]
    assert [(kafka["topic"], kafka["partitions"]) for kafka in channels] == [
        (topic.name, topic.partitions) for topic in made
    ]


def test_the_document_tells_the_defaults_of_the_settings() -> None:
    fields = Settings.model_fields
    names = ("partitions", "replication", "retention_ms", "retention_bytes")
    defaults = {name: fields[f"topic_{name}"].default for name in names}
    assert topics_of("schedule")[0] == Topic(name="attache.schedule", **defaults)


def test_the_document_names_every_message_on_both_topics_of_its_service() -> None:
    document = _document()
    for service, classes in contracts.SERVICES.items():
        for channel in (service, f"{service}-cleared"):
            assert list(document["channels"][channel]["messages"]) == [type_of(cls) for cls in classes]
    assert set(document["components"]["messages"]) == {type_of(model) for model in MODELS}


def test_every_reference_of_the_document_leads_somewhere() -> None:
    document = _document()
    for reference in _references(document):
        if reference.startswith("#/"):
            found: Any = document
            for step in reference.removeprefix("#/").split("/"):
                found = found[step]
        else:
            assert (SCHEMAS / reference).is_file()


def test_the_table_of_events_has_every_type_with_its_fields() -> None:
    table = events_table()
    for model in MODELS:
        line = next(line for line in table.splitlines() if f"`{type_of(model)}`" in line)
        assert all(name in line for name in message_schema(model)["properties"] if name != "trip")
    assert "*notes*, *press*, *hard*" in table
    assert table in files({})["README.md"]


def _service(name: str) -> Service:
    """Wired to nothing: it is only asked what it would do."""
    nothing: Any = None
    return make_service(
        Footing(engine=nothing, bus=nothing, topic=Topic(name="any"), token="", client=httpx.AsyncClient()),
        name=name,
        migrations="",
        store=nothing,
        project=nothing,
        openly=nothing,
        body_of=nothing,
        apply={},
        anew={},
        bases={},
    )


def _document() -> Any:
    return asyncapi("0.0.0", {type_of(model): f"messages/{type_of(model)}.json" for model in MODELS})


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(reference := value.get("$ref"), str):
            yield reference
        for part in value.values():
            yield from _references(part)
    elif isinstance(value, list):
        for part in value:
            yield from _references(part)
