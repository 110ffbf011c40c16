"""The schedule's API: every command with its whole answer, every refusal, lists, tags, and what is documented."""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import jsonschema
import pytest
from sqlalchemy import text

from services.participants.delegation import DelegationDissolved, DelegationRegistered
from services.schedule import wall_time
from services.schedule.projections import MODELS
from services.schedule.retiming import retime_trip
from shared.command import WAIT_SECONDS
from shared.problems import STATUS
from shared.time_zones import tz_release
from tests.running_api import Api

TRIP = "11111111-1111-4111-8111-111111111111"
TOKYO = "22222222-2222-4222-8222-222222222221"
SEOUL = "22222222-2222-4222-8222-222222222222"
FLIGHT = "33333333-3333-4333-8333-333333333331"
TALKS = "44444444-4444-4444-8444-444444444441"
DINNER = "44444444-4444-4444-8444-444444444442"
HOSTS = "55555555-5555-4555-8555-555555555551"
PRESS = "55555555-5555-4555-8555-555555555552"
NOBODY = "99999999-9999-4999-8999-999999999999"

PLAN: dict[str, Any] = {
    "id": TRIP,
    "title": "Secretary of State, November 2023",
    "principals": ["Secretary of State", "Secretary of Defense"],
    "home": {"place": "Washington", "zone": "America/New_York"},
    "starts_on": "2023-11-02",
    "ends_on": "2023-11-10",
}
IN_TOKYO: dict[str, Any] = {
    "id": TOKYO,
    "place": "Tokyo",
    "country": "Japan",
    "zone": "Asia/Tokyo",
    "arrives": "2023-11-07T10:00:00",
    "departs": "2023-11-08T17:00:00",
}
IN_SEOUL = IN_TOKYO | {
    "id": SEOUL,
    "place": "Seoul",
    "country": "Republic of Korea",
    "zone": "Asia/Seoul",
    "arrives": "2023-11-08T19:30",
    "departs": "2023-11-09T15:00",
    "assumed": True,
}
TO_SEOUL: dict[str, Any] = {
    "id": FLIGHT,
    "mode": "flight",
    "label": "Tokyo to Seoul",
    "from": {"place": "Haneda", "zone": "Asia/Tokyo"},
    "to": {"place": "Osan", "zone": "Asia/Seoul"},
    "departs": "2023-11-08T17:10:00",
    "arrives": "2023-11-08T19:20:00",
    "notes": "wheels up no later than 17:15",
}
WITH_KAMIKAWA: dict[str, Any] = {
    "id": TALKS,
    "stop": TOKYO,
    "title": "Foreign Minister Kamikawa — 上川大臣 ¿«Ω»? 👩🏽‍✈️",
    "kind": "bilateral",
    "start": "2023-11-07T18:25:00",
    "duration": "PT45M",
    "venue": {"name": "Iikura Guest House", "address": "Azabudai 1", "geo": [35.66, -0.0], "conference": None},
    "topics": ["The Indo-Pacific", "Ukraine's recovery"],
    "notes": "bring the letter",
    "press": {"tag": "spray-at-top", "preset": "2023-11-07T17:30:00", "final": "2023-11-07T18:10:00"},
    "hard": True,
}


async def plan(api: Api) -> None:
    """A trip with two stops, a movement and two meetings."""
    await api.done("/schedule/trips", PLAN)
    await api.done(f"/schedule/trips/{TRIP}/stops", IN_TOKYO)
    await api.done(f"/schedule/trips/{TRIP}/stops", IN_SEOUL)
    await api.done(f"/schedule/trips/{TRIP}/movements", TO_SEOUL)
    await api.done(f"/schedule/trips/{TRIP}/meetings", WITH_KAMIKAWA)
    dinner = {"id": DINNER, "stop": TOKYO, "title": "Dinner", "kind": "working-meal", "status": "confirmed"}
    await api.done(f"/schedule/trips/{TRIP}/meetings", dinner | {"start": "2023-11-07T19:30:00", "duration": "PT1H30M"})


async def tell_of(api: Api, delegation: str, *, trip: str = TRIP, kind: Any = "host", dissolved: bool = False) -> None:
    """The participants service registered (and dissolved) a delegation, and this one has heard of it."""
    whole: Any = {"name": "Hosts", "kind": kind, "status": "registered", "head": None, "order": (), "reason": None}
    ids = {"trip": UUID(trip), "delegation": UUID(delegation)}
    await api.bus.tell(DelegationRegistered(**ids, whole=whole))
    if dissolved:
        changed: Any = {"status": "dissolved", "reason": "not needed"}
        was: Any = {"status": "registered", "reason": None}
        await api.bus.tell(DelegationDissolved(**ids, changed=changed, was=was))
    status = "dissolved" if dissolved else "registered"

    async def heard() -> bool:
        return (UUID(delegation), status) in await api.rows("SELECT id, status FROM known_delegations")

    await api.until(heard)


class Told:
    """Carries commands out one after another and holds each answer against the one before and what changes."""

    def __init__(self, api: Api, address: str) -> None:
        self.api = api
        self.address = address
        self.thing: dict[str, Any] = {}
        self.revision = 0

    async def made(self, collection: str, body: Mapping[str, Any], thing: dict[str, Any]) -> None:
        response = await self.api.post(collection, body)
        assert (response.status_code, response.headers["location"]) == (201, self.address)
        await self._is(response, thing)

    async def then(self, verb: str, body: Mapping[str, Any] | None, **changes: Any) -> None:
        response = await self.api.post(f"{self.address}/{verb}", body)
        assert (response.status_code, response.headers.get("location")) == (200, None)
        await self._is(response, self.thing | changes)

    async def unchanged_by(self, verb: str, body: Mapping[str, Any]) -> None:
        self.revision -= 1
        await self.then(verb, body)

    async def _is(self, response: Any, thing: dict[str, Any]) -> None:
        self.thing, self.revision = thing, self.revision + 1
        tag = f'"{self.revision}"'
        assert (response.json(), response.headers["etag"]) == (thing, tag)
        shown = await self.api.get(self.address)
        assert (shown.status_code, shown.json(), shown.headers["etag"]) == (200, thing, tag)
        assert (await self.api.get(self.address, If_None_Match=tag)).status_code == 304


