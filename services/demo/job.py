"""`python -m services demo`: the demo trip loaded into services that run already, as a planner would from outside.

How far the load came, and the feeds' addresses, which are given only once, stand in one file: a second run finds the
trip loaded and prints the same.
"""

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from services.demo.load_file import Loaded, LoadFile, LoadFileWrong
from services.demo.player import LoadStopped, api_client, play
from services.demo.progress import Progress
from services.demo.settled import NotSettled, wait_until_settled
from services.demo.trip_fields import TripFileWrong
from services.demo.trip_file import DEMO, read_trip_file
from services.surroundings import CannotGoOn
from shared.settings import WrongSetting, secret_in

SERVICES = ("schedule", "participants", "notifications")
SHELF_SECONDS = 1.0
"""Each replica's shelf follows the database every 250 ms, and nobody can tell from outside which of them answers."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Where to load it. `base`: the address to send to; `public`: the one to print."""

    base: str
    public: str
    token_file: Path
    kept: Path
    as_json: bool


def load_demo(demo: Demo) -> None:
    """Load the trip or find it loaded, wait until every feed is up to date, print the feeds. Raises CannotGoOn."""
    try:
        token = secret_in(demo.token_file)
        loaded = asyncio.run(_load(demo, token)).under(demo.public)
    except (LoadStopped, LoadFileWrong, TripFileWrong, NotSettled, WrongSetting) as error:
        raise CannotGoOn(str(error)) from error
    if demo.as_json:
        print(json.dumps({"base": demo.public, "token": token, **loaded.as_json()}, indent=2, ensure_ascii=False))
    else:
        print("\n".join([f"Attaché is at {demo.public}/", "", "Feeds:", *listed(loaded)]))


async def _load(demo: Demo, token: str) -> Loaded:
    async with api_client(demo.base, token) as client:
        progress = Progress(sys.stderr, lines=False)
        loaded = await play(read_trip_file(DEMO), client, LoadFile(demo.kept), watch=progress)
        await wait_until_settled(client, SERVICES)
        await asyncio.sleep(SHELF_SECONDS)
    return loaded


def listed(loaded: Loaded) -> list[str]:
    """The feeds, two lines each."""
    return [line for feed in loaded.feeds for line in (f"  {feed.delegation} ({feed.level})", f"    {feed.url}")]
