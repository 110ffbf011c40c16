"""A feed link: the right to read a delegation's feed, by whoever holds its secret.

Only hashes of secrets are kept (`secret_hash`, SHA-256 in hex). A revoked, expired or replaced secret first gives an
empty calendar, the one answer that makes all clients clear what they hold, and is gone after 30 days.
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, TypeAlias, assert_never, get_args
from uuid import UUID

from typing_extensions import TypedDict

from shared.deciding import differing, required_reason, required_text
from shared.errors import Invalid, LevelNotAllowed, NotFound, WrongState

NAME = "feed_link"
LIFE = timedelta(days=14)
"""From the later of the trip's end and the issue to the expiry, unless somebody says otherwise."""
EMPTY = timedelta(days=30)
"""How long a dead secret gives an empty calendar before it is gone."""
EARLIEST_ALARM = timedelta(days=7)

Level = Literal["full", "delegation"]
Standing = Literal["live", "empty", "gone"]


@dataclass(frozen=True, kw_only=True)
class EarlierSecret:
    """A secret that was replaced; it goes on until `lives_until` (an instant)."""

    secret_hash: str
    lives_until: datetime


# Commands


@dataclass(frozen=True, kw_only=True)
class IssueFeedLink:
    """`expires_at` None is LIFE after the later of the trip's end and `at`, the instant of the issue.

    `alarm` is how long before a start it rings, `cleared` opens what is hidden, `creator` is the name of a token.
    """

    trip: UUID
    feed_link: UUID
    delegation: UUID
    level: Level
    label: str
    cleared: bool
    alarm: timedelta | None
    creator: str
    secret_hash: str
    expires_at: datetime | None
    at: datetime


@dataclass(frozen=True, kw_only=True)
class RotateFeedLink:
    """All secrets so far end at `grace` after `at` at the latest (zero: they are as revoked at once).

    One that is in the grace of an earlier rotation keeps its own end where that comes first.
    """

    feed_link: UUID
    secret_hash: str
    grace: timedelta
    at: datetime


@dataclass(frozen=True, kw_only=True)
class RevokeFeedLink:
    """All secrets of the link, from `at` on."""

    feed_link: UUID
    reason: str
    at: datetime


Command: TypeAlias = IssueFeedLink | RotateFeedLink | RevokeFeedLink


# Events


class FeedLinkFields(TypedDict, total=False):
    delegation: UUID
    level: Level
    label: str
    cleared: bool
    alarm: timedelta | None
    creator: str
    secret_hash: str
    earlier_secrets: tuple[EarlierSecret, ...]
    expires_at: datetime
    revoked_at: datetime | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class FeedLinkIssued:
    trip: UUID
    feed_link: UUID
    whole: FeedLinkFields


@dataclass(frozen=True, kw_only=True)
class FeedLinkChange:
    trip: UUID
    feed_link: UUID
    changed: FeedLinkFields
    was: FeedLinkFields


class FeedLinkRotated(FeedLinkChange):
    """It has a new secret."""


class FeedLinkRevoked(FeedLinkChange):
    """It is for nobody any more."""


Event: TypeAlias = FeedLinkIssued | FeedLinkRotated | FeedLinkRevoked
EVENTS: tuple[type[Event], ...] = get_args(Event)
SECRET_FIELDS = frozenset({"secret_hash", "earlier_secrets"})
"""What no message and no answer carries."""


# State


@dataclass(frozen=True, kw_only=True)
class FeedLink:
    """`secret_hash` is of the newest secret, `earlier_secrets` are those before it, oldest first."""

    id: UUID
    trip: UUID
    revision: int
    delegation: UUID
    level: Level
    label: str
    cleared: bool
    alarm: timedelta | None
    creator: str
    secret_hash: str
    earlier_secrets: tuple[EarlierSecret, ...]
    expires_at: datetime
    revoked_at: datetime | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Audience:
    """For whom a link would be: the kind of the delegation, and the instant at which its trip ends."""

    delegation_kind: str
    trip_ends_at: datetime


def decide(command: Command, link: FeedLink | None, audience: Audience | None) -> list[Event]:
    """What follows from the command; `audience` is asked for an issue alone.

    Raises Invalid, LevelNotAllowed, NotFound, ReasonMissing, WrongState; ValueError for what is no hash.
    """
    match command:
        case IssueFeedLink():
            return _issue(command, link, audience)
        case RotateFeedLink():
            return _rotate(command, _live(link))
        case RevokeFeedLink():
            return _revoke(command, _live(link))
        case _:
            assert_never(command)