# -- every command ------------------------------------------------------------------------------------------------


async def test_trip_is_planned_announced_and_completed(schedule: Api) -> None:
    trip = Told(schedule, f"/schedule/trips/{TRIP}")
    await trip.made("/schedule/trips", PLAN, PLAN | {"status": "planned", "reason": None})
    await trip.then("announce", None, status="announced")
    await trip.then("complete", {}, status="completed")


async def test_trip_without_an_id_gets_one(schedule: Api) -> None:
    response = await schedule.post("/schedule/trips", {name: PLAN[name] for name in PLAN if name != "id"})
    made = UUID(response.json()["id"])
    assert made.version == 4
    assert response.headers["location"] == f"/schedule/trips/{made}"


async def test_stop_is_added_changed_and_dropped(schedule: Api) -> None:
    await schedule.done("/schedule/trips", PLAN)
    await tell_of(schedule, HOSTS)
    stop = Told(schedule, f"/schedule/stops/{TOKYO}")
    derived = {"arrives_at": "2023-11-07T01:00:00Z", "departs_at": "2023-11-08T08:00:00Z", "tz": tz_release()}
    rest = {"trip": TRIP, "host": None, "assumed": False, "status": "planned", "reason": None}
    await stop.made(f"/schedule/trips/{TRIP}/stops", IN_TOKYO, IN_TOKYO | derived | rest)
    await stop.then(
        "change",
        {"departs": "2023-11-08T18:00", "host": HOSTS, "assumed": True},
        departs="2023-11-08T18:00:00",
        departs_at="2023-11-08T09:00:00Z",
        host=HOSTS,
        assumed=True,
    )
    await stop.unchanged_by("change", {"assumed": True})
    await stop.unchanged_by("change", {})
    await stop.then(
        "change",
        {"zone": "Asia/Kolkata", "place": "New Delhi", "country": "India", "host": None},
        zone="Asia/Kolkata",
        place="New Delhi",
        country="India",
        host=None,
        arrives_at="2023-11-07T04:30:00Z",
        departs_at="2023-11-08T12:30:00Z",
    )
    await stop.then("drop", {"reason": " straight on "}, status="dropped", reason="straight on")


async def test_movement_is_added_changed_reported_and_dropped(schedule: Api) -> None:
    await schedule.done("/schedule/trips", PLAN)
    await schedule.done(f"/schedule/trips/{TRIP}/stops", IN_SEOUL)
    movement = Told(schedule, f"/schedule/movements/{FLIGHT}")
    thing = TO_SEOUL | {
        "trip": TRIP,
        "stop": None,
        "departs_at": "2023-11-08T08:10:00Z",
        "arrives_at": "2023-11-08T10:20:00Z",
        "tz": tz_release(),
        "hard": False,
        "assumed": False,
        "left_at": None,
        "landed_at": None,
        "status": "planned",
        "reason": None,
    }
    await movement.made(f"/schedule/trips/{TRIP}/movements", TO_SEOUL, thing)
    gimpo = {"place": "Gimpo", "zone": "Asia/Seoul"}
    await movement.then(
        "change",
        {"to": gimpo, "arrives": "2023-11-08T19:05:00", "stop": SEOUL, "hard": True, "notes": None},
        to=gimpo,
        arrives="2023-11-08T19:05:00",
        arrives_at="2023-11-08T10:05:00Z",
        stop=SEOUL,
        hard=True,
        notes=None,
    )
    await movement.then("wheels-up", {"at": "2023-11-08T17:14:30+09:00"}, left_at="2023-11-08T08:14:30Z")
    await movement.then("wheels-down", {"at": "2023-11-08T10:01:00Z"}, landed_at="2023-11-08T10:01:00Z")
    await movement.unchanged_by("wheels-down", {"at": "2023-11-08T10:01:00Z"})
    await movement.then("change", {"stop": None}, stop=None)
    await movement.then("drop", None, status="dropped")


async def test_meeting_takes_every_command(schedule: Api) -> None:
    await schedule.done("/schedule/trips", PLAN)
    await schedule.done(f"/schedule/trips/{TRIP}/stops", IN_TOKYO)
    await schedule.done(f"/schedule/trips/{TRIP}/stops", IN_SEOUL)
    await tell_of(schedule, HOSTS)
    await tell_of(schedule, PRESS, kind="press")
    meeting = Told(schedule, f"/schedule/meetings/{TALKS}")
    thing = WITH_KAMIKAWA | {
        "trip": TRIP,
        "status": "tentative",
        "zone": "Asia/Tokyo",
        "starts_at": "2023-11-07T09:25:00Z",
        "ends_at": "2023-11-07T10:10:00Z",
        "tz": tz_release(),
        "assumed": False,
        "delegations": [PRESS],
        "reason": None,
    }
    await meeting.made(f"/schedule/trips/{TRIP}/meetings", WITH_KAMIKAWA | {"delegations": [PRESS]}, thing)
    await meeting.then(
        "reschedule",
        {"start": "2023-11-07T18:40:00", "duration": "PT30M", "hard": False},
        start="2023-11-07T18:40:00",
        duration="PT30M",
        hard=False,
        starts_at="2023-11-07T09:40:00Z",
    )
    await meeting.unchanged_by("reschedule", {"start": "2023-11-07T18:40"})
    await meeting.then("confirm", None, status="confirmed")
    await meeting.then("invite-delegation", {"delegation": HOSTS}, delegations=[PRESS, HOSTS])
    await meeting.then("uninvite-delegation", {"delegation": PRESS}, delegations=[HOSTS])
    await meeting.then("revise", {"topics": [], "notes": None, "press": None}, topics=[], notes=None, press=None)
    await meeting.then("cancel", {"reason": "the host is ill"}, status="cancelled", reason="the host is ill")
    await meeting.then("reinstate", {}, status="confirmed", reason=None)
    await meeting.then(
        "move",
        {"stop": SEOUL, "venue": {"name": "Blue House"}, "start": "2023-11-09T09:00:00"},
        stop=SEOUL,
        venue={"name": "Blue House", "address": None, "geo": None, "conference": None},
        start="2023-11-09T09:00:00",
        zone="Asia/Seoul",
        starts_at="2023-11-09T00:00:00Z",
        ends_at="2023-11-09T00:30:00Z",
    )
    await meeting.then("move", {"venue": None}, venue=None)
    types = [event.type for event in await schedule.events() if event.stream == f"meeting/{TALKS}"]
    assert types == [
        "MeetingScheduled.v1",
        "MeetingRescheduled.v1",
        "MeetingConfirmed.v1",
        "DelegationInvited.v1",
        "DelegationUninvited.v1",
        "MeetingRevised.v1",
        "MeetingCancelled.v1",
        "MeetingReinstated.v1",
        "MeetingMoved.v1",
        "MeetingMoved.v1",
    ]


