"""The load under which things break: writers that send commands, readers that poll feeds, in a thread of their own.

A writer keeps to a command as a careful client does: one Idempotency-Key, sent again until it is answered, wherever
the service answers. What was acknowledged is remembered, and `proof` looks for it in the log. A reader asks one
replica, and the other one where that cannot be reached, as a proxy does.
"""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from itertools import count
from random import Random
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from tests.chaos import acts
from tests.chaos.acts import Act, Trip
from tests.chaos.surroundings import Broken, Surroundings

WRITERS = 4
READERS = 2
ANSWER_SECONDS = 5.0
GIVE_UP_SECONDS = 240.0
TWICE = 0.1
"""Of so many commands the answer counts as lost, and they are sent once more."""


@dataclass(frozen=True, kw_only=True)
class Acknowledged:
    """A command that was answered: the event that has to be in the log, and under which correlation id."""

    service: str
    stream: str
    version: int
    correlation: str


@dataclass(kw_only=True)
class Link:
    """A live link as its reader knows it: the last tag, and how many items its newest body had."""

    id: str
    path: str
    tag: str = ""
    newest: tuple[float, int] = (0.0, 0)


@dataclass(kw_only=True)
class Tally:
    """What happened so far. Only the load's own thread writes."""

    acknowledged: list[Acknowledged] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    """Correlation ids of commands that were refused, by a rule or as not yet known: the log holds nothing of them."""
    retried: int = 0
    odd: list[str] = field(default_factory=list)
    """Answers to commands that no client may get, and commands that were never answered."""
    feed_answers: int = 0
    feed_turns: int = 0
    """How often the other replica had to be asked."""
    feed_errors: list[str] = field(default_factory=list)


