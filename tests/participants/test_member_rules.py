"""The rules of a member: a function on the roster, one head, and personal data in one place."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from uuid import UUID

import pytest
from pydantic import TypeAdapter

from services.participants.delegation import Delegation, MemberFunction
from services.participants.member import (
    EVENTS,
    NAME,
    AddMember,
    ChangeMember,
    Command,
    Event,
    Member,
    MemberAdded,
    MemberChange,
    MemberChanged,
    MemberFields,
    MemberPatch,
    MemberWithdrawn,
    Personal,
    WithdrawMember,
    decide,
    evolve,
    fall_with_delegation,
    follow_head,
)
from shared.errors import Invalid, NotFound, Refusal, WrongState

TRIP = UUID("11111111-0000-4000-8000-000000000001")
OURS = UUID("33333333-0000-4000-8000-000000000001")
ANN = UUID("66666666-0000-4000-8000-000000000001")
BEN = UUID("66666666-0000-4000-8000-000000000002")
PERSON = UUID("77777777-0000-4000-8000-000000000001")
PERSONAL = Personal(name="Ann Example", title="Deputy Chief of Mission", contact="+1 555 0100")
LEADERLESS = Delegation(
    id=OURS,
    trip=TRIP,
    revision=1,
    name="Embassy",
    kind="own",
    status="registered",
    head=None,
    order=(ANN, BEN),
    reason=None,
)
LED_BY_BEN = replace(LEADERLESS, head=BEN)
LED_BY_ANN = replace(LEADERLESS, head=ANN)
DISSOLVED = replace(LEADERLESS, status="dissolved", order=())

ADD = AddMember(trip=TRIP, delegation=OURS, member=ANN, person=PERSON, function="interpreter", personal=PERSONAL)
ADDED = MemberAdded(
    trip=TRIP,
    member=ANN,
    whole={
        "delegation": OURS,
        "person": PERSON,
        "function": "interpreter",
        "personal": PERSONAL,
        "status": "on-roster",
        "reason": None,
    },
)
WITHDRAWN = MemberWithdrawn(
    trip=TRIP,
    member=ANN,
    delegation=OURS,
    changed={"status": "withdrawn", "reason": "Influenza"},
    was={"status": "on-roster", "reason": None},
)
WITHDRAW = WithdrawMember(member=ANN, reason=" Influenza ")


def fold(*events: Event) -> Member:
    member = reduce(evolve, events, None)
    assert member is not None
    return member


def when(command: Command, given: Sequence[Event] = (), delegation: Delegation | None = LED_BY_BEN) -> list[Event]:
    return decide(command, fold(*given) if given else None, delegation)


def refused(
    kind: type[Refusal], command: Command, given: Sequence[Event] = (), delegation: Delegation | None = LED_BY_BEN
) -> Refusal:
    with pytest.raises(kind) as refusal:
        when(command, given, delegation)
    assert type(refusal.value) is kind
    return refusal.value


def change(changes: MemberPatch) -> ChangeMember:
    return ChangeMember(member=ANN, changes=changes)


def changed(now: MemberFields, was: MemberFields) -> MemberChanged:
    return MemberChanged(trip=TRIP, member=ANN, delegation=OURS, changed=now, was=was)


def with_function(function: MemberFunction) -> Member:
    return evolve(None, replace(ADDED, whole=ADDED.whole | {"function": function}))


def test_member_is_added_once() -> None:
    assert when(ADD) == [ADDED]
    refused(WrongState, ADD, [ADDED])


def test_member_has_a_name() -> None:
    nameless = replace(PERSONAL, name=" ")
    assert refused(Invalid, replace(ADD, personal=nameless)).members["errors"][0]["loc"] == ["body", "personal"]
    refusal = refused(Invalid, change({"personal": nameless}), [ADDED])
    assert refusal.members["errors"][0]["loc"] == ["body", "personal"]


def test_member_may_lack_title_and_contact() -> None:
    bare = Personal(name="Ann Example", title=None, contact=None)
    assert when(replace(ADD, personal=bare)) == [replace(ADDED, whole=ADDED.whole | {"personal": bare})]


def test_delegation_has_one_head() -> None:
    assert refused(WrongState, replace(ADD, function="head")).members == {"head": str(BEN)}
    assert refused(WrongState, change({"function": "head"}), [ADDED]).members == {"head": str(BEN)}
    assert len(when(replace(ADD, function="head"), delegation=LEADERLESS)) == 1
    assert len(when(change({"function": "head"}), [ADDED], LEADERLESS)) == 1
    assert len(when(change({"function": "head"}), [ADDED], LED_BY_ANN)) == 1


def test_member_changes_function_and_personal_data_with_new_and_old_values() -> None:
    married = Personal(name="Ann Sample", title=None, contact="+1 555 0199")
    assert when(change({"function": "note-taker", "personal": married}), [ADDED]) == [
        changed({"function": "note-taker", "personal": married}, {"function": "interpreter", "personal": PERSONAL})
    ]


def test_member_that_is_changed_to_what_it_is_does_not_change() -> None:
    assert when(change({}), [ADDED]) == []
    assert when(change({"function": "interpreter", "personal": replace(PERSONAL)}), [ADDED]) == []


def test_member_is_withdrawn_with_or_without_a_reason() -> None:
    assert when(WITHDRAW, [ADDED]) == [WITHDRAWN]
    for reason in (None, "", " "):
        assert when(WithdrawMember(member=ANN, reason=reason), [ADDED]) == [
            replace(WITHDRAWN, changed={"status": "withdrawn"}, was={"status": "on-roster"})
        ]


def test_head_may_withdraw() -> None:
    assert when(WITHDRAW, [ADDED], LED_BY_ANN) == [WITHDRAWN]


@pytest.mark.parametrize("command", [change({"function": "staff"}), WITHDRAW], ids=["change", "withdraw"])
def test_member_that_is_withdrawn_or_was_never_added_takes_no_command(command: Command) -> None:
    assert refused(WrongState, command, [ADDED, WITHDRAWN]).members == {"state": "withdrawn"}
    refused(NotFound, command)


def test_dissolved_or_unknown_delegation_takes_no_member_and_no_change() -> None:
    refused(WrongState, ADD, delegation=DISSOLVED)
    refused(NotFound, ADD, delegation=None)
    refused(WrongState, change({"function": "staff"}), [ADDED], DISSOLVED)
    refused(WrongState, WITHDRAW, [ADDED], DISSOLVED)


def test_function_of_a_former_and_of_a_new_head_follows_the_lead() -> None:
    assert follow_head(with_function("head"), BEN) == [changed({"function": "member"}, {"function": "head"})]
    assert follow_head(with_function("member"), ANN) == [changed({"function": "head"}, {"function": "member"})]


@pytest.mark.parametrize(
    ("function", "head"),
    [("head", ANN), ("member", BEN), ("principal", ANN), ("principal", BEN), ("interpreter", ANN), ("member", None)],
)
def test_function_of_everybody_else_stays(function: MemberFunction, head: UUID | None) -> None:
    assert follow_head(with_function(function), head) == []


def test_function_of_a_withdrawn_member_stays() -> None:
    assert follow_head(evolve(with_function("head"), WITHDRAWN), BEN) == []


def test_member_falls_with_the_delegation_unless_it_is_withdrawn() -> None:
    assert fall_with_delegation(fold(ADDED), "Merged") == [
        replace(WITHDRAWN, changed={"status": "withdrawn", "reason": "Merged"})
    ]
    assert fall_with_delegation(fold(ADDED, WITHDRAWN), "Merged") == []


def test_member_is_the_fold_of_its_events() -> None:
    promoted = changed({"function": "principal"}, {"function": "interpreter"})
    assert fold(ADDED, promoted, WITHDRAWN) == Member(
        id=ANN,
        trip=TRIP,
        revision=3,
        delegation=OURS,
        person=PERSON,
        function="principal",
        personal=PERSONAL,
        status="withdrawn",
        reason="Influenza",
    )
    with pytest.raises(LookupError):
        fold(WITHDRAWN)


def test_personal_data_stand_in_no_repr() -> None:
    shown = repr([ADD, ADDED, fold(ADDED), change({"personal": PERSONAL})])
    assert "personal" in shown
    for canary in ("Ann Example", "Deputy Chief of Mission", "+1 555 0100"):
        assert canary not in shown


EXAMPLES: list[Event] = [ADDED, *when(change({"personal": replace(PERSONAL, title=None)}), [ADDED]), WITHDRAWN]


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_member_event_survives_json(event: Event) -> None:
    adapter: TypeAdapter[Event] = TypeAdapter(type(event))
    again = adapter.validate_json(adapter.dump_json(event))
    assert (type(again), again) == (type(event), event)
    if isinstance(event, MemberChange):
        assert isinstance(again, MemberChange)
        assert (again.changed.keys(), again.was.keys()) == (event.changed.keys(), event.was.keys())


def test_member_event_as_json_has_what_is_personal_in_one_object() -> None:
    assert TypeAdapter(MemberAdded).dump_python(ADDED, mode="json")["whole"] == {
        "delegation": str(OURS),
        "person": str(PERSON),
        "function": "interpreter",
        "personal": {"name": "Ann Example", "title": "Deputy Chief of Mission", "contact": "+1 555 0100"},
        "status": "on-roster",
        "reason": None,
    }


def test_member_events_are_all_named_for_the_store_and_tried() -> None:
    assert NAME == "member"
    assert tuple(type(event) for event in EXAMPLES) == EVENTS