async def test_meetings_follow_their_stop_into_another_zone(schedule: Api) -> None:
    await schedule.done("/schedule/trips", PLAN)
    await schedule.done(f"/schedule/trips/{TRIP}/stops", IN_TOKYO)
    by_its_clocks = await schedule.done(f"/schedule/trips/{TRIP}/meetings", WITH_KAMIKAWA)
    own_zone = {"zone": "UTC", "start": "2023-11-07T10:00:00", "id": str(uuid4()), "title": "Call by UTC"}
    by_utc = await schedule.done(f"/schedule/trips/{TRIP}/meetings", WITH_KAMIKAWA | own_zone)
    await schedule.done(f"/schedule/stops/{TOKYO}/change", {"zone": "Asia/Kolkata"})
    followed = (await schedule.get(f"/schedule/meetings/{by_its_clocks['id']}")).json()
    shifted = {
        name: (datetime.fromisoformat(by_its_clocks[name]) + timedelta(hours=3, minutes=30)).isoformat()[:19] + "Z"
        for name in ("starts_at", "ends_at")
    }
    assert followed == by_its_clocks | {"zone": "Asia/Kolkata"} | shifted
    assert (await schedule.get(f"/schedule/meetings/{by_utc['id']}")).json() == by_utc


async def test_movement_without_a_label_is_called_by_its_ends(schedule: Api) -> None:
    await schedule.done("/schedule/trips", PLAN)
    unnamed = {name: value for name, value in TO_SEOUL.items() if name not in ("label", "stop")}
    added = await schedule.done(f"/schedule/trips/{TRIP}/movements", unnamed)
    assert added["label"] == f"{TO_SEOUL['from']['place']} to {TO_SEOUL['to']['place']}"


async def test_cancelled_trip_cancels_its_items_in_the_same_act(schedule: Api) -> None:
    await plan(schedule)
    await schedule.done(f"/schedule/meetings/{DINNER}/cancel", {"reason": "no appetite"})
    before = await schedule.events()
    correlation = str(uuid4())
    trip = await schedule.done(f"/schedule/trips/{TRIP}/cancel", {"reason": "war"}, X_Correlation_Id=correlation)
    assert (trip["status"], trip["reason"]) == ("cancelled", "war")
    acts = (await schedule.events())[len(before) :]
    assert [(event.type, event.stream) for event in acts] == [
        ("TripCancelled.v1", f"trip/{TRIP}"),
        ("StopDropped.v1", f"stop/{TOKYO}"),
        ("StopDropped.v1", f"stop/{SEOUL}"),
        ("MovementDropped.v1", f"movement/{FLIGHT}"),
        ("MeetingCancelled.v1", f"meeting/{TALKS}"),
    ]
    assert {event.metadata["correlation_id"] for event in acts} == {correlation}
    assert {event.key for event in acts} == {TRIP}
    assert (
        len(
            await schedule.rows(
                "SELECT DISTINCT xmin FROM events WHERE type LIKE '%Cancelled%' OR type LIKE '%Dropped%'"
            )
        )
        == 2
    )
    ends = [
        (await schedule.get(f"/schedule/{kind}/{thing}")).json()
        for kind, thing in (("stops", TOKYO), ("stops", SEOUL), ("movements", FLIGHT), ("meetings", TALKS))
    ]
    assert [(end["status"], end["reason"]) for end in ends] == [("dropped", "war")] * 3 + [("cancelled", "war")]
    dinner = (await schedule.get(f"/schedule/meetings/{DINNER}")).json()
    assert (dinner["status"], dinner["reason"]) == ("cancelled", "no appetite")


# -- lists --------------------------------------------------------------------------------------------------------


