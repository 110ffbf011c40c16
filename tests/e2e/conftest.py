"""`python -m services up` as people start it: a process of its own, on a folder of its own.

The demo trip is loaded once a session, in the hardest way: broken off by SIGKILL in the middle, then taken up again.
Tests get a copy of that folder, or the one process that serves it.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from deploy.kafka_node import free_port
from services.embedded import EmbeddedPostgres
from services.embedded_server import server_pids
from tests.workers import made_once

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 180.0
"""Seconds; a start from nothing takes about eight on two idle cores."""
TRIES = 5
"""So often what lasts for a moment is looked for: whoever looks can be held up for longer."""

Until = Callable[..., None]


def _until(holds: Callable[[], object], patience: float = PATIENCE, what: str = "it") -> None:
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end, f"{what} did not come to hold in {patience:g} s"
        time.sleep(0.02)


@dataclass(kw_only=True)
class Up:
    """One start of the program. `data` is its folder; what it says is kept in files, since nobody reads a pipe."""

    data: Path
    process: "subprocess.Popen[bytes]"
    outputs: Path
    port: int
    """As it was asked for: 0 for any."""
    began: float = field(default_factory=time.monotonic)

    @property
    def said(self) -> str:
        """What is on stderr by now."""
        return self._said("err")

    @property
    def printed(self) -> str:
        """What is on stdout by now."""
        return self._said("out")

    @property
    def run_file(self) -> Path:
        return self.data / "run.json"

    def ready(self, patience: float = PATIENCE) -> dict[str, Any]:
        """What run.json says, when it is there."""
        self.until(self.run_file.exists, patience, "ready")
        found: dict[str, Any] = json.loads(self.run_file.read_text(encoding="utf-8"))
        return found

    def until(self, holds: Callable[[], object], patience: float = PATIENCE, what: str = "it") -> None:
        """Wait for something that happens while it runs; what it said stands in the failure."""
        end = time.monotonic() + patience
        while not holds():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.said}"
            assert time.monotonic() < end, f"{what} did not come to hold in {patience:g} s: {self.said}"
            time.sleep(0.02)

    def ended(self, patience: float = PATIENCE) -> int:
        """The exit code, when it has ended."""
        return self.process.wait(patience)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop, and wait; the exit code."""
        self.process.send_signal(number)
        return self.ended()

    def servers(self) -> list[int]:
        """The processes of its PostgreSQL."""
        return list(server_pids(self.data.resolve() / "postgres" / "data"))

    def _said(self, name: str) -> str:
        return self.outputs.joinpath(name).read_text(encoding="utf-8")


StartUp = Callable[..., Up]
"""`start_up(data, "--play", environment={...})`; `port` 0 unless said; `hangup` as nohup sets it: SIG_IGN."""


def _start(
    data: Path,
    outputs: Path,
    *arguments: str,
    port: int = 0,
    environment: Mapping[str, str] | None = None,
    hangup: signal.Handlers = signal.SIG_DFL,
) -> Up:
    command = [sys.executable, "-m", "services", "up", "--port", str(port), "--data", str(data), *arguments]
    with (outputs / "out").open("wb") as out, (outputs / "err").open("wb") as err:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            # a child inherits it, and these tests may themselves run under nohup
            preexec_fn=lambda: signal.signal(signal.SIGHUP, hangup),
        )
    return Up(data=data, process=process, outputs=outputs, port=port)


def _end(up: Up) -> None:
    """Kill what still runs; what has ended by itself may have been refused a folder that is another's."""
    if up.process.poll() is None:
        up.process.kill()
        up.process.wait()
        _until(lambda: not up.servers(), what="the end of its PostgreSQL")


@pytest.fixture(scope="session")
def until() -> Until:
    """Wait for something with a deadline."""
    return _until


@pytest.fixture
def start_up(tmp_path: Path, data_folder: Path) -> Iterator[StartUp]:
    """Starts the program; whatever a test has left of it is ended afterwards, before its folder goes."""
    started: list[Up] = []

    def start(data: Path, *arguments: str, **options: Any) -> Up:
        outputs = tmp_path / f"up-{len(started)}"
        outputs.mkdir()
        started.append(_start(data, outputs, *arguments, **options))
        return started[-1]

    yield start
    for up in reversed(started):
        _end(up)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The session's loaded trip: where the load was broken off, and what the start that finished it said."""

    folder: Path
    broken_at: int
    run: Mapping[str, Any]
    events: Mapping[str, Mapping[str, int]]
    """By service, how many of each type are stored."""
    counts: Mapping[str, int]
    left_run_file: bool


@pytest.fixture(scope="session")
def loaded() -> Iterator[Loaded]:
    """The folder of a load that was killed in the middle and taken up again. It is stopped: copy it."""
    with made_once("loaded", _loaded) as found:
        yield found


