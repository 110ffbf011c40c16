"""The edge: who may call, what a body may be, how refusals and things are answered."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import httpx
import pytest
import sqlalchemy.exc
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from structlog.testing import capture_logs

from shared import errors
from shared.errors import Invalid, LevelNotAllowed, Refusal
from shared.http import STATUS, Call, answer, answer_list, cursor_of, install, key_of, needs, problem, reads
from shared.tokens import TokenFile, add_token

MEETING = "8d5fae3e-3b1c-4c5b-9f3b-0f0f5a1d2c11"
TITLES = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    412: "Precondition Failed",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
CANARY = "Kanarienvogel-7Hq2xV9"


class Body(BaseModel):
    """A command's body."""

    model_config = ConfigDict(extra="forbid")

    title: str = Field(max_length=40)
    minutes: int = 30


class Edge:
    """An app behind the edge whose one command does what the test says, and the calls that reached it."""

    def __init__(self, tokens: Path) -> None:
        self.calls: list[Call] = []
        self.act: Callable[[], Response] = lambda: answer({"id": MEETING}, status=201, etag=1)
        self.secrets = {scope: add_token(tokens, f"{scope}-desk", [scope]) for scope in ("planner", "staff", "service")}
        self.app = FastAPI(openapi_url=None)
        self.app.state.tokens = TokenFile(tokens)
        install(self.app, service="schedule")
        self.app.include_router(self._routes(), prefix="/schedule")

    def _routes(self) -> APIRouter:
        router = APIRouter()

        @router.post("/trips/{trip}/meetings")
        async def schedule(trip: UUID, body: Body, call: Annotated[Call, needs("planner")]) -> Response:
            self.calls.append(call)
            return self.act()

        @router.post("/meetings/{meeting}/confirm")
        async def confirm(meeting: UUID, call: Annotated[Call, needs("planner")]) -> Response:
            self.calls.append(call)
            return self.act()

        @router.get("/meetings/{meeting}")
        async def show(meeting: UUID, call: Annotated[Call, reads()]) -> Response:
            self.calls.append(call)
            return answer({"id": str(meeting)}, etag=7, call=call)

        @router.get("/messages")
        async def messages(call: Annotated[Call, needs("service", "operator")]) -> Response:
            return answer_list([b'{"a":1}', {"b": 2}], next=None)

        return router

    def headers(self, scope: str = "planner", **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secrets[scope]}", **{k.replace("_", "-"): v for k, v in more.items()}}

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
            return await client.request(method, path, **more)

    async def confirm(self, **more: str) -> httpx.Response:
        return await self.ask("POST", CONFIRM, headers=self.headers(**more))

    async def raised(self, error: Exception) -> httpx.Response:
        def act() -> Response:
            raise error

        self.act = act
        return await self.confirm()


TRIP = "/schedule/trips/1c0c3c1e-96d2-4f83-8f0f-7b3b1f1f9a55/meetings"
CONFIRM = f"/schedule/meetings/{MEETING}/confirm"


@pytest.fixture
def edge(tmp_path: Path) -> Edge:
    return Edge(tmp_path / "tokens")


def of(response: httpx.Response) -> Mapping[str, Any]:
    """A problem's members, after its outer shape was checked."""
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body.pop("type") == "about:blank"
    assert body.pop("status") == response.status_code == STATUS[body["slug"]]
    assert body.pop("title") == TITLES[response.status_code]
    return body


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


# Who calls


@pytest.mark.parametrize("value", [None, "", "Bearer", "Bearer  ", "Basic ZGVzazpwYXNz"])
async def test_call_without_a_bearer_token_is_refused(edge: Edge, value: str | None) -> None:
    headers = {} if value is None else {"Authorization": value}
    response = await edge.ask("POST", CONFIRM, headers=headers)
    assert of(response) == {"slug": "token-missing", "detail": "this needs a bearer token"}


async def test_call_with_an_unknown_token_is_refused_without_repeating_it(edge: Edge) -> None:
    response = await edge.ask("POST", CONFIRM, headers={"Authorization": f"Bearer attache_{CANARY}"})
    assert of(response) == {"slug": "token-unknown", "detail": "nobody has this bearer token"}
    assert CANARY not in response.text


async def test_call_without_the_scope_is_refused_with_the_one_it_needs(edge: Edge) -> None:
    response = await edge.ask("POST", CONFIRM, headers=edge.headers("staff"))
    assert of(response) == {
        "slug": "scope-missing",
        "detail": "this needs a token with the scope planner",
        "needed": ["planner"],
    }
    assert edge.calls == []


@pytest.mark.parametrize(("scope", "status"), [("staff", 200), ("planner", 200), ("service", 403)])
async def test_staff_and_planners_read(edge: Edge, scope: str, status: int) -> None:
    response = await edge.ask("GET", f"/schedule/meetings/{MEETING}", headers=edge.headers(scope))
    assert response.status_code == status


async def test_one_of_several_scopes_is_enough(edge: Edge) -> None:
    response = await edge.ask("GET", "/schedule/messages", headers=edge.headers("service"))
    assert response.json() == {"items": [{"a": 1}, {"b": 2}], "next": None}


