"""The edge: what a body may be, and how addresses, failures, refusals and things are answered."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
import sqlalchemy.exc
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from shared import errors
from shared.asgi import HeadAsGet
from shared.errors import Invalid, LevelNotAllowed, Refusal
from shared.http import answer
from shared.problems import STATUS, problem
from tests.edge_fixture import CANARY, CONFIRM, MEETING, TRIP, Edge, of


def leaves(kind: type[Refusal]) -> list[type[Refusal]]:
    below = [leaf for child in kind.__subclasses__() for leaf in leaves(child)]
    return [kind, *below] if "slug" in vars(kind) else below


def made(kind: type[Refusal]) -> Refusal:
    moment = datetime(2023, 11, 5, 5, 30, tzinfo=UTC)
    if issubclass(kind, errors.MeetingsOutsideStay):
        return kind("no", meetings=[UUID(MEETING)])
    if issubclass(kind, errors.WallTimeUnclear):
        return kind("no", candidates=(moment, moment + timedelta(hours=1)))
    return kind("no")


def test_status_table_holds_every_refusal_there_is() -> None:
    assert {kind.slug for kind in leaves(Refusal)} | {"internal", "method-not-allowed"} == set(STATUS)


@pytest.mark.parametrize("kind", leaves(Refusal))
async def test_refusal_is_answered_as_a_problem(edge: Edge, kind: type[Refusal]) -> None:
    refusal = made(kind)
    response = await edge.raised(refusal)
    assert of(response) == {"slug": kind.slug, "detail": "no", **refusal.members}
    assert response.status_code == STATUS[kind.slug]


@pytest.mark.parametrize(
    ("refusal", "name", "value"),
    [
        (errors.TokenMissing("no"), "WWW-Authenticate", "Bearer"),
        (errors.TokenUnknown("no"), "WWW-Authenticate", 'Bearer error="invalid_token"'),
        (errors.NotYetKnown("no"), "Retry-After", "1"),
        (errors.StoreAway("no"), "Retry-After", "5"),
    ],
)
async def test_refusal_says_how_to_go_on(edge: Edge, refusal: Refusal, name: str, value: str) -> None:
    assert (await edge.raised(refusal)).headers[name] == value


def test_members_never_take_the_place_of_the_standard_ones() -> None:
    response = problem(Invalid("no", errors=[]), status=410)
    assert response.status_code == 410
    refusal = LevelNotAllowed("no", status=200, slug="other", title="x", level="full")
    assert json.loads(bytes(problem(refusal).body)) == {
        "type": "about:blank",
        "title": "Forbidden",
        "status": 403,
        "detail": "no",
        "slug": "level-not-allowed",
        "level": "full",
    }


# Bodies


async def streamed(chunks: int) -> AsyncIterator[bytes]:
    for _ in range(chunks):
        yield b" " * 4096


async def test_body_over_the_limit_is_refused_by_its_length(edge: Edge) -> None:
    response = await edge.ask(
        "POST", TRIP, headers=edge.headers(Content_Type="application/json"), content=b" " * 262145
    )
    assert of(response) == {"slug": "too-large", "detail": "a body has 262144 bytes at most", "limit": 262144}
    assert response.headers["connection"] == "close"
    assert response.headers["x-correlation-id"]


async def test_streamed_body_over_the_limit_is_refused_as_it_comes(edge: Edge) -> None:
    headers = edge.headers(Content_Type="application/json")
    response = await edge.ask("POST", TRIP, headers=headers, content=streamed(65))
    assert of(response)["slug"] == "too-large"
    response = await edge.ask("POST", TRIP, headers={**headers, "Content-Length": "10"}, content=streamed(65))
    assert of(response)["slug"] == "too-large"
    assert edge.calls == []


async def test_streamed_body_at_the_limit_is_read(edge: Edge) -> None:
    async def content() -> AsyncIterator[bytes]:
        async for chunk in streamed(63):
            yield chunk
        yield b'{"title":"Signing"}'.ljust(4096)

    response = await edge.ask("POST", TRIP, headers=edge.headers(Content_Type="application/json"), content=content())
    assert response.status_code == 201
    assert len(edge.calls) == 1


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "json", ""]
)
async def test_body_that_is_not_declared_as_json_is_refused(edge: Edge, media_type: str) -> None:
    headers = edge.headers(Content_Type=media_type)
    response = await edge.ask("POST", TRIP, headers=headers, content=b'{"title":"Signing"}')
    assert of(response) == {"slug": "media-type", "detail": "the content type is not application/json"}


async def test_body_without_a_content_type_is_refused(edge: Edge) -> None:
    response = await edge.ask("POST", TRIP, headers=edge.headers(), content=b'{"title":"Signing"}')
    assert of(response) == {"slug": "media-type", "detail": "a body needs the content type application/json"}


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON", "application/ld+json"])
async def test_body_declared_as_json_is_read(edge: Edge, media_type: str) -> None:
    headers = edge.headers(Content_Type=media_type)
    response = await edge.ask("POST", TRIP, headers=headers, content=b'{"title":"Signing"}')
    assert response.status_code == 201


async def test_command_without_fields_needs_no_body(edge: Edge) -> None:
    assert (await edge.confirm()).status_code == 201
    assert (await edge.ask("POST", CONFIRM, headers=edge.headers(), json={})).status_code == 201


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe\xff",
        b'{"title": NaN}',
        b"[" * 100_000,
        b'{"title": "\\u0000"}',
        b'{"title": "a\\\\\\u0000"}',
        b"1" * 9000,
    ],
)
@pytest.mark.parametrize("path", [TRIP, CONFIRM])
async def test_body_that_is_no_json_is_invalid(edge: Edge, path: str, content: bytes) -> None:
    response = await edge.ask("POST", path, headers=edge.headers(Content_Type="application/json"), content=content)
    assert of(response)["slug"] == "invalid"
    assert edge.calls == []


async def test_text_that_is_no_unicode_is_invalid(edge: Edge) -> None:
    headers = edge.headers(Content_Type="application/json")
    response = await edge.ask("POST", TRIP, headers=headers, content=rb'{"title": "\ud800"}')
    assert [one["type"] for one in of(response)["errors"]] == ["string_unicode"]
    assert edge.calls == []


async def test_backslash_before_a_word_is_no_null_character(edge: Edge) -> None:
    headers = edge.headers(Content_Type="application/json")
    response = await edge.ask("POST", TRIP, headers=headers, content=rb'{"title": "a\\u0000"}')
    assert response.status_code == 201


async def test_fields_that_do_not_fit_are_listed_without_their_values(edge: Edge) -> None:
    response = await edge.ask("POST", TRIP, headers=edge.headers(), json={"title": CANARY * 3, "minutes": CANARY})
    assert of(response) == {
        "slug": "invalid",
        "detail": "body.title: String should have at most 40 characters (and 1 more)",
        "errors": [
            {"loc": ["body", "title"], "msg": "String should have at most 40 characters", "type": "string_too_long"},
            {
                "loc": ["body", "minutes"],
                "msg": "Input should be a valid integer, unable to parse string as an integer",
                "type": "int_parsing",
            },
        ],
    }
    assert CANARY not in response.text


async def test_list_of_what_does_not_fit_ends(edge: Edge) -> None:
    response = await edge.ask("POST", TRIP, headers=edge.headers(), json={f"extra{n}": n for n in range(500)})
    assert len(of(response)["errors"]) == 50


# Addresses


async def test_unknown_address_is_not_found(edge: Edge) -> None:
    assert of(await edge.ask("GET", "/schedule/nothing")) == {
        "slug": "not-found",
        "detail": "there is nothing at this address",
    }


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", f"/schedule/meetings/{MEETING}", "GET, HEAD"),
        ("PUT", TRIP, "GET, HEAD, POST"),  # two routes at one address
        ("GET", CONFIRM, "POST"),
        ("HEAD", CONFIRM, "POST"),
        ("POST", "/schedule/openapi.json", "GET, HEAD"),
    ],
)
async def test_wrong_method_is_refused_with_all_right_ones(edge: Edge, method: str, path: str, allowed: str) -> None:
    response = await edge.ask(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    if method != "HEAD":
        assert of(response) == {"slug": "method-not-allowed", "detail": "this address does not take this method"}


@pytest.mark.parametrize(
    "path",
    [f"/schedule/meetings/{MEETING}", TRIP, "/schedule/openapi.json", "/schedule/docs/swagger-ui.css"],
)
async def test_head_is_answered_as_get_without_the_content(edge: Edge, path: str) -> None:
    got, headed = [
        await edge.ask(method, path, headers=edge.headers("staff", X_Correlation_Id=MEETING))
        for method in ("GET", "HEAD")
    ]
    assert (headed.status_code, headed.headers, headed.content) == (200, got.headers, b"")
    assert int(headed.headers["content-length"]) == len(got.content) > 0


async def test_head_s_answer_ends_with_its_headers() -> None:
    """What a client of HTTP would not show: nothing is left to the server to take out."""
    sent: list[Message] = []

    async def told(scope: Scope, _: Receive, send: Send) -> None:
        assert scope["method"] == "GET"
        await StreamingResponse(streamed(3))(scope, _nobody_there, send)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "HEAD", "path": "/", "headers": []}
    await HeadAsGet(told)(scope, _nobody_there, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[1] == {"type": "http.response.body"}
    assert scope["method"] == "HEAD"


async def _nobody_there() -> Message:
    return await asyncio.Future()


async def test_head_is_asked_for_a_token_and_told_what_the_caller_has(edge: Edge) -> None:
    thing = f"/schedule/meetings/{MEETING}"
    assert (await edge.ask("HEAD", thing)).status_code == 401
    assert (await edge.ask("HEAD", "/schedule/nothing")).status_code == 404
    assert (await edge.ask("HEAD", thing, headers=edge.headers("staff", If_None_Match='"7"'))).status_code == 304


async def test_head_is_told_of_as_head_with_its_route(edge: Edge) -> None:
    with capture_logs() as lines:
        await edge.ask("HEAD", f"/schedule/meetings/{MEETING}", headers=edge.headers("staff"))
        await edge.ask("HEAD", f"/schedule/meetings/{MEETING}")
    assert [(one["method"], one["route"], one["status"], one.get("slug")) for one in lines] == [
        ("HEAD", "/schedule/meetings/{meeting}", 200, None),
        ("HEAD", "/schedule/meetings/{meeting}", 401, "token-missing"),
    ]


# What fails


def wrapped(kind: type[sqlalchemy.exc.DBAPIError], cause: Exception, *, invalidated: bool = False) -> Exception:
    return kind("SELECT 1", [CANARY], cause, connection_invalidated=invalidated)


@pytest.mark.parametrize(
    "error",
    [
        wrapped(sqlalchemy.exc.OperationalError, Exception("gone")),
        wrapped(sqlalchemy.exc.InterfaceError, asyncpg.InterfaceError("connection is closed")),
        wrapped(sqlalchemy.exc.DBAPIError, Exception("gone"), invalidated=True),
        sqlalchemy.exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.CannotConnectNowError("the database system is starting up"),
        asyncpg.TooManyConnectionsError("sorry, too many clients already"),
        ConnectionRefusedError(111, "Connect call failed"),
        OSError("Multiple exceptions"),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_database_that_is_away_is_said_to_be(edge: Edge, error: Exception) -> None:
    with capture_logs() as lines:
        response = await edge.raised(error)
    assert [line["event"] for line in lines] == ["store.missed", "http.answered"]
    assert of(response) == {"slug": "store-away", "detail": "the database does not answer; try again"}
    assert response.headers["retry-after"] == "5"
    assert CANARY not in response.text


async def test_database_whose_disk_is_full_is_said_to_be_so(edge: Edge) -> None:
    full = asyncpg.DiskFullError(f"could not extend file: No space left on device {CANARY}")
    for error in (full, wrapped(sqlalchemy.exc.DBAPIError, full)):
        with capture_logs() as lines:
            response = await edge.raised(error)
        assert [line["event"] for line in lines] == ["store.missed", "http.answered"]
        assert "No space left on device" in lines[0]["said"]
        detail = "the database's disk is full, so nothing was done: make room there, and try again"
        assert of(response) == {"slug": "store-away", "detail": detail}
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        assert CANARY not in response.text


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(CANARY),
        wrapped(sqlalchemy.exc.IntegrityError, Exception(CANARY)),
        wrapped(sqlalchemy.exc.ProgrammingError, Exception(CANARY)),
        KeyError(CANARY),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_failure_of_ours_is_internal_and_tells_nothing(edge: Edge, error: Exception) -> None:
    with capture_logs() as lines:
        response = await edge.raised(error)
    assert of(response) == {"slug": "internal", "detail": "the service failed; its log says how"}
    assert CANARY not in response.text
    assert [line["event"] for line in lines] == ["http.failed", "http.answered"]
    assert lines[0]["exc_info"] is error


# Answers


async def test_new_thing_is_answered_with_its_tag(edge: Edge) -> None:
    edge.act = lambda: answer({"id": UUID(MEETING), "title": "Kōbe"}, status=201, etag=1, location="/x")
    response = await edge.confirm()
    assert (response.status_code, response.text) == (201, f'{{"id":"{MEETING}","title":"Kōbe"}}')
    assert response.headers["content-type"] == "application/json"
    assert response.headers["etag"] == '"1"'
    assert response.headers["location"] == "/x"
    assert response.headers["cache-control"] == "private, no-cache"


def test_answer_takes_json_and_a_tag_as_they_are() -> None:
    assert [bytes(answer(thing, etag='"4"').body) for thing in ('{"a": 1}', b'{"a": 1}')] == [b'{"a": 1}'] * 2
    assert answer("{}", etag='"4"').headers["etag"] == '"4"'
    assert "etag" not in answer("{}").headers


@pytest.mark.parametrize(
    ("value", "status"), [('"7"', 304), ('W/"7"', 304), ('"6", "7"', 304), ("*", 304), ('"6"', 200), ("7", 200)]
)
async def test_thing_that_the_caller_has_is_not_sent_again(edge: Edge, value: str, status: int) -> None:
    headers = edge.headers("staff", If_None_Match=value)
    response = await edge.ask("GET", f"/schedule/meetings/{MEETING}", headers=headers)
    assert (response.status_code, response.headers["etag"]) == (status, '"7"')
    assert bool(response.content) is (status == 200)
