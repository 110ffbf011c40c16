"""The participants' API: every command with its whole answer, what follows in the same act, refusals, lists, tags."""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from uuid import UUID, uuid4

import jsonschema
import pytest
from sqlalchemy import text

from services.participants.projections import MODELS
from services.schedule.trip import Place, TripCancelled, TripPlanned
from shared.command import WAIT_SECONDS
from shared.problems import STATUS
from tests.running_api import Api

TRIP = "11111111-1111-4111-8111-111111111111"
HOSTS = "55555555-5555-4555-8555-555555555551"
PRESS = "55555555-5555-4555-8555-555555555552"
DANA = "66666666-6666-4666-8666-666666666661"
KENJI = "66666666-6666-4666-8666-666666666662"
MIRA = "66666666-6666-4666-8666-666666666663"
PERSON = "77777777-7777-4777-8777-777777777771"
NOBODY = "99999999-9999-4999-8999-999999999999"

DELEGATIONS = f"/participants/trips/{TRIP}/delegations"
MEMBERS = f"/participants/delegations/{HOSTS}/members"
HOST = {"id": HOSTS, "name": "Host delegation of Japan — 日本", "kind": "host"}
EMPTY: dict[str, Any] = {"trip": TRIP, "status": "registered", "head": None, "order": [], "reason": None}


async def tell_of_trip(api: Api, trip: str = TRIP, *, cancelled: bool = False) -> None:
    """The schedule service planned (and cancelled) a trip, and this one has heard of it."""
    whole: Any = {
        "title": "Tokyo",
        "principals": ("Secretary of State",),
        "home": Place(place="Washington", zone="America/New_York"),
        "starts_on": date(2023, 11, 2),
        "ends_on": date(2023, 11, 10),
        "status": "planned",
        "reason": None,
    }
    await api.bus.tell(TripPlanned(trip=UUID(trip), whole=whole))
    if cancelled:
        changed: Any = {"status": "cancelled", "reason": "war"}
        was: Any = {"status": "planned", "reason": None}
        await api.bus.tell(TripCancelled(trip=UUID(trip), changed=changed, was=was))
    status = "cancelled" if cancelled else "planned"

    async def heard() -> bool:
        return (UUID(trip), status) in await api.rows("SELECT id, status FROM known_trips")

    await api.until(heard)


def member(of: str, function: str, name: str = "Dana Whitfield", **more: Any) -> dict[str, Any]:
    return {"id": of, "function": function, "personal": {"name": name}} | more


async def shown(api: Api, path: str) -> tuple[dict[str, Any], str]:
    response = await api.get(path)
    assert response.status_code == 200
    assert (await api.get(path, If_None_Match=response.headers["etag"])).status_code == 304
    return response.json(), response.headers["etag"]


async def roster(api: Api) -> None:
    """A delegation with a head, an interpreter and a member, in this order."""
    await tell_of_trip(api)
    await api.done(DELEGATIONS, HOST)
    await api.done(MEMBERS, member(DANA, "head", "Dana Whitfield"))
    await api.done(MEMBERS, member(KENJI, "interpreter", "Kenji Ōta"))
    await api.done(MEMBERS, member(MIRA, "member", "Mira Vos"))


# -- every command ------------------------------------------------------------------------------------------------


async def test_delegation_is_registered_and_renamed(participants: Api) -> None:
    await tell_of_trip(participants)
    response = await participants.post(DELEGATIONS, HOST)
    assert (response.status_code, response.headers["location"], response.headers["etag"]) == (
        201,
        f"/participants/delegations/{HOSTS}",
        '"1"',
    )
    assert response.json() == HOST | EMPTY
    assert await shown(participants, f"/participants/delegations/{HOSTS}") == (HOST | EMPTY, '"1"')
    renamed = await participants.post(f"/participants/delegations/{HOSTS}/rename", {"name": "Hosts"})
    assert (renamed.status_code, renamed.headers["etag"]) == (200, '"2"')
    assert renamed.json() == HOST | EMPTY | {"name": "Hosts"}
    again = await participants.post(f"/participants/delegations/{HOSTS}/rename", {"name": "Hosts"})
    assert (again.json(), again.headers["etag"]) == (renamed.json(), '"2"')


