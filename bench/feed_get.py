"""`python -m bench.feed_get`: what a feed's GET costs beside a bare Starlette, and new bytes beside `icalendar`.

Rows 1 to 4 and 6 of the table of goals. It starts its own PostgreSQL, the notifications app and a Starlette app that
returns the same bytes, one uvicorn worker each, and loads them in turn over 16 connections: with `wrk` where that is
installed, else with a generator of its own, which says little about how fast a server is and enough about which of two
is faster. Figures are medians of paired rounds. Exit code 1: a floor was not reached.
"""

import argparse
import asyncio
import http.client
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import icalendar
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.embedded import EmbeddedPostgres
from services.notifications.entry import Days, Entry
from services.notifications.main import create_app
from services.notifications.programme import Audience, programme
from services.notifications.rendering import Revision, Row, TripCache, etag_of, render
from services.notifications.settings import NotificationsSettings
from services.notifications.zones import time_zone
from shared.migrations import upgrade
from shared.settings import load
from shared.tokens import add_token

CONNECTIONS = 16
MIGRATIONS = {"notifications": "services/notifications/migrations", "bus": "shared/bus_migrations"}
ZONES = ("Asia/Jerusalem", "Asia/Amman", "Asia/Hebron", "Asia/Baghdad", "Europe/Istanbul", "Asia/Tokyo", "Asia/Seoul")
OWN = UUID(int=2 << 76 | 2)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row: the median of the rounds' ratios, and the least and the greatest of them."""

    row: str
    path: str
    goal: float
    floor: float
    figure: float
    least: float
    most: float
    note: str = ""

    @property
    def reached(self) -> bool:
        return self.figure >= self.floor


