"""The W3C trace context (level 1) that a request brings, its events keep, and every hop names in its log.

A trace's id is random: it says nothing of what was done, so it may stand where everybody reads. `tracestate` and
baggage are not carried on, since nobody knows what is in them.
"""

import re
import secrets
from collections.abc import Iterable
from typing import Final

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_IDS_A_LINE: Final = 200
"""More would make a line that what collects containers' logs cuts in two."""


def read(given: object) -> str | None:
    """A traceparent as it is, a later version's as version 00; None for what is none, whatever it is."""
    found = _TRACEPARENT.fullmatch(given.strip()) if isinstance(given, str) else None
    if found is None:
        return None
    version, trace, parent, flags, more = found.groups()
    if version == "ff" or not trace.strip("0") or not parent.strip("0") or (version == "00" and more is not None):
        return None
    return f"00-{trace}-{parent}-{flags if version == '00' else f'{int(flags, 16) & 1:02x}'}"


def new() -> str:
    """The traceparent of a trace that begins here; no span of it is recorded."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"


def trace_id(traceparent: str) -> str:
    """The 32 hexadecimal digits that all hops of one trace share; of a traceparent that `read` or `new` gave."""
    return traceparent[3:35]


def trace_ids(traceparents: Iterable[str | None]) -> list[list[str]]:
    """The different trace ids in the order of their coming, in portions that fit a line of a log; one at least."""
    ids = list(dict.fromkeys(trace_id(one) for one in traceparents if one))
    return [ids[begin : begin + _IDS_A_LINE] for begin in range(0, len(ids) or 1, _IDS_A_LINE)]
