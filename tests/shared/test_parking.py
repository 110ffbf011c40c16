"""Parked rows: byte for byte as they came, each once, and nothing in a record can make parking fail."""

import base64
import dataclasses
import json
from typing import TYPE_CHECKING

import pytest

from shared.bus import Delivery
from shared.messages import read_delivery
from shared.parking import GAP, park

if TYPE_CHECKING:
    from tests.shared.conftest import Listening, Publishing

STRANGE = Delivery(
    topic="attache.schedule.cleared",
    number=2,
    offset=11,
    key=b"\xff\x00" + b"k" * 3000,
    headers=(
        ("ce_id", b"plain"),
        ("ce_id", b"\xfe\xff"),
        ("with a \0", b"a NUL \x00"),
        ("backslashes", rb"\u0000 \\u0000"),
        ("empty", b""),
    ),
    body=b"\x00\xff body",
)


@pytest.fixture
def bus_name() -> str:
    """Parking does not know of the bus: one is enough."""
    return "local"


async def test_whatever_stands_in_a_record_is_kept_byte_for_byte(listening: "Listening") -> None:
    no_key_no_body = dataclasses.replace(STRANGE, offset=12, key=None, body=None, headers=())
    async with listening.engine.begin() as connection:
        for delivery in (STRANGE, no_key_no_body):
            await park(connection, delivery, None, "undecodable", "why: \0 \ud800" + "x" * 5000)
    rows = await listening.rows('SELECT "offset", headers::text, body, length(error), length(key) FROM parked_messages')
    found = {offset: (headers, body) for offset, headers, body, *_ in rows}
    assert {offset: body for offset, (_, body) in found.items()} == {11: STRANGE.body, 12: None}
    assert [_bytes(value) for _, value in json.loads(found[11][0])] == [value for _, value in STRANGE.headers]
    assert json.loads(found[12][0]) == []
    assert [row[3:] for row in rows] == [(2000, 255), (2000, 0)]


async def test_a_message_that_comes_again_at_another_place_is_parked_once(
    publishing: "Publishing", listening: "Listening"
) -> None:
    delivery = await _delivery(publishing)
    message = read_delivery(delivery)
    async with listening.engine.begin() as connection:
        for offset in (4, 4, 9):
            await park(connection, dataclasses.replace(delivery, offset=offset), message, GAP, "expected number 1")
    assert await listening.rows('SELECT "offset", sequence FROM parked_messages') == [(4, 1)]


async def test_a_record_at_the_place_of_one_that_the_bus_forgot_does_not_take_its_row(
    publishing: "Publishing", listening: "Listening"
) -> None:
    delivery = dataclasses.replace(await _delivery(publishing), topic=STRANGE.topic, number=2, offset=11)
    async with listening.engine.begin() as connection:
        await park(connection, STRANGE, None, "undecodable", "first")
        await park(connection, STRANGE, None, "undecodable", "the same again")
        await park(connection, delivery, read_delivery(delivery), GAP, "second")
    rows = await listening.rows('SELECT number, "offset", error FROM parked_messages ORDER BY id')
    assert rows == [(None, None, "first"), (2, 11, "second")]


async def _delivery(publishing: "Publishing") -> Delivery:
    await publishing.note("a", "fact")
    [event] = await publishing.log()
    sent = publishing.to_records(event, 1)[0]
    headers = tuple((name, value.encode()) for name, value in sent.headers)
    return Delivery(topic=sent.topic, number=0, offset=0, key=sent.key.encode(), headers=headers, body=sent.body)


def _bytes(value: str | dict[str, str]) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])
