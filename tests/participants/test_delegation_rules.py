"""The rules of a delegation: its name, its head, its order of precedence."""

from dataclasses import replace
from functools import reduce
from typing import get_args
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from services.participants.delegation import (
    EVENTS,
    NAME,
    Command,
    Delegation,
    DelegationChange,
    DelegationDissolved,
    DelegationKind,
    DelegationRegistered,
    DelegationRenamed,
    DissolveDelegation,
    Event,
    HeadNamed,
    MemberFunction,
    MembersReordered,
    NameHead,
    RegisterDelegation,
    RenameDelegation,
    ReorderMembers,
    decide,
    enrol,
    evolve,
    registered,
    strike,
)
from shared.errors import Invalid, NotFound, ReasonMissing, Refusal, WrongState

TRIP = UUID("11111111-0000-4000-8000-000000000001")
OURS = UUID("33333333-0000-4000-8000-000000000001")
ANN = UUID("66666666-0000-4000-8000-000000000001")
BEN = UUID("66666666-0000-4000-8000-000000000002")
CLO = UUID("66666666-0000-4000-8000-000000000003")
STRANGER = UUID("66666666-0000-4000-8000-000000000009")

REGISTER = RegisterDelegation(trip=TRIP, delegation=OURS, name="Department of State", kind="own")
REGISTERED = DelegationRegistered(
    trip=TRIP,
    delegation=OURS,
    whole={
        "name": "Department of State",
        "kind": "own",
        "status": "registered",
        "head": None,
        "order": (),
        "reason": None,
    },
)


def reordered(before: tuple[UUID, ...], after: tuple[UUID, ...]) -> MembersReordered:
    return MembersReordered(trip=TRIP, delegation=OURS, changed={"order": after}, was={"order": before})


def named(before: UUID | None, after: UUID) -> HeadNamed:
    return HeadNamed(trip=TRIP, delegation=OURS, changed={"head": after}, was={"head": before})


STAFFED: tuple[Event, ...] = (
    REGISTERED,
    reordered((), (ANN,)),
    named(None, ANN),
    reordered((ANN,), (ANN, BEN)),
    reordered((ANN, BEN), (ANN, BEN, CLO)),
)
DISSOLVED = DelegationDissolved(
    trip=TRIP,
    delegation=OURS,
    changed={"status": "dissolved", "head": None, "order": (), "reason": "Merged with the embassy"},
    was={"status": "registered", "head": ANN, "order": (ANN, BEN, CLO), "reason": None},
)
RENAME = RenameDelegation(delegation=OURS, name="State and Defense")
DISSOLVE = DissolveDelegation(delegation=OURS, reason=" Merged with the embassy ")
REORDER = ReorderMembers(delegation=OURS, members=(CLO, ANN, BEN))
HEAD = NameHead(delegation=OURS, member=BEN)


def fold(*events: Event) -> Delegation:
    delegation = reduce(evolve, events, None)
    assert delegation is not None
    return delegation


def when(command: Command, *given: Event) -> list[Event]:
    return decide(command, fold(*given) if given else None)


def refused(kind: type[Refusal], command: Command, *given: Event) -> Refusal:
    with pytest.raises(kind) as refusal:
        when(command, *given)
    assert type(refusal.value) is kind
    return refusal.value


def test_delegation_is_registered_once_without_members() -> None:
    assert when(REGISTER) == [REGISTERED]
    refused(WrongState, REGISTER, REGISTERED)


@pytest.mark.parametrize("kind", get_args(DelegationKind))
def test_delegation_of_each_kind_is_registered(kind: DelegationKind) -> None:
    assert when(replace(REGISTER, kind=kind)) == [replace(REGISTERED, whole=REGISTERED.whole | {"kind": kind})]


def test_delegation_has_a_name() -> None:
    for refusal in (
        refused(Invalid, replace(REGISTER, name=" ")),
        refused(Invalid, replace(RENAME, name=""), REGISTERED),
    ):
        assert refusal.members["errors"][0]["loc"] == ["body", "name"]


def test_delegation_is_renamed() -> None:
    assert when(RENAME, *STAFFED) == [
        DelegationRenamed(
            trip=TRIP,
            delegation=OURS,
            changed={"name": "State and Defense"},
            was={"name": "Department of State"},
        )
    ]
    assert when(replace(RENAME, name="Department of State"), *STAFFED) == []


def test_head_is_a_live_member() -> None:
    assert when(HEAD, *STAFFED) == [named(ANN, BEN)]
    assert when(replace(HEAD, member=ANN), *STAFFED) == []
    refusal = refused(Invalid, replace(HEAD, member=STRANGER), *STAFFED)
    assert refusal.members["errors"][0]["loc"] == ["body", "member"]
    refused(Invalid, HEAD, *STAFFED, reordered((ANN, BEN, CLO), (ANN, CLO)))


def test_members_are_reordered() -> None:
    assert when(REORDER, *STAFFED) == [reordered((ANN, BEN, CLO), (CLO, ANN, BEN))]
    assert when(replace(REORDER, members=(ANN, BEN, CLO)), *STAFFED) == []


@pytest.mark.parametrize(
    "members", [(), (ANN, BEN), (ANN, BEN, CLO, STRANGER), (ANN, BEN, STRANGER), (ANN, BEN, BEN), (ANN, BEN, CLO, CLO)]
)
def test_members_are_reordered_only_all_of_them_and_each_once(members: tuple[UUID, ...]) -> None:
    refusal = refused(Invalid, replace(REORDER, members=members), *STAFFED)
    assert refusal.members["errors"][0]["loc"] == ["body", "members"]


