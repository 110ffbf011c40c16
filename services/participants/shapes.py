"""The participants' things as the API shows them, and the bodies of its commands."""

from typing import Annotated
from uuid import UUID

from pydantic import Field

from services.participants import member
from services.participants.delegation import DelegationKind, MemberFunction
from shared.shapes import ABSENT, Body, Line, NewId, Prose, Shape


class Personal(Shape):
    """The only place where personal data stands."""

    name: Line = Field(examples=["Dana Whitfield"])
    title: Line | None = None
    contact: Line | None = None

    def value(self) -> member.Personal:
        return member.Personal(name=self.name, title=self.title, contact=self.contact)


class Delegation(Shape):
    id: UUID
    trip: UUID
    name: str
    kind: str
    status: str
    head: UUID | None
    order: tuple[UUID, ...]
    reason: str | None


class Member(Shape):
    id: UUID
    trip: UUID
    delegation: UUID
    person: UUID
    function: str
    personal: Personal
    status: str
    reason: str | None


class RegisterDelegation(Body):
    id: NewId
    name: Line = Field(examples=["Host delegation of Japan"])
    kind: DelegationKind


class RenameDelegation(Body):
    name: Line


class NameHead(Body):
    member: UUID


class ReorderMembers(Body):
    members: Annotated[list[UUID], Field(max_length=1000)]


class AddMember(Body):
    id: NewId
    person: UUID | None = Field(default=None, description="the same person elsewhere; else a new one")
    function: MemberFunction
    personal: Personal


class ChangeMember(Body):
    function: MemberFunction = ABSENT
    personal: Personal = ABSENT


class Withdraw(Body):
    reason: Prose | None = None