async def test_wrong_body_of_a_stranger_is_no_reason_to_explain_the_body(edge: Edge) -> None:
    response = await edge.ask("POST", TRIP, json={"titel": "x"})
    assert of(response)["slug"] == "token-missing"


# The Call


async def test_call_carries_who_when_and_with_what(edge: Edge) -> None:
    before = datetime.now(UTC)
    await edge.ask(
        "POST",
        TRIP,
        headers=edge.headers(
            Idempotency_Key="key-1",
            If_Match='"3", W/"4" ,"5"',
            X_Correlation_Id="6F9619FF-8B86-D011-B42D-00CF4FC964FF",
            Occurred_At="2023-11-07T18:25:00+09:00",
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        json={"title": "Signing"},
    )
    (call,) = edge.calls
    assert before <= call.now <= datetime.now(UTC)
    assert call == Call(
        actor="planner-desk",
        scopes=frozenset({"planner"}),
        now=call.now,
        occurred_at=datetime(2023, 11, 7, 9, 25, tzinfo=UTC),
        correlation_id="6f9619ff-8b86-d011-b42d-00cf4fc964ff",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        idempotency_key="key-1",
        request_digest=sha256(b'POST\n%s\n{"title":"Signing"}' % TRIP.encode()).digest(),
        if_match=('"3"', '"5"'),
        if_none_match=None,
    )
    assert (call.may("planner"), call.may("staff"), call.may("operator")) == (True, True, False)


async def test_call_happened_now_unless_its_caller_says_when(edge: Edge) -> None:
    await edge.confirm()
    assert [call.occurred_at for call in edge.calls] == [call.now for call in edge.calls]


async def test_digest_is_of_what_was_sent_not_of_how(edge: Edge) -> None:
    for content in (b'{"title":"A","minutes":5}', b' {"minutes": 5,\n "title": "\\u0041"}', b'{"title":"A"}'):
        await edge.ask("POST", TRIP, headers=edge.headers(Content_Type="application/json"), content=content)
    first, second, third = (call.request_digest for call in edge.calls)
    assert first == second != third


async def test_digest_tells_commands_apart_that_have_no_body(edge: Edge) -> None:
    await edge.confirm()
    await edge.ask("POST", CONFIRM.replace(MEETING[0], "9", 1), headers=edge.headers())
    assert len({call.request_digest for call in edge.calls}) == 2


@pytest.mark.parametrize(
    ("value", "tags"),
    [("*", ("*",)), ('"3"', ('"3"',)), ('W/"3"', ()), ('"*"', ('"*"',)), (',"a", ,"b",', ('"a"', '"b"'))],
)
async def test_if_match_is_read_as_tags(edge: Edge, value: str, tags: tuple[str, ...]) -> None:
    await edge.confirm(If_Match=value)
    assert [call.if_match for call in edge.calls] == [tags]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("If-Match", "3"),
        ("If-Match", ""),
        ("If-Match", '"3'),
        ("If-Match", '"3" "4"'),
        ("If-Match", '*, "3"'),
        ("Idempotency-Key", ""),
        ("Idempotency-Key", "two words"),
        ("Idempotency-Key", "k" * 256),
        ("Occurred-At", "yesterday"),
        ("Occurred-At", "2023-11-07"),
        ("Occurred-At", "2023-11-07T09:25:00"),
        ("Occurred-At", "2999-01-01T00:00:00Z"),
    ],
)
async def test_header_that_cannot_be_read_is_invalid(edge: Edge, name: str, value: str) -> None:
    response = await edge.ask("POST", CONFIRM, headers={**edge.headers(), name: value})
    body = of(response)
    assert body["slug"] == "invalid"
    assert [(one["loc"], one["type"]) for one in body["errors"]] == [(["header", name], "value_error")]
    assert edge.calls == []


async def test_longest_idempotency_key_is_taken(edge: Edge) -> None:
    await edge.confirm(Idempotency_Key="k" * 255)
    assert [call.idempotency_key for call in edge.calls] == ["k" * 255]


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


async def test_wrong_method_is_refused_with_the_right_ones(edge: Edge) -> None:
    response = await edge.ask("DELETE", f"/schedule/meetings/{MEETING}")
    assert of(response) == {"slug": "method-not-allowed", "detail": "this address does not take this method"}
    assert response.headers["allow"] == "GET"


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


# Cursors


def test_cursor_gives_its_key_again() -> None:
    key = ("2023-11-07T09:25:00Z", 12, "Kōbe")
    assert key_of(cursor_of(*key), str, int, str) == key
    assert key_of(None, str) is None
    assert set(cursor_of(*key)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "%",
        "ü",
        "AAAA",
        cursor_of("a"),
        cursor_of(1, 2),
        cursor_of("a", "b"),
        "W10",
        "bnVsbA",
        "A" * 1025,
        "W1tb" * 90,
        cursor_of("a\0", 1),
        "WyJcdWQ4MDAiLDFd",  # ["\\ud800",1]
        cursor_of("a", 2**63),
    ],
)
def test_cursor_that_no_list_gave_is_invalid(cursor: str) -> None:
    with pytest.raises(Invalid) as caught:
        key_of(cursor, str, int)
    assert caught.value.members == {
        "errors": [{"loc": ["query", "cursor"], "msg": "not a cursor of this list", "type": "value_error"}]
    }
