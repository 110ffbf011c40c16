"""The commands and queries of feed links over HTTP."""

import json
import secrets
from hashlib import sha256
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import APIRouter, Request
from sqlalchemy import exists, or_, select
from starlette.responses import Response

from services.notifications import shapes, tables
from services.notifications.feed_link import Command, FeedLink, IssueFeedLink, RevokeFeedLink, RotateFeedLink, decide
from services.notifications.projections import FEED_LINK, audience_of
from services.notifications.shelf import Shelf
from shared.call import Call, needs
from shared.command import Answer, Desk, Transaction, answer_with, etag_of
from shared.errors import LevelNotAllowed, NotFound
from shared.http import answer
from shared.openapi import COMMAND, QUERY, problems
from shared.queries import Cursor, Limit, list_things
from shared.routes import At, Reader, response
from shared.shapes import Page, Reason

FIRST_BODY_SECONDS = 2.0

Issuer = Annotated[Call, needs("planner", "staff")]

router = APIRouter(prefix="/notifications")
for_links: dict[str, Any] = {
    "tags": ["feed links"],
    "responses": problems(*COMMAND, "level-not-allowed", "not-yet-known", "reason-missing"),
}


@router.post(
    "/trips/{trip}/feed-links",
    status_code=201,
    response_model=shapes.IssuedFeedLink,
    summary="IssueFeedLink",
    **for_links,
)
async def issue_feed_link(trip: UUID, body: shapes.IssueFeedLink, call: Issuer, desk: At, request: Request) -> Response:
    """The answer's `url` is the feed's address, given this once; the feed is there when the answer is."""
    _check_level(call, body.level)
    secret = secrets.token_urlsafe(24)
    command = IssueFeedLink(
        trip=trip,
        feed_link=body.id or uuid4(),
        creator=call.actor,
        secret_hash=_hash(secret),
        at=call.now,
        **body.values("id"),
    )
    return await _execute(request, call, desk, trip, command, secret=secret)


@router.post("/feed-links/{link}/rotate", response_model=shapes.IssuedFeedLink, summary="RotateFeedLink", **for_links)
async def rotate_feed_link(
    link: UUID, call: Issuer, desk: At, request: Request, body: shapes.RotateFeedLink = shapes.RotateFeedLink()
) -> Response:
    """A new address; all earlier ones go on for `grace` at most, then they are as revoked.

    One that is in the grace of an earlier rotation ends with that where it is sooner: no rotation prolongs it.
    """
    secret = secrets.token_urlsafe(24)
    command = RotateFeedLink(feed_link=link, secret_hash=_hash(secret), grace=body.grace, at=call.now)
    return await _execute(request, call, desk, await _trip_of(desk, link), command, secret=secret)


@router.post("/feed-links/{link}/revoke", response_model=shapes.FeedLink, summary="RevokeFeedLink", **for_links)
async def revoke_feed_link(link: UUID, call: Issuer, desk: At, request: Request, body: Reason = Reason()) -> Response:
    """The feed is an empty calendar from now on, so that clients clear what they hold."""
    command = RevokeFeedLink(feed_link=link, reason=body.reason, at=call.now)
    return await _execute(request, call, desk, await _trip_of(desk, link), command)


@router.get(
    "/trips/{trip}/feed-links",
    tags=["feed links"],
    response_model=Page[shapes.FeedLink],
    summary="The feed links of a trip, by expiry",
    responses=problems(*QUERY),
)
async def list_feed_links(trip: UUID, _: Reader, desk: At, cursor: Cursor = None, limit: Limit = 100) -> Response:
    """Revoked and expired ones included; never a secret."""
    await _check_heard_of(desk, trip)
    table = tables.feed_links
    return await list_things(
        desk.engine, table, table.c.expires_at, where=table.c.trip == trip, cursor=cursor, limit=limit
    )


