"""What a request leaves in the log, what it carries on, and what stands in no line."""

import asyncio
import io
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
import structlog
from fastapi import APIRouter, FastAPI, Request
from sqlalchemy.exc import IntegrityError
from starlette.responses import Response, StreamingResponse
from starlette.types import Message

from shared.call import Call, needs
from shared.http import answer, install
from shared.logs import set_up
from shared.tally import Requests
from shared.tokens import TokenFile, add_token

CANARY = "Kanarienvogel-7Hq2xV9"
TRACE = "0af7651916cd43dd8448eb211c80319c"
Ask = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    level, before = root.level, list(root.handlers)
    stream = io.StringIO()
    set_up("several", log_format="json", stream=stream)
    yield stream
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
    root.setLevel(level)
    logging.getLogger("uvicorn.access").disabled = False
    structlog.reset_defaults()


@pytest.fixture
def secret(tmp_path_factory: pytest.TempPathFactory) -> str:
    return add_token(tmp_path_factory.mktemp("tokens") / "tokens", "desk", ["planner"])


@pytest.fixture
def requests() -> Requests:
    return Requests()


@pytest.fixture
def app(tmp_path_factory: pytest.TempPathFactory, requests: Requests) -> FastAPI:
    app = FastAPI(openapi_url=None)
    app.state.tokens = TokenFile(tmp_path_factory.mktemp("tokens") / "tokens")
    install(app, service="notifications", requests=requests)
    router = APIRouter()

    @router.get("/trips/{trip}")
    async def show(trip: UUID, request: Request) -> Response:
        structlog.stdlib.get_logger("inner").info("trip.shown")
        return answer({"trail": list(_trail(request))})

    @router.get("/fail")
    async def fail() -> Response:
        try:
            raise IntegrityError("INSERT", [CANARY], Exception(f"x\nDETAIL:  Key (hash)=({CANARY}) exists."))
        except IntegrityError as error:
            raise RuntimeError(f"cannot render /feeds/{CANARY}.ics") from error

    @router.post("/planned", summary="PlanSomething")
    async def planned(call: Annotated[Call, needs("planner")]) -> Response:
        return answer({})

    @router.get("/broken")
    async def broken() -> Response:
        async def body() -> Any:
            yield b"half"
            raise RuntimeError(f"Bearer {CANARY}")

        return StreamingResponse(body())

    @app.get("/feeds/{secret}.ics")
    async def feed(secret: str) -> Response:
        return answer({})

    @app.get("/notifications/healthz")
    async def healthy() -> Response:
        return answer({})

    app.include_router(router, prefix="/notifications")
    return app


def _trail(request: Request) -> tuple[str, str]:
    trail = request.scope["trail"]
    return trail.correlation_id, trail.traceparent


@pytest.fixture
def ask(app: FastAPI) -> Ask:
    async def ask(path: str, method: str = "GET", **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
            return await client.request(method, path, **more)

    return ask


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines() if "tokens." not in line]


async def test_request_leaves_one_line_that_ties_all_others(ask: Ask, stream: io.StringIO) -> None:
    headers = {
        "X-Correlation-Id": "6f9619ff-8b86-4011-b42d-00cf4fc964ff",
        "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
    }
    response = await ask("/notifications/trips/1c0c3c1e-96d2-4f83-8f0f-7b3b1f1f9a55?a=1", headers=headers)
    inner, outer = lines_of(stream)
    bound = {
        "correlation_id": "6f9619ff-8b86-4011-b42d-00cf4fc964ff",
        "trace_id": TRACE,
        "service": "notifications",
        "level": "info",
    }
    assert response.headers["x-correlation-id"] == "6f9619ff-8b86-4011-b42d-00cf4fc964ff"
    assert {key: inner[key] for key in bound} == {key: outer[key] for key in bound} == bound
    assert inner["event"] == "trip.shown"
    assert outer.pop("ms") >= 0
    assert outer.pop("timestamp")
    assert outer == {
        **bound,
        "event": "http.answered",
        "logger": "shared.asgi",
        "method": "GET",
        "route": "/notifications/trips/{trip}",
        "status": 200,
    }
    assert structlog.contextvars.get_contextvars() == {}


