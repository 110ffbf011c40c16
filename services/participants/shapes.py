"""The participants' things as the API shows them, and the bodies of its commands."""

from typing import Annotated
from uuid import UUID

from pydantic import Field

from services.participants import member
from services.participants.delegation import DelegationKind, MemberFunction
from shared.shapes import ABSENT, Body, Line, NewId, Prose, Shape, example


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


class RegisterDelegation(Body, json_schema_extra=example({"name": "Host delegation of Japan", "kind": "host"})):
    id: NewId
    name: Line = Field(examples=["Host delegation of Japan"])
    kind: DelegationKind


class RenameDelegation(Body, json_schema_extra=example({"name": "Delegation of Japan"})):
    name: Line


class NameHead(Body, json_schema_extra=example({"member": "5f0d3c1a-8b6e-4d6f-9c9a-1e2d3f4a5b6c"})):
    member: UUID


class ReorderMembers(
    Body,
    json_schema_extra=example(
        {"members": ["5f0d3c1a-8b6e-4d6f-9c9a-1e2d3f4a5b6c", "a3b1c2d4-5e6f-4a7b-8c9d-0e1f2a3b4c5d"]}
    ),
):
    members: Annotated[list[UUID], Field(max_length=1000)]


class AddMember(
    Body,
    json_schema_extra=example(
        {
            "function": "interpreter",
            "personal": {"name": "Dana Whitfield", "title": "Interpreter", "contact": None},
        }
    ),
):
    id: NewId
    person: UUID | None = Field(default=None, description="the same person elsewhere; else a new one")
    function: MemberFunction
    personal: Personal


class ChangeMember(Body, json_schema_extra=example({"function": "note-taker"})):
    function: MemberFunction = ABSENT
    personal: Personal = ABSENT


class Withdraw(Body, json_schema_extra=example({"reason": "Stays in Tokyo."})):
    reason: Prose | None = None
