"""Logs: whole lines of JSON from both libraries, and no secret in any."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from pydantic import BaseModel, ValidationError
from sqlalchemy.exc import OperationalError

from shared.logs import Format, RateLimit, mask, set_up

CANARY = "Kanarienvogel-7Hq2xV9"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    level, access = root.level, logging.getLogger("uvicorn.access").disabled
    before = list(root.handlers)
    yield io.StringIO()
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
    root.setLevel(level)
    logging.getLogger("uvicorn.access").disabled = access
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def without_time(line: dict[str, Any]) -> dict[str, Any]:
    assert line["timestamp"].endswith("Z")
    return {key: value for key, value in line.items() if key != "timestamp"}


def test_line_has_event_level_service_and_what_was_bound(stream: io.StringIO) -> None:
    set_up("schedule", log_format="json", stream=stream)
    with structlog.contextvars.bound_contextvars(correlation_id="c-1"):
        structlog.stdlib.get_logger("shared.relay").info("relay.sent", count=3, place="Kōbe")
    structlog.stdlib.get_logger("shared.relay").debug("relay.waited")
    assert list(map(without_time, lines_of(stream))) == [
        {
            "event": "relay.sent",
            "level": "info",
            "logger": "shared.relay",
            "service": "schedule",
            "correlation_id": "c-1",
            "count": 3,
            "place": "Kōbe",
        }
    ]


def test_line_of_the_standard_library_has_the_same_shape(stream: io.StringIO) -> None:
    set_up("schedule", log_format="json", stream=stream)
    with structlog.contextvars.bound_contextvars(service="participants"):
        logging.getLogger("uvicorn.error").warning("listening on %s:%d", "127.0.0.1", 8082)
    assert list(map(without_time, lines_of(stream))) == [
        {
            "event": "listening on 127.0.0.1:8082",
            "level": "warning",
            "logger": "uvicorn.error",
            "service": "participants",
        }
    ]


def test_alembic_tells_what_it_does_and_not_what_it_finds(stream: io.StringIO) -> None:
    set_up("schedule", log_format="json", stream=stream)
    alembic = logging.getLogger("alembic.runtime.migration")
    alembic.info("Context impl %s.", "PostgresqlImpl")
    alembic.info("Will assume %s DDL.", "transactional")
    alembic.info("Running %s", "upgrade -> 0001")
    assert [line["event"] for line in lines_of(stream)] == ["Running upgrade -> 0001"]


def test_second_set_up_takes_the_place_of_the_first(stream: io.StringIO) -> None:
    first = io.StringIO()
    set_up("schedule", log_format="json", stream=first)
    set_up("participants", log_format="json", level="debug", stream=stream)
    structlog.stdlib.get_logger("x").debug("thing.seen")
    assert (first.getvalue(), [line["service"] for line in lines_of(stream)]) == ("", ["participants"])


def test_access_log_of_uvicorn_says_nothing(stream: io.StringIO) -> None:
    set_up("schedule", log_format="json", stream=stream)
    logging.getLogger("uvicorn.access").info('%s - "GET /feeds/%s.ics"', "127.0.0.1", CANARY)
    assert stream.getvalue() == ""


class Person(BaseModel):
    name: int


def pydantic_error() -> Exception:
    try:
        Person.model_validate({"name": CANARY})
    except ValidationError as error:
        return error
    raise AssertionError


def database_error() -> Exception:
    return OperationalError("INSERT INTO link VALUES ($1)", [CANARY], Exception(f"x\nDETAIL:  Key (hash)=({CANARY})."))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"cannot render /feeds/{CANARY}.ics"),
        RuntimeError(f"GET https://plan.example/feeds/{CANARY}?as_of=1 failed"),
        RuntimeError(f"sent Authorization: Bearer {CANARY}"),
        RuntimeError(f"a token attache_{CANARY}"),
        RuntimeError(f"connect to postgresql+asyncpg://schedule:{CANARY}@db/schedule"),
        pydantic_error(),
        database_error(),
    ],
)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secret_in_an_exception_is_in_no_line(stream: io.StringIO, error: Exception, log_format: Format) -> None:
    set_up("schedule", log_format=log_format, stream=stream)
    try:
        raise RuntimeError("outer") from error
    except RuntimeError:
        structlog.stdlib.get_logger("a").exception("http.failed")
        logging.getLogger("b").exception("it failed: %s", error)
    assert type(error).__name__ in stream.getvalue()
    assert "Traceback" in stream.getvalue()
    assert CANARY not in stream.getvalue()


def test_secret_in_any_value_is_masked_however_deep(stream: io.StringIO) -> None:
    set_up("schedule", log_format="json", stream=stream)
    address = f"http://127.0.0.1/feeds/{CANARY}.ics"
    structlog.stdlib.get_logger("a").info(
        f"asked {address}",
        text=address,
        inner={"list": [address, 1, None], address: True},
        tuple=(address,),
        thing=RuntimeError(address),
    )
    logging.getLogger("b").info("asked %s", address)
    masked = "http://127.0.0.1/feeds/***.ics"
    first, second = lines_of(stream)
    assert (first["event"], first["text"], first["tuple"], first["thing"]) == (
        f"asked {masked}",
        masked,
        [masked],
        masked,
    )
    assert first["inner"] == {"list": [masked, 1, None], masked: True}
    assert second["event"] == f"asked {masked}"
    assert CANARY not in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("/feeds/abc.ics", "/feeds/***.ics"),
        ("/feeds/abc", "/feeds/***.ics"),
        ("/feeds/a/b/c.ics and on", "/feeds/***.ics and on"),
        ("/Feeds//abc.ICS?as_of=1", "/Feeds//***.ics?as_of=1"),
        ("/feeds%2Fabc.ics", "/feeds%2F***.ics"),
        ("/feed/abc.ics", "/feed/***.ics"),
        ("/feeds/***.ics", "/feeds/***.ics"),
        ("/feeds/{secret}.ics", "/feeds/***.ics"),
        ("Authorization: bearer abc, x", "Authorization: bearer ***, x"),
        ("attache_0123456789abcdef0", "***"),
        ("type attache.MeetingScheduled.v1", "type attache.MeetingScheduled.v1"),
        ("postgresql://u:p@h/d", "postgresql://u:***@h/d"),
        ("http://127.0.0.1:8081/schedule/trips", "http://127.0.0.1:8081/schedule/trips"),
        ("a meeting at 18:25", "a meeting at 18:25"),
    ],
)
def test_mask_hides_secrets_and_nothing_else(text: str, masked: str) -> None:
    assert mask(text) == masked


def test_chatty_logger_says_a_thing_once_and_then_how_often_it_did_not() -> None:
    now = [0.0]
    limit = RateLimit("aiokafka", seconds=5.0, clock=lambda: now[0])

    def passes(name: str, template: str, second: float) -> tuple[bool, int]:
        now[0] = second
        record = logging.LogRecord(name, logging.ERROR, "f", 1, template, (second,), None)
        return limit.filter(record), getattr(record, "held_back", 0)

    assert [
        passes("aiokafka.conn", "no broker at %s", 0.0),
        passes("aiokafka.conn", "no broker at %s", 0.1),
        passes("aiokafka.conn", "no broker at %s", 4.9),
        passes("aiokafka.conn", "another thing %s", 4.9),
        passes("shared.relay", "no broker at %s", 4.9),
        passes("shared.relay", "no broker at %s", 4.9),
        passes("aiokafka.conn", "no broker at %s", 5.0),
        passes("aiokafka.conn", "no broker at %s", 10.0),
    ] == [(True, 0), (False, 0), (False, 0), (True, 0), (True, 0), (True, 0), (True, 2), (True, 0)]


def test_held_back_lines_are_counted_in_the_log(stream: io.StringIO) -> None:
    set_up("schedule", log_format="json", stream=stream)
    [limit] = [one for handler in logging.getLogger().handlers for one in handler.filters if isinstance(one, RateLimit)]
    limit._seconds = 3600.0  # however slow the machine is
    for _ in range(3):
        logging.getLogger("aiokafka.consumer").error("coordinator is away")
    logging.getLogger("aiokafka.producer").error("broker is away", extra={"held_back": 7, "other": CANARY})
    assert [(line["event"], line.get("held_back")) for line in lines_of(stream)] == [
        ("coordinator is away", None),
        ("broker is away", 7),
    ]
    assert CANARY not in stream.getvalue()
