"""Waiting a moment for what another service has told already and this one has not heard yet."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared.errors import NotYetKnown

T = TypeVar("T")

WAIT_SECONDS = 2.0
PAUSE_SECONDS = 0.05


async def until_known(look: Callable[[], Awaitable[T | None]], what: str) -> T:
    """What `look` finds, looking again for up to 2 s. Raises `NotYetKnown`. To be called outside any transaction."""
    until = time.monotonic() + WAIT_SECONDS
    while (found := await look()) is None:
        if time.monotonic() >= until:
            raise NotYetKnown(f"{what} is not known here yet; it may have been told a moment ago")
        await asyncio.sleep(PAUSE_SECONDS)
    return found
