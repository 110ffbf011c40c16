"""A member: a person on a delegation's roster, with a function.

What is personal of the person stands in `personal` and nowhere else, so that it can be sealed and erased as one.
`function` says in which role somebody stands on the roster; who leads is the delegation's `head`. Whoever has the
function `head` leads: a second one is refused until NameHead has decided.
"""

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, assert_never, cast, get_args
from uuid import UUID

from typing_extensions import TypedDict

from services.participants.delegation import Delegation, MemberFunction, registered
from shared.deciding import differing, optional_reason, required_text
from shared.errors import NotFound, WrongState

NAME = "member"

MemberStatus = Literal["on-roster", "withdrawn"]


@dataclass(frozen=True, kw_only=True)
class Personal:
    """Personal data; no `repr` shows it, so that it comes into no log or trace by chance."""

    name: str = field(repr=False)
    title: str | None = field(repr=False)
    contact: str | None = field(repr=False)


# Commands


class MemberPatch(TypedDict, total=False):
    """What ChangeMember sets; `personal` is replaced as one."""

    function: MemberFunction
    personal: Personal


@dataclass(frozen=True, kw_only=True)
class AddMember:
    """`person` is the same for a person on several delegations or trips."""

    trip: UUID
    delegation: UUID
    member: UUID
    person: UUID
    function: MemberFunction
    personal: Personal


@dataclass(frozen=True, kw_only=True)
class ChangeMember:
    member: UUID
    changes: MemberPatch


@dataclass(frozen=True, kw_only=True)
class WithdrawMember:
    """For good: who comes back is added anew, as another member for the same person."""

    member: UUID
    reason: str | None


Command: TypeAlias = AddMember | ChangeMember | WithdrawMember


# Events


class MemberFields(MemberPatch, total=False):
    delegation: UUID
    person: UUID
    status: MemberStatus
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class MemberAdded:
    trip: UUID
    member: UUID
    whole: MemberFields


@dataclass(frozen=True, kw_only=True)
class MemberChange:
    """`delegation` is told each time: it never changes."""

    trip: UUID
    member: UUID
    delegation: UUID
    changed: MemberFields
    was: MemberFields


class MemberChanged(MemberChange):
    """In function or in what is personal."""


class MemberWithdrawn(MemberChange):
    """From the roster, or with the delegation."""


Event: TypeAlias = MemberAdded | MemberChanged | MemberWithdrawn
EVENTS: tuple[type[Event], ...] = get_args(Event)


# State


@dataclass(frozen=True, kw_only=True)
class Member:
    id: UUID
    trip: UUID
    revision: int
    delegation: UUID
    person: UUID
    function: MemberFunction
    personal: Personal
    status: MemberStatus
    reason: str | None


def decide(command: Command, member: Member | None, delegation: Delegation | None) -> list[Event]:
    """What follows on the member's stream; `delegation.enrol` and `strike` say what follows on the delegation's.

    `delegation` is the one that the command or the member names. Raises Invalid, NotFound, WrongState.
    """
    ours = registered(delegation)
    match command:
        case AddMember():
            return _add(command, member, ours)
        case ChangeMember():
            return _change(_on_roster(member), command.changes, ours)
        case WithdrawMember():
            return _withdraw(_on_roster(member), command.reason)
        case _:
            assert_never(command)


def evolve(member: Member | None, event: Event) -> Member:
    """The member after the event; LookupError for a change of one that was never added."""
    match event:
        case MemberAdded():
            return Member(id=event.member, trip=event.trip, revision=1, **event.whole)
        case _ if member is None:
            raise LookupError(f"{type(event).__name__} of no member")
        case _:
            return replace(member, revision=member.revision + 1, **event.changed)


def follow_head(member: Member, head: UUID | None) -> list[Event]:
    """The function after NameHead: a former `head` is a `member`, a plain member who leads is `head`.

    Principals and others who lead keep their function. For the former and the new head, in the same act.
    """
    if member.status == "on-roster" and member.function == "head" and member.id != head:
        return _set(member, MemberPatch(function="member"))
    if member.status == "on-roster" and member.function == "member" and member.id == head:
        return _set(member, MemberPatch(function="head"))
    return []


def fall_with_delegation(member: Member, reason: str) -> list[Event]:
    """The member of a dissolved delegation is withdrawn for its reason; a withdrawn one stays as it is."""
    return _withdraw(member, reason) if member.status == "on-roster" else []


def _add(command: AddMember, member: Member | None, delegation: Delegation) -> list[Event]:
    if member is not None:
        raise WrongState("There is a member with this id already.", state=member.status)
    required_text("personal", command.personal.name)
    _check_head(command.member, command.function, delegation)
    whole = MemberFields(
        delegation=command.delegation,
        person=command.person,
        function=command.function,
        personal=command.personal,
        status="on-roster",
        reason=None,
    )
    return [MemberAdded(trip=command.trip, member=command.member, whole=whole)]


def _change(member: Member, changes: MemberPatch, delegation: Delegation) -> list[Event]:
    if "personal" in changes:
        required_text("personal", changes["personal"].name)
    if "function" in changes:
        _check_head(member.id, changes["function"], delegation)
    return _set(member, changes)


def _set(member: Member, changes: MemberPatch) -> list[Event]:
    changed, was = differing(member, cast(MemberFields, changes))
    event = MemberChanged(trip=member.trip, member=member.id, delegation=member.delegation, changed=changed, was=was)
    return [event] if changed else []


def _withdraw(member: Member, reason: str | None) -> list[Event]:
    changed, was = differing(member, MemberFields(status="withdrawn", reason=optional_reason(reason)))
    return [MemberWithdrawn(trip=member.trip, member=member.id, delegation=member.delegation, changed=changed, was=was)]


def _check_head(member: UUID, function: MemberFunction, delegation: Delegation) -> None:
    if function == "head" and delegation.head not in (None, member):
        raise WrongState("The delegation has a head: NameHead names another.", head=str(delegation.head))


def _on_roster(member: Member | None) -> Member:
    if member is None:
        raise NotFound("There is no such member.")
    if member.status != "on-roster":
        raise WrongState("The member is withdrawn.", state=member.status)
    return member
