"""The commands and queries of feed links over HTTP: whole answers, rights, refusals, and feeds there at once."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import httpx
import icalendar
import pytest
from sqlalchemy import text

from tests.feeds_fixture import BASE, MIGRATIONS, MakeNotifications, Messages, Notifications

MakeDatabase = Callable[..., Awaitable[str]]


@dataclass(kw_only=True)
class World:
    """A trip with its own and a host delegation, one stop, and one meeting for each of the two and one for both."""

    notifications: Notifications
    messages: Messages
    database_url: str
    own: UUID
    host: UUID

    @property
    def trip(self) -> UUID:
        return self.messages.trip

    @property
    def links(self) -> str:
        return f"/notifications/trips/{self.trip}/feed-links"

    async def command(self, link: str, verb: str, by: httpx.AsyncClient | None = None, **body: Any) -> httpx.Response:
        client = by or self.notifications.planner
        return await client.post(f"/notifications/feed-links/{link}/{verb}", json=body)


@pytest.fixture
async def world(make_database: MakeDatabase, make_notifications: MakeNotifications) -> World:
    database_url = await make_database(MIGRATIONS)
    notifications = await make_notifications(database_url)
    messages = Messages(engine=notifications.engine)
    await messages.plan()
    own = await messages.register("Ours", "own")
    host = await messages.register("Hosts in Tokyo", "host")
    stop = await messages.add_stop("Tokyo", "Asia/Tokyo", "2031-05-06", host)
    await messages.schedule(stop, "Breakfast among ourselves", "2031-05-06T08:30:00", [own])
    await messages.schedule(stop, "Talks", "2031-05-06T10:00:00", [own, host])
    return World(notifications=notifications, messages=messages, database_url=database_url, own=own, host=host)


async def test_issued_link_is_answered_whole_and_its_feed_is_there(world: World) -> None:
    link = uuid4()
    body = {
        "id": str(link),
        "delegation": str(world.host),
        "level": "delegation",
        "label": "Protocol office",
        "alarm": "PT15M",
        "expires_at": "2031-06-01T10:00:00+02:00",
    }
    answer = await world.notifications.planner.post(world.links, json=body)
    issued = answer.json()
    url = issued["url"]
    shelf = world.notifications.app.state.shelf
    card = shelf.card(sha256(url.removeprefix(f"{BASE}/feeds/").removesuffix(".ics").encode()).hexdigest())
    assert shelf.body(card.audience).version == 1  # nobody has to wait for it
    feed = await world.notifications.anyone.get(url)
    assert url.startswith(f"{BASE}/feeds/")
    assert len(url.removeprefix(f"{BASE}/feeds/").removesuffix(".ics")) >= 22  # 128 bits in base64
    assert (answer.status_code, answer.headers["etag"]) == (201, '"1"')
    assert answer.headers["location"] == f"/notifications/feed-links/{link}"
    assert issued == {
        "id": str(link),
        "trip": str(world.trip),
        "delegation": str(world.host),
        "level": "delegation",
        "label": "Protocol office",
        "cleared": False,
        "alarm": "PT15M",
        "creator": "pat",
        "expires_at": "2031-06-01T08:00:00Z",
        "revoked_at": None,
        "reason": None,
        "url": url,
    }
    assert (feed.status_code, _events(feed)) == (200, ["Talks", "Tokyo"])
    assert feed.content.count(b"BEGIN:VALARM\r\n") == 1


async def test_feed_is_there_on_every_replica_when_the_link_is_answered(
    world: World, make_notifications: MakeNotifications
) -> None:
    other = await make_notifications(world.database_url)
    for _ in range(3):
        issued = await world.notifications.issue(world.trip, world.own, "full", alarm=f"PT{5 + _}M")
        feed = await other.anyone.get(issued["url"])
        assert (feed.status_code, _events(feed)) == (200, ["Breakfast among ourselves", "Talks", "Tokyo"])
        rotated = (await world.command(issued["id"], "rotate")).json()
        both = [await other.anyone.get(url) for url in (issued["url"], rotated["url"])]
        # the new one at once; what was known already follows within a second
        assert (both[1].status_code, both[1].content) == (200, feed.content)


async def test_links_of_one_audience_share_its_body_and_another_level_is_another_one(world: World) -> None:
    links = [await world.notifications.issue(world.trip, world.own, level) for level in ("full", "full", "delegation")]
    first, second, third = [await world.notifications.anyone.get(link["url"]) for link in links]
    assert first.content == second.content != third.content
    assert (b"notes of Talks" in first.content, b"notes of Talks" in third.content) == (True, False)


async def test_address_is_given_once(world: World) -> None:
    body = {"delegation": str(world.host), "level": "delegation", "label": "Phones"}
    key = {"Idempotency-Key": "issue-1"}
    first, again = [await world.notifications.planner.post(world.links, json=body, headers=key) for _ in range(2)]
    other = await world.notifications.planner.post(world.links, json={**body, "label": "Desks"}, headers=key)
    path = f"/notifications/feed-links/{first.json()['id']}"
    shown = await world.notifications.staff.get(path)
    listed = await world.notifications.staff.get(world.links)
    link = {name: value for name, value in first.json().items() if name != "url"}
    assert (again.status_code, again.json()) == (201, {**link, "url": None})
    assert again.headers["etag"] == first.headers["etag"]
    assert _refused(other) == (422, "key-reused")
    assert (shown.status_code, shown.json()) == (200, {**link, "fetched": None})
    assert listed.json() == {"items": [link], "next": None}
    assert _events(await world.notifications.anyone.get(first.json()["url"])) == ["Talks", "Tokyo"]


async def test_rotated_and_revoked_link_is_answered_whole(world: World) -> None:
    issued = await world.notifications.issue(world.trip, world.host)
    rotated = await world.command(issued["id"], "rotate", grace="PT1H")
    before = datetime.now(UTC)
    revoked = await world.command(issued["id"], "revoke", reason="The phone was lost")
    shown = await world.notifications.planner.get(f"/notifications/feed-links/{issued['id']}")
    plain = {name: value for name, value in issued.items() if name != "url"}
    assert (rotated.status_code, rotated.headers["etag"]) == (200, '"2"')
    assert rotated.json() == {**plain, "url": rotated.json()["url"]}
    assert rotated.json()["url"] not in (None, issued["url"])
    assert len(rotated.json()["url"]) == len(issued["url"])  # as long a secret
    revoked_at = revoked.json()["revoked_at"]
    assert before <= datetime.fromisoformat(revoked_at) <= datetime.now(UTC)
    assert (revoked.status_code, revoked.headers["etag"]) == (200, '"3"')
    assert revoked.json() == {**plain, "revoked_at": revoked_at, "reason": "The phone was lost"}
    assert shown.json() == {**revoked.json(), "fetched": None}
    feeds = [await world.notifications.anyone.get(url) for url in (issued["url"], rotated.json()["url"])]
    assert [_events(feed) for feed in feeds] == [[], []]  # at once: the answer holds


async def test_links_are_listed_by_expiry_in_pages(world: World) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    expiries = {f"In {days} days": (now + timedelta(days=days)).isoformat() for days in (30, 10, 20)}
    for label, expires_at in expiries.items():
        await world.notifications.issue(world.trip, world.host, label=label, expires_at=expires_at)
    pages: list[list[str]] = []
    cursor: str | None = ""
    while cursor is not None:
        query = f"?limit=2&cursor={cursor}" if cursor else "?limit=2"
        page = (await world.notifications.staff.get(f"{world.links}{query}")).json()
        pages.append([item["label"] for item in page["items"]])
        cursor = page["next"]
    assert pages == [["In 10 days", "In 20 days"], ["In 30 days"]]


async def test_links_are_listed_where_nothing_else_is_known_of_the_trip(world: World) -> None:
    before = (await world.notifications.staff.get(world.links)).json()
    issued = await world.notifications.issue(world.trip, world.host)
    async with world.notifications.engine.begin() as connection:  # as at the beginning of a rebuild
        await connection.execute(text("DELETE FROM things"))
    listed = (await world.notifications.staff.get(world.links)).json()
    assert (before["items"], [link["id"] for link in listed["items"]]) == ([], [issued["id"]])


async def test_expiry_is_fourteen_days_after_the_later_of_the_trips_end_and_the_issue(world: World) -> None:
    stop = await world.messages.add_stop("Osaka", "Asia/Tokyo", "2031-05-20")  # a last item after the last day
    await world.messages.schedule(stop, "Late talks", "2031-05-20T21:00:00", [world.host])
    issued = await world.notifications.issue(world.trip, world.host)
    assert issued["expires_at"] == "2031-06-03T13:00:00Z"
    past = Messages(engine=world.notifications.engine)
    await past.plan()
    await past.tell("TripPlanned", "trip", past.trip, _planned("2023-11-02", "2023-11-10"))
    delegation = await past.register("Hosts of then", "host")
    late = await world.notifications.issue(past.trip, delegation)
    left = datetime.fromisoformat(late["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=13, hours=23) < left <= timedelta(days=14)


async def test_staff_give_links_up_to_the_level_delegation(world: World) -> None:
    staff = world.notifications.staff
    full = await world.notifications.issue(world.trip, world.own, "full")
    body = {"delegation": str(world.own), "label": "Phones"}
    issued = await staff.post(world.links, json={**body, "level": "delegation"})
    answers = [
        issued,
        await staff.post(world.links, json={**body, "level": "full"}),
        await world.command(full["id"], "rotate", staff),
        await world.command(full["id"], "revoke", staff, reason="no longer needed"),
        await world.command(issued.json()["id"], "rotate", staff),
        await world.command(issued.json()["id"], "revoke", staff, reason="no longer needed"),
    ]
    assert [_refused(answer) for answer in answers] == [
        (201, None),
        (403, "level-not-allowed"),
        (403, "level-not-allowed"),
        (403, "level-not-allowed"),
        (200, None),
        (200, None),
    ]
    assert issued.json()["creator"] == "sam"
    assert b"Talks" in (await world.notifications.anyone.get(full["url"])).content


async def test_who_has_no_token_reads_feeds_alone(world: World) -> None:
    anyone = world.notifications.anyone
    issued = await world.notifications.issue(world.trip, world.host)
    path = f"/notifications/feed-links/{issued['id']}"
    for answer in (
        await anyone.post(world.links, json={}),
        await anyone.get(world.links),
        await anyone.get(path),
        await anyone.post(f"{path}/rotate", json={}),
        await anyone.post(f"{path}/revoke", json={"reason": "x"}),
    ):
        assert _refused(answer) == (401, "token-missing")
    wrong = await anyone.get(path, headers={"Authorization": "Bearer attache_wrong"})
    assert _refused(wrong) == (401, "token-unknown")


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"level": "full"}, (403, "level-not-allowed")),
        ({"level": "busy"}, (422, "invalid")),
        ({"cleared": True}, (403, "level-not-allowed")),
        ({"label": ""}, (422, "invalid")),
        ({"label": None}, (422, "invalid")),
        ({"alarm": "-PT5M"}, (422, "invalid")),
        ({"alarm": "P8D"}, (422, "invalid")),
        ({"expires_at": "2031-06-01T10:00:00"}, (422, "invalid")),
        ({"expires_at": "2020-06-01T10:00:00Z"}, (422, "invalid")),
        ({"secret": "of one's own"}, (422, "invalid")),
    ],
)
async def test_link_that_may_not_be_is_refused(world: World, fields: dict[str, Any], refused: tuple[int, str]) -> None:
    body = {"delegation": str(world.host), "level": "delegation", "label": "Phones", **fields}
    answer = await world.notifications.planner.post(world.links, json=body)
    assert _refused(answer) == refused
    assert (await world.notifications.planner.get(world.links)).json() == {"items": [], "next": None}


async def test_what_nobody_has_heard_of_is_waited_for_and_then_refused(world: World) -> None:
    planner = world.notifications.planner
    body = {"delegation": str(world.host), "level": "delegation", "label": "Phones"}
    unknown = await planner.post(world.links, json={**body, "delegation": str(uuid4())})
    other = Messages(engine=world.notifications.engine)
    await other.plan()
    foreign = await planner.post(f"/notifications/trips/{other.trip}/feed-links", json=body)
    assert (_refused(unknown), unknown.headers["retry-after"]) == ((409, "not-yet-known"), "1")
    assert (_refused(foreign), foreign.json()["errors"][0]["loc"]) == ((422, "invalid"), ["body", "delegation"])
    nowhere = f"/notifications/feed-links/{uuid4()}"
    for answer in (
        await planner.get(f"/notifications/trips/{uuid4()}/feed-links"),
        await planner.get(nowhere),
        await planner.post(f"{nowhere}/rotate", json={}),
        await planner.post(f"{nowhere}/revoke", json={"reason": "x"}),
    ):
        assert _refused(answer) == (404, "not-found")


async def test_change_of_a_link_that_cannot_be_is_refused(world: World) -> None:
    planner = world.notifications.planner
    issued = await world.notifications.issue(world.trip, world.host)
    again = {"id": issued["id"], "delegation": str(world.host), "level": "delegation", "label": "Twice"}
    stale = await planner.post(f"/notifications/feed-links/{issued['id']}/rotate", json={}, headers={"If-Match": '"7"'})
    assert (_refused(stale), stale.json()["current"]) == ((412, "stale-version"), '"1"')
    assert _refused(await planner.post(world.links, json=again)) == (409, "wrong-state")
    assert _refused(await world.command(issued["id"], "rotate", grace="-PT1H")) == (422, "invalid")
    assert _refused(await world.command(issued["id"], "revoke")) == (422, "reason-missing")
    assert _refused(await world.command(issued["id"], "revoke", reason=" ")) == (422, "reason-missing")
    assert b"Talks" in (await world.notifications.anyone.get(issued["url"])).content
    assert (await world.command(issued["id"], "revoke", reason="over")).status_code == 200
    assert _refused(await world.command(issued["id"], "revoke", reason="over")) == (409, "wrong-state")
    assert _refused(await world.command(issued["id"], "rotate")) == (409, "wrong-state")


def _events(feed: httpx.Response) -> list[str]:
    return sorted(str(event["SUMMARY"]) for event in icalendar.Calendar.from_ical(feed.content).walk("VEVENT"))


def _refused(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("slug")


def _planned(starts_on: str, ends_on: str) -> dict[str, Any]:
    return {
        "title": "Autumn tour",
        "principals": ["Minister"],
        "home": {"place": "Lisbon", "zone": "Europe/Lisbon"},
        "starts_on": starts_on,
        "ends_on": ends_on,
        "status": "planned",
        "reason": None,
    }
