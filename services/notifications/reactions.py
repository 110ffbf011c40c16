"""What the notifications service does with the others' messages: each is folded into the picture, and its trip marked.

Nothing is rendered here. Two topics can touch one feed at once, and the later commit would keep the older body; a mark
is a row of its own, so that writers never wait for each other and the renderer misses none.
"""

import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from services.notifications.picture import merge, sequence
from shared.contracts import MESSAGES, bodies
from shared.contracts.values import Value
from shared.database import driver_of
from shared.messages import Message
from shared.rebuilding import Anew
from shared.taking import Apply

SCHEDULE = ("trip", "stop", "movement", "meeting")
PARTICIPANTS = ("delegation", "member")
KINDS = (*SCHEDULE, *PARTICIPANTS)
"""The kinds of things, by who tells of them."""

_FIND = """
SELECT kind, id, t.sequence, t.document, coalesce(f.raised, 0) AS raised
FROM unnest($1::text[], $2::uuid[]) AS wanted (kind, id)
LEFT JOIN things t USING (kind, id) LEFT JOIN sequence_floors f USING (kind, id)
"""
_PUT = """
INSERT INTO things (kind, id, trip, sequence, document)
SELECT * FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::int[], $5::jsonb[])
ON CONFLICT (kind, id) DO UPDATE SET sequence = excluded.sequence, document = excluded.document
"""
_MARK = "INSERT INTO marks (trip, traceparent) SELECT * FROM unnest($1::uuid[], $2::text[])"
_FORGET = "DELETE FROM things WHERE trip = $1 AND kind = ANY($2) RETURNING kind, id, sequence, document"
_HEARD = "SELECT kind, id, sequence, document FROM things WHERE trip = $1 AND kind = ANY($2)"
_RAISE = """
INSERT INTO sequence_floors AS f (kind, id, raised) VALUES ($1, $2, $3)
ON CONFLICT (kind, id) DO UPDATE SET raised = f.raised + excluded.raised
"""
_KEEP = """
INSERT INTO sequence_floors AS f (kind, id, raised) VALUES ($1, $2, $3)
ON CONFLICT (kind, id) DO UPDATE SET raised = greatest(f.raised, excluded.raised)
"""

_ID = re.compile(r"[0-9A-Fa-f-]{32,36}")
"""As the driver reads one; `UUID` alone would take more."""
_DOUBTFUL = re.compile(r"\\u0000|[\ud800-\udfff]|NaN|Infinity")
"""In JSON: what jsonb may refuse."""


class _Folded(NamedTuple):
    """A thing in the middle of its messages. `trip` is what the first of them said."""

    trip: str
    sequence: int
    document: Mapping[str, Any]


async def fold(connection: AsyncConnection, messages: Sequence[Message]) -> None:
    """The messages' things as they now are, and a mark for each trip. Raises `pydantic.ValidationError`, `ValueError`.

    A thing is read once and written once, however many of the messages are about it: a replay brings hundreds.
    """
    if len(messages) > 1 and any(map(_is_doubtful, messages)):
        # a later message of the same thing could hide what the database refuses of an earlier one
        for message in messages:
            await fold(connection, [message])
        return
    subjects = [_subject(message) for message in messages]
    driver = await driver_of(connection)
    found = {(row["kind"], row["id"]): row for row in await driver.fetch(_FIND, *_columns(dict.fromkeys(subjects)))}
    folded: dict[tuple[str, UUID], _Folded] = {}
    for subject, message in zip(subjects, messages, strict=True):
        folded[subject] = _next(folded.get(subject), found[subject], subject[0], message.body)
    rows = ((*subject, *now[:2], json.dumps(now.document, ensure_ascii=False)) for subject, now in folded.items())
    await driver.execute(_PUT, *_columns(rows))
    marks = dict.fromkeys((message.body["trip"], message.traceparent) for message in messages)
    await driver.execute(_MARK, *_columns(marks))


def _is_doubtful(message: Message) -> bool:
    return _DOUBTFUL.search(json.dumps(message.body, ensure_ascii=False)) is not None


def _subject(message: Message) -> tuple[str, UUID]:
    bodies.read(MESSAGES[message.type], message.body)
    kind, thing = message.subject.split("/", 1)
    if kind not in KINDS:
        raise ValueError(f"there is no kind {kind!r}")
    if not _ID.fullmatch(thing):
        raise ValueError(f"{thing!r} is no id")
    return kind, UUID(thing)


def _next(now: _Folded | None, stored: Any, kind: str, body: Mapping[str, Any]) -> _Folded:
    if now is None and stored["sequence"] is None:
        return _Folded(body["trip"], sequence(None, body, kind) + stored["raised"], merge({}, body, kind))
    if now is None:
        now = _Folded(body["trip"], stored["sequence"], json.loads(stored["document"]))
    return _Folded(now.trip, sequence(now.sequence, body, kind), merge(now.document, body, kind))


def _columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def apply_of(types: Sequence[type[Value]]) -> dict[str, Apply]:
    """Every type of one producer is folded the same way."""
    return {cls.__name__: fold for cls in types}


def anew_of(kinds: Sequence[str]) -> Anew:
    """What goes around one trip's messages when its things of these kinds are built anew, in one transaction."""

    @contextlib.asynccontextmanager
    async def anew(connection: AsyncConnection, key: str) -> AsyncIterator[None]:
        try:
            trip = UUID(key)
        except ValueError:  # a key that is no trip gave nothing
            yield
            return
        driver = await driver_of(connection)
        before = await driver.fetch(_FORGET, trip, kinds)
        # also where nothing comes back: what was there is to leave the feeds
        await driver.execute("INSERT INTO marks (trip) VALUES ($1)", trip)
        yield
        await _keep_sequences(driver, before, await driver.fetch(_HEARD, trip, kinds))

    return anew


async def _keep_sequences(driver: Any, before: Sequence[Any], after: Sequence[Any]) -> None:
    """No SEQUENCE falls, and that of a thing which is another now rises: clients ignore a change without it.

    What has gone for now may come back, and is then to be newer than it was.
    """
    there = {(row["kind"], row["id"]): row for row in after}
    for row in before:
        one = row["kind"], row["id"]
        now = there.get(one)
        if now is None:
            await driver.execute(_KEEP, *one, row["sequence"] + 1)
            continue
        least = row["sequence"] + (now["document"] != row["document"])
        if now["sequence"] < least:
            await driver.execute(_RAISE, *one, least - now["sequence"])
            await driver.execute("UPDATE things SET sequence = $3 WHERE kind = $1 AND id = $2", *one, least)
