"""The envelope as other systems see it, on the bus and in the message log, and what is no message at all."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
import pytest

from shared.bus import Delivery, Record
from shared.event_store import StoredEvent
from shared.messages import Message, Undecodable, read_delivery, read_structured, record, structured, topic_of
from shared.tokens import TokenFile, add_token

if TYPE_CHECKING:
    from tests.shared.conftest import Publishing

ID = UUID("6f1f1c52-8a0e-4b52-9d5b-0a3f6f5f1a01")
TRIP = "1b4e28ba-2fa1-4d1e-8b6f-3c9f0a7d2e02"
MEETING = "meeting/9c3a7f10-5d2e-4c0b-a1f4-7e8d9c0b1a03"
BODY = '{"trip":"1b4e28ba","title":"Gespräch","was":{"title":"Talk"}}'.encode()
CORRELATION, CAUSE = "0d9f8e7c-6b5a-4948-b736-251403f2e104", "7a6b5c4d-3e2f-4a1b-8c9d-0e1f2a3b4c05"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

EVENT = StoredEvent(
    position=904,
    id=ID,
    stream=MEETING,
    version=17,
    type="MeetingRescheduled.v3",
    data=None,
    metadata={
        "actor": "planner-at-the-desk",
        "occurred_at": "2023-11-07T09:25:00.000000Z",
        "correlation_id": CORRELATION,
        "causation_id": CAUSE,
        "traceparent": TRACE,
    },
    key=TRIP,
    open_sequence=41,
    cleared_sequence=58,
    recorded_at=datetime(2023, 11, 7, 18, 25, 1, 250000, tzinfo=timezone(timedelta(hours=9))),
)

CLEARED = {
    "specversion": "1.0",
    "id": str(ID),
    "type": "attache.MeetingRescheduled.v3",
    "source": "/attache/schedule",
    "subject": MEETING,
    "time": "2023-11-07T09:25:00.000000Z",
    "recordedtime": "2023-11-07T09:25:01.250000Z",
    "partitionkey": TRIP,
    "sequence": "00000000000000000058",
    "correlationid": CORRELATION,
    "causationid": CAUSE,
    "traceparent": TRACE,
    "dataschema": "urn:attache:schema:MeetingRescheduled:v3",
    "epoch": "2",
}
OPEN = {**{name: value for name, value in CLEARED.items() if name != "causationid"}, "sequence": "00000000000000000041"}


@pytest.fixture
def bus_name() -> str:
    """The message log does not know of the bus: one is enough."""
    return "local"


@pytest.mark.parametrize(("openly", "envelope"), [(False, CLEARED), (True, OPEN)])
def test_a_record_is_cloudevents_in_binary_mode(openly: bool, envelope: dict[str, str]) -> None:
    sent = record(EVENT, BODY, "schedule", openly=openly, epoch=2)
    assert (sent.topic, sent.key, sent.body) == (f"attache.schedule{'' if openly else '.cleared'}", TRIP, BODY)
    assert sent.headers[0] == ("content-type", "application/json")
    assert dict(sent.headers[1:]) == {f"ce_{name}": value for name, value in envelope.items()}
    assert len(sent.headers) == len(envelope) + 1


@pytest.mark.parametrize(("openly", "envelope"), [(False, CLEARED), (True, OPEN)])
def test_the_message_log_tells_the_same_in_structured_mode(openly: bool, envelope: dict[str, str]) -> None:
    document = structured(EVENT, BODY, "schedule", openly=openly, epoch=2)
    assert document == {**envelope, "datacontenttype": "application/json", "data": json.loads(BODY)}
    assert read_structured(document) == read_delivery(_read(record(EVENT, BODY, "schedule", openly=openly, epoch=2)))


def test_nothing_on_the_open_topic_counts_what_it_does_not_carry_or_names_who_did_it() -> None:
    sent = record(EVENT, BODY, "schedule", openly=True, epoch=2)
    told = [*(value for _, value in sent.headers), sent.key]
    for hidden in ("904", "17", "58", CAUSE, "planner-at-the-desk"):
        assert hidden not in told
        assert not any(value.lstrip("0") == hidden for value in told)
    assert CAUSE not in repr(sent)


def test_what_the_caller_did_not_give_has_no_header() -> None:
    metadata = {name: EVENT.metadata[name] for name in ("actor", "occurred_at", "correlation_id")}
    sent = record(dataclasses.replace(EVENT, metadata=metadata), BODY, "schedule", openly=False, epoch=2)
    left = {name: value for name, value in CLEARED.items() if name not in ("causationid", "traceparent")}
    assert dict(sent.headers[1:]) == {f"ce_{name}": value for name, value in left.items()}


def test_a_message_is_read_as_it_was_written() -> None:
    assert read_delivery(_read(record(EVENT, BODY, "schedule", openly=False, epoch=2))) == Message(
        id=str(ID),
        type="MeetingRescheduled",
        version=3,
        source="/attache/schedule",
        subject=MEETING,
        time=datetime(2023, 11, 7, 9, 25, tzinfo=UTC),
        recorded_at=datetime(2023, 11, 7, 9, 25, 1, 250000, tzinfo=UTC),
        key=TRIP,
        sequence=58,
        epoch=2,
        traceparent=TRACE,
        correlation_id=CORRELATION,
        body=json.loads(BODY),
    )


@pytest.mark.parametrize("given", ["00-nonsense", TRACE.upper(), f"ff{TRACE[2:]}", "\0", "", 7, ["x"], None])
def test_a_traceparent_that_is_none_is_left_out_and_the_message_stands(given: object) -> None:
    document = structured(EVENT, BODY, "schedule", openly=False, epoch=2)
    read = read_structured({**document, "traceparent": given})
    assert read == dataclasses.replace(read_structured(document), traceparent=None)


@pytest.mark.parametrize(
    ("changed", "slug"),
    [
        ({"key": None}, "envelope-invalid"),
        ({"key": b"\xff"}, "undecodable"),
        ({"body": None}, "undecodable"),
        ({"body": b"{"}, "undecodable"),
        ({"body": b"[" * 100_000}, "undecodable"),
        ({"body": b"[]"}, "envelope-invalid"),
        ({"headers": ()}, "envelope-invalid"),
        ({"headers": (("ce_id", b"\xff"),)}, "undecodable"),
    ],
)
def test_a_delivery_that_is_no_message_of_ours_is_named_so(changed: dict[str, Any], slug: str) -> None:
    good = _read(record(EVENT, BODY, "schedule", openly=False, epoch=2))
    with pytest.raises(Undecodable) as refused:
        read_delivery(dataclasses.replace(good, **changed))
    assert refused.value.slug == slug


def test_a_key_that_is_empty_on_both_sides_is_none() -> None:
    good = _read(record(dataclasses.replace(EVENT, key=""), BODY, "schedule", openly=False, epoch=2))
    with pytest.raises(Undecodable):
        read_delivery(dataclasses.replace(good, key=None))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "with a \0"),
        ("id", "half a pair \ud800"),
        ("id", 7),
        ("subject", "s" * 256),
        ("sequence", "9223372036854775808"),
        ("sequence", "٣"),
        ("sequence", 3),
        ("epoch", "-1"),
        ("time", "2023-11-07T09:25:00"),
        ("recordedtime", "soon"),
        ("type", "attache.MeetingRescheduled"),
        ("data", "text"),
    ],
)
def test_a_document_that_is_no_message_of_ours_is_named_so(name: str, value: object) -> None:
    with pytest.raises(Undecodable):
        read_structured({**CLEARED, "data": {}, name: value})


async def test_the_message_log_gives_pages_in_order_behind_a_number(
    publishing: "Publishing", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.message_log.PAGE", 3)
    await publishing.note("a", *(f"fact {number}" for number in range(7)), openly=False)
    await publishing.note("a", "told", openly=True)
    await publishing.note("b", "another")
    pages: list[list[int]] = []
    after: int | None = 0
    while after is not None:
        page = await _get(publishing, "/messages", topic=publishing.cleared, key="a", after=str(after))
        pages.append([int(item["sequence"]) for item in page["items"]])
        after = page["next"]
    assert pages == [[1, 2, 3], [4, 5, 6], [7, 8]]
    [told] = (await _get(publishing, "/messages", topic=publishing.opened, key="a"))["items"]
    assert (told["sequence"], told["data"]) == ("0" * 19 + "1", {"trip": "a", "what": "told", "openly": True})
    assert "causationid" not in told
    assert (await _get(publishing, "/messages", topic=publishing.cleared, key="nobody"))["items"] == []
    events = await publishing.log()
    items = (await _get(publishing, "/messages", topic=publishing.cleared, key="b"))["items"]
    assert [read_structured(item) for item in items] == [read_delivery(_read(publishing.to_records(events[-1], 1)[0]))]


async def test_heads_come_in_pages_and_only_where_the_topic_has_something(
    publishing: "Publishing", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.message_log.PAGE", 2)
    for number, key in enumerate("abcde"):
        await publishing.note(key, *("fact" for _ in range(number + 1)), openly=key in "bd")
    assert await _heads(publishing, publishing.cleared) == [[("a", 1), ("b", 2)], [("c", 3), ("d", 4)], [("e", 5)]]
    assert await _heads(publishing, publishing.opened) == [[("b", 2), ("d", 4)], []]
    log = publishing.message_log()
    assert [page async for page in log.heads(publishing.opened)] == [(1, [("b", 2), ("d", 4)]), (1, [])]


@pytest.mark.parametrize(
    ("path", "query", "token", "status", "slug"),
    [
        ("/messages", {"topic": "attache.other", "key": "a"}, True, 404, "not-found"),
        ("/messages/heads", {"topic": "attache.other"}, True, 404, "not-found"),
        ("/messages", {"topic": "", "key": "\0"}, True, 422, "invalid"),
        ("/messages", {"topic": "", "key": "a", "after": str(2**63)}, True, 422, "invalid"),
        ("/messages/heads", {"topic": "", "after": "\0"}, True, 422, "invalid"),
        ("/messages", {"topic": "", "key": "a"}, False, 401, "token-missing"),
        ("/messages/heads", {"topic": ""}, False, 401, "token-missing"),
    ],
)
async def test_the_message_log_refuses(
    publishing: "Publishing", path: str, query: dict[str, str], token: bool, status: int, slug: str
) -> None:
    query = {**query, "topic": query["topic"] or publishing.cleared}
    answer = await _answer(publishing, path, query, publishing.token if token else None)
    assert (answer.status_code, answer.json()["slug"]) == (status, slug)


async def test_the_message_log_is_for_the_plumbing_alone(publishing: "Publishing", tmp_path: Path) -> None:
    token = add_token(tmp_path / publishing.name, "planner", ("planner", "staff", "operator"))
    publishing.app.state.tokens = TokenFile(tmp_path / publishing.name)
    of_key, of_all = {"topic": publishing.cleared, "key": "a"}, {"topic": publishing.cleared}
    for path, query in (("/messages", of_key), ("/messages/heads", of_all)):
        answer = await _answer(publishing, path, query, token)
        assert (answer.status_code, answer.json()["slug"]) == (403, "scope-missing")


async def _heads(publishing: "Publishing", topic: str) -> list[list[tuple[str, int]]]:
    pages: list[list[tuple[str, int]]] = []
    after: str | None = ""
    while after is not None:
        page = await _get(publishing, "/messages/heads", topic=topic, after=after)
        pages.append([(item["key"], item["sequence"]) for item in page["items"]])
        after = page["next"]
    return pages


async def _get(publishing: "Publishing", path: str, **query: str) -> dict[str, Any]:
    answer = await _answer(publishing, path, query, publishing.token)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def _answer(publishing: "Publishing", path: str, query: dict[str, str], token: str | None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    transport = httpx.ASGITransport(app=publishing.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(f"/{publishing.name}{path}", params=query, headers=headers)


def _read(sent: Record) -> Delivery:
    headers = tuple((name, value.encode()) for name, value in sent.headers)
    return Delivery(topic=sent.topic, number=3, offset=9, key=sent.key.encode(), headers=headers, body=sent.body)


def test_the_topics_of_a_service_are_two() -> None:
    assert [topic_of("schedule", openly=openly) for openly in (True, False)] == [
        "attache.schedule",
        "attache.schedule.cleared",
    ]
