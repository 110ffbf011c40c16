"""JSON Schemas (draft 7, which AsyncAPI takes as it is) of the messages and of the envelope around them.

One schema serves both topics: what stands above the delegation level is marked `x-above-delegation` and never required.
Nothing forbids fields that a schema does not know, since a later version may add some.
"""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from shared.contracts.values import Value

Schema = dict[str, Any]

DRAFT = "http://json-schema.org/draft-07/schema#"

ENVELOPE: dict[str, Schema] = {
    "specversion": {"const": "1.0"},
    "id": {"type": "string", "format": "uuid", "description": "the event's own, the same on both topics"},
    "type": {"type": "string", "pattern": r"^attache\.[A-Za-z]+\.v[1-9][0-9]*$"},
    "source": {"type": "string", "format": "uri-reference", "examples": ["/attache/schedule"]},
    "subject": {
        "type": "string",
        "description": "the kind and id of the thing",
        "examples": ["meeting/44444444-0000-4000-8000-000000000001"],
    },
    "time": {"type": "string", "format": "date-time", "description": "when it happened, by the caller's clock"},
    "recordedtime": {"type": "string", "format": "date-time", "description": "when it was stored, by the database's"},
    "partitionkey": {"type": "string", "description": "the trip: messages of one trip keep their order"},
    "sequence": {
        "type": "string",
        "pattern": "^[0-9]{20}$",
        "description": "1, 2, 3 ... for each topic and key, without a gap; it may come twice and is then to be skipped",
    },
    "correlationid": {"type": "string", "description": "the same for all that one request brought about"},
    "causationid": {"type": "string", "description": "the id of the message that caused it; on cleared topics alone"},
    "traceparent": {"type": "string", "description": "W3C trace context"},
    "dataschema": {"type": "string", "format": "uri", "description": "the $id of the body's schema"},
    "epoch": {
        "type": "string",
        "pattern": "^[1-9][0-9]*$",
        "description": "rises when the producer's database was restored; a lower one than the highest seen is stale",
    },
}
"""The attributes of a CloudEvent of ours, each a string."""
OPTIONAL = frozenset({"causationid", "traceparent"})


def type_of(model: Any) -> str:
    """`MeetingScheduled.v1`."""
    return f"{model.__name__}.v{model.VERSION}"


def message_schema(model: type[Value]) -> Schema:
    """The schema of a body; `$id` is what the envelope's `dataschema` names."""
    schema = _plain(model.model_json_schema(schema_generator=_Generator, ref_template="#/definitions/{model}"))
    name, version = type_of(model).split(".")
    head = {"$schema": DRAFT, "$id": f"urn:attache:schema:{name}:{version}", "title": f"attache.{name}.{version}"}
    definitions = schema.pop("$defs", {})
    return {**head, **schema, **({"definitions": definitions} if definitions else {})}


def envelope_schema() -> Schema:
    """A message of the message log: a CloudEvent in structured mode."""
    return {
        "$schema": DRAFT,
        "$id": "urn:attache:schema:CloudEvent:v1",
        "title": "A message of the message log (CloudEvents 1.0, JSON format)",
        "type": "object",
        "properties": {
            **ENVELOPE,
            "datacontenttype": {"const": "application/json"},
            "data": {"type": "object", "description": "the body, by its own schema"},
        },
        "required": [*(name for name in ENVELOPE if name not in OPTIONAL), "datacontenttype", "data"],
    }


def is_marked(field: Schema) -> bool:
    """Whether a schema's field is for the cleared topic alone."""
    return field.get("x-above-delegation") is True


class _Generator(GenerateJsonSchema):
    """Without null as the default of what is absent."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def _plain(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # pydantic's titles repeat the names; a field that is named title is a dict here
    return {
        name: _plain(value)
        for name, value in schema.items()
        if name != "additionalProperties" and not (name == "title" and isinstance(value, str))
    }
