"""What must hold once it is quiet, whatever was broken before: nothing lost, doubled or out of order, nothing drifted.

All of it is read from outside: the logs from the databases, the topics from the broker, the feeds over HTTP. What the
read models ought to be is folded anew from the producers' logs.
"""

import asyncio
import gzip
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

import asyncpg
import httpx
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from services.notifications import projections as links
from services.notifications import published as links_published
from services.notifications.picture import merge, sequence, snapshot
from services.notifications.renderer import reader_of
from services.notifications.rendering import AudienceCache, Revision, render
from services.participants import projections as rosters
from services.participants import published as rosters_published
from services.schedule import projections as programmes
from services.schedule import published as programmes_published
from shared.event_store import StoredEvent
from shared.messages import topic_of
from tests.chaos import topics
from tests.chaos.load import Acknowledged, Load, Tally
from tests.chaos.surroundings import SERVICES, Surroundings, service_of
from tests.chaos.topics import Poison, Told

STORES = {"schedule": programmes.STORE, "participants": rosters.STORE, "notifications": links.STORE}
BODIES = {
    "schedule": programmes_published.body,
    "participants": rosters_published.body,
    "notifications": links_published.body,
}
HEARS = {
    "schedule": ("participants",),
    "participants": ("schedule",),
    "notifications": ("schedule", "participants"),
}
LOOK_SECONDS = 60.0
"""So long a replica may take to serve what is stored; an idle one takes a quarter of a second."""
SHOWN = 5
"""So many of each kind of finding are said in words."""


@dataclass(kw_only=True)
class Findings:
    """`wrong` says each thing that does not hold, in words; the counts are those of the table."""

    events: int = 0
    duplicates: int = 0
    lost: int = 0
    doubled: int = 0
    out_of_order: int = 0
    wrong: list[str] = field(default_factory=list)

    def say(self, what: str, which: Iterable[object]) -> int:
        """Note findings of one kind; returns how many there are."""
        found = list(which)
        if found:
            self.wrong.append(f"{what}: {len(found)}, such as {', '.join(map(str, found[:SHOWN]))}")
        return len(found)


@dataclass(frozen=True, kw_only=True)
class Log:
    """One service's log, and by event id the transaction that wrote it."""

    events: Sequence[StoredEvent]
    written_by: Mapping[UUID, str]


async def look(surroundings: Surroundings, load: Load, poison: Poison, withheld: set[str]) -> Findings:
    """All proofs but `verify`. `withheld` are the ids of events that the broker was never given."""
    findings = Findings()
    logs = {name: await _log(surroundings.databases[name], name) for name in SERVICES}
    findings.events = sum(len(log.events) for log in logs.values())
    for name, log in logs.items():
        _commands(findings, name, log, load.tally)
    await _topics(findings, surroundings, logs, poison, withheld)
    await _known(findings, surroundings, logs)
    picture = _picture(logs)
    connection = await asyncpg.connect(surroundings.databases["notifications"])
    try:
        await _things(findings, connection, picture)
        bodies = await _bodies(findings, connection, picture)
    finally:
        await connection.close()
    await _served(findings, surroundings, load, bodies)
    await _parked(findings, surroundings, poison)
    return findings


async def lacking(surroundings: Surroundings, poison: Poison, withheld: set[str]) -> list[str]:
    """What has still to be done before it is quiet; nothing, and it has healed."""
    heads: dict[str, dict[str, int]] = {}
    left: list[str] = []
    for name in SERVICES:
        connection = await asyncpg.connect(surroundings.databases[name], timeout=60)
        try:
            heads[name] = {row[0]: row[1] for row in await connection.fetch("SELECT key, cleared_sequence FROM heads")}
            unpublished = await connection.fetchval(_UNPUBLISHED)
            marks = await connection.fetch("SELECT topic, key, sequence, waits_for FROM consumer_marks")
            unrendered = await connection.fetchval(_UNRENDERED) if name == "notifications" else 0
        finally:
            await connection.close()
        left += [f"{name}: {unpublished} events unpublished"] if unpublished else []
        left += [f"{name}: {unrendered} marks unrendered"] if unrendered else []
        heads[f"{name}'s marks"] = {}
        for topic, key, number, waits_for in marks:
            if key not in poison.keys:
                heads[f"{name}'s marks"][f"{topic}/{key}"] = number if waits_for is None else -1
    for name, producers in HEARS.items():
        wanted = {f"{topic_of(one, openly=False)}/{key}": head for one in producers for key, head in heads[one].items()}
        found = heads[f"{name}'s marks"]
        behind = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        left += [f"{name}: {len(behind)} keys not at their heads, such as {behind[0]}"] if behind else []
    return left or await _unready(surroundings) or await _untold(surroundings, poison, withheld)


