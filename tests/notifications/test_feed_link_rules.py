"""The rules of a feed link: who may have which, how long a secret lives, and what is kept of it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import reduce
from hashlib import sha256
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from services.notifications.feed_link import (
    EVENTS,
    NAME,
    SECRET_FIELDS,
    Audience,
    Command,
    EarlierSecret,
    Event,
    FeedLink,
    FeedLinkChange,
    FeedLinkIssued,
    FeedLinkRevoked,
    FeedLinkRotated,
    IssueFeedLink,
    RevokeFeedLink,
    RotateFeedLink,
    Standing,
    decide,
    ends_at,
    evolve,
    standing,
)
from shared.errors import Invalid, LevelNotAllowed, NotFound, ReasonMissing, Refusal, WrongState

TRIP = UUID("11111111-0000-4000-8000-000000000001")
LINK = UUID("88888888-0000-4000-8000-000000000001")
OURS = UUID("33333333-0000-4000-8000-000000000001")
SECRETS = ["north-wind", "south-wind", "east-wind"]
FIRST, SECOND, THIRD = (sha256(secret.encode()).hexdigest() for secret in SECRETS)


def utc(day: int, hour: int = 0, *, month: int = 11) -> datetime:
    return datetime(2023, month, day, hour, tzinfo=UTC)


OWN = Audience(delegation_kind="own", trip_ends_at=utc(11, 5))
HOST = Audience(delegation_kind="host", trip_ends_at=utc(11, 5))

ISSUE = IssueFeedLink(
    trip=TRIP,
    feed_link=LINK,
    delegation=OURS,
    level="full",
    label="Line officers",
    cleared=True,
    alarm=timedelta(minutes=15),
    creator="planner-1",
    secret_hash=FIRST,
    expires_at=None,
    at=utc(1, 12),
)
ISSUED = FeedLinkIssued(
    trip=TRIP,
    feed_link=LINK,
    whole={
        "delegation": OURS,
        "level": "full",
        "label": "Line officers",
        "cleared": True,
        "alarm": timedelta(minutes=15),
        "creator": "planner-1",
        "secret_hash": FIRST,
        "earlier_secrets": (),
        "expires_at": utc(25, 5),
        "revoked_at": None,
        "reason": None,
    },
)
ROTATE = RotateFeedLink(feed_link=LINK, secret_hash=SECOND, grace=timedelta(hours=36), at=utc(5, 8))
ROTATED = FeedLinkRotated(
    trip=TRIP,
    feed_link=LINK,
    changed={
        "secret_hash": SECOND,
        "earlier_secrets": (EarlierSecret(secret_hash=FIRST, lives_until=utc(6, 20)),),
    },
    was={"secret_hash": FIRST, "earlier_secrets": ()},
)
REVOKE = RevokeFeedLink(feed_link=LINK, reason=" Laptop lost ", at=utc(6, 9))
REVOKED = FeedLinkRevoked(
    trip=TRIP,
    feed_link=LINK,
    changed={"revoked_at": utc(6, 9), "reason": "Laptop lost"},
    was={"revoked_at": None, "reason": None},
)


def fold(*events: Event) -> FeedLink:
    link = reduce(evolve, events, None)
    assert link is not None
    return link


def when(command: Command, *given: Event, audience: Audience | None = OWN) -> list[Event]:
    return decide(command, fold(*given) if given else None, audience)


def refused(kind: type[Refusal], command: Command, *given: Event, audience: Audience | None = OWN) -> Refusal:
    with pytest.raises(kind) as refusal:
        when(command, *given, audience=audience)
    assert type(refusal.value) is kind
    return refusal.value


def test_link_is_issued_once() -> None:
    assert when(ISSUE) == [ISSUED]
    refused(WrongState, ISSUE, ISSUED)


def test_link_expires_fourteen_days_after_the_end_of_the_trip_or_after_a_later_issue() -> None:
    [before] = when(ISSUE)
    [after] = when(replace(ISSUE, at=utc(20, 9)))
    assert fold(before).expires_at == utc(25, 5)
    assert fold(after).expires_at == utc(4, 9, month=12)


def test_link_expires_when_it_is_said_but_after_its_issue() -> None:
    [event] = when(replace(ISSUE, expires_at=utc(1, 13)))
    assert fold(event).expires_at == utc(1, 13)
    for past in (utc(1, 12), utc(1, 11)):
        refusal = refused(Invalid, replace(ISSUE, expires_at=past))
        assert refusal.members["errors"][0]["loc"] == ["body", "expires_at"]


@pytest.mark.parametrize("kind", ["host", "partner", "press", "of a kind that comes later"])
def test_full_feed_is_for_an_own_delegation_alone(kind: str) -> None:
    audience = replace(OWN, delegation_kind=kind)
    assert refused(LevelNotAllowed, replace(ISSUE, cleared=False), audience=audience).members == {"level": "full"}
    assert len(when(replace(ISSUE, level="delegation", cleared=False), audience=audience)) == 1


@pytest.mark.parametrize("audience", [OWN, HOST])
def test_only_a_full_feed_is_cleared(audience: Audience) -> None:
    refusal = refused(LevelNotAllowed, replace(ISSUE, level="delegation"), audience=audience)
    assert refusal.members == {"level": "delegation"}


def test_link_of_an_unknown_delegation_is_not_issued() -> None:
    refused(NotFound, ISSUE, audience=None)


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (replace(ISSUE, label=" "), "label"),
        (replace(ISSUE, alarm=timedelta(seconds=-1)), "alarm"),
        (replace(ISSUE, alarm=timedelta(days=7, seconds=1)), "alarm"),
    ],
)
def test_link_with_a_field_that_makes_no_sense_is_invalid(command: IssueFeedLink, field: str) -> None:
    assert refused(Invalid, command).members["errors"][0]["loc"] == ["body", field]


@pytest.mark.parametrize("alarm", [None, timedelta(0), timedelta(days=7)])
def test_link_rings_before_the_start_or_not_at_all(alarm: timedelta | None) -> None:
    [event] = when(replace(ISSUE, alarm=alarm))
    assert fold(event).alarm == alarm


@pytest.mark.parametrize("not_a_hash", ["north-wind", FIRST.upper(), FIRST[:-1], FIRST + "\n", ""])
def test_secret_itself_is_never_kept_and_shown_by_no_error(not_a_hash: str) -> None:
    with pytest.raises(ValueError, match=r"^a secret is kept as its SHA-256 in hex alone$"):
        when(replace(ISSUE, secret_hash=not_a_hash))
    with pytest.raises(ValueError, match=r"^a secret is kept as its SHA-256 in hex alone$"):
        when(replace(ROTATE, secret_hash=not_a_hash), ISSUED)


def test_rotated_link_has_a_new_secret_and_the_old_one_goes_on_for_the_grace() -> None:
    assert when(ROTATE, ISSUED) == [ROTATED]


def test_rotated_link_without_grace_ends_its_old_secret_at_once() -> None:
    [event] = when(replace(ROTATE, grace=timedelta(0)), ISSUED)
    assert fold(ISSUED, event).earlier_secrets == (EarlierSecret(secret_hash=FIRST, lives_until=utc(5, 8)),)
    assert standing(fold(ISSUED, event), FIRST, utc(5, 8)) == "empty"


def test_grace_is_not_negative_and_ends_with_the_link() -> None:
    assert refused(Invalid, replace(ROTATE, grace=timedelta(seconds=-1)), ISSUED).members["errors"][0]["loc"] == [
        "body",
        "grace",
    ]
    [event] = when(replace(ROTATE, grace=timedelta.max), ISSUED)
    assert fold(ISSUED, event).earlier_secrets == (EarlierSecret(secret_hash=FIRST, lives_until=utc(25, 5)),)


@pytest.mark.parametrize(
    ("grace", "first_end", "second_end"),
    [
        (timedelta(0), utc(5, 10), utc(5, 10)),
        (timedelta(hours=24), utc(6, 10), utc(6, 10)),
        (timedelta(days=7), utc(6, 20), utc(12, 10)),
    ],
)
def test_link_rotated_twice_ends_each_secret_with_its_own_grace_or_the_later_one_if_that_is_sooner(
    grace: timedelta, first_end: datetime, second_end: datetime
) -> None:
    again = RotateFeedLink(feed_link=LINK, secret_hash=THIRD, grace=grace, at=utc(5, 10))
    link = fold(ISSUED, ROTATED, *when(again, ISSUED, ROTATED))
    assert (link.secret_hash, link.earlier_secrets) == (
        THIRD,
        (
            EarlierSecret(secret_hash=FIRST, lives_until=first_end),
            EarlierSecret(secret_hash=SECOND, lives_until=second_end),
        ),
    )


def test_secret_that_ended_is_not_brought_back_by_a_later_rotation() -> None:
    again = RotateFeedLink(feed_link=LINK, secret_hash=THIRD, grace=timedelta(days=7), at=utc(8))
    assert ends_at(fold(ISSUED, ROTATED, *when(again, ISSUED, ROTATED)), FIRST) == utc(6, 20)


@pytest.mark.parametrize("used", [FIRST, SECOND])
def test_secret_is_never_used_again(used: str) -> None:
    with pytest.raises(ValueError, match="new secret"):
        when(replace(ROTATE, secret_hash=used), ISSUED, ROTATED)


def test_link_is_revoked_with_its_reason() -> None:
    assert when(REVOKE, ISSUED) == [REVOKED]
    for reason in ("", " \n"):
        refused(ReasonMissing, replace(REVOKE, reason=reason), ISSUED)


def test_revoked_link_takes_no_command() -> None:
    refused(WrongState, REVOKE, ISSUED, REVOKED)
    refused(WrongState, ROTATE, ISSUED, REVOKED)


def test_expired_link_is_revoked_but_gets_no_new_secret() -> None:
    refused(WrongState, replace(ROTATE, at=utc(25, 5)), ISSUED)
    assert len(when(replace(ROTATE, at=utc(25, 4)), ISSUED)) == 1
    assert len(when(replace(REVOKE, at=utc(28)), ISSUED)) == 1


def test_link_that_was_never_issued_is_not_found() -> None:
    refused(NotFound, ROTATE)
    refused(NotFound, REVOKE)
    with pytest.raises(LookupError) as missing:
        fold(ROTATED)
    assert FIRST not in str(missing.value)


@pytest.mark.parametrize(
    ("given", "secret_hash", "end"),
    [
        ((ISSUED,), FIRST, utc(25, 5)),
        ((ISSUED, ROTATED), FIRST, utc(6, 20)),
        ((ISSUED, ROTATED), SECOND, utc(25, 5)),
        ((ISSUED, ROTATED, REVOKED), FIRST, utc(6, 9)),
        ((ISSUED, ROTATED, REVOKED), SECOND, utc(6, 9)),
    ],
)
def test_secret_is_live_until_its_end_then_empty_for_thirty_days_then_gone(
    given: tuple[Event, ...], secret_hash: str, end: datetime
) -> None:
    link, second = fold(*given), timedelta(seconds=1)
    assert ends_at(link, secret_hash) == end
    moments = [end - second, end, end + timedelta(days=30) - second, end + timedelta(days=30)]
    expected: list[Standing] = ["live", "empty", "empty", "gone"]
    assert [standing(link, secret_hash, now) for now in moments] == expected


def test_secret_that_ended_is_not_brought_back_or_kept_longer_by_a_later_revocation() -> None:
    later = replace(REVOKED, changed={"revoked_at": utc(28), "reason": "Laptop lost"})
    assert ends_at(fold(ISSUED, ROTATED, later), FIRST) == utc(6, 20)
    assert ends_at(fold(ISSUED, ROTATED, later), SECOND) == utc(25, 5)


def test_secret_of_another_link_opens_nothing() -> None:
    with pytest.raises(NotFound):
        standing(fold(ISSUED), SECOND, utc(5))


def test_link_is_the_fold_of_its_events() -> None:
    assert fold(ISSUED, ROTATED, REVOKED) == FeedLink(
        id=LINK,
        trip=TRIP,
        revision=3,
        delegation=OURS,
        level="full",
        label="Line officers",
        cleared=True,
        alarm=timedelta(minutes=15),
        creator="planner-1",
        secret_hash=SECOND,
        earlier_secrets=(EarlierSecret(secret_hash=FIRST, lives_until=utc(6, 20)),),
        expires_at=utc(25, 5),
        revoked_at=utc(6, 9),
        reason="Laptop lost",
    )


EXAMPLES: list[Event] = [ISSUED, ROTATED, REVOKED]


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_link_event_survives_json_and_holds_no_secret(event: Event) -> None:
    adapter: TypeAdapter[Event] = TypeAdapter(type(event))
    text = adapter.dump_json(event)
    again = adapter.validate_json(text)
    assert (type(again), again) == (type(event), event)
    if isinstance(event, FeedLinkChange):
        assert isinstance(again, FeedLinkChange)
        assert (again.changed.keys(), again.was.keys()) == (event.changed.keys(), event.was.keys())
    assert not any(secret.encode() in text for secret in SECRETS)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_link_event_without_its_secret_fields_shows_no_hash(event: Event) -> None:
    said = [event.whole] if isinstance(event, FeedLinkIssued) else [event.changed, event.was]
    shown = repr([{name: value for name, value in fields.items() if name not in SECRET_FIELDS} for fields in said])
    assert FIRST not in shown
    assert SECOND not in shown


def test_link_events_are_all_named_for_the_store_and_tried() -> None:
    assert NAME == "feed_link"
    assert tuple(type(event) for event in EXAMPLES) == EVENTS


@given(
    graces=st.lists(st.integers(0, 40 * 24), max_size=5),
    revoked_after=st.none() | st.integers(0, 40 * 24),
    asked=st.integers(0, 90 * 24),
)
def test_secret_never_outlives_its_link(graces: list[int], revoked_after: int | None, asked: int) -> None:
    link, hashes = fold(ISSUED), [FIRST]
    for number, grace in enumerate(graces):
        hashes.append(sha256(str(number).encode()).hexdigest())
        rotate = replace(ROTATE, secret_hash=hashes[-1], grace=timedelta(hours=grace), at=utc(2, number))
        link = reduce(evolve, decide(rotate, link, None), link)
    if revoked_after is not None:
        revoke = replace(REVOKE, at=utc(3) + timedelta(hours=revoked_after))
        link = reduce(evolve, decide(revoke, link, None), link)
    assert (link.id, link.trip, link.revision) == (LINK, TRIP, 1 + len(graces) + (revoked_after is not None))
    now = utc(1) + timedelta(hours=asked)
    standings = [standing(link, secret_hash, now) for secret_hash in hashes]
    order: list[Standing] = ["live", "empty", "gone"]
    assert all(order.index(earlier) >= order.index(standings[-1]) for earlier in standings)
    dead = now >= link.expires_at or (link.revoked_at is not None and now >= link.revoked_at)
    assert dead == (standings[-1] != "live")