async def test_lists_are_in_order_and_paged_by_a_cursor(schedule: Api) -> None:
    await plan(schedule)
    # two at one instant: the id decides
    same = {"stop": TOKYO, "title": "Call", "kind": "call", "start": "2023-11-07T18:25:00", "duration": "PT5M"}
    await schedule.done(f"/schedule/trips/{TRIP}/meetings", same | {"id": "00000000-0000-4000-8000-000000000000"})
    address = f"/schedule/trips/{TRIP}/meetings"
    whole = (await schedule.get(address)).json()
    assert [item["id"] for item in whole["items"]] == ["00000000-0000-4000-8000-000000000000", TALKS, DINNER]
    assert whole["next"] is None
    for item in whole["items"]:
        assert item == (await schedule.get(f"/schedule/meetings/{item['id']}")).json()
    paged: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await schedule.get(f"{address}?limit=1{cursor and f'&cursor={cursor}'}")).json()
        paged += page["items"]
        cursor = page["next"]
    assert paged == whole["items"]
    other = PLAN | {"id": NOBODY, "title": "Earlier", "starts_on": "2023-10-01"}
    await schedule.done("/schedule/trips", other)
    listed = [(await schedule.get(path)).json() for path in ("/schedule/trips", f"/schedule/trips/{TRIP}/stops")]
    assert [[item["id"] for item in page["items"]] for page in listed] == [[NOBODY, TRIP], [TOKYO, SEOUL]]
    movements = (await schedule.get(f"/schedule/trips/{TRIP}/movements")).json()
    assert movements == {"items": [(await schedule.get(f"/schedule/movements/{FLIGHT}")).json()], "next": None}
    assert (await schedule.get(f"/schedule/trips/{NOBODY}/stops")).json() == {"items": [], "next": None}


CURSORS = [
    "!",
    "bm9uc2Vuc2U",
    # ["2023-11-07T09:25:00", "<id>"]: an instant without an offset; the edge of the calendar; no id; another list's
    "WyIyMDIzLTExLTA3VDA5OjI1OjAwIiwiMTExMTExMTEtMTExMS00MTExLTgxMTEtMTExMTExMTExMTExIl0",
    "WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIiwiMTExMTExMTEtMTExMS00MTExLTgxMTEtMTExMTExMTExMTExIl0",
    "WyIyMDIzLTExLTA3VDA5OjI1OjAwWiIsIm5vIGlkIl0",
    "WyIyMDIzLTExLTAyIiwxXQ",
    "W10",
]


async def test_cursor_that_no_list_gave_is_invalid(schedule: Api) -> None:
    await schedule.done("/schedule/trips", PLAN)
    for cursor in CURSORS:
        response = await schedule.get(f"/schedule/trips/{TRIP}/meetings?cursor={cursor}")
        assert (response.status_code, response.json()["slug"]) == (422, "invalid"), cursor


# -- refusals -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """A request to the planned trip that is refused; `members` are those that the answer has beside the usual."""

    slug: str
    path: str
    body: Any = None
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    members: Mapping[str, Any] = field(default_factory=dict)
    raw: bytes | None = None


MEETINGS = f"/schedule/trips/{TRIP}/meetings"
NEW = {"stop": TOKYO, "title": "T", "kind": "call", "start": "2023-11-07T12:00:00", "duration": "PT10M"}
NEW_YORK = "America/New_York"
JSON = {"Content-Type": "application/json"}


def invalid(*loc: str | int, said: str | None = None, kind: str = "value_error") -> dict[str, Any]:
    return {"errors": [{"loc": ["body", *loc], "msg": said, "type": kind}]}


