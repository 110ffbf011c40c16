"""What the notifications service does with the others' messages: each is folded into the picture, and its trip marked.

Nothing is rendered here. Two topics can touch one feed at once, and the later commit would keep the older body; a mark
is a row of its own, so that writers never wait for each other and the renderer misses none.
"""

import json
from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from services.notifications.picture import merge, sequence
from shared import contracts
from shared.consumer import Apply
from shared.database import driver_of
from shared.messages import Message

KINDS = ("trip", "stop", "movement", "meeting", "delegation", "member")


async def fold(connection: AsyncConnection, message: Message) -> None:
    """The message's thing as it now is, and a mark for its trip. Raises `pydantic.ValidationError`, `ValueError`."""
    contracts.read(contracts.MESSAGES[message.type], message.body)
    kind, thing = message.subject.split("/", 1)
    if kind not in KINDS:
        raise ValueError(f"there is no kind {kind!r}")
    driver = await driver_of(connection)
    row = await driver.fetchrow("SELECT sequence, document FROM things WHERE kind = $1 AND id = $2", kind, thing)
    count, document = (None, {}) if row is None else (row["sequence"], json.loads(row["document"]))
    body = message.body
    await driver.execute(
        "INSERT INTO things (kind, id, trip, sequence, document) VALUES ($1, $2, $3, $4, $5) "
        "ON CONFLICT (kind, id) DO UPDATE SET sequence = excluded.sequence, document = excluded.document",
        kind,
        thing,
        body["trip"],
        sequence(count, body, kind),
        json.dumps(merge(document, body, kind), ensure_ascii=False),
    )
    await driver.execute("INSERT INTO marks (trip) VALUES ($1)", body["trip"])


def apply_of(types: Sequence[type[contracts.Message]]) -> dict[str, Apply]:
    """Every type of one producer is folded the same way."""
    return {cls.__name__: fold for cls in types}