async def test_members_are_added_changed_and_withdrawn_and_the_delegation_follows(participants: Api) -> None:
    await tell_of_trip(participants)
    await participants.done(DELEGATIONS, HOST)
    address = f"/participants/members/{DANA}"
    personal = {"name": "Dana Whitfield", "title": "Ambassador", "contact": "+1 202 555 0100"}
    body = {"id": DANA, "person": PERSON, "function": "head", "personal": personal}
    response = await participants.post(MEMBERS, body)
    thing = body | {"trip": TRIP, "delegation": HOSTS, "status": "on-roster", "reason": None}
    assert (response.status_code, response.headers["location"], response.headers["etag"]) == (201, address, '"1"')
    assert response.json() == thing
    assert await shown(participants, address) == (thing, '"1"')
    # the first head leads; the delegation's tag counts what became of it, in the same act
    led = HOST | EMPTY | {"order": [DANA], "head": DANA}
    assert await shown(participants, f"/participants/delegations/{HOSTS}") == (led, '"3"')
    await participants.done(MEMBERS, member(KENJI, "interpreter"))
    short = {"name": "Dana Whitfield", "title": None, "contact": None}
    changed = await participants.post(f"{address}/change", {"personal": {"name": "Dana Whitfield"}})
    assert (changed.json(), changed.headers["etag"]) == (thing | {"personal": short}, '"2"')
    changed = await participants.post(f"{address}/change", {"function": "principal"})
    assert (changed.json(), changed.headers["etag"]) == (thing | {"personal": short, "function": "principal"}, '"3"')
    gone = await participants.post(f"{address}/withdraw", {"reason": "ill"})
    left = thing | {"personal": short, "function": "principal", "status": "withdrawn", "reason": "ill"}
    assert (gone.json(), gone.headers["etag"]) == (left, '"4"')
    assert await shown(participants, address) == (left, '"4"')
    without = HOST | EMPTY | {"order": [KENJI]}
    assert await shown(participants, f"/participants/delegations/{HOSTS}") == (without, '"5"')


async def test_head_is_named_and_functions_follow_in_the_same_act(participants: Api) -> None:
    await roster(participants)
    before = await participants.events()
    named = await participants.done(f"/participants/delegations/{HOSTS}/name-head", {"member": MIRA})
    assert (named["head"], named["order"]) == (MIRA, [DANA, KENJI, MIRA])
    functions = [
        (await participants.get(f"/participants/members/{one}")).json()["function"] for one in (DANA, KENJI, MIRA)
    ]
    assert functions == ["member", "interpreter", "head"]
    act = (await participants.events())[len(before) :]
    assert [(event.type, event.stream) for event in act] == [
        ("HeadNamed.v1", f"delegation/{HOSTS}"),
        ("MemberChanged.v1", f"member/{DANA}"),
        ("MemberChanged.v1", f"member/{MIRA}"),
    ]
    assert len({event.metadata["correlation_id"] for event in act}) == 1
    ordered = await participants.done(f"/participants/delegations/{HOSTS}/reorder", {"members": [MIRA, DANA, KENJI]})
    assert ordered["order"] == [MIRA, DANA, KENJI]


async def test_dissolved_delegation_withdraws_its_members_in_the_same_act(participants: Api) -> None:
    await roster(participants)
    await participants.done(f"/participants/members/{KENJI}/withdraw", {"reason": "stays in Tokyo"})
    before = await participants.events()
    dissolved = await participants.done(f"/participants/delegations/{HOSTS}/dissolve", {"reason": "not needed"})
    assert dissolved == HOST | EMPTY | {"status": "dissolved", "reason": "not needed"}
    act = (await participants.events())[len(before) :]
    assert [(event.type, event.stream) for event in act] == [
        ("DelegationDissolved.v1", f"delegation/{HOSTS}"),
        ("MemberWithdrawn.v1", f"member/{DANA}"),
        ("MemberWithdrawn.v1", f"member/{MIRA}"),
    ]
    listed = (await participants.get(MEMBERS)).json()["items"]
    assert {(item["id"], item["status"], item["reason"]) for item in listed} == {
        (DANA, "withdrawn", "not needed"),
        (KENJI, "withdrawn", "stays in Tokyo"),
        (MIRA, "withdrawn", "not needed"),
    }


