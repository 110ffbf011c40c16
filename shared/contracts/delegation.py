"""What is told of a delegation: its name, who leads it, and the precedence of its members."""

from typing import Annotated
from uuid import UUID

from pydantic import Field

from shared.contracts.values import INTERNAL, Maybe, Message, Value, known

DelegationKind = Annotated[str, known("own", "host", "partner", "press")]
DelegationStatus = Annotated[str, known("registered", "dissolved")]


class DelegationName(Value):
    name: str


class DelegationHead(Value):
    head: UUID | None


class Precedence(Value):
    order: tuple[UUID, ...]
    head: UUID | None = None


class Dissolution(Value):
    status: DelegationStatus
    head: UUID | None = None
    order: Maybe[tuple[UUID, ...]] = None
    reason: str | None = INTERNAL


class DelegationMessage(Message):
    delegation: UUID


class DelegationRegistered(DelegationMessage):
    """A delegation takes part in the trip."""

    name: str
    kind: DelegationKind
    status: DelegationStatus
    head: UUID | None = Field(description="the member who leads")
    order: tuple[UUID, ...] = Field(description="its live members by precedence")
    reason: str | None = INTERNAL


class DelegationRenamed(DelegationName, DelegationMessage):
    """The same people have another name."""

    was: DelegationName


class HeadNamed(DelegationHead, DelegationMessage):
    """Somebody leads it now."""

    was: DelegationHead


class MembersReordered(Precedence, DelegationMessage):
    """The precedence was set, somebody joined at its end, or somebody left it (and the lead, if it was the head)."""

    was: Precedence


class DelegationDissolved(Dissolution, DelegationMessage):
    """It takes part no more; messages about its members follow."""

    was: Dissolution


MESSAGES: tuple[type[Message], ...] = (
    DelegationRegistered,
    DelegationRenamed,
    HeadNamed,
    MembersReordered,
    DelegationDissolved,
)