def main() -> int:
    """Measure and print; returns the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=2.0, help="of each load")
    arguments.add_argument("--json", type=Path, help="keep the figures there")
    given = arguments.parse_args()
    with ExitStack() as stack:
        figures = [*_http_figures(stack, given.rounds, given.seconds), _new_bytes(given.rounds)]
    print(f"{'row':4}{'path':52}{'goal':>7}{'floor':>7}{'figure':>8}   spread")
    for one in figures:
        missed = "" if one.reached else "  BELOW THE FLOOR"
        spread = f"{one.least:.2f} to {one.most:.2f}"
        print(f"{one.row:4}{one.path:52}{one.goal:7.2f}{one.floor:7.2f}{one.figure:8.2f}   {spread} {one.note}{missed}")
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in figures], indent=2) + "\n", encoding="utf-8")
    return 0 if all(one.reached for one in figures) else 1


def _http_figures(stack: ExitStack, rounds: int, seconds: float) -> list[Figure]:
    feeds = _serve_ours(stack, {60: _rows(60), 600: _rows(600)})
    bodies = {count: _get(url) for count, url in feeds.items()}
    tags = {count: _ask_once(url, {})[0]["etag"] for count, url in feeds.items()}
    bare = _serve_bare(stack, bodies[60], _get(feeds[60], gzip=True), tags[60])
    plain: Sequence[str] = ()
    zipped = ("Accept-Encoding: gzip",)
    had = {count: (f"If-None-Match: {tag}",) for count, tag in tags.items()}

    def paired(ours: tuple[str, Sequence[str]], other: tuple[str, Sequence[str]]) -> tuple[list[float], str]:
        ratios, mine, others = [], [], []
        for number in range(rounds + 1):
            both = [ours, other] if number % 2 else [other, ours]
            took = {one: _load(one[0], one[1], seconds if number else 0.5) for one in map(_key, both)}
            if number:  # the first one warms up
                mine.append(took[_key(ours)])
                others.append(took[_key(other)])
                ratios.append(mine[-1] / others[-1])
        return ratios, f"({statistics.median(mine):,.0f}/s beside {statistics.median(others):,.0f}/s)"

    share = len(_get(feeds[60], gzip=True)) / len(bodies[60])
    return [
        _figure("1", "GET 200, 60 events / bare Starlette", 0.8, 0.55, *paired((feeds[60], plain), (bare, plain))),
        _figure("2", "GET 304 / the same Starlette's 304", 0.8, 0.55, *paired((feeds[60], had[60]), (bare, had[60]))),
        _figure("1z", "GET gzip / bare Starlette, gzip ready", 0.8, 0.55, *paired((feeds[60], zipped), (bare, zipped))),
        _figure("3", "304 at 600 events / at 60", 0.9, 0.8, *paired((feeds[600], had[600]), (feeds[60], had[60]))),
        _figure(
            "4",
            f"gzip GET / plain GET, at {share:.1%} of the bytes",
            0.95,
            0.85,
            *paired((feeds[60], zipped), (feeds[60], plain)),
        ),
    ]


def _key(load: tuple[str, Sequence[str]]) -> tuple[str, tuple[str, ...]]:
    return load[0], tuple(load[1])


def _figure(row: str, path: str, goal: float, floor: float, ratios: Sequence[float], note: str) -> Figure:
    middle = statistics.median(ratios)
    return Figure(
        row=row, path=path, goal=goal, floor=floor, figure=middle, least=min(ratios), most=max(ratios), note=note
    )


# Row 6: in this process


def _new_bytes(rounds: int) -> Figure:
    """One meeting of 600 changes: from its new row to the new body and its tag, beside `icalendar` on the same entries.

    `icalendar` is given no time zones to write, which would cost it more than the events.
    """
    rows = {row[1]: row for row in _rows(600)}
    reader = Audience(delegation=OWN, level="full", alarm=None)
    cache, audience, revisions = TripCache(), UUID(int=1), dict[UUID, Revision]()
    cache.keep([audience])
    meetings = [thing for thing, row in rows.items() if row[0] == "meeting"]

    def renew(number: int) -> bytes:
        kind, thing, count, document = rows[meetings[number % len(meetings)]]
        changed = json.dumps({**json.loads(document), "title": f"Bilateral, version {number}"})
        rows[thing] = (kind, thing, count + 1, changed)
        fresh = list(rows.values())
        began = time.perf_counter()
        picture = cache.picture(fresh)
        now = datetime(2023, 11, 1, tzinfo=UTC) + timedelta(seconds=number)
        done = render(
            picture, reader, domain="bench.example", now=now, revisions=revisions, cache=cache.audiences[audience]
        )
        etag_of(done.body)
        took.append(time.perf_counter() - began)
        revisions.update(done.revised)
        return done.body

    took: list[float] = []
    renew(0)
    ratios, mine, others = [], [], []
    for number in range(1, rounds + 1):
        took.clear()
        for step in range(10):
            body = renew(10 * number + step)
        entries = programme(cache.picture(list(rows.values())), reader)
        began = time.perf_counter()
        other = _by_icalendar(entries)
        others.append(time.perf_counter() - began)
        mine.append(statistics.median(took))
        ratios.append(others[-1] / mine[-1])
        assert body.count(b"BEGIN:VEVENT") == other.count(b"BEGIN:VEVENT") == len(entries)
    note = f"({statistics.median(mine) * 1000:.2f} ms beside {statistics.median(others) * 1000:.0f} ms)"
    return _figure("6", "new bytes, 1 of 600 changed / full icalendar", 100, 40, ratios, note)


def _by_icalendar(entries: Sequence[Entry]) -> bytes:
    calendar = icalendar.Calendar()
    calendar.add("prodid", "-//Attache//Bench//EN")
    calendar.add("version", "2.0")
    stamp = datetime(2023, 11, 1, tzinfo=UTC)
    for entry in entries:
        event = icalendar.Event()
        event.add("uid", f"{entry.id}@bench.example")
        event.add("dtstamp", stamp)
        event.add("last-modified", stamp)
        event.add("sequence", entry.sequence)
        if isinstance(entry.when, Days):
            event.add("dtstart", entry.when.first)
            event.add("dtend", entry.when.last + timedelta(days=1))
        else:
            for name, moment in (("dtstart", entry.when.start), ("dtend", entry.when.end)):
                event.add(name, moment.instant.astimezone(time_zone(moment.zone)))
        event.add("summary", entry.summary)
        event.add("status", entry.status)
        event.add("transp", "TRANSPARENT" if entry.transparent else "OPAQUE")
        event.add("location", entry.location or "")
        event.add("description", "\n".join(entry.text))
        event.add("categories", list(entry.categories))
        if entry.geo:
            event.add("geo", entry.geo)
        calendar.add_component(event)
    return bytes(calendar.to_ical())


# The servers


def _serve_ours(stack: ExitStack, trips: Mapping[int, Sequence[Row]]) -> dict[int, str]:
    """The notifications app with a trip of each size; returns the addresses of their feeds."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attache-bench-")))
    folder.chmod(0o711)  # PostgreSQL runs as another user where root starts it
    postgres = stack.enter_context(EmbeddedPostgres(folder, databases=tuple(MIGRATIONS)))
    token = add_token(folder / "tokens", "bench", ["planner"])
    urls = {name: postgres.url(name) for name in MIGRATIONS}
    for name, scripts in MIGRATIONS.items():
        asyncio.run(upgrade(scripts, urls[name]))
    asyncio.run(_seed(urls["notifications"], trips))
    port = _free_port()
    child = {"port": port, "folder": str(folder), **urls}
    _start(stack, "ours", child, f"http://127.0.0.1:{port}/notifications/healthz")
    return {count: _issue(port, token, _trip_of(count)) for count in trips}


