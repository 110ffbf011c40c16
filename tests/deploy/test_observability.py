"""Rules, dashboard and runbook name what is really there: each metric is found in an answer of a running service."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI

from services.front import Front
from services.notifications.main import create_app as notifications_app
from services.notifications.settings import NotificationsSettings
from services.participants.main import create_app as participants_app
from services.participants.settings import ParticipantsSettings
from services.schedule.main import create_app as schedule_app
from services.schedule.settings import ScheduleSettings
from shared.settings import load
from shared.tokens import add_token

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SERVICES = ("schedule", "participants", "notifications")
NAME = re.compile(r"\b(?:attache|process)_[a-z0-9_]+\b")
GRAFANA_SCHEMA = 41
"""Of dashboards, in Grafana 11.6; it brings older ones up to it as it reads them."""
PROMETHEUS_IMAGE = "prom/prometheus:v2.42.0"

MakeDatabase = Callable[..., Awaitable[str]]


@pytest.fixture
async def metrics(make_database: MakeDatabase, tmp_path: Path, patience: None) -> AsyncIterator[str]:
    """What the three services answer together at `/metrics`, after one command, one query and one feed's refusal."""
    planner = add_token(tmp_path / "tokens", "pat", ["planner", "operator"])
    base = "http://attache.example"
    common = {
        "bus_url": await make_database("shared/bus_migrations"),
        "service_token": add_token(tmp_path / "tokens", "services", ["service"]),
        "tokens_file": tmp_path / "tokens",
        **{f"{name}_url": "http://127.0.0.1:9" for name in SERVICES},
    }
    urls = {name: await make_database(f"services/{name}/migrations") for name in SERVICES}
    apps: dict[str, FastAPI] = {
        "schedule": schedule_app(load(ScheduleSettings, **common, database_url=urls["schedule"])),
        "participants": participants_app(load(ParticipantsSettings, **common, database_url=urls["participants"])),
        "notifications": notifications_app(load(NotificationsSettings, **common, database_url=urls["notifications"])),
    }
    front = Front(apps)
    for app in apps.values():  # each hears the others' message logs in this process
        for log in app.state.service.healer._logs.values():
            object.__setattr__(log, "client", httpx.AsyncClient(transport=httpx.ASGITransport(front)))
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(front.running())
        client = await stack.enter_async_context(
            httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url=base, timeout=30)
        )
        client.headers["Authorization"] = f"Bearer {planner}"
        planned = await client.post("/schedule/trips", json={})
        assert planned.status_code == 422
        assert (await client.get(f"/feeds/{'x' * 32}.ics")).status_code == 404
        yield await _all_metrics(apps, client)


async def _all_metrics(apps: dict[str, FastAPI], client: httpx.AsyncClient) -> str:
    """As soon as each consumer has its partitions, so that lags are told too."""
    until = time.monotonic() + 90
    while True:
        told = [(await client.get(f"/{name}/metrics")).text for name in apps]
        if all("attache_consumer_lag_seconds{" in one and "attache_consumer_lag_messages{" in one for one in told):
            return "\n".join(told)
        assert time.monotonic() < until
        await asyncio.sleep(0.1)


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text(encoding="utf-8"))["groups"]:
        yield from group["rules"]


def dashboards() -> Iterator[dict[str, Any]]:
    found = sorted((DEPLOY / "grafana/dashboards").glob("*.json"))
    assert found
    for path in found:
        yield json.loads(path.read_text(encoding="utf-8"))


