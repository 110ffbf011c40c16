"""An app behind the edge, whose one command does what a test says."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from shared.call import Call, needs, reads
from shared.http import answer, answer_list, install
from shared.problems import STATUS
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
        for router in (self._commands(), self._queries()):
            self.app.include_router(router, prefix="/schedule")

    def _commands(self) -> APIRouter:
        router = APIRouter()

        @router.post("/trips/{trip}/meetings")
        async def schedule(trip: UUID, body: Body, call: Annotated[Call, needs("planner")]) -> Response:
            self.calls.append(call)
            return self.act()

        @router.post("/meetings/{meeting}/confirm")
        async def confirm(meeting: UUID, call: Annotated[Call, needs("planner")]) -> Response:
            self.calls.append(call)
            return self.act()

        return router

    def _queries(self) -> APIRouter:
        router = APIRouter()

        @router.get("/trips/{trip}/meetings")
        async def meetings(trip: UUID, call: Annotated[Call, reads()]) -> Response:
            return answer_list([], next=None)

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
