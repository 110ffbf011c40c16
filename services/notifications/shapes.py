"""Feed links as the API shows them, and the bodies of their commands."""

from datetime import timedelta
from typing import Literal
from uuid import UUID

from pydantic import Field

from shared.shapes import Body, Duration, Instant, Line, NewId, Shape, example


class Fetch(Shape):
    """How a link was last used; written down every few seconds."""

    at: Instant
    client: str = Field(description="the calendar client's family")
    version: int = Field(description="the version of the body that was last served")
    count: int


class FeedLink(Shape):
    id: UUID
    trip: UUID
    delegation: UUID
    level: str
    label: str
    cleared: bool
    alarm: timedelta | None
    creator: str
    expires_at: Instant
    revoked_at: Instant | None
    reason: str | None


class IssuedFeedLink(FeedLink):
    """`url` is the only place where the secret stands; it is null where the same key is answered again."""

    url: str | None


class ListedFeedLink(FeedLink):
    fetched: Fetch | None


class IssueFeedLink(
    Body,
    json_schema_extra=example(
        {"delegation": "0a5f2f0e-7c1d-4c53-9d1e-6a1f3c2b4d5e", "level": "delegation", "label": "Delegation phones"}
    ),
):
    id: NewId
    delegation: UUID
    level: Literal["full", "delegation"]
    label: Line = Field(examples=["Delegation phones"])
    cleared: bool = Field(default=False, description="whether hidden items are for it too, once they can be hidden")
    alarm: Duration | None = Field(default=None, description="how long before an entry clients are to ring")
    expires_at: Instant | None = Field(
        default=None, description="else 14 days after the later of the trip's end and the issue"
    )


class RotateFeedLink(Body, json_schema_extra=example({"grace": "PT24H"})):
    grace: Duration = Field(default=timedelta(0), description="for how long the old addresses go on, at most")
