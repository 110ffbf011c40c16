"""What is told of a feed link: who has which right to read, and never by which secret."""

from typing import Annotated
from uuid import UUID

from pydantic import Field

from shared.contracts.values import INTERNAL, Duration, Instant, Maybe, Message, Value, known

Level = Annotated[str, known("full", "delegation")]


class FeedLinkEnd(Value):
    revoked_at: Instant | None
    reason: str | None = INTERNAL


class FeedLinkMessage(Message):
    """A link's secret, or a hash of it, is on no topic."""

    feed_link: UUID


class FeedLinkIssued(FeedLinkMessage):
    """Somebody got the right to read a delegation's feed."""

    delegation: UUID
    level: Level
    label: Maybe[str] = INTERNAL
    cleared: Maybe[bool] = INTERNAL
    alarm: Duration | None = Field(description="how long before a start clients are to ring")
    creator: Maybe[str] = INTERNAL
    expires_at: Instant
    revoked_at: Instant | None
    reason: str | None = INTERNAL


class FeedLinkRotated(FeedLinkMessage):
    """The link has another secret; nothing else is told of that."""


class FeedLinkRevoked(FeedLinkEnd, FeedLinkMessage):
    """The link opens nothing any more."""

    was: FeedLinkEnd


MESSAGES: tuple[type[Message], ...] = (FeedLinkIssued, FeedLinkRotated, FeedLinkRevoked)