CASES = [
    Case(slug="token-missing", path="/schedule/trips", body=PLAN, headers={"Authorization": "Basic eDp5"}),
    Case(slug="token-unknown", path="/schedule/trips", method="GET", headers={"Authorization": "Bearer attache_no"}),
    Case(
        slug="scope-missing",
        path="/schedule/trips",
        body=PLAN | {"id": NOBODY},
        headers={"Authorization": "staff"},
        members={"needed": ["planner"]},
    ),
    Case(slug="scope-missing", path="/schedule/trips", method="GET", headers={"Authorization": "service"}),
    Case(slug="not-found", path=f"/schedule/trips/{NOBODY}/announce"),
    Case(slug="not-found", path=f"/schedule/trips/{NOBODY}/stops", body=IN_TOKYO | {"id": NOBODY, "host": NOBODY}),
    Case(slug="not-found", path=f"/schedule/trips/{NOBODY}/movements", body=TO_SEOUL | {"id": NOBODY}),
    Case(slug="not-found", path=f"/schedule/trips/{NOBODY}/meetings", body=NEW | {"delegations": [NOBODY]}),
    Case(slug="not-found", path=f"/schedule/stops/{NOBODY}/drop"),
    Case(slug="not-found", path=f"/schedule/movements/{NOBODY}/change", body={"hard": True}),
    Case(slug="not-found", path=f"/schedule/meetings/{NOBODY}/invite-delegation", body={"delegation": NOBODY}),
    Case(slug="not-found", path=f"/schedule/meetings/{NOBODY}", method="GET"),
    Case(slug="not-found", path=f"/schedule/trips/{NOBODY}/movements", method="GET"),
    Case(slug="not-found", path="/schedule/nothing", method="GET"),
    Case(slug="method-not-allowed", path="/schedule/trips", method="DELETE"),
    Case(
        slug="outside-stay",
        path=MEETINGS,
        body=NEW | {"start": "2023-11-07T09:59:00"},
        members={
            "stop": TOKYO,
            "arrives_at": "2023-11-07T01:00:00Z",
            "departs_at": "2023-11-08T08:00:00Z",
            "starts_at": "2023-11-07T00:59:00Z",
            "ends_at": "2023-11-07T01:09:00Z",
        },
    ),
    Case(slug="outside-stay", path=f"/schedule/meetings/{TALKS}/move", body={"stop": SEOUL}),
    Case(
        slug="stops-overlap",
        path=f"/schedule/trips/{TRIP}/stops",
        body=IN_SEOUL | {"id": NOBODY, "arrives": "2023-11-08T16:59:59"},
        members={"stops": [TOKYO, SEOUL]},
    ),
    Case(
        slug="meetings-outside-stay",
        path=f"/schedule/stops/{TOKYO}/change",
        body={"arrives": "2023-11-07T19:00:00"},
        members={"meetings": [TALKS]},
    ),
    Case(
        slug="meetings-outside-stay",
        path=f"/schedule/stops/{TOKYO}/drop",
        members={"meetings": [TALKS, DINNER]},
    ),
    Case(slug="wrong-state", path="/schedule/trips", body=PLAN, members={"state": "planned"}),
    Case(slug="wrong-state", path=MEETINGS, body=NEW | {"id": TALKS}, members={"state": "tentative"}),
    Case(slug="wrong-state", path=f"/schedule/meetings/{DINNER}/confirm", members={"state": "confirmed"}),
    Case(slug="wrong-state", path=f"/schedule/meetings/{DINNER}/reinstate", members={"state": "confirmed"}),
    Case(
        slug="wrong-state",
        path=f"/schedule/meetings/{TALKS}/invite-delegation",
        body={"delegation": PRESS},
        members={"delegation": PRESS},
    ),
    Case(
        slug="not-yet-known",
        path=f"/schedule/meetings/{TALKS}/invite-delegation",
        body={"delegation": NOBODY},
        members={"delegation": NOBODY},
    ),
    Case(
        slug="stale-version",
        path=f"/schedule/trips/{TRIP}/announce",
        headers={"If-Match": '"7", W/"1"'},
        members={"given": '"7"', "current": '"1"', "thing": PLAN | {"status": "planned", "reason": None}},
    ),
    Case(slug="too-large", path="/schedule/trips", body=PLAN | {"title": "x" * 262_144}, members={"limit": 262_144}),
    Case(slug="media-type", path="/schedule/trips", raw=b"title=x", headers={"Content-Type": "text/plain"}),
    Case(slug="invalid", path="/schedule/trips", raw=b'{"title": ', headers=JSON),
    Case(
        slug="invalid",
        path=f"/schedule/meetings/{TALKS}/revise",
        body={"titel": "x"},
        members=invalid("titel", said="Extra inputs are not permitted", kind="extra_forbidden"),
    ),
    Case(slug="invalid", path=f"/schedule/meetings/{TALKS}/revise", body={"title": None}),
    Case(slug="invalid", path=f"/schedule/meetings/{TALKS}/revise", body={"title": " "}),
    Case(slug="invalid", path=f"/schedule/meetings/{TALKS}/revise", raw=rb'{"title": "\ud800"}', headers=JSON),
    Case(slug="invalid", path=f"/schedule/meetings/{TALKS}/revise", body={"title": "a\0b"}),
    Case(slug="invalid", path=f"/schedule/meetings/{TALKS}/revise", body=[]),
    Case(slug="invalid", path=f"/schedule/stops/{TOKYO}/change", body={"zone": None}),
    Case(slug="invalid", path=f"/schedule/stops/{TOKYO}/change", body={"assumed": "yes"}),
    Case(slug="invalid", path=MEETINGS, body=NEW | {"start": "2023-11-07T12:00:00Z"}),
    Case(slug="invalid", path=MEETINGS, body=NEW | {"start": "2023-11-07"}),
    Case(slug="invalid", path=MEETINGS, body=NEW | {"start": 1_699_315_200}),
    Case(slug="invalid", path=MEETINGS, body=NEW | {"start": "9999-12-31T23:59:59"}),
    Case(slug="invalid", path=MEETINGS, body=NEW | {"duration": "PT0S"}),
    Case(slug="invalid", path=MEETINGS, body=NEW | {"duration": "P99999999999D"}),
    Case(slug="invalid", path=MEETINGS, body=NEW | {"duration": 45}),
    Case(slug="invalid", path=MEETINGS, body=NEW | {"fold": 2}),
    Case(slug="invalid", path=MEETINGS, body=NEW | {"stop": NOBODY}),
    Case(slug="invalid", path=MEETINGS, body=NEW | {"venue": {"name": "V", "geo": [91, 0]}}),
    Case(slug="invalid", path=f"/schedule/movements/{FLIGHT}/wheels-up", body={"at": "2023-11-08T08:14:30"}),
    Case(slug="invalid", path=f"/schedule/movements/{FLIGHT}/wheels-up", body={"at": "1699431270"}),
    Case(slug="invalid", path=f"/schedule/movements/{FLIGHT}/wheels-up", body={"at": "0001-01-01T00:00:00+14:00"}),
    Case(slug="invalid", path="/schedule/trips", body=PLAN | {"id": NOBODY, "starts_on": 1_699_315_200}),
    Case(slug="invalid", path="/schedule/trips", body=PLAN | {"id": NOBODY, "ends_on": "2023-11-01"}),
    Case(slug="invalid", path="/schedule/trips?limit=0", method="GET"),
    Case(slug="invalid", path="/schedule/trips/no-id", method="GET"),
    Case(slug="invalid", path="/schedule/trips", body=PLAN, headers={"Idempotency-Key": "a b"}),
    Case(slug="zone-unknown", path=MEETINGS, body=NEW | {"zone": "Asia/Edo"}, members={"zone": "Asia/Edo"}),
    Case(slug="zone-abbreviated", path=MEETINGS, body=NEW | {"zone": "IST"}, members={"zone": "IST"}),
    Case(
        slug="wall-time-skipped",
        path=MEETINGS,
        body=NEW | {"start": "2024-03-10T02:30:00", "zone": NEW_YORK},
        members={"candidates": ["2024-03-10T07:30:00Z", "2024-03-10T06:30:00Z"]},
    ),
    Case(
        slug="wall-time-repeated",
        path=f"/schedule/meetings/{DINNER}/reschedule",
        body={"start": "2023-11-05T01:30:00", "zone": NEW_YORK},
        members={"candidates": ["2023-11-05T05:30:00Z", "2023-11-05T06:30:00Z"]},
    ),
    Case(slug="reason-missing", path=f"/schedule/trips/{TRIP}/cancel"),
    Case(slug="reason-missing", path=f"/schedule/meetings/{TALKS}/cancel", body={"reason": " \n"}),
    Case(
        slug="key-reused",
        path="/schedule/trips",
        body=PLAN | {"title": "Another"},
        headers={"Idempotency-Key": "plan-1"},
    ),
]
ELSEWHERE = {
    "level-not-allowed": "tests",
    "internal": "tests/shared/test_http.py",
    "store-away": "tests/shared/test_command.py",
    "issuer-away": "tests/shared/test_oidc.py",
}
"""What this service does not say, or not without something being broken."""