async def test_personal_data_stands_in_its_one_place(participants: Api) -> None:
    """In events, too: whoever seals or erases `personal` has sealed or erased all of it."""
    await tell_of_trip(participants)
    await participants.done(DELEGATIONS, HOST)
    personal = {"name": "Canary Name", "title": "Canary Title", "contact": "Canary Contact"}
    await participants.done(MEMBERS, member(DANA, "head") | {"personal": personal})
    await participants.done(f"/participants/members/{DANA}/change", {"personal": personal | {"contact": None}})
    rows = await participants.rows(
        "SELECT data::text, (data #- '{whole,personal}' #- '{changed,personal}' #- '{was,personal}')::text FROM events"
    )
    assert sum("Canary" in whole for whole, _ in rows) == 2
    assert [rest for _, rest in rows if "Canary" in rest] == []
    told = [event for event in await participants.events() if event.type == "MemberChanged.v1"]
    assert [event.open_sequence for event in told] == [None]


async def test_lists_are_in_order_and_paged_by_a_cursor(participants: Api) -> None:
    await roster(participants)
    await participants.done(DELEGATIONS, {"id": PRESS, "name": "A press pool", "kind": "press"})
    whole = (await participants.get(DELEGATIONS)).json()
    assert ([item["id"] for item in whole["items"]], whole["next"]) == ([PRESS, HOSTS], None)
    first = (await participants.get(f"{MEMBERS}?limit=2")).json()
    rest = (await participants.get(f"{MEMBERS}?limit=2&cursor={first['next']}")).json()
    assert ([item["id"] for item in first["items"]], [item["id"] for item in rest["items"]]) == ([DANA, KENJI], [MIRA])
    assert rest["next"] is None
    for item in (*first["items"], *rest["items"]):
        assert item == (await participants.get(f"/participants/members/{item['id']}")).json()
    assert (await participants.get(f"/participants/trips/{NOBODY}/delegations")).json() == {"items": [], "next": None}


# -- refusals -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    slug: str
    path: str
    body: Any = None
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    members: Mapping[str, Any] = field(default_factory=dict)


CASES = [
    Case(slug="token-missing", path=DELEGATIONS, method="GET", headers={"Authorization": ""}),
    Case(slug="scope-missing", path=DELEGATIONS, body=HOST, headers={"Authorization": "staff"}),
    Case(slug="not-found", path=f"/participants/delegations/{NOBODY}/rename", body={"name": "N"}),
    Case(slug="not-found", path=f"/participants/delegations/{NOBODY}/members", body=member(NOBODY, "staff")),
    Case(slug="not-found", path=f"/participants/delegations/{NOBODY}/members", method="GET"),
    Case(slug="not-found", path=f"/participants/members/{NOBODY}/withdraw"),
    Case(slug="not-found", path=f"/participants/members/{NOBODY}", method="GET"),
    Case(
        slug="wrong-state",
        path=MEMBERS,
        body=member(NOBODY, "head"),
        members={"head": DANA},
    ),
    Case(slug="wrong-state", path=DELEGATIONS, body=HOST, members={"state": "registered"}),
    Case(slug="wrong-state", path=MEMBERS, body=member(DANA, "staff"), members={"state": "on-roster"}),
    Case(
        slug="stale-version",
        path=f"/participants/members/{MIRA}/withdraw",
        headers={"If-Match": '"9"'},
        members={"given": '"9"', "current": '"1"'},
    ),
    Case(slug="reason-missing", path=f"/participants/delegations/{HOSTS}/dissolve"),
    Case(slug="invalid", path=f"/participants/delegations/{HOSTS}/name-head", body={"member": NOBODY}),
    Case(slug="invalid", path=f"/participants/delegations/{HOSTS}/reorder", body={"members": [DANA, KENJI]}),
    Case(slug="invalid", path=f"/participants/members/{MIRA}/change", body={"personal": None}),
    Case(slug="invalid", path=f"/participants/members/{MIRA}/change", body={"personal": {"name": "\u2003"}}),
    Case(slug="invalid", path=f"/participants/members/{MIRA}/change", body={"function": "boss"}),
    Case(slug="invalid", path=f"/participants/members/{MIRA}/change", body={"person": PERSON}),
    Case(slug="invalid", path=DELEGATIONS, body={"name": "N", "kind": "friends"}),
    Case(slug="invalid", path=f"{MEMBERS}?cursor=bm9uc2Vuc2U", method="GET"),
    Case(
        slug="not-yet-known",
        path=f"/participants/trips/{NOBODY}/delegations",
        body={"name": "N", "kind": "own"},
        members={"trip": NOBODY},
    ),
]


