"""What is beside the services: the catcher of mail, Prometheus, and their ways through the proxy.

Grafana's own image is not asked for: another program stands at its name, since it is the proxy's part that is tried.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.compose.running_stack import Stack, engine_answers, started

pytestmark = [
    pytest.mark.skipif(not os.environ.get("ATTACHE_TEST_DRILLS"), reason="a minute: make compose-test runs it"),
    pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers here"),
]

PATIENCE_SECONDS = 120.0
BESIDE = ("mailpit", "prometheus")
SCRAPED = {"schedule", "participants", "notifications"}
ANSWERS = """
import http.server
class Grafana(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"grafana was asked for {self.path}".encode())
http.server.ThreadingHTTPServer(("", 3000), Grafana).serve_forever()
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with started(tmp_path_factory.mktemp("stack")) as found:
        profiles = ("--profile", "mail", "--profile", "observability")
        found.compose(*profiles, "up", "--no-build", "--wait", *BESIDE)
        yield found


@pytest.fixture
def grafana(stack: Stack) -> Iterator[str]:
    """A container at Grafana's name and port."""
    network, name = f"{stack.project}_app", f"{stack.project}-grafana"
    start = ["docker", "run", "--detach", "--rm", "--name", name, "--network", network, "--network-alias", "grafana"]
    image = subprocess.check_output(
        ["docker", "inspect", "-f", "{{.Image}}", stack.containers("schedule")[0]], text=True
    )
    subprocess.run([*start, "--entrypoint", "python", image.strip(), "-c", ANSWERS], check=True, capture_output=True)
    yield name
    subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True)


def test_the_catcher_of_mail_is_looked_at_under_its_path(stack: Stack) -> None:
    _until(lambda: _get(stack, "/mail/api/v1/info").status_code == 200)
    assert _get(stack, "/mail/api/v1/info").json()["Messages"] == 0
    answer = _get(stack, "/mail")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/mail/")


def test_grafana_is_reached_under_its_path_and_told_the_whole_of_it(stack: Stack, grafana: str) -> None:
    _until(lambda: _get(stack, "/grafana/api/health").status_code == 200)
    assert _get(stack, "/grafana/api/health").text == "grafana was asked for /grafana/api/health"
    answer = _get(stack, "/grafana")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/grafana/")


def test_what_was_not_started_is_said_to_be_away(stack: Stack) -> None:
    assert _get(stack, "/grafana/").status_code in (502, 503)


def test_prometheus_has_scraped_each_service_and_fires_nothing(stack: Stack) -> None:
    assert _rules(stack)  # without any, nothing could fire
    _until(lambda: _scraped(stack) == SCRAPED)
    assert _asked(stack, 'ALERTS{alertstate="firing"}') == []


def test_each_line_of_the_proxy_has_a_path_that_may_be_known(stack: Stack) -> None:
    asked = {"/mail": "/mail", "/grafana": "/grafana", f"/feeds/{'x' * 32}.ics": "/feeds/(secret)", "/x": "(unknown)"}
    for path in asked:
        _get(stack, path)

    def told() -> list[str]:
        lines = stack.compose("logs", "--no-log-prefix", "proxy").stdout.splitlines()
        return [json.loads(line)["path"] for line in lines if '"http.log.access' in line]

    _until(lambda: {*asked.values()} <= {*told()})


def _scraped(stack: Stack) -> set[str]:
    return {one["metric"]["job"] for one in _asked(stack, "up == 1")} & SCRAPED


def _asked(stack: Stack, query: str) -> list[dict[str, dict[str, str]]]:
    """What Prometheus answers to a query."""
    found: list[dict[str, dict[str, str]]] = _told(stack, str(httpx.URL("query", params={"query": query})))["result"]
    return found


def _rules(stack: Stack) -> list[str]:
    return [rule["name"] for group in _told(stack, "rules")["groups"] for rule in group["rules"]]


def _told(stack: Stack, path: str) -> Any:
    """What Prometheus's API answers: it has no way through the proxy."""
    url = f"http://127.0.0.1:9090/api/v1/{path}"
    return json.loads(stack.compose("exec", "-T", "prometheus", "wget", "-q", "-O", "-", url).stdout)["data"]


def _get(stack: Stack, path: str) -> httpx.Response:
    return httpx.get(stack.base + path, trust_env=False, timeout=60)


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end, f"not within {PATIENCE_SECONDS:g} s"
        time.sleep(0.2)
