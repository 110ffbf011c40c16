"""What of a stored event is told to others: a pure function of that event alone."""

from typing import Any

from shared import contracts
from shared.event_store import StoredEvent


def body(event: StoredEvent, openly: bool) -> bytes:
    """The JSON body of an event's message on the open or the cleared topic."""
    model = contracts.MESSAGES[type(event.data).__name__]
    return contracts.write(model, contracts.flattened(event.data), openly=openly)


def is_open(event: Any) -> bool:
    """Whether the open topic carries an event: not when all that changed stands above the delegation level."""
    return contracts.opens(contracts.MESSAGES[type(event).__name__], contracts.flattened(event))