class Load:
    """`start`, then `pause` and `resume` the writers as often as is wanted; readers go on until `stop`."""

    def __init__(self, surroundings: Surroundings, seed: int, feed_seconds: float = ANSWER_SECONDS) -> None:
        """`feed_seconds`: how long a reader waits for the last replica that it can ask."""
        self.tally = Tally()
        self.trips: list[Trip] = []
        self.links: list[Link] = []
        self._surroundings = surroundings
        self._seed = seed
        self._feed_seconds = feed_seconds
        self._going = False
        self._ended = False
        self._busy = 0
        self._numbers = count(1)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._in_thread, name="load", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def resume(self) -> None:
        """Writers go on."""
        self._going = True

    def pause(self, patience: float = GIVE_UP_SECONDS + 10) -> None:
        """No new commands; returns when those under way were answered."""
        self._going = False
        end = time.monotonic() + patience
        while self._busy:
            if self._failure or time.monotonic() > end:
                raise Broken("commands under way came to no end") from self._failure
            time.sleep(0.01)
        if self._failure:
            raise Broken("the load has failed") from self._failure

    def stop(self) -> None:
        """End the thread."""
        self._going, self._ended = False, True
        if self._thread.is_alive():
            self._thread.join(GIVE_UP_SECONDS)

    async def revise(self, meeting: str) -> dict[str, Any]:
        """One command from another thread, while the writers pause."""
        number = next(self._numbers)
        async with self._client() as client:
            answer = await self._command(client, Random(f"{self._seed}/{number}"), acts.revise(meeting, number))
        if answer is None:
            raise Broken("a new title was refused")
        return answer

    def _in_thread(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:  # noqa: BLE001  the main thread raises it
            self._failure = error

    async def _run(self) -> None:
        async with self._client() as client, asyncio.TaskGroup() as tasks:
            for number in range(WRITERS):
                tasks.create_task(self._writer(client, Random(f"{self._seed}/writer/{number}")))
            for number in range(READERS):
                tasks.create_task(self._reader(client, Random(f"{self._seed}/reader/{number}")))

    def _client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self._surroundings.token}"}
        return httpx.AsyncClient(headers=headers, timeout=ANSWER_SECONDS, trust_env=False)

    async def _writer(self, client: httpx.AsyncClient, random: Random) -> None:
        own = Trip()
        while not self._ended:
            await asyncio.sleep(random.uniform(0.01, 0.15))
            if not self._going:
                continue
            self._busy += 1
            try:
                if own.steps > acts.STEPS:
                    own = Trip()
                if own.ready and own not in self.trips:
                    self.trips.append(own)
                # now and then on the same trip as somebody else; also while others have not heard of the own one
                trip = random.choice(self.trips) if self.trips and random.random() < 0.4 else own
                await self._step(client, random, trip)
            finally:
                self._busy -= 1

    async def _step(self, client: httpx.AsyncClient, random: Random, trip: Trip) -> None:
        trip.steps += 1
        act = acts.next_act(trip, random, next(self._numbers))
        answer = await self._command(client, random, act)
        if answer is None:
            return
        if act.kind == "feed_link":
            answer = await self._with_address(client, random, answer)
            link = Link(id=answer["id"], path=urlsplit(answer["url"]).path)
            await self._introduce(client, link)
            self.links.append(link)
        acts.take_down(trip, act, answer)

    async def _introduce(self, client: httpx.AsyncClient, link: Link) -> None:
        """Until each replica that answers knows a new link: one whose database goes away before it heard of it cannot
        tell it from a false one, and says 503 until the database is back. From then on it answers, whatever is away.
        """
        for address in self._surroundings.addresses("notifications"):
            end = time.monotonic() + GIVE_UP_SECONDS
            while True:
                try:
                    answer = await client.get(address + link.path)
                except httpx.TransportError:
                    break  # it reads all links when it starts
                if answer.status_code != 503 or time.monotonic() > end:
                    if answer.status_code >= 400:
                        self.tally.feed_errors.append(f"{_now()} {link.id}: a new link: {answer.status_code}")
                    break
                await asyncio.sleep(0.1)

    async def _with_address(self, client: httpx.AsyncClient, random: Random, link: dict[str, Any]) -> dict[str, Any]:
        """The address is told once; where that answer was lost, the link is rotated."""
        while link["url"] is None:
            rotate = Act("notifications", "feed_link", f"/notifications/feed-links/{link['id']}/rotate", {})
            link = await self._command(client, random, rotate) or link
        return link

    async def _command(self, client: httpx.AsyncClient, random: Random, act: Act) -> dict[str, Any] | None:
        """The thing that was answered; None for a refusal."""
        key, correlation = (str(UUID(int=random.getrandbits(128), version=4)) for _ in range(2))
        headers = {"Idempotency-Key": key, "X-Correlation-Id": correlation}
        end, tried = time.monotonic() + GIVE_UP_SECONDS, False
        while time.monotonic() < end:
            address = random.choice(self._surroundings.addresses(act.service))
            try:
                answer = await client.post(address + act.path, json=act.body, headers=headers)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code in (200, 201):
                if random.random() < TWICE:
                    await self._send_again(client, address, act, headers, answer)
                return self._remember(act, answer, correlation)
            if answer is not None and not self._may_be_sent_again(act, answer):
                if not tried:  # an earlier attempt may stand in a frozen process, and be carried out when that goes on
                    self.tally.refused.add(correlation)
                return None
            tried = True
            self.tally.retried += 1
            await asyncio.sleep(random.uniform(0.05, 0.3))
        self.tally.odd.append(f"{act.path}: not answered in {GIVE_UP_SECONDS:g} s")
        return None

    async def _send_again(
        self, client: httpx.AsyncClient, address: str, act: Act, headers: Mapping[str, str], answer: httpx.Response
    ) -> None:
        """As a client does whose answer was lost on the way: it gets the same, and nothing happens."""
        self.tally.retried += 1
        try:
            again = await client.post(address + act.path, json=act.body, headers=headers)
        except httpx.TransportError:
            return
        if again.status_code < 500 and again.headers.get("ETag") != answer.headers["ETag"]:
            self.tally.odd.append(f"{act.path}: another answer to the same key: {again.status_code}")

    def _remember(self, act: Act, answer: httpx.Response, correlation: str) -> dict[str, Any]:
        thing: dict[str, Any] = answer.json()
        self.tally.acknowledged.append(
            Acknowledged(
                service=act.service,
                stream=f"{act.kind}/{thing['id']}",
                version=int(answer.headers["ETag"].strip('"')),
                correlation=correlation,
            )
        )
        return thing

    def _may_be_sent_again(self, act: Act, answer: httpx.Response) -> bool:
        if answer.status_code >= 500 and answer.status_code != 503:
            self.tally.odd.append(f"{act.path}: {answer.status_code} {answer.text[:200]}")
            return True
        return answer.status_code == 503

    async def _reader(self, client: httpx.AsyncClient, random: Random) -> None:
        while not self._ended:
            await asyncio.sleep(random.uniform(0.02, 0.08))
            if self.links:
                link = random.choice(self.links)
                addresses = self._surroundings.addresses("notifications")
                await self._fetch(client, link, random.sample(addresses, len(addresses)))

    async def _fetch(self, client: httpx.AsyncClient, link: Link, addresses: Sequence[str]) -> None:
        headers = {"If-None-Match": link.tag} if link.tag else {}
        # the last one may be killed while it answers, as soon as one that was away before is back
        for turn, address in enumerate((*addresses, *addresses[:-1]), start=1):
            seconds = self._feed_seconds if turn >= len(addresses) else ANSWER_SECONDS
            try:
                answer = await client.get(address + link.path, headers=headers, timeout=seconds)
            except httpx.TransportError:
                self.tally.feed_turns += 1
                continue
            self.tally.feed_answers += 1
            if answer.status_code >= 400:
                self.tally.feed_errors.append(f"{_now()} {link.id}: {answer.status_code} {answer.text[:100]}")
            elif answer.status_code == 200:
                self._compare(link, answer.headers, answer.content)
            return
        self.tally.feed_errors.append(f"{_now()} {link.id}: nobody answered")

    def _compare(self, link: Link, headers: Mapping[str, str], body: bytes) -> None:
        """No item ever leaves these feeds: what is cancelled stays, marked."""
        if "ETag" not in headers:  # an empty calendar for a client that comes before the first rendering
            return
        link.tag = headers["ETag"]
        found = parsedate_to_datetime(headers["Last-Modified"]).timestamp(), body.count(b"BEGIN:VEVENT")
        if found[0] >= link.newest[0]:
            if found[1] < link.newest[1]:
                self.tally.feed_errors.append(f"{_now()} {link.id}: from {link.newest[1]} items to {found[1]}")
            link.newest = found


def _now() -> str:
    return time.strftime("%H:%M:%S")
