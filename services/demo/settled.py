"""Until nothing is on its way any more: what the services' own probes say of it."""

import asyncio
import contextlib
from collections.abc import Collection

import httpx

READY_SECONDS = 120.0
BEHIND = ("unpublished", "unheard", "catching_up", "waiting")


class NotSettled(Exception):
    """The feeds did not become up to date in time; the text is one line."""


async def wait_until_settled(client: httpx.AsyncClient, services: Collection[str]) -> None:
    """Until nothing is unpublished, unheard or unrendered in any service. Raises `NotSettled` after two minutes."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY_SECONDS):
            # twice: what one service has to do is counted before what the next one has still to hear
            while not (await _settled(client, services) and await _settled(client, services)):
                await asyncio.sleep(0.1)
            return
    raise NotSettled("the feeds did not become ready in two minutes")


async def _settled(client: httpx.AsyncClient, services: Collection[str]) -> bool:
    for service in services:
        try:
            report = (await client.get(f"/{service}/readyz")).json()
        except (httpx.TransportError, ValueError):
            return False  # it is away, or a proxy speaks for it
        if not report["ready"] or any(report.get(name) != 0 for name in BEHIND):
            return False
    return True