def evolve(link: FeedLink | None, event: Event) -> FeedLink:
    """The link after the event; LookupError for a change of one that was never issued."""
    match event:
        case FeedLinkIssued():
            return FeedLink(id=event.feed_link, trip=event.trip, revision=1, **event.whole)
        case _ if link is None:
            raise LookupError(f"{type(event).__name__} of no link")
        case _:
            return replace(link, revision=link.revision + 1, **event.changed)


def standing(link: FeedLink, secret_hash: str, now: datetime) -> Standing:
    """What a GET with this secret gets: the feed (`live`), an empty calendar (`empty`), or 410 (`gone`).

    Raises NotFound for a hash that is none of the link's.
    """
    end = ends_at(link, secret_hash)
    if now < end:
        return "live"
    return "empty" if now < end + EMPTY else "gone"


def ends_at(link: FeedLink, secret_hash: str) -> datetime:
    """The instant from which this secret opens nothing: the first of expiry, revocation and end of grace."""
    grace = {earlier.secret_hash: earlier.lives_until for earlier in link.earlier_secrets}
    if secret_hash != link.secret_hash and secret_hash not in grace:
        raise NotFound("There is no such feed.")
    return min(link.expires_at, link.revoked_at or link.expires_at, grace.get(secret_hash, link.expires_at))


def _issue(command: IssueFeedLink, link: FeedLink | None, audience: Audience | None) -> list[Event]:
    if link is not None:
        raise WrongState("There is a feed link with this id already.")
    if audience is None:
        raise NotFound("There is no such delegation.")
    _check_level(command, audience)
    _check_hash(command.secret_hash)
    required_text("label", command.label)
    if command.alarm is not None and not timedelta(0) <= command.alarm <= EARLIEST_ALARM:
        raise Invalid.field("alarm", f"an alarm rings at the start or up to {EARLIEST_ALARM} before")
    expires_at = command.expires_at or max(audience.trip_ends_at, command.at) + LIFE
    if expires_at <= command.at:
        raise Invalid.field("expires_at", "a link expires after it is issued")
    whole = FeedLinkFields(
        delegation=command.delegation,
        level=command.level,
        label=command.label,
        cleared=command.cleared,
        alarm=command.alarm,
        creator=command.creator,
        secret_hash=command.secret_hash,
        earlier_secrets=(),
        expires_at=expires_at,
        revoked_at=None,
        reason=None,
    )
    return [FeedLinkIssued(trip=command.trip, feed_link=command.feed_link, whole=whole)]


def _rotate(command: RotateFeedLink, link: FeedLink) -> list[Event]:
    _check_hash(command.secret_hash)
    if command.secret_hash in {link.secret_hash, *(earlier.secret_hash for earlier in link.earlier_secrets)}:
        raise ValueError("a rotation needs a new secret")
    if link.expires_at <= command.at:
        raise WrongState("The feed link has expired: issue another.")
    if command.grace < timedelta(0):
        raise Invalid.field("grace", "the grace time is not negative")
    end = command.at + min(command.grace, link.expires_at - command.at)
    # who rotates without grace has learnt of a leak, and an earlier secret may be the one that leaked
    earlier = [replace(each, lives_until=min(each.lives_until, end)) for each in link.earlier_secrets]
    newest = EarlierSecret(secret_hash=link.secret_hash, lives_until=end)
    wanted = FeedLinkFields(secret_hash=command.secret_hash, earlier_secrets=(*earlier, newest))
    changed, was = differing(link, wanted)
    return [FeedLinkRotated(trip=link.trip, feed_link=link.id, changed=changed, was=was)]


def _revoke(command: RevokeFeedLink, link: FeedLink) -> list[Event]:
    wanted = FeedLinkFields(revoked_at=command.at, reason=required_reason(command.reason))
    changed, was = differing(link, wanted)
    return [FeedLinkRevoked(trip=link.trip, feed_link=link.id, changed=changed, was=was)]


def _live(link: FeedLink | None) -> FeedLink:
    if link is None:
        raise NotFound("There is no such feed link.")
    if link.revoked_at is not None:
        raise WrongState("The feed link is revoked.")
    return link


def _check_level(command: IssueFeedLink, audience: Audience) -> None:
    if command.level == "full" and audience.delegation_kind != "own":
        raise LevelNotAllowed("A full feed is for an own delegation alone.", level=command.level)
    if command.cleared and command.level != "full":
        raise LevelNotAllowed("Only a full feed can be cleared.", level=command.level)


def _check_hash(secret_hash: str) -> None:
    """A secret that is given by mistake must not be stored, nor shown by the error."""
    if not re.fullmatch("[0-9a-f]{64}", secret_hash):
        raise ValueError("a secret is kept as its SHA-256 in hex alone")