_UNPUBLISHED = "SELECT count(*) FROM events WHERE position > (SELECT position FROM relay_cursor)"
_UNRENDERED = "SELECT (SELECT count(*) FROM marks) + (SELECT count(*) FROM consumer_offsets WHERE behind)"


async def _untold(surroundings: Surroundings, poison: Poison, withheld: set[str]) -> list[str]:
    """What the topics lack; a broker that has lost its volume has to be given the past again."""
    findings = Findings()
    logs = {name: await _log(surroundings.databases[name], name) for name in SERVICES}
    try:
        await _topics(findings, surroundings, logs, poison, withheld)
    except KafkaError as error:
        return [f"Kafka: {type(error).__name__}"]
    return findings.wrong if findings.lost else []


async def _topics(
    findings: Findings, surroundings: Surroundings, logs: Mapping[str, Log], poison: Poison, withheld: set[str]
) -> None:
    all_of_them = {topic_of(name, openly=openly): (name, openly) for name in SERVICES for openly in (True, False)}
    told = await topics.read(surroundings.kafka.address, list(all_of_them))
    for topic, (name, openly) in all_of_them.items():
        compare_topic(findings, topic, numbers(logs[name].events, openly), told[topic], poison.ids, withheld)


def numbers(events: Iterable[StoredEvent], openly: bool) -> list[Told]:
    """What a topic has to tell of a log, in order."""
    told = [(one, one.open_sequence if openly else one.cleared_sequence) for one in events]
    return [Told(one.key, number, str(one.id)) for one, number in told if number is not None]


def compare_topic(
    findings: Findings, topic: str, wanted: Sequence[Told], found: Sequence[Told], poison: set[str], withheld: set[str]
) -> None:
    """Each event once, under its own number, in the order of its key; copies that follow are only counted."""
    first: dict[tuple[str, int], str] = {}
    order: dict[str, list[Told]] = defaultdict(list)
    for one in found:
        if one.id in poison:
            continue
        if (one.key, one.sequence) not in first:
            first[one.key, one.sequence] = one.id
            order[one.key].append(one)
        elif first[one.key, one.sequence] == one.id:
            findings.duplicates += 1
        else:
            findings.doubled += findings.say(f"{topic}: two facts under one number", [one])
    ids = {one.id for one in wanted}
    missing = [one for one in wanted if first.get((one.key, one.sequence)) != one.id and one.id not in withheld]
    findings.lost += findings.say(f"{topic}: not there, or under another number", missing)
    strange = [one for key in order.values() for one in key if one.id not in ids]
    findings.doubled += findings.say(f"{topic}: in no log", strange)
    turned = [
        (before, after)
        for key in order.values()
        for before, after in pairwise([one for one in key if one.id not in withheld])
        if after.sequence < before.sequence
    ]
    findings.out_of_order += findings.say(f"{topic}: out of order", turned)


async def _log(url: str, name: str) -> Log:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction(isolation="repeatable_read"):
            events = await STORES[name].after(connection, 0, 10_000_000)
            written_by = {row[0]: row[1] for row in await connection.fetch("SELECT id, xmin::text FROM events")}
        return Log(events=events, written_by=written_by)
    finally:
        await connection.close()


def _commands(findings: Findings, name: str, log: Log, tally: Tally) -> None:
    """What was acknowledged is there, of this very command, and no command was carried out twice."""
    at = {(one.stream, one.version): one for one in log.events}
    lost: list[Acknowledged] = []
    for one in tally.acknowledged:
        if one.service == name:
            event = at.get((one.stream, one.version))
            if event is None or event.metadata["correlation_id"] != one.correlation:
                lost.append(one)
    findings.lost += findings.say(f"{name}: acknowledged and not in the log", lost)
    by_command: dict[str, set[str]] = defaultdict(set)
    for event in log.events:
        by_command[event.metadata["correlation_id"]].add(log.written_by[event.id])
    twice = [command for command, transactions in by_command.items() if len(transactions) > 1]
    findings.doubled += findings.say(f"{name}: commands that were carried out twice", twice)
    findings.doubled += findings.say(f"{name}: refused and yet in the log", tally.refused & by_command.keys())


Documents = dict[tuple[str, UUID], tuple[UUID, int, dict[str, Any]]]
"""By kind and id: trip, count, document."""


def _picture(logs: Mapping[str, Log]) -> Documents:
    """What the picture has to be: the fold of the producers' logs."""
    picture: Documents = {}
    for name in HEARS["notifications"]:
        for event in logs[name].events:
            kind, _, thing = event.stream.partition("/")
            body = json.loads(BODIES[name](event, False))
            before = picture.get((kind, UUID(thing)))
            count, document = (None, {}) if before is None else before[1:]
            told = UUID(body["trip"]), sequence(count, body, kind), merge(document, body, kind)
            picture[kind, UUID(thing)] = told
    return picture


