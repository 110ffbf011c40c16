"""How a serving process lets go: who was let in last is answered, and is told that the connection ends."""

import asyncio
import re
import signal
import socket
from contextlib import closing
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from shared import draining
from shared.draining import DrainingServer

REQUEST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"


async def test_ctrl_c_waits_for_nobody_who_might_still_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "SERVE_ON_SECONDS", 3600.0)
    listening = socket.create_server(("127.0.0.1", 0))
    server = await _serving(listening)
    server.handle_exit(signal.SIGINT, None)
    async with asyncio.timeout(120):
        await server.shutdown([listening])
    assert not server.force_exit  # what is under way is still waited for


async def test_requests_are_taken_on_while_the_work_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "SERVE_ON_SECONDS", 3600.0)
    monkeypatch.setattr(draining, "LAST_SECONDS", 0.0)  # that moment alone lets this one in
    begun = asyncio.Event()
    listening = socket.create_server(("127.0.0.1", 0))
    server = await _serving(listening, begun)
    ending = asyncio.create_task(server.shutdown([listening]))
    async with asyncio.timeout(120):
        await begun.wait()
    with closing(socket.create_connection(listening.getsockname(), timeout=120)) as wire:
        wire.sendall(REQUEST)
        said = await asyncio.to_thread(_all_of, wire)
    assert not ending.done()
    for _ in range(2):
        server.handle_exit(signal.SIGTERM, None)
    async with asyncio.timeout(120):
        await ending
    _assert_answered_and_closed(said)


def test_it_serves_on_for_longer_than_the_proxy_keeps_a_connection() -> None:
    [kept] = re.findall(
        r"^\s*keepalive (\d+)s$", Path("deploy/proxy/Caddyfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert int(kept) < draining.SERVE_ON_SECONDS
    server = DrainingServer(Starlette(), _nothing)
    assert int(kept) < server.config.timeout_keep_alive  # nor does the proxy write to one that is about to be closed


@pytest.mark.parametrize("last", [draining.LAST_SECONDS, 0.0])  # 0: as where the process stood still for that long
async def test_a_connection_that_waits_when_the_port_closes_is_answered(
    monkeypatch: pytest.MonkeyPatch, last: float
) -> None:
    monkeypatch.setattr(draining, "SERVE_ON_SECONDS", 0.0)
    monkeypatch.setattr(draining, "LAST_SECONDS", last)
    listening = socket.create_server(("127.0.0.1", 0))
    server = await _serving(listening)
    with closing(socket.create_connection(listening.getsockname(), timeout=120)) as wire:
        wire.sendall(REQUEST)
        # the loop has not run since: it is still in the listening socket's queue
        await server.shutdown([listening])
        said = await asyncio.to_thread(_all_of, wire)
    _assert_answered_and_closed(said)


async def test_who_was_let_in_last_has_time_to_say_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "SERVE_ON_SECONDS", 0.0)
    monkeypatch.setattr(draining, "LAST_SECONDS", 60.0)
    listening = socket.create_server(("127.0.0.1", 0))
    server = await _serving(listening)
    with closing(socket.create_connection(listening.getsockname(), timeout=120)) as wire:
        ending = asyncio.create_task(server.shutdown([listening]))
        while listening.fileno() != -1:
            await asyncio.sleep(0.01)
        wire.sendall(REQUEST)
        said = await asyncio.to_thread(_all_of, wire)
        for _ in range(2):  # the second one ends the waiting
            server.handle_exit(signal.SIGTERM, None)
        await ending
    _assert_answered_and_closed(said)


def _assert_answered_and_closed(said: bytes) -> None:
    assert said.split(b"\r\n", 1)[0] == b"HTTP/1.1 200 OK"
    assert b"\r\nconnection: close\r\n" in said.lower()


async def _nothing() -> None:
    pass


async def _serving(listening: socket.socket, begun: asyncio.Event | None = None) -> DrainingServer:
    async def hand_over() -> None:
        if begun is not None:
            begun.set()

    async def done(_: object) -> PlainTextResponse:
        return PlainTextResponse("done")

    server = DrainingServer(Starlette(routes=[Route("/", done, methods=["POST"])]), hand_over)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup([listening])
    return server


def _all_of(wire: socket.socket) -> bytes:
    with wire.makefile("rb") as told:
        return told.read()
