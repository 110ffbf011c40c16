"""The AsyncAPI 3 document: every topic with its Kafka settings, and the messages that may come on it."""

from typing import Any

from deploy.schemas import ENVELOPE, OPTIONAL, Schema, type_of
from shared.bus import Topic
from shared.contracts import SERVICES
from shared.contracts.parked import MessageParked
from shared.dead_letters import dead_letter_topic
from shared.messages import topic_of

DEAD_LETTER_ATTRIBUTES = ("specversion", "id", "type", "source", "time", "dataschema")


def asyncapi(version: str, schemas: dict[str, str]) -> Schema:
    """The document of a release; `schemas` are the files of the bodies' schemas, by type."""
    return {
        "asyncapi": "3.0.0",
        "id": "urn:attache",
        "info": {
            "title": "Attaché: messages",
            "version": version,
            "description": _DESCRIPTION,
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": "{bootstrap}",
                "protocol": "kafka",
                "variables": {"bootstrap": {"default": "127.0.0.1:9092", "description": "KAFKA_BOOTSTRAP"}},
            }
        },
        "channels": {name: _channel(topic, text, types) for name, topic, text, types in _channels()},
        "operations": {
            f"{service}-sends{suffix}": _operation(f"{service}{suffix}", service)
            for service in SERVICES
            for suffix in ("", "-cleared", "-dead-letter")
        },
        "components": {
            "messages": {
                **{type_of(cls): _message(cls, schemas) for classes in SERVICES.values() for cls in classes},
                type_of(MessageParked): _message(MessageParked, schemas, DEAD_LETTER_ATTRIBUTES),
            },
            "schemas": {
                "Envelope": _headers(tuple(ENVELOPE)),
                "DeadLetterEnvelope": _headers(DEAD_LETTER_ATTRIBUTES, _PARKED_TIME),
            },
            "correlationIds": {"request": {"location": "$message.header#/ce_correlationid"}},
        },
    }


def topics_of(service: str) -> tuple[Topic, Topic, Topic]:
    """The open, the cleared and the dead-letter topic of a service, as it makes them."""
    return (
        Topic(name=topic_of(service, openly=True)),
        Topic(name=topic_of(service, openly=False)),
        Topic(name=dead_letter_topic(service), partitions=1),
    )


_PARKED_TIME = {"ce_time": {**ENVELOPE["time"], "description": "when it was parked, by the database's clock"}}

_DESCRIPTION = """\
CloudEvents 1.0 in binary mode: the attributes are headers with the prefix `ce_`, the body is JSON.

A body names the trip and the thing. What is new or reinstated carries the whole; any other message carries the fields \
that changed, and `was` with their old values. Fields that a reader does not know are to be ignored, and values of an \
enumeration too: they are listed as examples. No field goes or changes its type within a version.

Each service has an open topic, for every system that may listen, and a cleared one with every fact. A field marked \
`x-above-delegation` is on the cleared one alone, and a fact that says nothing without such fields is too.

Messages of one trip share a partition and keep their order. `ce_sequence` is dense for each topic and trip: what is \
not above the last one was seen before, and a jump means that something is missing; `GET /{service}/messages` has it."""


def _channels() -> list[tuple[str, Topic, str, list[str]]]:
    found = []
    for service, classes in SERVICES.items():
        openly, cleared, dead = topics_of(service)
        types = [type_of(cls) for cls in classes]
        found += [
            (service, openly, f"What {service} tells every system that may listen.", types),
            (f"{service}-cleared", cleared, f"Every fact of {service}, for those who may know all.", types),
            (
                f"{service}-dead-letter",
                dead,
                f"What {service} could not take; never a key, body or header.",
                [type_of(MessageParked)],
            ),
        ]
    return found


def _channel(topic: Topic, description: str, types: list[str]) -> Schema:
    settings = {
        "cleanup.policy": ["delete"],
        "retention.ms": topic.retention_ms,
        "retention.bytes": topic.retention_bytes,
    }
    return {
        "address": topic.name,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in types},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "replicas": topic.replication,
                "topicConfiguration": settings,
                "bindingVersion": "0.5.0",
            }
        },
    }


def _operation(channel: str, service: str) -> Schema:
    return {"action": "send", "channel": {"$ref": f"#/channels/{channel}"}, "tags": [{"name": service}]}


def _message(model: Any, schemas: dict[str, str], attributes: tuple[str, ...] = tuple(ENVELOPE)) -> Schema:
    name = type_of(model)
    ours = attributes == tuple(ENVELOPE)
    envelope = "Envelope" if ours else "DeadLetterEnvelope"
    key = "the trip (partitionkey)" if ours else "topic and partition of what was parked"
    message = {
        "name": f"attache.{name}",
        "title": model.__name__,
        "summary": model.__doc__,
        "headers": {
            "type": "object",
            "allOf": [
                {"$ref": f"#/components/schemas/{envelope}"},
                {"properties": {"ce_type": {"const": f"attache.{name}"}}},
            ],
        },
        "payload": {"$ref": schemas[name]},
        "bindings": {"kafka": {"key": {"type": "string", "description": key}, "bindingVersion": "0.5.0"}},
    }
    if ours:
        message["correlationId"] = {"$ref": "#/components/correlationIds/request"}
    return message


def _headers(attributes: tuple[str, ...], other: Schema | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {
            "content-type": {"const": "application/json"},
            **{f"ce_{name}": ENVELOPE[name] for name in attributes},
            **(other or {}),
        },
        "required": ["content-type", *(f"ce_{name}" for name in attributes if name not in OPTIONAL)],
    }