def queries(dashboard: dict[str, Any]) -> list[str]:
    variables = [one["query"]["query"] for one in dashboard["templating"]["list"]]
    return variables + [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def names_in(metrics: str) -> set[str]:
    """All names that samples have, and those of families that have none yet."""
    names = {re.split(r"[{ ]", line, maxsplit=1)[0] for line in metrics.splitlines() if not line.startswith("#")}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", metrics, flags=re.MULTILINE):
        names |= {f"{name}{end}" for end in ("_bucket", "_count", "_sum")} if kind == "histogram" else {name}
    return names


async def test_services_tell_each_metric_that_is_named_with_the_labels_that_rules_go_by(metrics: str) -> None:
    named = {name for rule in rules() for name in NAME.findall(rule["expr"])}
    named |= {name for dashboard in dashboards() for query in queries(dashboard) for name in NAME.findall(query)}
    assert len(named) > 30
    assert sorted(named - names_in(metrics)) == []
    for sample in expected_samples():
        assert sample in metrics
    assert "x" * 16 not in metrics  # the address that was asked for
    kinds = dict(re.findall(r"^# TYPE (attache_\S+) (\S+)$", metrics, flags=re.MULTILINE))
    assert [name for name, kind in kinds.items() if (kind == "counter") != name.endswith("_total")] == []
    assert [name for name, kind in kinds.items() if kind == "histogram" and not name.endswith("_seconds")] == []
    assert [name for name in kinds if re.search(r"_(ms|milliseconds|minutes|kb|mb|percent)(_|$)", name)] == []


def expected_samples() -> Iterator[str]:
    for service in SERVICES:
        yield f'attache_ready{{service="{service}"}}'
        for part in ("store", "pool", "schema", "relay", "consumer", "lag"):
            yield f'attache_stands_still{{part="{part}",service="{service}"}}'
    for reason in ("gap", "not-applied"):
        labels = f'service="notifications",topic="attache.schedule.cleared",waits_for="{reason}"'
        yield f"attache_parked_keys{{{labels}}} 0.0"
    yield 'attache_commands_total{command="PlanTrip",outcome="invalid",service="schedule"} 1.0'
    yield 'attache_feed_answers_total{service="notifications",status="404"} 1.0'
    yield 'attache_feed_answers_total{service="notifications",status="500"} 0.0'


def test_each_alert_is_whole_and_has_its_entry_in_the_runbook() -> None:
    runbook = (DEPLOY / "RUNBOOK.md").read_text(encoding="utf-8")
    section = runbook.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    entries = re.split(r"^### ", section, flags=re.MULTILINE)[1:]
    assert [entry.split("\n")[0] for entry in entries] == [rule["alert"] for rule in rules()]
    assert [
        entry.split("\n")[0] for entry in entries if not all(f"\n- {word}: " in entry for word in ("Look", "Do"))
    ] == []
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        assert rule["annotations"]["runbook"] == f"deploy/RUNBOOK.md#{rule['alert'].lower()}"


def test_each_rule_has_a_name_of_its_own_and_is_tried_when_it_fires_and_when_it_does_not() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    tests = yaml.safe_load((DEPLOY / "prometheus/alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    tried = [one for test in tests for one in test["alert_rule_test"]]
    assert {one["alertname"] for one in tried if one["exp_alerts"]} == set(names)
    assert {one["alertname"] for one in tried if not one["exp_alerts"]} == set(names)


def test_a_dashboard_asks_the_provisioned_source_in_every_panel() -> None:
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    uids = {source["uid"] for source in sources["datasources"]}
    for dashboard in dashboards():
        panels = dashboard["panels"]
        ids = [panel["id"] for panel in panels]
        assert len(set(ids)) == len(ids)
        asking = [panel for panel in panels if panel["type"] != "row"]
        assert [panel["title"] for panel in asking if not panel["targets"] or not panel["description"]] == []
        assert {panel["datasource"]["uid"] for panel in asking} | {
            target["datasource"]["uid"] for panel in asking for target in panel["targets"]
        } == uids
        assert [panel["title"] for panel in asking for target in panel["targets"] if not target["expr"]] == []
        places = [(one["gridPos"]["x"], one["gridPos"]["y"]) for one in panels]
        assert len(set(places)) == len(places)


def test_a_dashboard_is_what_the_pinned_grafana_draws() -> None:
    """Panels, places and names that Grafana would take as they are and draw as nothing, or one above another."""
    for dashboard in dashboards():
        assert dashboard["schemaVersion"] <= GRAFANA_SCHEMA
        assert len(dashboard["uid"]) <= 40
        assert {panel["type"] for panel in dashboard["panels"]} <= {"row", "stat", "timeseries"}
        taken: dict[tuple[int, ...], str] = {}
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24, panel["title"]
            for field in itertools.product(*(range(place[at], place[at] + place[size]) for at, size in ("xw", "yh"))):
                assert taken.setdefault(field, panel["title"]) == panel["title"]
        variables = {one["name"] for one in dashboard["templating"]["list"]}
        assert {name for query in queries(dashboard) for name in re.findall(r"\$(\w+)", query)} <= variables
        for panel in dashboard["panels"]:
            targets = panel.get("targets", [])
            assert len({target["refId"] for target in targets}) == len(targets), panel["title"]
            for target in targets:
                assert not _legend_labels(target) - _labels_left(target["expr"]), panel["title"]


def _legend_labels(target: dict[str, Any]) -> set[str]:
    return set(re.findall(r"{{(\w+)}}", target["legendFormat"]))


def _labels_left(expression: str) -> set[str]:
    """By what the outermost sum or the like is told apart; without one the target's own labels are left."""
    grouped = re.match(r"(?:histogram_quantile\([\d.]+, )?(?:sum|max|min|count)\b(?: by \(([^)]*)\))?", expression)
    return {"job", "instance"} if grouped is None else set((grouped[1] or "").split(", "))


def test_settings_name_each_variable_for_spans_that_compose_hands_on() -> None:
    handed = re.findall(r"\$\{(OTEL_\w+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    section = (DEPLOY / "SETTINGS.md").read_text(encoding="utf-8").partition("\n## With Docker Compose\n")[2]
    assert handed
    assert [name for name in handed if f"`{name}`" not in section] == []


def test_each_answer_of_the_proxy_has_a_path_in_its_log_line_or_no_line() -> None:
    caddyfile = (DEPLOY / "proxy" / "Caddyfile").read_text(encoding="utf-8")
    site = caddyfile.partition("\n:8080 {\n")[2].partition("\n}\n")[0]
    handles = re.split(r"^\thandle ", site, flags=re.MULTILINE)[1:]
    assert len(handles) > 10
    assert [
        one.split("\n")[0] for one in handles if not re.search(r"^\t\tlog_(append path|skip)\b", one, re.MULTILINE)
    ] == []
    directives = set(re.findall(r"^\t(\w+)", site, flags=re.MULTILINE))
    assert directives == {"log", "header", "handle"}  # none that answers by itself


def test_rules_and_their_tests_pass_promtool() -> None:
    folder = DEPLOY / "prometheus"
    for arguments in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([*_promtool(folder), *arguments], cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


def _promtool(folder: Path) -> list[str]:
    """promtool itself, or the one in Prometheus's image; skipped where neither is here."""
    if (program := shutil.which("promtool")) is not None:
        return [program]
    docker = shutil.which("docker")
    if (
        docker is not None
        and not subprocess.run(
            [docker, "image", "inspect", PROMETHEUS_IMAGE], capture_output=True, timeout=60
        ).returncode
    ):
        mounted = [f"--volume={folder}:/rules:ro", "--workdir=/rules", "--network=none"]
        return [docker, "run", "--rm", "--entrypoint=promtool", *mounted, PROMETHEUS_IMAGE]
    reason = f"promtool is not here, nor the image {PROMETHEUS_IMAGE}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
