"""What of a stored event is told to others: a pure function of that event alone."""

from typing import Any

from shared.contracts import MESSAGES, bodies
from shared.event_store import StoredEvent


def body(event: StoredEvent, openly: bool) -> bytes:
    """The JSON body of an event's message on the open or the cleared topic."""
    model = MESSAGES[type(event.data).__name__]
    return bodies.write(model, bodies.flattened(event.data), openly=openly)


def is_open(event: Any) -> bool:
    """Whether the open topic carries an event: not when all that changed stands above the delegation level."""
    return bodies.opens(MESSAGES[type(event).__name__], bodies.flattened(event))
