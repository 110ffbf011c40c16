"""Who may do what: each cell of the table of rights, over every route that there is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from services.notifications.main import create_app as notifications_app
from services.notifications.settings import NotificationsSettings
from services.participants.main import create_app as participants_app
from services.participants.settings import ParticipantsSettings
from services.schedule.main import create_app as schedule_app
from services.schedule.settings import ScheduleSettings
from shared.settings import Settings, load
from shared.tokens import SCOPES, add_token

NOBODY = "no token"
OPEN = ("/healthz", "/readyz", "/feeds/{secret}.ics")
SERVICES: Mapping[str, tuple[Callable[[Any], FastAPI], type[Settings]]] = {
    "schedule": (schedule_app, ScheduleSettings),
    "participants": (participants_app, ParticipantsSettings),
    "notifications": (notifications_app, NotificationsSettings),
}


def allowed(method: str, path: str) -> frozenset[str]:
    """The scopes of which one is enough."""
    if path.endswith(OPEN):
        return SCOPES | {NOBODY}
    if path.endswith(("/messages", "/messages/heads")):
        return frozenset({"service"})
    if path.endswith("/metrics"):
        return frozenset({"operator"})
    if method == "get" or "/feed-links" in path:
        return frozenset({"planner", "staff"})
    return frozenset({"planner"})


@pytest.mark.parametrize("service", SERVICES)
async def test_each_route_is_for_the_scopes_of_the_table_and_for_no_other(service: str, tmp_path: Path) -> None:
    """The database is away: whoever is let in gets another refusal, and nothing is done."""
    callers = {scope: add_token(tmp_path / "tokens", scope, [scope]) for scope in sorted(SCOPES)} | {NOBODY: ""}
    app = _app(service, tmp_path / "tokens")
    wrong = []
    tried = 0
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://attache.example") as client:
        for path, methods in app.openapi()["paths"].items():
            for method in methods:
                let_in = {scope for scope, token in callers.items() if await _is_let_in(client, method, path, token)}
                wrong += [(method, path, sorted(let_in))] if let_in != allowed(method, path) else []
                tried += 1
    assert wrong == []
    assert tried >= 10


def _app(service: str, tokens: Path) -> FastAPI:
    create, settings = SERVICES[service]
    nobody = "postgresql+asyncpg://nobody@127.0.0.1:9/none"
    given = {"database_url": nobody, "bus_url": nobody, "service_token": "x" * 16, "tokens_file": tokens}
    given |= {f"{name}_url": "http://127.0.0.1:9" for name in (*SERVICES, "public")}
    return create(load(settings, **given))


async def _is_let_in(client: httpx.AsyncClient, method: str, path: str, token: str) -> bool:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    for name in ("trip", "stop", "movement", "meeting", "delegation", "member", "link"):
        path = path.replace(f"{{{name}}}", str(uuid4()))
    answer = await client.request(method, path, headers=headers, json={} if method == "post" else None)
    return answer.status_code not in (401, 403)