def _serve_bare(stack: ExitStack, body: bytes, compressed: bytes, tag: str) -> str:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attache-bench-bare-")))
    (folder / "plain").write_bytes(body)
    (folder / "gzip").write_bytes(compressed)
    port = _free_port()
    address = f"http://127.0.0.1:{port}/feed.ics"
    _start(stack, "bare", {"port": port, "folder": str(folder), "tag": tag}, address)
    return address


def _start(stack: ExitStack, what: str, given: Mapping[str, Any], address: str) -> None:
    program = [sys.executable, "-m", "bench.feed_get", "--serve", what, json.dumps(given)]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(process.wait, 20)
    stack.callback(process.terminate)
    until = time.monotonic() + 30
    while True:
        try:
            _get(address)
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.05)


def _serve(what: str, given: Mapping[str, Any]) -> None:
    """In the child: one uvicorn worker, as every service has it."""
    app = _ours(given) if what == "ours" else _bare(given)
    uvicorn.run(app, host="127.0.0.1", port=given["port"], log_level="error", access_log=False, server_header=False)


def _ours(given: Mapping[str, Any]) -> Any:
    base = f"http://127.0.0.1:{given['port']}"
    return create_app(
        load(
            NotificationsSettings,
            database_url=given["notifications"],
            bus="local",
            bus_url=given["bus"],
            service_token="none",  # noqa: S106  nobody is asked
            tokens_file=Path(given["folder"]) / "tokens",
            public_url=base,
            schedule_url=base,
            participants_url=base,
        )
    )


def _bare(given: Mapping[str, Any]) -> Starlette:
    """What a feed's GET cannot be quicker than: one route, the bytes in memory."""
    body, compressed = ((Path(given["folder"]) / name).read_bytes() for name in ("plain", "gzip"))
    kind = "text/calendar; charset=utf-8"
    tagged = {"ETag": given["tag"], "Cache-Control": "private, no-cache", "Vary": "Accept-Encoding"}

    async def feed(request: Request) -> Response:
        if request.headers.get("if-none-match") == given["tag"]:
            return Response(status_code=304, headers=tagged)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(compressed, headers={**tagged, "Content-Encoding": "gzip"}, media_type=kind)
        return Response(body, headers=tagged, media_type=kind)

    return Starlette(routes=[Route("/feed.ics", feed)])


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


# What is served


def _trip_of(count: int) -> UUID:
    return UUID(int=count << 80)


def _rows(count: int) -> list[Row]:
    """The picture of a trip with `count` entries: a stop a day, and meetings with hosts, topics, notes and rosters."""
    rows: list[tuple[str, UUID, dict[str, Any]]] = [
        ("trip", _trip_of(count), {"title": "Tour", "home": {"zone": "America/New_York"}, "ends_on": "2023-11-10"})
    ]
    hosts = [UUID(int=count << 80 | 100 + number) for number in range(len(ZONES))]
    own = UUID(int=OWN.int | count << 96) if count != 600 else OWN
    for number, delegation in enumerate([own, *hosts]):
        kind = "host" if number else "own"
        rows.append(("delegation", delegation, {"name": f"Delegation {number}", "kind": kind}))
        for member in range(8):
            personal = {
                "name": f"Person {number}-{member}",
                "title": "Desk officer",
                "contact": f"+1 202-555-01{member:02}",
            }
            document = {"delegation": str(delegation), "function": "staff", "personal": personal}
            rows.append(("member", UUID(int=count << 80 | 1000 + 10 * number + member), document))
    stops = [UUID(int=count << 80 | 200 + number) for number in range(len(ZONES))]
    for number, stop in enumerate(stops):
        day = f"2023-11-{3 + number:02}"
        times = {
            **_time("arrives", f"{day}T07:00:00", ZONES[number]),
            **_time("departs", f"{day}T22:00:00", ZONES[number]),
        }
        place = {"place": ZONES[number].split("/")[1], "country": "There", "zone": ZONES[number]}
        rows.append(("stop", stop, {**place, **times, "host": str(hosts[number])}))
    rows += [
        ("meeting", UUID(int=count << 80 | 10_000 + number), _meeting(number, stops, [own, *hosts]))
        for number in range(count - len(stops))
    ]
    return [(kind, thing, 0, json.dumps(document)) for kind, thing, document in rows]


