"""What is told of a member: a person on a delegation's roster."""

from typing import Annotated
from uuid import UUID

from pydantic import Field

from shared.contracts.values import INTERNAL, Maybe, Message, Value, known

MemberFunction = Annotated[
    str, known("head", "principal", "member", "interpreter", "note-taker", "press", "security", "staff")
]
MemberStatus = Annotated[str, known("on-roster", "withdrawn")]


class Personal(Value):
    """The only place where personal data stands."""

    name: str
    title: str | None = INTERNAL
    contact: str | None = INTERNAL


class MemberPart(Value):
    function: Maybe[MemberFunction] = None
    personal: Maybe[Personal] = None


class Withdrawal(Value):
    status: MemberStatus
    reason: str | None = INTERNAL


class MemberMessage(Message):
    member: UUID
    delegation: UUID


class MemberAdded(MemberMessage):
    """A person came onto a delegation's roster."""

    person: UUID = Field(description="the same for one person on several delegations or trips")
    function: MemberFunction
    personal: Personal
    status: MemberStatus
    reason: str | None = INTERNAL


class MemberChanged(MemberPart, MemberMessage):
    """A member has another function, or what is personal of them changed."""

    was: MemberPart


class MemberWithdrawn(Withdrawal, MemberMessage):
    """A member left the roster, or the delegation was dissolved."""

    was: Withdrawal


MESSAGES: tuple[type[Message], ...] = (MemberAdded, MemberChanged, MemberWithdrawn)