async def _things(findings: Findings, connection: Any, wanted: Documents) -> None:
    rows = await connection.fetch("SELECT kind, id, trip, sequence, document FROM things")
    found = {(row[0], row[1]): (row[2], row[3], json.loads(row[4])) for row in rows}
    drifted = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
    findings.say(
        "notifications: things that are not the fold of the logs", [f"{kind}/{thing}" for kind, thing in drifted]
    )


async def _known(findings: Findings, surroundings: Surroundings, logs: Mapping[str, Log]) -> None:
    """What schedule knows of delegations, and participants of trips."""
    for service, table, producer, kind in (
        ("schedule", "known_delegations", "participants", "delegation"),
        ("participants", "known_trips", "schedule", "trip"),
    ):
        connection = await asyncpg.connect(surroundings.databases[service])
        try:
            found = {row["id"] for row in await connection.fetch(f"SELECT id FROM {table}")}
        finally:
            await connection.close()
        streams = {one.stream for one in logs[producer].events if one.stream.startswith(f"{kind}/")}
        wanted = {UUID(stream.partition("/")[2]) for stream in streams}
        findings.say(f"{service}: {table} is not the fold of {producer}'s log", found ^ wanted)


async def _bodies(findings: Findings, connection: Any, picture: Documents) -> dict[UUID, bytes]:
    """Each audience's newest body, compared with a fresh rendering of the folded logs."""
    domain = await connection.fetchval("SELECT domain FROM instance")
    newest = await connection.fetch("SELECT DISTINCT ON (audience) * FROM bodies ORDER BY audience, version DESC")
    stored = {row["audience"]: gzip.decompress(row["compressed"]) for row in newest}
    of_trip: dict[UUID, list[tuple[str, UUID, int, Any]]] = defaultdict(list)
    for (kind, thing), (trip, count, document) in picture.items():
        of_trip[trip].append((kind, thing, count, document))
    stale = []
    for audience in await connection.fetch("SELECT * FROM audiences"):
        rows = await connection.fetch("SELECT * FROM revisions WHERE audience = $1", audience["id"])
        fresh = render(
            snapshot(of_trip[audience["trip"]]),
            reader_of(audience),
            domain=domain,
            now=datetime.now(UTC),
            revisions={r["item"]: Revision(digest=r["digest"], last_modified=r["last_modified"]) for r in rows},
            cache=AudienceCache(),
        )
        if stored.get(audience["id"]) != fresh.body:
            stale.append(audience["id"])
    findings.say("feeds that are not what the logs render to", stale)
    audiences = await connection.fetch("SELECT id, audience FROM feed_links")
    return {row["id"]: stored.get(row["audience"], b"") for row in audiences}


async def _served(findings: Findings, surroundings: Surroundings, load: Load, bodies: Mapping[UUID, bytes]) -> None:
    """Every replica serves the newest bodies, once it has had the time to look."""
    limits = httpx.Limits(max_connections=10)
    async with httpx.AsyncClient(timeout=60, trust_env=False, limits=limits) as client:
        for address in surroundings.addresses("notifications"):
            end = time.monotonic() + LOOK_SECONDS
            while (other := await _others(client, address, load, bodies)) and time.monotonic() < end:
                await asyncio.sleep(0.1)
            findings.say(f"{address}: feeds that are not the newest bodies", other)


async def _others(client: httpx.AsyncClient, address: str, load: Load, bodies: Mapping[UUID, bytes]) -> list[str]:
    answers = await asyncio.gather(*(client.get(address + link.path) for link in load.links))
    return [
        link.id
        for link, answer in zip(load.links, answers, strict=True)
        if answer.status_code != 200 or answer.content != bodies[UUID(link.id)]
    ]


async def _parked(findings: Findings, surroundings: Surroundings, poison: Poison) -> None:
    for name in SERVICES:
        connection = await asyncpg.connect(surroundings.databases[name])
        try:
            rows = await connection.fetch("SELECT topic, key, sequence, slug, message_id FROM parked_messages")
        finally:
            await connection.close()
        garbage = [row for row in rows if row["sequence"] is None]
        others = [row for row in rows if row["sequence"] is not None and row["message_id"] not in poison.ids]
        findings.say(f"{name}: parked and not poisoned", [tuple(row) for row in others])
        if len(garbage) > poison.garbage:
            findings.wrong.append(f"{name}: {len(garbage)} undecodable messages parked, and {poison.garbage} sent")


async def _unready(surroundings: Surroundings) -> list[str]:
    left = []
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        for name in surroundings.serving:
            address = f"http://127.0.0.1:{surroundings.ports[name]}/{service_of(name)}/readyz"
            try:
                answer = await client.get(address)
            except httpx.TransportError as error:
                left.append(f"{name}: {type(error).__name__}")
                continue
            if answer.status_code != 200:
                left.append(f"{name}: not ready: {answer.text[:200]}")
    return left
