"""Plumbing and contracts that the three services share: the event store, the relay, the consumers and the two buses.

No word of the trade stands here, save in `contracts` (the messages) and `errors` (the refusals), which are what is
seen from outside.
"""

from typing import Final

VERSION: Final = "0.1.0"