@pytest.mark.parametrize(
    ("given", "carried"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", f"00-{TRACE}-b7ad6b7169203331-01"),
        (f"00-{TRACE}-b7ad6b7169203331-03", f"00-{TRACE}-b7ad6b7169203331-03"),
        (f"01-{TRACE}-b7ad6b7169203331-09-more", f"00-{TRACE}-b7ad6b7169203331-01"),
        (f"00-{TRACE}-b7ad6b7169203331-01-more", None),
        (f"ff-{TRACE}-b7ad6b7169203331-01", None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", None),
        ("nonsense", None),
        ("", None),
        (None, None),
    ],
)
async def test_traceparent_is_carried_on_or_made(ask: Ask, given: str | None, carried: str | None) -> None:
    headers = {} if given is None else {"traceparent": given}
    response = await ask("/notifications/trips/1c0c3c1e-96d2-4f83-8f0f-7b3b1f1f9a55", headers=headers)
    _, traceparent = response.json()["trail"]
    if carried is not None:
        assert traceparent == carried
    else:
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", traceparent)
        assert TRACE not in traceparent


@pytest.mark.parametrize("given", [None, "", "no-uuid", "x" * 5000])
async def test_correlation_id_that_is_no_uuid_is_made_anew(ask: Ask, given: str | None) -> None:
    headers = {} if given is None else {"X-Correlation-Id": given}
    response = await ask("/notifications/trips/1c0c3c1e-96d2-4f83-8f0f-7b3b1f1f9a55", headers=headers)
    carried, _ = response.json()["trail"]
    assert response.headers["x-correlation-id"] == carried == str(UUID(carried)) != given


@pytest.mark.parametrize(
    ("path", "route"),
    [
        (f"/feeds/{CANARY}.ics", "/feeds/***.ics"),
        (f"/feeds/{CANARY}.ics?as_of=1", "/feeds/***.ics"),
        (f"/feeds/{CANARY}", "/feeds/***.ics"),
        (f"/feeds/blank%20{CANARY}", "/feeds/***.ics"),
        (f"/feeds/%22{CANARY}.ics/more", "/feeds/***.ics"),
        (f"/feed/{CANARY}.ics", "/feed/***.ics"),
        (f"/notifications/feeds/{CANARY}.ics", "/notifications/feeds/***.ics"),
        (f"/%66eeds/{CANARY}.ics", "/feeds/***.ics"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_secret_of_a_feed_is_in_no_line(
    ask: Ask, stream: io.StringIO, path: str, route: str, method: str
) -> None:
    response = await ask(path, method)
    (line,) = lines_of(stream)
    assert (line["event"], line["route"], line["status"]) == ("http.answered", route, response.status_code)
    assert CANARY not in stream.getvalue()


async def test_failure_leaves_one_traceback_and_no_secret(ask: Ask, stream: io.StringIO) -> None:
    response = await ask("/notifications/fail", headers={"Authorization": f"Bearer {CANARY}"})
    failed, answered = lines_of(stream)
    assert (response.status_code, failed["event"], failed["level"]) == (500, "http.failed", "error")
    assert failed["route"] == answered["route"] == "/notifications/fail"
    assert "RuntimeError: cannot render /feeds/***.ics" in failed["exception"]
    assert "IntegrityError" in failed["exception"]
    assert (answered["event"], answered["status"], answered["slug"]) == ("http.answered", 500, "internal")
    assert response.headers["x-correlation-id"] == failed["correlation_id"] == answered["correlation_id"]
    assert CANARY not in stream.getvalue() + response.text


async def test_failure_amid_an_answer_breaks_it_off(ask: Ask, stream: io.StringIO) -> None:
    with pytest.raises(RuntimeError):
        await ask("/notifications/broken")
    assert [line["event"] for line in lines_of(stream)] == ["http.failed", "http.answered"]
    assert CANARY not in stream.getvalue()


async def test_refusal_is_logged_by_its_slug_and_without_the_token(ask: Ask, stream: io.StringIO) -> None:
    await ask("/notifications/planned", "POST", headers={"Authorization": f"Bearer {CANARY}"})
    await ask("/notifications/planned", "POST", content=b"x")
    assert [(line["status"], line["slug"], line["level"]) for line in lines_of(stream)] == [
        (401, "token-unknown", "info"),
        (415, "media-type", "info"),
    ]
    assert CANARY not in stream.getvalue()


async def test_health_is_asked_often_and_leaves_no_line(ask: Ask, stream: io.StringIO) -> None:
    assert (await ask("/notifications/healthz")).status_code == 200
    assert (await ask("/notifications/nothing/healthz")).status_code == 404
    assert [line["status"] for line in lines_of(stream)] == [404]


async def test_caller_who_went_away_is_no_failure(app: FastAPI, stream: io.StringIO) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/notifications/planned",
        "raw_path": b"/notifications/planned",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-length", b"5"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await asyncio.wait_for(app(scope, receive, send), 120)
    assert [(line["event"], line["status"]) for line in lines_of(stream)] == [("http.answered", 499)]


async def test_requests_are_counted_by_template_and_commands_by_name(ask: Ask, requests: Requests) -> None:
    await ask("/notifications/trips/0b4ef1a6-3b0e-4a3e-9d3c-111111111111")
    await ask("/notifications/trips/nonsense")
    await ask(f"/other/{CANARY}.ics")
    await ask(f"/feeds/{CANARY}.ics")
    await ask("/notifications/planned", "POST")
    await ask("/notifications/fail")
    await ask("/notifications/planned", "POST", content=b"x" * 300_000)
    assert requests.answered == {
        ("GET", "/notifications/trips/{trip}", 200): 1,
        ("GET", "/notifications/trips/{trip}", 422): 1,
        ("GET", "unrouted", 404): 1,
        ("GET", "/feeds/{secret}.ics", 200): 1,
        ("POST", "/notifications/planned", 401): 1,
        ("GET", "/notifications/fail", 500): 1,
        ("POST", "unrouted", 413): 1,  # refused before any route was looked for
    }
    assert requests.commands == {("PlanSomething", "token-missing"): 1}
