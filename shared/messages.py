"""One stored event as a message: the CloudEvents envelope around the body that `published` made, and back.

CloudEvents 1.0: on the bus in binary mode (attributes as `ce_` headers), in the message log in structured mode (one
JSON object). Both are pure functions of the stored event, so a republication gives the same bytes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from shared import trace_context
from shared.bus import Delivery, Record
from shared.event_store import StoredEvent

BodyOf = Any
"""`published.body` of a service: (event, openly) -> the JSON text of the body."""

KEY_LENGTH = 255
"""The most characters that a key, an id, a source or a subject may have."""

_CONTENT_TYPE = "application/json"
_TYPE = re.compile(r"attache\.(?P<name>[A-Za-z]{1,100})\.v(?P<version>[0-9]{1,4})")
_DIGITS = re.compile(r"[0-9]{1,20}")


class Undecodable(Exception):
    """A delivery that is no message of ours. `slug` says why, for the dead-letter topic."""

    def __init__(self, slug: str, detail: str) -> None:
        super().__init__(detail)
        self.slug = slug


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message as a consumer sees it. `type` is `MeetingScheduled`, `version` 1 for `attache.MeetingScheduled.v1`.

    `traceparent` is a right one (W3C), or None: what is none is as if it were not there.
    """

    id: str
    type: str
    version: int
    source: str
    subject: str
    time: datetime
    recorded_at: datetime
    key: str
    sequence: int
    epoch: int
    traceparent: str | None
    correlation_id: str | None
    body: Mapping[str, Any]

    @property
    def ce_type(self) -> str:
        """The type as CloudEvents has it."""
        return f"attache.{self.type}.v{self.version}"


def topic_of(service: str, *, openly: bool) -> str:
    """The name of a service's open or cleared topic."""
    return f"attache.{service}" if openly else f"attache.{service}.cleared"


def attributes(event: StoredEvent, service: str, *, openly: bool, epoch: int) -> dict[str, str]:
    """The envelope of an event on one topic. Nothing in it counts what another topic holds."""
    name, version = event.type.rsplit(".v", 1)
    sequence = event.open_sequence if openly else event.cleared_sequence
    envelope = {
        "specversion": "1.0",
        "id": str(event.id),
        "type": f"attache.{name}.v{version}",
        "source": f"/attache/{service}",
        "subject": event.stream,
        "time": event.metadata["occurred_at"],
        "recordedtime": rfc3339(event.recorded_at),
        "partitionkey": event.key,
        "sequence": f"{sequence:020d}",
        "correlationid": event.metadata["correlation_id"],
        "dataschema": f"urn:attache:schema:{name}:v{version}",
        "epoch": str(epoch),
    }
    # what caused it may be a fact that only the cleared topic tells
    if event.metadata.get("causation_id") and not openly:
        envelope["causationid"] = event.metadata["causation_id"]
    if event.metadata.get("traceparent"):
        envelope["traceparent"] = event.metadata["traceparent"]
    return envelope


def record(event: StoredEvent, body: bytes, service: str, *, openly: bool, epoch: int) -> Record:
    """The event as a record for the bus (CloudEvents Kafka binding 3.2, binary mode)."""
    envelope = attributes(event, service, openly=openly, epoch=epoch)
    headers = tuple((f"ce_{name}", value) for name, value in envelope.items())
    return Record(
        topic=topic_of(service, openly=openly),
        key=event.key,
        headers=(("content-type", _CONTENT_TYPE), *headers),
        body=body,
    )


def structured(event: StoredEvent, body: bytes, service: str, *, openly: bool, epoch: int) -> dict[str, Any]:
    """The event as a JSON object for the message log (CloudEvents JSON format)."""
    envelope = attributes(event, service, openly=openly, epoch=epoch)
    return {**envelope, "datacontenttype": _CONTENT_TYPE, "data": json.loads(body)}


def read_delivery(delivery: Delivery) -> Message:
    """A delivery of the bus as a message. Raises `Undecodable`, and nothing else, whatever stands in it."""
    try:
        envelope = {name[3:]: value.decode() for name, value in delivery.headers if name.startswith("ce_")}
        key = (delivery.key or b"").decode()
        data = json.loads((delivery.body or b"").decode())
    except (ValueError, RecursionError) as error:
        raise Undecodable("undecodable", f"neither UTF-8 nor JSON: {error}") from error
    if envelope.get("partitionkey") != key:
        raise Undecodable("envelope-invalid", "the partition key is not the record's key")
    return read_structured({**envelope, "data": data})


def read_structured(document: Mapping[str, Any]) -> Message:
    """A CloudEvents JSON object as a message. Raises `Undecodable`."""
    try:
        named = _TYPE.fullmatch(document["type"])
        if named is None or document["specversion"] != "1.0" or not isinstance(document["data"], dict):
            raise ValueError("not a CloudEvent of ours")
        return Message(
            id=_text(document["id"]),
            type=named["name"],
            version=int(named["version"]),
            source=_text(document["source"]),
            subject=_text(document["subject"]),
            time=_instant(document["time"]),
            recorded_at=_instant(document["recordedtime"]),
            key=_text(document["partitionkey"]),
            sequence=_count(document["sequence"], 2**63),
            epoch=_count(document["epoch"], 2**31),
            traceparent=trace_context.read(document.get("traceparent")),
            correlation_id=document.get("correlationid"),
            body=document["data"],
        )
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise Undecodable("envelope-invalid", f"{type(error).__name__}: {error}") from error


def _text(value: str) -> str:
    """A value that a column and an index can hold: what comes from the bus is kept under it."""
    if not 0 < len(value) <= KEY_LENGTH or "\0" in value:
        raise ValueError(f"empty, longer than {KEY_LENGTH} or with a NUL: {value[:40]!r}")
    value.encode()  # half of a surrogate pair is a UnicodeEncodeError, which is a ValueError
    return value


def _count(value: str, limit: int) -> int:
    if not _DIGITS.fullmatch(value) or not 0 < int(value) < limit:
        raise ValueError(f"no number from 1 to {limit - 1}: {value[:40]!r}")
    return int(value)


def _instant(value: str) -> datetime:
    instant = datetime.fromisoformat(value)
    if instant.tzinfo is None:
        raise ValueError(f"an instant without an offset: {value[:40]!r}")
    return instant


def rfc3339(instant: datetime) -> str:
    """An instant as envelopes have it, in UTC to the microsecond."""
    return instant.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