def test_every_slug_of_the_table_has_a_case() -> None:
    assert {case.slug for case in CASES} | set(ELSEWHERE) == set(STATUS)
    root = Path(__file__).parents[2]
    for slug, place in ELSEWHERE.items():
        files = [root / place] if place.endswith(".py") else {*(root / place).rglob("*.py")} - {Path(__file__)}
        assert any(f'"{slug}"' in file.read_text() for file in files), f"{slug} has no case in {place}"


async def test_every_refusal_has_its_status_and_members_and_does_nothing(schedule: Api) -> None:
    await tell_of(schedule, PRESS, kind="press")
    await plan(schedule)
    await schedule.done(f"/schedule/meetings/{TALKS}/invite-delegation", {"delegation": PRESS})
    await schedule.done("/schedule/trips", PLAN | {"id": str(uuid4())}, Idempotency_Key="plan-1")
    others = {scope: schedule.token(scope, name=scope) for scope in ("staff", "service")}
    await schedule.until(lambda: knows(schedule, others["service"]))
    before = await schedule.events()
    for case in CASES:
        headers = {name: others.get(value, value) for name, value in case.headers.items()}
        sent: dict[str, Any] = {"content": case.raw} if case.raw is not None else {"json": case.body}
        response = await schedule.call(case.method, case.path, headers=headers, **sent)
        problem = response.json()
        assert (problem.get("slug"), response.status_code) == (case.slug, STATUS[case.slug]), (case, problem)
        assert response.headers["content-type"] == "application/problem+json"
        assert (problem["status"], problem["type"], bool(problem["detail"])) == (
            response.status_code,
            "about:blank",
            True,
        )
        for name, value in case.members.items():
            assert problem[name] == value, (case, problem)
        assert ("retry-after" in response.headers) == (case.slug == "not-yet-known")
    assert await schedule.events() == before


async def knows(api: Api, authorization: str) -> bool:
    """Whether the token file has been read again."""
    slug: str = (await api.get("/schedule/trips", Authorization=authorization)).json()["slug"]
    return slug != "token-unknown"


async def test_cancelled_trip_takes_no_commands_for_its_items(schedule: Api) -> None:
    await plan(schedule)
    await schedule.done(f"/schedule/trips/{TRIP}/cancel", {"reason": "war"})
    for path, body in (
        (f"/schedule/trips/{TRIP}/cancel", {"reason": "war again"}),
        (f"/schedule/trips/{TRIP}/stops", IN_TOKYO | {"id": NOBODY}),
        (f"/schedule/trips/{TRIP}/movements", TO_SEOUL | {"id": NOBODY}),
        (MEETINGS, NEW),
        (f"/schedule/meetings/{DINNER}/reinstate", {}),
    ):
        response = await schedule.post(path, body)
        assert (response.status_code, response.json()["slug"]) == (409, "wrong-state")
        assert (response.json()["status"], response.json()["state"]) == (409, "cancelled")


# -- what other services tell -------------------------------------------------------------------------------------


async def test_delegation_is_waited_for_and_refused_when_it_does_not_come(schedule: Api) -> None:
    await plan(schedule)
    began = time.monotonic()
    response = await schedule.post(f"/schedule/meetings/{TALKS}/invite-delegation", {"delegation": HOSTS})
    waited = time.monotonic() - began
    assert (response.status_code, response.json()["slug"], response.headers["retry-after"]) == (
        409,
        "not-yet-known",
        "1",
    )
    assert WAIT_SECONDS <= waited < WAIT_SECONDS + 60