async def test_every_refusal_has_its_status_and_members_and_does_nothing(participants: Api) -> None:
    await roster(participants)
    staff = participants.token("staff", name="staff-1")

    async def known() -> bool:
        return (await participants.get(DELEGATIONS, Authorization=staff)).status_code == 200

    await participants.until(known)
    before = await participants.events()
    for case in CASES:
        headers = {name: staff if value == "staff" else value for name, value in case.headers.items()}
        response = await participants.call(case.method, case.path, headers=headers, json=case.body)
        problem = response.json()
        assert (problem.get("slug"), response.status_code) == (case.slug, STATUS[case.slug]), (case, problem)
        assert {name: problem[name] for name in case.members} == case.members
        assert ("retry-after" in response.headers) == (case.slug == "not-yet-known")
    assert await participants.events() == before


async def test_dissolved_delegation_and_withdrawn_member_take_no_commands(participants: Api) -> None:
    await roster(participants)
    await participants.done(f"/participants/members/{KENJI}/withdraw")
    again = await participants.post(f"/participants/members/{KENJI}/change", {"function": "staff"})
    assert (again.status_code, again.json()["slug"], again.json()["state"]) == (409, "wrong-state", "withdrawn")
    await participants.done(f"/participants/delegations/{HOSTS}/dissolve", {"reason": "not needed"})
    for path, body in (
        (f"/participants/delegations/{HOSTS}/rename", {"name": "N"}),
        (f"/participants/delegations/{HOSTS}/dissolve", {"reason": "again"}),
        (MEMBERS, member(NOBODY, "staff")),
        (f"/participants/members/{MIRA}/change", {"function": "staff"}),
    ):
        response = await participants.post(path, body)
        assert (response.status_code, response.json()["slug"]) == (409, "wrong-state"), path


# -- what other services tell -------------------------------------------------------------------------------------