def test_delegation_is_dissolved_with_its_reason_and_without_members() -> None:
    assert when(DISSOLVE, *STAFFED) == [DISSOLVED]


def test_delegation_without_members_is_dissolved_too() -> None:
    assert when(DISSOLVE, REGISTERED) == [
        DelegationDissolved(
            trip=TRIP,
            delegation=OURS,
            changed={"status": "dissolved", "reason": "Merged with the embassy"},
            was={"status": "registered", "reason": None},
        )
    ]


@pytest.mark.parametrize("reason", ["", " \n"])
def test_delegation_is_not_dissolved_without_a_reason(reason: str) -> None:
    refused(ReasonMissing, replace(DISSOLVE, reason=reason), *STAFFED)


@pytest.mark.parametrize("command", [RENAME, HEAD, REORDER, DISSOLVE], ids=lambda command: type(command).__name__)
def test_delegation_that_is_dissolved_or_was_never_registered_takes_no_command(command: Command) -> None:
    assert refused(WrongState, command, *STAFFED, DISSOLVED).members == {"state": "dissolved"}
    refused(NotFound, command)


@pytest.mark.parametrize("event", [STAFFED[1], DISSOLVED])
def test_delegation_that_was_never_registered_has_no_history(event: Event) -> None:
    with pytest.raises(LookupError):
        fold(event)


def test_new_member_stands_at_the_end_of_the_order() -> None:
    assert enrol(fold(*STAFFED[:4]), CLO, "interpreter") == [STAFFED[4]]


def test_first_member_with_the_function_head_leads() -> None:
    assert enrol(fold(REGISTERED), ANN, "head") == [reordered((), (ANN,)), named(None, ANN)]
    headless = fold(*STAFFED[:2])
    assert enrol(headless, ANN, "head") == [named(None, ANN)]  # a member who becomes the head keeps the place
    assert enrol(headless, ANN, "principal") == []


def test_member_with_the_function_head_does_not_take_the_lead_from_another() -> None:
    assert enrol(fold(*STAFFED), BEN, "head") == []
    assert enrol(fold(*STAFFED), ANN, "head") == []


def test_withdrawn_member_loses_the_place_in_the_order() -> None:
    assert strike(fold(*STAFFED), BEN) == [reordered((ANN, BEN, CLO), (ANN, CLO))]
    assert strike(fold(*STAFFED), STRANGER) == []


def test_withdrawn_head_leaves_the_delegation_without_one() -> None:
    events = strike(fold(*STAFFED), ANN)
    assert events == [
        MembersReordered(
            trip=TRIP,
            delegation=OURS,
            changed={"order": (BEN, CLO), "head": None},
            was={"order": (ANN, BEN, CLO), "head": ANN},
        )
    ]
    assert when(HEAD, *STAFFED, *events) == [named(None, BEN)]


def test_delegation_is_the_fold_of_its_events() -> None:
    assert fold(*STAFFED) == Delegation(
        id=OURS,
        trip=TRIP,
        revision=5,
        name="Department of State",
        kind="own",
        status="registered",
        head=ANN,
        order=(ANN, BEN, CLO),
        reason=None,
    )
    assert fold(*STAFFED, DISSOLVED) == Delegation(
        id=OURS,
        trip=TRIP,
        revision=6,
        name="Department of State",
        kind="own",
        status="dissolved",
        head=None,
        order=(),
        reason="Merged with the embassy",
    )


def test_delegation_that_is_registered_takes_commands() -> None:
    assert registered(fold(*STAFFED)) == fold(*STAFFED)


EXAMPLES: list[Event] = [REGISTERED, *when(RENAME, *STAFFED), named(None, ANN), *strike(fold(*STAFFED), ANN), DISSOLVED]


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_delegation_event_survives_json(event: Event) -> None:
    adapter: TypeAdapter[Event] = TypeAdapter(type(event))
    again = adapter.validate_json(adapter.dump_json(event))
    assert (type(again), again) == (type(event), event)
    if isinstance(event, DelegationChange):
        assert isinstance(again, DelegationChange)
        assert (again.changed.keys(), again.was.keys()) == (event.changed.keys(), event.was.keys())


def test_delegation_events_are_all_named_for_the_store_and_tried() -> None:
    assert NAME == "delegation"
    assert tuple(type(event) for event in EXAMPLES) == EVENTS


def test_kinds_and_functions_are_those_of_the_trade() -> None:
    assert get_args(DelegationKind) == ("own", "host", "partner", "press")
    assert get_args(MemberFunction) == (
        "head",
        "principal",
        "member",
        "interpreter",
        "note-taker",
        "press",
        "security",
        "staff",
    )


PEOPLE = [ANN, BEN, CLO, STRANGER]


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "withdraw", "head"]), st.sampled_from(PEOPLE), st.booleans()), max_size=20
    )
)
def test_order_is_always_the_live_members_and_the_head_one_of_them(steps: list[tuple[str, UUID, bool]]) -> None:
    delegation, live = fold(REGISTERED), set[UUID]()
    for step, member, leads in steps:
        events: list[Event] = []
        if step == "add" and member not in live:
            function: MemberFunction = "head" if leads else "member"
            events, live = enrol(delegation, member, function), live | {member}
        elif step == "withdraw" and member in live:
            events, live = strike(delegation, member), live - {member}
        elif step == "head" and member in live:
            events = decide(NameHead(delegation=OURS, member=member), delegation)
        after = reduce(evolve, events, delegation)
        assert (after.id, after.trip, after.revision) == (OURS, TRIP, delegation.revision + len(events))
        delegation = after
        assert sorted(delegation.order) == sorted(live)
        assert delegation.head is None or delegation.head in live