async def test_delegation_that_comes_while_it_is_waited_for_is_invited(
    schedule: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await plan(schedule)
    monkeypatch.setattr("shared.command.WAIT_SECONDS", 60)
    invite = asyncio.create_task(
        schedule.post(f"/schedule/meetings/{TALKS}/invite-delegation", {"delegation": HOSTS}, Idempotency_Key="i-1")
    )
    # nobody is kept from the trip meanwhile
    await asyncio.sleep(0.2)
    assert not invite.done()
    await schedule.done(f"/schedule/trips/{TRIP}/announce")
    assert not invite.done()
    await tell_of(schedule, HOSTS)
    response = await invite
    assert (response.status_code, response.json()["delegations"]) == (200, [HOSTS])


async def test_delegations_of_another_trip_and_dissolved_ones_are_refused(schedule: Api) -> None:
    await tell_of(schedule, HOSTS, trip=NOBODY)
    await tell_of(schedule, PRESS, dissolved=True)
    await plan(schedule)
    slugs = {}
    for delegation in (HOSTS, PRESS):
        for path, body in (
            (f"/schedule/meetings/{TALKS}/invite-delegation", {"delegation": delegation}),
            (MEETINGS, NEW | {"delegations": [delegation]}),
            (f"/schedule/stops/{TOKYO}/change", {"host": delegation}),
        ):
            slugs[delegation, path] = (await schedule.post(path, body)).json()["slug"]
    assert {slug for (delegation, _), slug in slugs.items() if delegation == HOSTS} == {"invalid"}
    assert {slug for (delegation, _), slug in slugs.items() if delegation == PRESS} == {"wrong-state"}


async def test_first_answer_is_given_again_though_it_would_be_refused_by_now(schedule: Api) -> None:
    await tell_of(schedule, HOSTS)
    await plan(schedule)
    path, body = f"/schedule/meetings/{TALKS}/invite-delegation", {"delegation": HOSTS}
    first = await schedule.post(path, body, Idempotency_Key="invite-1")
    changed: Any = {"status": "dissolved"}
    was: Any = {"status": "registered"}
    await schedule.bus.tell(DelegationDissolved(trip=UUID(TRIP), delegation=UUID(HOSTS), changed=changed, was=was))

    async def heard() -> bool:
        return (UUID(HOSTS), "dissolved") in await schedule.rows("SELECT id, status FROM known_delegations")

    await schedule.until(heard)
    again = await schedule.post(path, body, Idempotency_Key="invite-1")
    assert (again.status_code, again.json(), again.headers["etag"]) == (200, first.json(), first.headers["etag"])
    # a host or guest that was named before its dissolution does not stand in the way of other changes
    await schedule.done(f"/schedule/meetings/{TALKS}/reschedule", {"start": "2023-11-07T18:00:00"})


# -- the document -------------------------------------------------------------------------------------------------


async def test_document_is_complete(schedule: Api) -> None:
    openapi = schedule.app.openapi()
    components = {"components": openapi["components"]}
    commands = 0
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            good = [status for status in operation["responses"] if status < "400"]
            assert len(good) == 1, (path, method)
            assert operation["summary"], (path, method)
            if "probes" not in operation["tags"]:
                assert {"401", "403", "404", "422", "503"} <= set(operation["responses"]), (path, method)
                assert operation["responses"][good[0]]["content"]["application/json"]["schema"], (path, method)
            if method == "post":
                commands += 1
                content = operation["requestBody"]["content"]["application/json"]["schema"]
                name = (content.get("$ref") or content["anyOf"][0]["$ref"]).rsplit("/", 1)[1]
                schema = openapi["components"]["schemas"][name]
                (example,) = schema["examples"]
                jsonschema.Draft202012Validator(schema | components).validate(example)
                assert {"409", "412", "413", "415"} <= set(operation["responses"]), (path, method)
    assert commands == 21


async def test_examples_of_the_document_are_taken(schedule: Api) -> None:
    schemas = schedule.app.openapi()["components"]["schemas"]
    example = {name: schema["examples"][0] for name, schema in schemas.items() if "examples" in schema}
    trip = (await schedule.done("/schedule/trips", example["PlanTrip"]))["id"]
    stop = (await schedule.done(f"/schedule/trips/{trip}/stops", example["AddStop"]))["id"]
    flight = (await schedule.done(f"/schedule/trips/{trip}/movements", example["AddMovement"]))["id"]
    meeting = (await schedule.done(f"/schedule/trips/{trip}/meetings", example["ScheduleMeeting"] | {"stop": stop}))[
        "id"
    ]
    await schedule.done(f"/schedule/stops/{stop}/change", example["ChangeStop"])
    await schedule.done(f"/schedule/movements/{flight}/change", example["ChangeMovement"])
    await schedule.done(f"/schedule/movements/{flight}/wheels-up", example["Wheels"])
    for verb, name in (
        ("reschedule", "RescheduleMeeting"),
        ("move", "MoveMeeting"),
        ("revise", "ReviseMeeting"),
        ("cancel", "Reason"),
    ):
        await schedule.done(f"/schedule/meetings/{meeting}/{verb}", example[name])
    await schedule.done(f"/schedule/stops/{stop}/drop", example["Drop"])


# -- read models --------------------------------------------------------------------------------------------------


async def drift(api: Api) -> list[str]:
    """All that `verify` finds, in the log and in the read models."""
    async with api.engine.connect() as connection, connection.begin():
        checks = (api.desk.store.damage, MODELS.drift)
        return [line for check in checks async for line in check(connection)]


async def tables(api: Api) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table: await api.rows(f"SELECT * FROM {table} ORDER BY id")
        for table in ("trips", "stops", "movements", "meetings")
    }


async def history(api: Api, generator: random.Random, steps: int) -> int:
    """Random commands on a trip, some of them refused; returns how many were not."""
    await tell_of(api, HOSTS)
    await plan(api)
    ids = {"stops": [TOKYO, SEOUL], "movements": [FLIGHT], "meetings": [TALKS, DINNER]}
    done = 0

    def hour(day: int) -> str:
        return f"2023-11-{day:02}T{generator.randrange(24):02}:{generator.choice((0, 15, 30))}0"[:16]

    def command() -> tuple[str, Any]:
        kind = generator.choice(["stops", "movements", "meetings", "meetings", "meetings"])
        verbs: dict[str, list[tuple[str, Any]]] = {
            "stops": [
                ("change", {"departs": hour(8), "assumed": generator.random() < 0.5}),
                ("change", {"host": generator.choice([HOSTS, None]), "place": generator.choice(["Kyoto", "Tōkyō"])}),
                ("drop", {}),
            ],
            "movements": [
                ("change", {"departs": hour(8), "hard": generator.random() < 0.5}),
                ("wheels-up", {"at": f"{hour(8)}:00Z"}),
                ("wheels-down", {"at": f"{hour(8)}:30+05:30"}),
                ("drop", {"reason": "none"}),
            ],
            "meetings": [
                ("reschedule", {"start": hour(7), "duration": generator.choice(["PT20M", "PT2H"])}),
                ("move", {"venue": {"name": "V", "geo": [generator.uniform(-90, 90), -0.0]}}),
                ("revise", {"title": generator.choice(["Ä", "B"]), "notes": generator.choice([None, "n"])}),
                ("confirm", {}),
                ("cancel", {"reason": "r"}),
                ("reinstate", {}),
                ("invite-delegation", {"delegation": HOSTS}),
                ("uninvite-delegation", {"delegation": HOSTS}),
            ],
        }
        if generator.random() < 0.2:
            new = str(UUID(int=generator.getrandbits(128), version=4))
            bodies = {
                "stops": IN_SEOUL | {"arrives": hour(5), "departs": hour(6)},
                "movements": TO_SEOUL,
                "meetings": NEW | {"start": hour(7)},
            }
            ids[kind].append(new)
            return f"/schedule/trips/{TRIP}/{kind}", bodies[kind] | {"id": new}
        verb, body = generator.choice(verbs[kind])
        return f"/schedule/{kind}/{generator.choice(ids[kind])}/{verb}", body

    for _ in range(steps):
        path, body = command()
        response = await api.post(path, body)
        assert response.status_code < 500
        done += response.status_code < 300
    return done


