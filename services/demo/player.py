"""Plays a trip file through the public API: every step one POST, in order, until all are done.

A load that broke off is played again from the start: each step's idempotency key gives the first answer again for what
was done, and the ids of the things are read from the answers. So nothing but the load's id and the feeds' addresses has
to be kept (`load_file`), and nothing is lost or done twice.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import httpx

from services.demo.load_file import FeedAddress, Loaded, LoadFile
from services.demo.trip_commands import FORMS
from services.demo.trip_fields import Ref, Value
from services.demo.trip_file import Step, TripFile

KEYS_KEPT = timedelta(days=30)
"""How long the API knows an idempotency key (and with it, what of a load was done)."""
_AWAY = frozenset({429, 502, 503, 504})
_LAST = "the trip that was loaded before"


class LoadStopped(Exception):
    """The load can't go on. What was done stays done, and the next load takes it up from there."""


class StepRefused(LoadStopped):
    """The API refuses a step; the trip file is to be mended at that line."""

    def __init__(self, place: str, status: int, slug: str, detail: str) -> None:
        super().__init__(f"{place}: refused with {status} {slug}: {detail}")
        self.status, self.slug, self.detail = status, slug, detail


class NobodyAnswers(LoadStopped):
    """No usable answer within the patience."""


class LoadTooOld(LoadStopped):
    """A broken load from a time of which the API has forgotten the keys: nobody can tell what of it was done."""


class OtherTrip(LoadStopped):
    """The record of the load is one of another trip."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds to wait in all: for a thing to be known to another service, for a service that is away; first pause."""

    unknown: float = 30.0
    away: float = 60.0
    pause: float = 0.1


Watcher = Callable[[int, int, Step], None]
"""Told after each step that is done: how many are, of how many, and the step."""


def api_client(base: str, token: str) -> httpx.AsyncClient:
    """A client of the API at one base address. Proxies of the environment are passed over: it is our own address."""
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.AsyncClient(base_url=base, headers=headers, timeout=httpx.Timeout(15.0), trust_env=False)


async def play(
    trip_file: TripFile,
    client: httpx.AsyncClient,
    kept: LoadFile,
    *,
    pace: float = 0.0,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    watch: Watcher | None = None,
    planned: Callable[[Loaded], None] | None = None,
    patience: Patience | None = None,
) -> Loaded:
    """Loads a trip, or takes up a load that broke off; one that was finished is left as it is.

    `pace`: seconds before each step of what happened, but for those that are known to be done. `planned` is told the
    feeds of the plan before anything happens. Raises LoadStopped (one of the four kinds), and OSError
    where `kept` can't be written.
    """
    if kept.load and kept.of != trip_file.id:
        raise OtherTrip(f"the record of the load is of the trip {kept.of!r}, not of {trip_file.id!r}")
    player = _Player(trip_file, client, kept, patience or Patience())
    if kept.loaded is not None and await player.holds(kept.loaded.trip):
        return kept.loaded
    player.take_up(datetime.now(UTC))
    done = 0
    for steps in _together(trip_file.steps):
        fresh = done >= kept.reached
        if done == len(trip_file.plan) and planned is not None:
            planned(await player.outcome())
        if pace and fresh and steps[0].when is not None:
            await sleep(pace)
        await player.do(steps)
        for step in steps:
            done += 1
            if watch is not None:
                watch(done, len(trip_file.steps), step)
        if pace and fresh and steps[0].when is not None:
            kept.reach(done)
    loaded = await player.outcome()
    kept.finish(loaded)
    return loaded


