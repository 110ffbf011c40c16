"""A delegation: named people who travel or receive, of one trip, with a head and an order of precedence.

Who leads is `head`, and no other field. `order` names exactly the live members. Members are streams of their own; what
their coming and going changes here follows in the same act: `enrol` after MemberAdded and MemberChanged, `strike` after
MemberWithdrawn. A head who withdraws leaves the delegation without one, until another is named: it is a fact, not to be
refused, and nobody moves up unasked.
"""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, assert_never, get_args
from uuid import UUID

from typing_extensions import TypedDict

from shared.deciding import differing, required_reason, required_text
from shared.errors import Invalid, NotFound, WrongState

NAME = "delegation"

DelegationKind = Literal["own", "host", "partner", "press"]
DelegationStatus = Literal["registered", "dissolved"]
MemberFunction = Literal["head", "principal", "member", "interpreter", "note-taker", "press", "security", "staff"]


# Commands


@dataclass(frozen=True, kw_only=True)
class RegisterDelegation:
    trip: UUID
    delegation: UUID
    name: str
    kind: DelegationKind


@dataclass(frozen=True, kw_only=True)
class RenameDelegation:
    delegation: UUID
    name: str


@dataclass(frozen=True, kw_only=True)
class NameHead:
    """Of a live member. The functions of the former and the new head follow by `member.follow_head`."""

    delegation: UUID
    member: UUID


@dataclass(frozen=True, kw_only=True)
class ReorderMembers:
    """`members` are exactly the live members, in order of precedence."""

    delegation: UUID
    members: tuple[UUID, ...]


@dataclass(frozen=True, kw_only=True)
class DissolveDelegation:
    """Its members are withdrawn in the same act: `member.fall_with_delegation`."""

    delegation: UUID
    reason: str


Command: TypeAlias = RegisterDelegation | RenameDelegation | NameHead | ReorderMembers | DissolveDelegation


# Events


class DelegationFields(TypedDict, total=False):
    name: str
    kind: DelegationKind
    status: DelegationStatus
    head: UUID | None
    order: tuple[UUID, ...]
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class DelegationRegistered:
    trip: UUID
    delegation: UUID
    whole: DelegationFields


@dataclass(frozen=True, kw_only=True)
class DelegationChange:
    trip: UUID
    delegation: UUID
    changed: DelegationFields
    was: DelegationFields


class DelegationRenamed(DelegationChange):
    """The same people under another name."""


class HeadNamed(DelegationChange):
    """Somebody leads it now."""


class MembersReordered(DelegationChange):
    """The precedence was set, somebody joined at its end, or somebody left it (and the lead, if it was the head)."""


class DelegationDissolved(DelegationChange):
    """It has no members and takes no commands any more."""


Event: TypeAlias = DelegationRegistered | DelegationRenamed | HeadNamed | MembersReordered | DelegationDissolved
EVENTS: tuple[type[Event], ...] = get_args(Event)


# State


@dataclass(frozen=True, kw_only=True)
class Delegation:
    """`order` are its live members by precedence, `head` the one of them who leads, if any."""

    id: UUID
    trip: UUID
    revision: int
    name: str
    kind: DelegationKind
    status: DelegationStatus
    head: UUID | None
    order: tuple[UUID, ...]
    reason: str | None


def decide(command: Command, delegation: Delegation | None) -> list[Event]:
    """What follows from the command. Raises Invalid, NotFound, ReasonMissing, WrongState."""
    match command:
        case RegisterDelegation():
            return _register(command, delegation)
        case RenameDelegation():
            return _rename(registered(delegation), command.name)
        case NameHead():
            return _name_head(registered(delegation), command.member)
        case ReorderMembers():
            return _reorder(registered(delegation), command.members)
        case DissolveDelegation():
            return _dissolve(registered(delegation), required_reason(command.reason))
        case _:
            assert_never(command)


def evolve(delegation: Delegation | None, event: Event) -> Delegation:
    """The delegation after the event; LookupError for a change of one that was never registered."""
    match event:
        case DelegationRegistered():
            return Delegation(id=event.delegation, trip=event.trip, revision=1, **event.whole)
        case _ if delegation is None:
            raise LookupError(f"{event} of no delegation")
        case _:
            return replace(delegation, revision=delegation.revision + 1, **event.changed)


def enrol(delegation: Delegation, member: UUID, function: MemberFunction) -> list[Event]:
    """What a member who is added or changed brings about.

    A new one stands at the end of the order; the first with the function `head` leads.
    """
    events: list[Event] = []
    if member not in delegation.order:
        events += _set_order(delegation, (*delegation.order, member))
    if function == "head" and delegation.head is None:
        events += _set_head(delegation, member)
    return events


def strike(delegation: Delegation, member: UUID) -> list[Event]:
    """What the withdrawal of a member brings about: it has no place in the order and does not lead."""
    order = tuple(other for other in delegation.order if other != member)
    head = None if delegation.head == member else delegation.head
    changed, was = differing(delegation, DelegationFields(order=order, head=head))
    event = MembersReordered(trip=delegation.trip, delegation=delegation.id, changed=changed, was=was)
    return [event] if changed else []


def registered(delegation: Delegation | None) -> Delegation:
    """The delegation, if it takes commands. Raises NotFound, WrongState."""
    if delegation is None:
        raise NotFound("There is no such delegation.")
    if delegation.status != "registered":
        raise WrongState("The delegation is dissolved.", state=delegation.status)
    return delegation


def _register(command: RegisterDelegation, delegation: Delegation | None) -> list[Event]:
    if delegation is not None:
        raise WrongState("There is a delegation with this id already.", state=delegation.status)
    required_text("name", command.name)
    whole = DelegationFields(
        name=command.name, kind=command.kind, status="registered", head=None, order=(), reason=None
    )
    return [DelegationRegistered(trip=command.trip, delegation=command.delegation, whole=whole)]


def _rename(delegation: Delegation, name: str) -> list[Event]:
    required_text("name", name)
    changed, was = differing(delegation, DelegationFields(name=name))
    event = DelegationRenamed(trip=delegation.trip, delegation=delegation.id, changed=changed, was=was)
    return [event] if changed else []


def _name_head(delegation: Delegation, member: UUID) -> list[Event]:
    if member not in delegation.order:
        raise Invalid.field("member", "the head is a live member of the delegation")
    return _set_head(delegation, member)


def _reorder(delegation: Delegation, members: tuple[UUID, ...]) -> list[Event]:
    if sorted(members) != sorted(delegation.order):
        raise Invalid.field("members", "the order names each live member once and nobody else")
    return _set_order(delegation, members)


def _dissolve(delegation: Delegation, reason: str) -> list[Event]:
    wanted = DelegationFields(status="dissolved", head=None, order=(), reason=reason)
    changed, was = differing(delegation, wanted)
    return [DelegationDissolved(trip=delegation.trip, delegation=delegation.id, changed=changed, was=was)]


def _set_head(delegation: Delegation, member: UUID) -> list[Event]:
    changed, was = differing(delegation, DelegationFields(head=member))
    event = HeadNamed(trip=delegation.trip, delegation=delegation.id, changed=changed, was=was)
    return [event] if changed else []


def _set_order(delegation: Delegation, order: tuple[UUID, ...]) -> list[Event]:
    changed, was = differing(delegation, DelegationFields(order=order))
    event = MembersReordered(trip=delegation.trip, delegation=delegation.id, changed=changed, was=was)
    return [event] if changed else []