async def test_read_models_are_what_the_log_folds_to(schedule: Api) -> None:
    done = await history(schedule, random.Random(20231107), 250)
    assert done > 80
    before = await tables(schedule)
    assert min(len(rows) for rows in before.values()) > 0
    assert await drift(schedule) == []
    async with schedule.engine.begin() as connection:
        await connection.execute(text("DELETE FROM stops WHERE id = CAST(:id AS uuid)"), {"id": SEOUL})
        await connection.execute(
            text("UPDATE meetings SET thing = jsonb_set(thing, '{title}', '\"x\"') WHERE id = CAST(:id AS uuid)"),
            {"id": TALKS},
        )
        await connection.execute(
            text("UPDATE movements SET departs_at = now() WHERE id = CAST(:id AS uuid)"), {"id": FLIGHT}
        )
        await connection.execute(
            text("INSERT INTO trips SELECT CAST(:id AS uuid), status, starts_on, revision, thing FROM trips"),
            {"id": NOBODY},
        )
    assert sorted(await drift(schedule)) == sorted(
        [
            f"stop {SEOUL}: the log has it, the read model has not",
            f"meeting {TALKS}: the read model is not what the log folds to",
            f"movement {FLIGHT}: the read model is not what the log folds to",
            f"trip {NOBODY}: the read model has it, the log has not",
        ]
    )
    async with schedule.engine.begin() as connection:
        assert await MODELS.rebuild(connection) == sum(len(rows) for rows in before.values())
    assert await tables(schedule) == before
    assert await drift(schedule) == []


async def test_commands_go_on_while_read_models_are_rebuilt(schedule: Api) -> None:
    await plan(schedule)

    async def rebuild() -> None:
        for _ in range(10):
            async with schedule.engine.begin() as connection:
                await MODELS.rebuild(connection)

    async def command(number: int) -> int:
        body = {"start": f"2023-11-07T{10 + number % 8}:30:00"}
        return (await schedule.post(f"/schedule/meetings/{TALKS}/reschedule", body)).status_code

    rebuilding = asyncio.create_task(rebuild())
    statuses = [await command(number) for number in range(40)]
    await rebuilding
    assert set(statuses) == {200}
    assert await drift(schedule) == []


# -- retiming -----------------------------------------------------------------------------------------------------


async def test_retiming_tells_of_what_moved_and_of_nothing_else(schedule: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Japan puts its clocks forward by an hour in a release of the database that nobody has made yet."""
    await plan(schedule)
    before = await schedule.events()
    monkeypatch.setattr(wall_time, "tz_release", lambda: "2099z")
    resolve = wall_time._candidates

    def candidates(wall: datetime, place: Any) -> tuple[datetime, datetime]:
        first, second = resolve(wall, place)
        hour = timedelta(hours=place.key == "Asia/Tokyo")
        return first - hour, second - hour

    monkeypatch.setattr(wall_time, "_candidates", candidates)
    walls: dict[tuple[datetime, str], datetime] = {
        (candidates(wall, zone)[0], zone.key): wall
        for wall, zone in [
            (datetime.fromisoformat(text), wall_time.check_zone(name))
            for text, name in [
                ("2023-11-07T10:00:00", "Asia/Tokyo"),
                ("2023-11-08T17:00:00", "Asia/Tokyo"),
                ("2023-11-08T17:10:00", "Asia/Tokyo"),
                ("2023-11-07T18:25:00", "Asia/Tokyo"),
                ("2023-11-07T19:30:00", "Asia/Tokyo"),
                ("2023-11-08T19:20:00", "Asia/Seoul"),
                ("2023-11-08T19:30:00", "Asia/Seoul"),
                ("2023-11-09T15:00:00", "Asia/Seoul"),
            ]
        ]
    }
    monkeypatch.setattr(wall_time, "_wall", lambda instant, place: walls[instant, place.key])
    # as seen after the arrival in Tokyo: what is past stays
    now = datetime(2023, 11, 7, 1, 30, tzinfo=UTC)
    moved = await retime_trip(schedule.desk, UUID(TRIP), now)
    told = (await schedule.events())[len(before) :]
    assert moved == len(told) == 4
    assert [(event.type, event.stream, sorted(event.data.changed)) for event in told] == [
        ("StopRetimed.v1", f"stop/{TOKYO}", ["departs_at", "tz"]),
        ("MovementRetimed.v1", f"movement/{FLIGHT}", ["departs_at", "tz"]),
        ("MeetingRetimed.v1", f"meeting/{TALKS}", ["ends_at", "starts_at", "tz"]),
        ("MeetingRetimed.v1", f"meeting/{DINNER}", ["ends_at", "starts_at", "tz"]),
    ]
    assert {(event.metadata["actor"], event.open_sequence is not None) for event in told} == {("retime", True)}
    assert len({event.metadata["correlation_id"] for event in told}) == 1
    shown = (await schedule.get(f"/schedule/meetings/{TALKS}")).json()
    assert (shown["start"], shown["starts_at"], shown["tz"]) == ("2023-11-07T18:25:00", "2023-11-07T08:25:00Z", "2099z")
    assert await retime_trip(schedule.desk, UUID(TRIP), now) == 0
    assert await drift(schedule) == []