class _Player:
    """The things as the API last showed them, and the step that gave each live link its address."""

    def __init__(self, trip_file: TripFile, client: httpx.AsyncClient, kept: LoadFile, patience: Patience) -> None:
        self._file = trip_file
        self._client = client
        self._kept = kept
        self._patience = patience
        self._things: dict[Ref, Mapping[str, Any]] = {}
        self._links: dict[Ref, Step] = {}

    async def holds(self, trip: str) -> bool:
        """Whether the trip is there: the data may be other than those that it was loaded into."""
        answer = await self._send("GET", f"/schedule/trips/{trip}", _LAST, {})
        if answer.status_code not in (200, 404):
            raise _refused(_LAST, answer)
        return answer.status_code == 200

    def take_up(self, now: datetime) -> None:
        """Begins a load, unless there is one to go on with."""
        kept = self._kept
        if kept.load and kept.loaded is None:
            if now - kept.began >= KEYS_KEPT:
                raise LoadTooOld(
                    f"{kept.path}: the load of {kept.began:%d %B %Y} broke off too long ago to be taken up again; "
                    "remove it to load the trip anew"
                )
            return
        kept.begin(of=self._file.id, now=now)

    async def do(self, steps: Sequence[Step]) -> None:
        """Posts steps at the same time and keeps what came of them; each is seen through, also if another fails."""
        ends = await asyncio.gather(*map(self._do, steps), return_exceptions=True)
        for end in ends:
            if end is not None:
                raise end

    async def _do(self, step: Step) -> None:
        form = FORMS[step.command]
        path = form.path.format(self._things[step.target]["id"]) if step.target else form.path
        thing = await self._post(path, self._place(step), self._json(step.body), step.key, step.when)
        about = step.makes or step.target
        if about is None:
            return
        self._things[about] = {**self._things.get(about, {}), **thing}
        if about.kind == "link":
            self._follow_link(about, step, thing.get("url"))

    async def outcome(self) -> Loaded:
        """The trip and its live links; an address that got lost in a break is replaced by a new one."""
        made = [step.makes for step in self._file.steps if step.makes is not None]
        feeds = [await self._feed(link, self._links[link]) for link in made if link in self._links]
        trip = self._file.steps[0].makes
        return Loaded(trip=self._things[trip]["id"] if trip else "", feeds=tuple(feeds))

    def _follow_link(self, link: Ref, step: Step, url: str | None) -> None:
        if step.command == "RevokeFeedLink":
            self._links.pop(link, None)
            return
        self._links[link] = step
        if url is not None:
            self._kept.keep_url(step.key, url)

    async def _feed(self, link: Ref, step: Step) -> FeedAddress:
        shown = self._things[link]
        url = self._kept.url_of(step.key)
        if url is None:
            # answered, but never written down: the secret is gone, so the link gets a new one
            path = FORMS["RotateFeedLink"].path.format(shown["id"])
            rotated = await self._post(path, self._place(step), {}, f"{step.key}:lost:{secrets.token_hex(8)}")
            url = str(rotated["url"])
            self._kept.keep_url(step.key, url)
        delegation = next(thing for thing in self._things.values() if thing["id"] == shown["delegation"])
        return FeedAddress(
            delegation=delegation["name"],
            delegation_id=delegation["id"],
            kind=delegation["kind"],
            level=shown["level"],
            link=shown["id"],
            url=url,
        )

    def _place(self, step: Step) -> str:
        return f"{self._file.name}:{step.line}: step {step.key} ({step.command})"

    def _json(self, value: Value | Mapping[str, Value]) -> Any:
        match value:
            case Ref():
                return self._things[value]["id"]
            case Mapping():
                return {key: self._json(each) for key, each in value.items()}
            case tuple():
                return [self._json(each) for each in value]
            case _:
                return value

    async def _post(self, path: str, place: str, body: Any, key: str, when: datetime | None = None) -> dict[str, Any]:
        headers = {"Idempotency-Key": f"{self._kept.load}:{key}"}
        if when is not None:
            headers["Occurred-At"] = when.isoformat()
        answer = await self._send("POST", path, place, headers, body)
        if answer.status_code not in (200, 201):
            raise _refused(place, answer)
        return _told(answer)

    async def _send(
        self, method: str, path: str, place: str, headers: Mapping[str, str], body: Any = None
    ) -> httpx.Response:
        """One request until it has an answer that counts: neither "not yet known" nor "away"."""
        loop = asyncio.get_running_loop()
        began, pause = loop.time(), self._patience.pause
        while True:
            try:
                answer = await self._client.request(method, path, json=body, headers=headers)
            except httpx.TransportError as fault:
                wait, limit, said = pause, self._patience.away, str(fault) or type(fault).__name__
            else:
                told = _told(answer)
                unknown = answer.status_code == 409 and told.get("slug") == "not-yet-known"
                if not unknown and answer.status_code not in _AWAY:
                    return answer
                wait = _retry_after(answer, pause)
                limit = self._patience.unknown if unknown else self._patience.away
                said = f"{answer.status_code} {_detail(told, answer)}"
            if loop.time() - began + wait > limit:
                raise NobodyAnswers(f"{place}: no answer to go on with for {limit:g} s: {said}")
            await asyncio.sleep(wait)
            pause = min(2 * pause, 2.0)


def _together(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """One by one, but for the feed links of the plan, which do not need each other.

    A link is answered when its feed is there, which can take a second, whether for one or for all.
    """
    for at_once, group in groupby(steps, key=lambda step: step.command == "IssueFeedLink" and step.when is None):
        run = list(group)
        yield from [run] if at_once else ([step] for step in run)


def _refused(place: str, answer: httpx.Response) -> StepRefused:
    told = _told(answer)
    return StepRefused(place, answer.status_code, str(told.get("slug", "?")), _detail(told, answer))


def _told(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer; empty if it is none."""
    try:
        told = answer.json()
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _detail(told: Mapping[str, Any], answer: httpx.Response) -> str:
    """What a problem says, on one line."""
    said = " ".join(str(told.get("detail") or told.get("title") or answer.text[:200] or "no detail").split())
    errors = told.get("errors")
    if not isinstance(errors, list):
        return said
    where = [
        f"{'.'.join(map(str, each.get('loc', ())))}: {each.get('msg')}" for each in errors if isinstance(each, dict)
    ]
    return "; ".join([said, *where])


def _retry_after(answer: httpx.Response, otherwise: float) -> float:
    try:
        return max(float(answer.headers["Retry-After"]), 0.01)
    except (KeyError, ValueError):
        return otherwise