def _meeting(number: int, stops: Sequence[UUID], delegations: Sequence[UUID]) -> dict[str, Any]:
    where = number % len(stops)
    wall = f"2023-11-{3 + where:02}T{8 + number // 60 % 12:02}:{number % 60:02}:00"
    ends = _time("end", f"{wall[:11]}{int(wall[11:13]) + 1:02}{wall[13:]}", ZONES[where])["end_at"]
    return {
        "stop": str(stops[where]),
        "title": f"Bilateral {number} with the Minister for Foreign Affairs",
        "kind": "bilateral",
        "status": "confirmed",
        "start": wall,
        "zone": ZONES[where],
        "starts_at": _time("start", wall, ZONES[where])["start_at"],
        "ends_at": ends,
        "venue": {"name": f"Ministry, room {number}", "address": "1 Government Street", "geo": [35.6, 139.7]},
        "topics": ["regional stability", "humanitarian aid", "investment and economic security"],
        "notes": "Principal plus four. Gifts are not exchanged.",
        "press": {"tag": "spray-at-top"},
        "assumed": True,
        "delegations": [str(delegations[0]), str(delegations[1 + where])],
    }


def _time(name: str, wall: str, zone: str) -> dict[str, str]:
    instant = datetime.fromisoformat(wall).replace(tzinfo=time_zone(zone)).astimezone(UTC)
    return {name: wall, f"{name}_at": instant.isoformat().replace("+00:00", "Z")}


async def _seed(url: str, trips: Mapping[int, Sequence[Row]]) -> None:
    driver = await asyncpg.connect(url.replace("+asyncpg", ""))
    for count, rows in trips.items():
        await driver.executemany(
            "INSERT INTO things (kind, id, trip, sequence, document) VALUES ($1, $2, $3, $4, $5)",
            [(kind, thing, _trip_of(count), sequence, document) for kind, thing, sequence, document in rows],
        )
    await driver.close()


# The load


def _issue(port: int, token: str, trip: UUID) -> str:
    count = trip.int >> 80
    own = next(row[1] for row in _rows(count) if row[0] == "delegation")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = json.dumps({"delegation": str(own), "level": "full", "label": "Bench"})
    _, issued = _ask_once(f"http://127.0.0.1:{port}/notifications/trips/{trip}/feed-links", headers, "POST", body)
    url: str = json.loads(issued)["url"]
    feed = _get(url)
    assert feed.count(b"BEGIN:VEVENT") == count, f"{feed.count(b'BEGIN:VEVENT')} entries, not {count}"
    return url


def _get(url: str, *, gzip: bool = False) -> bytes:
    return _ask_once(url, {"Accept-Encoding": "gzip" if gzip else "identity"})[1]


def _ask_once(
    url: str, headers: Mapping[str, str], method: str = "GET", body: str | None = None
) -> tuple[Mapping[str, str], bytes]:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=30)
    try:
        connection.request(method, address.path, body, dict(headers))
        answer = connection.getresponse()
        return {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def _load(url: str, headers: Sequence[str], seconds: float) -> float:
    """Requests a second over 16 connections. Raises RuntimeError where an answer is an error."""
    if (wrk := shutil.which("wrk")) is None:
        return asyncio.run(_load_ourselves(url, headers, seconds))
    fields = [part for header in headers for part in ("-H", header)]
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", *fields, url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(said)
    found = re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert found, said
    return float(found[1])


async def _load_ourselves(url: str, headers: Sequence[str], seconds: float) -> float:
    address = urlsplit(url)
    lines = [f"GET {address.path} HTTP/1.1", f"Host: {address.netloc}", *headers, "", ""]
    request = "\r\n".join(lines).encode()
    until = time.perf_counter() + seconds
    began = time.perf_counter()
    done = await asyncio.gather(*[_ask(address.hostname, address.port, request, until) for _ in range(CONNECTIONS)])
    return sum(done) / (time.perf_counter() - began)


async def _ask(host: str | None, port: int | None, request: bytes, until: float) -> int:
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    count = 0
    while time.perf_counter() < until:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if head[9:12] not in (b"200", b"304"):
            raise RuntimeError(head.decode())
        if (length := re.search(rb"content-length: (\d+)", head)) is not None:
            await reader.readexactly(int(length[1]))
        count += 1
    writer.close()
    return count


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        _serve(sys.argv[2], json.loads(sys.argv[3]))
        sys.exit(0)
    sys.exit(main())