def _loaded(base: Path) -> Loaded:
    broken_off = _broken_off(base)
    data = broken_off.folder
    (base / "second").mkdir()
    second = _start(data, base / "second")
    try:
        run = second.ready()
        with _client(run) as client:
            counts = _counts(client, run["trip"])
        assert second.stop() == 0
    finally:
        _end(second)
    return Loaded(
        folder=data,
        broken_at=broken_off.at,
        run=run,
        events=_events(data),
        counts=counts,
        left_run_file=broken_off.left_run_file,
    )


@pytest.fixture
def loaded_folder(loaded: Loaded, data_folder: Path) -> Path:
    """A copy of the loaded trip's folder, for one test alone."""
    return _copied(loaded.folder, data_folder)


@dataclass(frozen=True, kw_only=True)
class Running:
    """The session's one process that serves the loaded trip, and what its run.json says."""

    up: Up
    run: Mapping[str, Any]
    seconds: float

    def client(self) -> httpx.Client:
        """A client with the demo's token."""
        return _client(self.run)


@pytest.fixture(scope="session")
def running(loaded: Loaded) -> Iterator[Running]:
    """Served for the whole session: a test that changes something takes a meeting and a link of its own."""
    with tempfile.TemporaryDirectory(prefix="attache-test-running-") as name:
        base = Path(name)
        base.chmod(0o711)
        (base / "said").mkdir()
        up = _start(_copied(loaded.folder, base), base / "said")
        try:
            run = up.ready()
            yield Running(up=up, run=run, seconds=time.monotonic() - up.began)
            assert up.stop() == 0
        finally:
            _end(up)


@dataclass(frozen=True, kw_only=True)
class BrokenOff:
    """A load that was killed in the middle."""

    folder: Path
    at: int
    left_run_file: bool


def _broken_off(base: Path) -> BrokenOff:
    """Killed in the middle, and again where that was missed: who looks may be held up for as long as a load takes."""
    for number in range(TRIES):
        (outputs := base / f"first-{number}").mkdir()
        first = _start(base / f"data-{number}" / "data", outputs, port=free_port())
        try:
            at = _kill_in_the_middle(first)
            broken_off = BrokenOff(folder=first.data, at=at, left_run_file=first.run_file.exists())
        finally:
            _end(first)
        if not broken_off.left_run_file:
            break
    return broken_off


def _kill_in_the_middle(up: Up) -> int:
    """SIGKILL when some eighty steps are done, or all; how many the page last told of."""
    seen = 0

    def far_enough() -> bool:
        nonlocal seen
        try:
            text = httpx.get(f"http://127.0.0.1:{up.port}/", trust_env=False, timeout=5).text
        except httpx.HTTPError:
            return up.run_file.exists()
        words = text.partition("Step ")[2].split()
        seen = int(words[0]) if words else seen
        return seen >= 80 or up.run_file.exists()

    up.until(far_enough, what="the middle of the load")
    up.process.kill()
    up.process.wait()
    return seen


def _copied(folder: Path, into: Path) -> Path:
    # with its owners: PostgreSQL's files are not always those of who runs the tests
    subprocess.run(["cp", "-a", folder, into / "data"], check=True)
    return into / "data"


def _client(run: Mapping[str, Any]) -> httpx.Client:
    headers = {"Authorization": f"Bearer {run['token']}"}
    return httpx.Client(base_url=run["base"], headers=headers, trust_env=False, timeout=PATIENCE)


def _events(folder: Path) -> dict[str, dict[str, int]]:
    async def count(url: str) -> dict[str, int]:
        connection = await asyncpg.connect(url.replace("+asyncpg", ""))
        rows = await connection.fetch("SELECT split_part(type, '.', 1), count(*) FROM events GROUP BY 1")
        await connection.close()
        return {row[0]: row[1] for row in rows}

    with EmbeddedPostgres(folder) as server:
        return {name: asyncio.run(count(server.url(name))) for name in ("schedule", "participants", "notifications")}


def _counts(client: httpx.Client, trip: str) -> dict[str, int]:
    lists = {
        "trip": "/schedule/trips",
        "stop": f"/schedule/trips/{trip}/stops",
        "movement": f"/schedule/trips/{trip}/movements",
        "meeting": f"/schedule/trips/{trip}/meetings",
        "delegation": f"/participants/trips/{trip}/delegations",
        "link": f"/notifications/trips/{trip}/feed-links",
    }
    return {kind: len(client.get(path, params={"limit": 500}).json()["items"]) for kind, path in lists.items()}


@pytest.fixture(name="free_port")
def a_free_port() -> int:
    """A port that nobody listens on."""
    return free_port()


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program; without one the test is left out, under CI=true it fails."""
    found = shutil.which("chromium")
    if found is None:
        reason = "no chromium: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found
