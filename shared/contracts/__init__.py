"""The messages: what other systems may rely on, by type and version.

A body is `{"trip", "<thing>", ...}`. What is new or reinstated carries the whole; any other carries the fields that
changed with their new values, and `was` with the old ones: a field that is absent did not change. Writers forbid what
is not declared, readers ignore it (`bodies.read`), and enumerations are open: a reader takes values that it has not
heard of. A class's docstring says when its message is sent.

A module a thing, as in the services: first what of it can change together, which stands in a message with its new
values and in that one's `was` with the old ones; then its messages.

Two topics a service: `cleared` has every field, `open` none that is INTERNAL here. Above the delegation level stands
what the contract's table does not list for it: notes, press access, whether a time is hard, contacts and titles of
persons, an address for a call other than a web address, why a person or a delegation left, and who has which link.

What stands in schemas/ is made from this (`python -m deploy.contracts`), and what was promised there stays.
"""

from collections.abc import Mapping

from shared.contracts import delegation, feed_link, meeting, member, movement, stop, trip
from shared.contracts.values import Message

SCHEDULE = (*trip.MESSAGES, *stop.MESSAGES, *movement.MESSAGES, *meeting.MESSAGES)
PARTICIPANTS = (*delegation.MESSAGES, *member.MESSAGES)
NOTIFICATIONS = feed_link.MESSAGES
SERVICES: Mapping[str, tuple[type[Message], ...]] = {
    "schedule": SCHEDULE,
    "participants": PARTICIPANTS,
    "notifications": NOTIFICATIONS,
}
"""Who sends what. `MessageParked` is sent by each, on its dead-letter topic."""
MESSAGES: dict[str, type[Message]] = {cls.__name__: cls for classes in SERVICES.values() for cls in classes}
"""By the name in `attache.<name>.v<version>`."""
