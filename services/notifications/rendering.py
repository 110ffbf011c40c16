"""From the rows of one trip to the bodies of its audiences: pure, but for caches that change nothing but the time.

An item whose block is the same keeps its LAST-MODIFIED; one whose block changed gets the second of this rendering, or,
should that not be later, one past its last. What is equal to the last rendering is neither read, worded nor written
again, so that a change costs what it changes.
"""

import gzip
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from services.notifications import entry, feed, picture, programme, wording, zones
from services.notifications.entry import Entry
from services.notifications.feed import calendar, draft, stamped, zones_of
from services.notifications.picture import Picture, assembled, read_thing
from services.notifications.programme import Audience, Made, feed_name
from shared.time_zones import tz_release

BLOCKS_KEPT = 10_000
"""Entries with their blocks, in all caches together: about 30 MB."""

_SECOND = timedelta(seconds=1)

Row = tuple[str, UUID, int, str]
"""A thing as it stands in the database: kind, id, sequence and its document as JSON text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """What an item's block last was in one audience's feed, and when it became that."""

    digest: bytes
    last_modified: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """One audience's body, and the revisions that are new with it."""

    body: bytes
    revised: Mapping[UUID, Revision]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """An entry's block as it was last written."""

    entry: Entry
    digest: bytes
    last_modified: datetime
    bytes: bytes


@dataclass(kw_only=True)
class AudienceCache:
    """What one audience's last rendering leaves for the next."""

    made: Made = field(default_factory=Made)
    zones: Mapping[str, bytes | None] = field(default_factory=dict)
    blocks: dict[UUID, Block] = field(default_factory=dict)


@dataclass(kw_only=True)
class TripCache:
    """What one trip's last rendering leaves for the next; a row that is the same gives the very same thing."""

    things: dict[tuple[str, UUID], tuple[int, str, Any]] = field(default_factory=dict)
    audiences: dict[UUID, AudienceCache] = field(default_factory=dict)

    def picture(self, rows: Iterable[Row]) -> Picture:
        """The picture of the trip. Raises `ValueError`, `TypeError` for a document that no message could have made."""
        things: dict[tuple[str, UUID], tuple[int, str, Any]] = {}
        for kind, thing, count, document in rows:
            known = self.things.get((kind, thing))
            if known is None or known[0] != count or known[1] != document:
                known = (count, document, read_thing(kind, thing, count, json.loads(document)))
            things[kind, thing] = known
        self.things = things
        return assembled((kind, thing, known[2]) for (kind, thing), known in things.items())

    def keep(self, audiences: Iterable[UUID]) -> None:
        """Forget the audiences that are not named."""
        self.audiences = {audience: self.audiences.setdefault(audience, AudienceCache()) for audience in audiences}

    def __len__(self) -> int:
        return len(self.things) + sum(len(audience.blocks) for audience in self.audiences.values())


class Caches:
    """The caches of the trips that were rendered last, as many as there is room for."""

    def __init__(self, room: int = BLOCKS_KEPT) -> None:
        self._room = room
        self._trips: OrderedDict[UUID, tuple[TripCache, int]] = OrderedDict()
        self._held = 0

    def take(self, trip: UUID) -> TripCache:
        """A trip's cache, which is to be put back."""
        held, size = self._trips.pop(trip, (TripCache(), 0))
        self._held -= size
        return held

    def put(self, trip: UUID, held: TripCache) -> None:
        """Keep a trip's cache, and let go of those that were used longest ago; of this one too if it is too much."""
        self._trips[trip] = (held, len(held))
        self._held += len(held)
        while self._held > self._room:
            _, (_, size) = self._trips.popitem(last=False)
            self._held -= size

    def __len__(self) -> int:
        return self._held


def render(
    picture: Picture,
    reader: Audience,
    *,
    domain: str,
    now: datetime,
    revisions: Mapping[UUID, Revision],
    cache: AudienceCache,
) -> Rendering:
    """One audience's body. `revisions` are those of its items so far, `now` is an aware instant."""
    entries = programme.programme(picture, reader, cache.made)
    zones = zones_of(entries, picture.trip.years if picture.trip else ())
    before = cache.blocks if zones == cache.zones else {}
    blocks: dict[UUID, Block] = {}
    revised: dict[UUID, Revision] = {}
    for each in entries:
        known = revisions.get(each.id)
        block = before.get(each.id)
        if block is None or known is None or not _is_of(block, each, known):
            block, revision = _written(each, known, zones, domain, now)
            if revision is not known:
                revised[each.id] = revision
        blocks[each.id] = block
    cache.zones, cache.blocks = zones, blocks
    used = [zone for zone in zones.values() if zone is not None]
    body = calendar(feed_name(picture, reader), used, [block.bytes for block in blocks.values()])
    return Rendering(body=body, revised=revised)


def etag_of(body: bytes) -> str:
    """The strong tag of exactly these bytes, without quotes."""
    return hashlib.sha256(body).hexdigest()[:32]


def compressed(body: bytes) -> bytes:
    """The same bytes for the same body, whenever and wherever: no time, no name."""
    return gzip.compress(body, 6, mtime=0)


@cache
def renderer_id() -> str:
    """What tells this program's bytes from another's: the text of the modules that make them, and the tz data."""
    made = hashlib.sha256(tz_release().encode())
    modules: Sequence[Any] = (entry, feed, picture, programme, wording, zones)
    for module in modules:
        made.update(Path(module.__file__).read_bytes())
    return made.hexdigest()[:32]


def _is_of(block: Block, each: Entry, known: Revision) -> bool:
    """Whether the block is what this entry would be written as."""
    return (
        (block.entry is each or block.entry == each)
        and block.digest == known.digest
        and block.last_modified == known.last_modified
    )


def _written(
    each: Entry, known: Revision | None, zones: Mapping[str, bytes | None], domain: str, now: datetime
) -> tuple[Block, Revision]:
    """The entry's block, and its revision: the one that is known, where the block is still the same."""
    drafted = draft(each, domain=domain, zones=zones)
    second = now.replace(microsecond=0)
    if known is None:
        known = Revision(digest=drafted.digest, last_modified=second)
    elif known.digest != drafted.digest:
        known = Revision(digest=drafted.digest, last_modified=max(second, known.last_modified + _SECOND))
    block = Block(
        entry=each,
        digest=known.digest,
        last_modified=known.last_modified,
        bytes=stamped(drafted, known.last_modified),
    )
    return block, known