@router.get(
    "/feed-links/{link}",
    tags=["feed links"],
    response_model=shapes.ListedFeedLink,
    summary="A feed link, and how it was last used",
    responses=problems(*QUERY),
)
async def show_feed_link(link: UUID, _: Reader, desk: At) -> Response:
    """`fetched` is null until somebody has fetched it."""
    links, fetched = tables.feed_links, tables.fetches
    async with desk.engine.connect() as connection:
        found = await connection.execute(
            select(links.c.thing, links.c.revision, fetched.c.at, fetched.c.client, fetched.c.version, fetched.c.count)
            .join(fetched, fetched.c.feed_link == links.c.id, isouter=True)
            .where(links.c.id == link)
        )
        row = found.one_or_none()
    if row is None:
        raise NotFound(f"there is no feed link {link}")
    last = None
    if row.at is not None:
        last = shapes.Fetch(at=row.at, client=row.client, version=row.version, count=row[5]).model_dump(mode="json")
    # the tag counts changes of the link, which a fetch is not: so the answer is whole each time
    return answer({**json.loads(row.thing), "fetched": last}, etag=row.revision)


documented = APIRouter(tags=["feeds"])


@documented.get(
    "/feeds/{secret}.ics",
    summary="A feed",
    response_class=Response,
    responses={
        200: {"content": {"text/calendar": {"example": "BEGIN:VCALENDAR"}}},
        304: {"description": "The client has these bytes already (If-None-Match, If-Modified-Since)."},
        **problems("not-found", "method-not-allowed", "store-away"),
        410: {"description": "The link ended more than 30 days ago.", **problems("not-found")[404]},
    },
)
async def feed(secret: str) -> Response:
    """iCalendar (RFC 5545), by GET and HEAD, without a token: the address is the secret. Gzip where it is asked for.

    A revoked or expired link is an empty calendar for 30 days. `FeedDoor` answers all of this before the framework is
    asked; it stands here to be documented.
    """
    raise NotFound(f"there is no feed at an address of {len(secret)} characters")


async def _execute(
    request: Request,
    call: Call,
    desk: Desk,
    trip: UUID,
    command: Command,
    *,
    secret: str | None = None,
) -> Response:
    async def act(transaction: Transaction) -> Answer:
        issued = isinstance(command, IssueFeedLink)
        link = await (transaction.load if issued else transaction.get)(FEED_LINK, command.feed_link)
        if link is not None:
            _check_level(call, link.level)
        audience = None
        if isinstance(command, IssueFeedLink):
            audience = await audience_of(transaction.connection, trip, command.delegation)
        state = transaction.record(FEED_LINK, command.feed_link, decide(command, link, audience))
        if secret is None:
            return answer_with(FEED_LINK, state)
        return _with_address(state, f"{request.app.state.public_url}/feeds/{secret}.ics", 201 if issued else 200)

    given = await desk.execute(call, trip, act, name=type(command).__name__)
    await _take_effect(request.app.state.shelf, secret)
    return response(given, f"/notifications/feed-links/{command.feed_link}")


async def _take_effect(shelf: Shelf, secret: str | None) -> None:
    """What is answered holds: a revoked address opens nothing here any more, and a new one its feed.

    Without this the first fetch might come before the first rendering.
    """
    await shelf.look_again(FIRST_BODY_SECONDS)
    if secret is not None and (card := shelf.card(_hash(secret))) is not None:
        await shelf.body_within(card.audience, FIRST_BODY_SECONDS)


def _with_address(link: FeedLink, url: str, status: int) -> Answer:
    thing = FEED_LINK.show(link)
    return Answer(
        status=status,
        etag=etag_of(link),
        body=json.dumps({**thing, "url": url}, ensure_ascii=False),
        remembered=json.dumps({**thing, "url": None}, ensure_ascii=False),
    )


def _check_level(call: Call, level: str) -> None:
    if level != "delegation" and not call.may("planner"):
        raise LevelNotAllowed("staff give links up to the level delegation", level=level)


async def _check_heard_of(desk: Desk, trip: UUID) -> None:
    """A trip is known by what others told of it, or by its links where that is being told anew. Raises NotFound."""
    things, links = tables.things, tables.feed_links
    async with desk.engine.connect() as connection:
        told = exists().where(things.c.trip == trip)
        if not await connection.scalar(select(or_(told, exists().where(links.c.trip == trip)))):
            raise NotFound(f"there is no trip {trip}")


async def _trip_of(desk: Desk, link: UUID) -> UUID:
    async with desk.engine.connect() as connection:
        trip: UUID | None = await connection.scalar(
            select(tables.feed_links.c.trip).where(tables.feed_links.c.id == link)
        )
    if trip is None:
        raise NotFound(f"there is no feed link {link}")
    return trip


def _hash(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