async def test_trip_is_waited_for(participants: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    refused = await participants.post(DELEGATIONS, HOST)
    assert (refused.status_code, refused.json()["slug"], refused.headers["retry-after"]) == (409, "not-yet-known", "1")
    assert WAIT_SECONDS <= time.monotonic() - began < WAIT_SECONDS + 60
    monkeypatch.setattr("shared.command.WAIT_SECONDS", 60)  # for a trip that does come
    waiting = asyncio.create_task(participants.post(DELEGATIONS, HOST))
    await tell_of_trip(participants)
    assert (await waiting).status_code == 201


async def test_cancelled_trip_takes_no_delegation_but_gives_first_answers_again(participants: Api) -> None:
    await tell_of_trip(participants)
    first = await participants.post(DELEGATIONS, HOST, Idempotency_Key="host-1")
    changed: Any = {"status": "cancelled", "reason": "war"}
    was: Any = {"status": "planned", "reason": None}
    await participants.bus.tell(TripCancelled(trip=UUID(TRIP), changed=changed, was=was))

    async def heard() -> bool:
        return await participants.rows("SELECT status FROM known_trips") == [("cancelled",)]

    await participants.until(heard)
    again = await participants.post(DELEGATIONS, HOST, Idempotency_Key="host-1")
    assert (again.status_code, again.json(), again.headers["location"]) == (
        201,
        first.json(),
        first.headers["location"],
    )
    refused = await participants.post(DELEGATIONS, HOST | {"id": PRESS})
    assert (refused.status_code, refused.json()["slug"], refused.json()["state"]) == (409, "wrong-state", "cancelled")


# -- the document and the read models -----------------------------------------------------------------------------


async def test_document_is_complete_and_its_examples_are_taken(participants: Api) -> None:
    openapi = participants.app.openapi()
    schemas = openapi["components"]["schemas"]
    commands = 0
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            good = [status for status in operation["responses"] if status < "400"]
            if "probes" not in operation["tags"]:
                assert {"401", "403", "404", "422", "503"} <= set(operation["responses"]), (path, method)
                assert operation["responses"][good[0]]["content"]["application/json"]["schema"], (path, method)
            if method == "post":
                commands += 1
                content = operation["requestBody"]["content"]["application/json"]["schema"]
                name = (content.get("$ref") or content["anyOf"][0]["$ref"]).rsplit("/", 1)[1]
                (example,) = schemas[name]["examples"]
                whole = schemas[name] | {"components": openapi["components"]}
                jsonschema.Draft202012Validator(whole).validate(example)
    assert commands == 8
    example = {name: schema["examples"][0] for name, schema in schemas.items() if "examples" in schema}
    await tell_of_trip(participants)
    delegation = (await participants.done(DELEGATIONS, example["RegisterDelegation"]))["id"]
    address = f"/participants/delegations/{delegation}"
    await participants.done(f"{address}/rename", example["RenameDelegation"])
    order = example["ReorderMembers"]["members"]
    for one in order:
        await participants.done(f"{address}/members", example["AddMember"] | {"id": one})
    await participants.done(f"{address}/reorder", {"members": order[::-1]})
    await participants.done(f"{address}/name-head", example["NameHead"])
    await participants.done(f"/participants/members/{order[0]}/change", example["ChangeMember"])
    await participants.done(f"/participants/members/{order[0]}/withdraw", example["Withdraw"])


async def drift(api: Api) -> list[str]:
    async with api.engine.connect() as connection, connection.begin():
        checks = (api.desk.store.damage, MODELS.drift)
        return [line for check in checks async for line in check(connection)]


async def test_read_models_are_what_the_log_folds_to(participants: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await roster(participants)
    generator = random.Random(20231108)
    delegations, people = [HOSTS], [DANA, KENJI, MIRA]
    done = 0
    for _ in range(150):
        of, who = generator.choice(delegations), generator.choice(people)
        new = str(UUID(int=generator.getrandbits(128), version=4))
        functions = ["head", "member", "interpreter", "staff"]
        path, body = generator.choice(
            [
                (DELEGATIONS, {"id": new, "name": generator.choice("ÄBC"), "kind": "partner"}),
                (f"/participants/delegations/{of}/members", member(new, generator.choice(functions))),
                (f"/participants/delegations/{of}/members", member(new, "member")),
                (f"/participants/delegations/{of}/rename", {"name": generator.choice("ÄBC")}),
                (f"/participants/delegations/{of}/name-head", {"member": who}),
                (f"/participants/members/{who}/change", {"function": generator.choice(functions)}),
                (f"/participants/members/{who}/change", {"personal": {"name": generator.choice(["Ä", "東"])}}),
                (f"/participants/members/{who}/withdraw", {}),
                (f"/participants/delegations/{of}/dissolve", {"reason": generator.choice(["", "r"])}),
            ]
        )
        response = await participants.post(path, body)
        assert response.status_code < 500
        if response.status_code == 201:
            (people if path.endswith("/members") else delegations).append(new)
        done += response.status_code < 300
    assert done > 60
    tables = [f"SELECT * FROM {table} ORDER BY id" for table in ("delegations", "members")]
    before = [await participants.rows(query) for query in tables]
    assert await drift(participants) == []
    async with participants.engine.begin() as connection:
        await connection.execute(text("UPDATE members SET function = 'staff' WHERE function <> 'staff'"))
    assert len(await drift(participants)) > 0
    for together in (3, 500):  # rows at a time
        monkeypatch.setattr("shared.read_models.TOGETHER", together)
        async with participants.engine.begin() as connection:
            assert await MODELS.rebuild(connection) == sum(map(len, before))
        assert [await participants.rows(query) for query in tables] == before
    assert await drift(participants) == []


async def test_member_of_another_delegation_is_not_added_again(participants: Api) -> None:
    await roster(participants)
    await participants.done(DELEGATIONS, {"id": PRESS, "name": "Press", "kind": "press"})
    taken = await participants.post(f"/participants/delegations/{PRESS}/members", member(DANA, "press"))
    assert (taken.status_code, taken.json()["slug"]) == (409, "wrong-state")
    same_person = member(str(uuid4()), "press", person=PERSON)
    assert (await participants.done(f"/participants/delegations/{PRESS}/members", same_person))["person"] == PERSON
