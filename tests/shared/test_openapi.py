"""The documentation: it tells of refusals and tokens, and its page needs no internet."""

import re
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import Response

from shared.call import Call, needs
from shared.http import answer, install
from shared.openapi import COMMAND, QUERY, problems
from shared.problems import STATUS
from shared.tokens import TokenFile


class Body(BaseModel):
    title: str


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    app = FastAPI(openapi_url=None, title="Schedule")
    app.state.tokens = TokenFile(tmp_path / "tokens")
    install(app, service="schedule")

    @app.post("/schedule/trips", responses=problems(*COMMAND, "outside-stay"))
    async def plan(body: Body, call: Annotated[Call, needs("planner")]) -> Response:
        return answer({})

    @app.get("/schedule/healthz")
    async def healthy() -> Response:
        return answer({})

    return app


async def get(app: FastAPI, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://edge") as client:
        return await client.get(path)


async def test_schema_tells_of_every_refusal_of_a_command(app: FastAPI) -> None:
    schema: dict[str, Any] = (await get(app, "/schedule/openapi.json")).json()
    responses = schema["paths"]["/schedule/trips"]["post"]["responses"]
    told = {
        slug: int(status)
        for status, response in responses.items()
        if status != "200"
        for slug in response["content"]["application/problem+json"]["examples"]
    }
    assert told == {slug: STATUS[slug] for slug in (*COMMAND, "outside-stay")}
    conflict = responses["409"]
    assert conflict["description"] == "Conflict: wrong-state, outside-stay"
    assert conflict["content"]["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}
    assert conflict["content"]["application/problem+json"]["examples"]["outside-stay"]["value"] == {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "detail": "A meeting would lie outside the stay at its stop.",
        "slug": "outside-stay",
    }
    assert schema["components"]["schemas"]["Problem"]["properties"]["slug"]["enum"] == list(STATUS)
    assert "HTTPValidationError" not in schema["components"]["schemas"]


async def test_schema_tells_of_tokens_and_of_the_headers_that_are_read(app: FastAPI) -> None:
    schema: dict[str, Any] = (await get(app, "/schedule/openapi.json")).json()
    assert schema["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    command = schema["paths"]["/schedule/trips"]["post"]
    assert command["security"] == [{"token": []}]
    named = [one["name"] for one in command["parameters"]]
    assert named == ["Idempotency-Key", "If-Match", "Occurred-At", "X-Correlation-Id"]
    assert "security" not in schema["paths"]["/schedule/healthz"]["get"]
    assert "parameters" not in schema["paths"]["/schedule/healthz"]["get"]
    assert {path: list(methods) for path, methods in schema["paths"].items()} == {
        "/schedule/trips": ["post"],
        "/schedule/healthz": ["get"],  # HEAD, which every GET answers too, is not told
    }


async def test_page_needs_nothing_from_elsewhere(app: FastAPI) -> None:
    page = await get(app, "/schedule/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert re.findall(r"https?://[^\"' ]+", page.text) == []
    own = re.findall(r"(?:src|href)=\"(/[^\"]+)\"", page.text)
    assert sorted(own) == ["/schedule/docs/swagger-ui-bundle.js", "/schedule/docs/swagger-ui.css"]
    answers = [await get(app, path) for path in own]
    assert sorted(answer.headers["content-type"].split(";")[0] for answer in answers) == ["text/css", "text/javascript"]
    assert all(len(answer.content) > 100_000 for answer in answers)
    assert "/schedule/openapi.json" in page.text


async def test_documentation_stands_nowhere_else(app: FastAPI) -> None:
    assert [(await get(app, path)).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404, 404, 404]
    with pytest.raises(ValueError, match="openapi_url=None"):
        install(FastAPI(), service="schedule")


def test_problems_are_those_of_the_table() -> None:
    assert set(problems(*QUERY)) == {401, 403, 404, 422, 503}
    with pytest.raises(KeyError):
        problems("no-such-slug")
