"""What of a feed link's event is told to others: a pure function of that event alone, and never a secret's hash."""

from typing import Any

from services.notifications.feed_link import SECRET_FIELDS, FeedLinkRotated
from shared.contracts import MESSAGES, bodies
from shared.event_store import StoredEvent


def body(event: StoredEvent, openly: bool) -> bytes:
    """The JSON body of an event's message on the open or the cleared topic."""
    return bodies.write(MESSAGES[type(event.data).__name__], _without_secrets(event.data), openly=openly)


def is_open(event: Any) -> bool:
    """Whether the open topic carries an event."""
    return bodies.opens(MESSAGES[type(event).__name__], _without_secrets(event))


def _without_secrets(event: Any) -> dict[str, Any]:
    fields = {name: value for name, value in bodies.flattened(event).items() if name not in SECRET_FIELDS}
    if isinstance(event, FeedLinkRotated):
        fields.pop("was")
    return fields
