"""PostgreSQL's disk is full: commands are refused in so many words, feeds go on, and with room all goes on."""

import asyncio
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0
LATE_SECONDS = 4.0
"""After so long it may be a busy machine that makes the database count as away, whatever became of the command."""
SIZE = "200m"
FULL = "the database's disk is full, so nothing was done: make room there, and try again"
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def small_disk(data_folder: Path) -> Iterator[Path]:
    """A folder with 200 MB of room."""
    where = str(data_folder).encode()
    if os.geteuid() != 0 or _libc.mount(b"tmpfs", where, b"tmpfs", 0, f"size={SIZE},mode=0711".encode()) != 0:
        pytest.skip("a small disk can be mounted by root alone (and not in every container)")
    yield data_folder
    _libc.umount2(where, 2)  # MNT_DETACH


@dataclass(frozen=True, kw_only=True)
class Up:
    """`make run`, ready: its process, what it says in run.json, and the file that has its stderr."""

    process: "subprocess.Popen[bytes]"
    told: dict[str, Any]
    said: Path


@contextmanager
def _up(disk: Path, said: Path) -> Iterator[Up]:
    """`said`: beside the disk, and of this test alone: others run at the same time."""
    data = disk / "data"
    command = [sys.executable, "-m", "services", "up", "--port", "0", "--data", str(data)]
    with said.open("wb") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
    try:
        end = time.monotonic() + PATIENCE
        while not (data / "run.json").exists():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < end
            time.sleep(0.1)
        told = json.loads((data / "run.json").read_text(encoding="utf-8"))
        yield Up(process=process, told=told, said=said)
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture
def running(small_disk: Path, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What `make run` says of itself, on the small disk."""
    with _up(small_disk, tmp_path / "said") as up:
        yield up.told


def _plan(client: httpx.Client) -> httpx.Response:
    trip = {"title": "x" * 190, "principals": ["Somebody"], "starts_on": "2023-11-07", "ends_on": "2023-11-08"}
    home = {"place": "Washington", "zone": "America/New_York"}
    return client.post("/schedule/trips", json={"id": str(uuid4()), **trip, "home": home})


def _id(answer: httpx.Response) -> str:
    """Of the trip that was asked for."""
    return str(json.loads(answer.request.content)["id"])


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            return


def test_a_full_disk_refuses_commands_and_nothing_is_lost_or_half_done(
    small_disk: Path, running: dict[str, Any]
) -> None:
    headers = {"Authorization": f"Bearer {running['token']}"}
    with httpx.Client(base_url=running["base"], headers=headers, timeout=PATIENCE) as client:
        feed = running["feeds"][0]["url"]
        before = client.get(feed)
        _fill(small_disk / "filler")
        refused: list[httpx.Response] = []
        made: list[httpx.Response] = []
        unknown: set[str] = set()

        def plan() -> httpx.Response:
            began = time.monotonic()
            answer = _plan(client)
            if answer.status_code != 201 and time.monotonic() - began > LATE_SECONDS:
                unknown.add(_id(answer))
            return answer

        end = time.monotonic() + PATIENCE
        while len(refused) - len(unknown) < 10:
            assert time.monotonic() < end
            answer = plan()
            (made if answer.status_code == 201 else refused).append(answer)
            during = client.get(feed)
            assert (during.status_code, during.content) == (200, before.content)
        said = {
            (one.status_code, one.json()["slug"], one.json()["detail"]) for one in refused if _id(one) not in unknown
        }
        assert said == {(503, "store-away", FULL)}
        (small_disk / "filler").unlink()
        while (answer := plan()).status_code != 201:
            assert time.monotonic() < end
            time.sleep(0.2)
        made.append(answer)
        known = {one["id"] for one in _trips(client)} - unknown
        assert known == {one.json()["id"] for one in made} | {running["trip"]}
        while client.get("/schedule/readyz").json().get("unpublished") != 0:
            assert time.monotonic() < end
            time.sleep(0.2)


def test_a_write_ahead_log_that_cannot_grow_loses_nothing_that_was_answered(small_disk: Path, tmp_path: Path) -> None:
    with _up(small_disk, tmp_path / "said") as first, _client(first) as client:
        feeds = [client.get(feed["url"]).content for feed in first.told["feeds"]]
        made: list[str] = []
        with _server(small_disk / "data") as ask:
            _fill(small_disk / "filler")
            end = time.monotonic() + PATIENCE
            while first.process.poll() is None:
                assert time.monotonic() < end
                with suppress(httpx.TransportError):  # PostgreSQL has ended by itself, and all else with it
                    answer = _plan(client)
                    made += [answer.json()["id"]] if answer.status_code == 201 else []
                with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    ask("SELECT pg_switch_wal()")  # a new segment of the log, for which there is no room at last
    assert first.process.returncode == 1
    assert first.said.read_text().splitlines()[-1] == f"attache: {small_disk / 'data'}: the disk is full"
    (small_disk / "filler").unlink()
    with _up(small_disk, tmp_path / "said") as second, _client(second) as client:
        assert set(made) <= {one["id"] for one in _trips(client)}
        assert [client.get(feed["url"]).content for feed in second.told["feeds"]] == feeds
        assert _plan(client).status_code == 201


def _client(up: Up) -> httpx.Client:
    headers = {"Authorization": f"Bearer {up.told['token']}"}
    return httpx.Client(base_url=up.told["base"], headers=headers, timeout=PATIENCE)


@contextmanager
def _server(data: Path) -> Iterator[Callable[[str], object]]:
    """One connection to PostgreSQL itself, made while there is room for it."""
    password = (data / "secrets" / "database-postgres").read_text().strip()
    port = int((data / "postgres" / "port").read_text())
    with asyncio.Runner() as runner:
        connection = runner.run(_connected(port, password))
        yield lambda query: runner.run(connection.execute(query))
        connection.terminate()


async def _connected(port: int, password: str) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(host="127.0.0.1", port=port, user="postgres", password=password)


def _trips(client: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = client.get("/schedule/trips", params={"cursor": cursor} if cursor else {}).json()
        found += page["items"]
        if (cursor := page["next"]) is None:
            return found
