"""Every refusal the services can give, with its stable slug.

The class tree; the status of each slug is known at the edge alone (`shared.problems.STATUS`):

    Refusal
    ├── Unidentified                  token-missing, token-unknown
    ├── Forbidden                     scope-missing, level-not-allowed
    ├── NotFound                      not-found
    ├── Conflicting
    │   ├── OutsideStay               outside-stay
    │   ├── StopsOverlap              stops-overlap
    │   ├── MeetingsOutsideStay       meetings-outside-stay
    │   ├── WrongState                wrong-state
    │   └── NotYetKnown               not-yet-known
    ├── StaleVersion                  stale-version
    ├── TooLarge                      too-large
    ├── MediaType                     media-type
    ├── Unprocessable
    │   ├── Invalid                   invalid
    │   ├── ZoneUnknown               zone-unknown
    │   ├── ZoneAbbreviated           zone-abbreviated
    │   ├── WallTimeSkipped           wall-time-skipped
    │   ├── WallTimeRepeated          wall-time-repeated
    │   ├── ReasonMissing             reason-missing
    │   └── KeyReused                 key-reused
    ├── StoreAway                     store-away
    └── IssuerAway                    issuer-away
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID


class Refusal(Exception):
    """A command or query that is refused: nothing was done. `members` (JSON values) help the caller to go on."""

    slug: ClassVar[str]

    def __init__(self, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members


class Unidentified(Refusal):
    """The request carries no token, or one that nobody issued."""

    slug = "token-unknown"


class TokenMissing(Unidentified):
    """The request carries no bearer token."""

    slug = "token-missing"


class TokenUnknown(Unidentified):
    """The bearer token is in no line of the token file, nor one that counts of the configured issuer."""

    slug = "token-unknown"


class Forbidden(Refusal):
    """The caller is known and may not do this."""

    slug = "scope-missing"


class ScopeMissing(Forbidden):
    """The token's scopes do not hold the one that is needed."""

    slug = "scope-missing"


class LevelNotAllowed(Forbidden):
    """A feed at this level is not for this delegation, or not for this caller to give."""

    slug = "level-not-allowed"


class NotFound(Refusal):
    """There is no such thing, or not for this caller."""

    slug = "not-found"


class Conflicting(Refusal):
    """The command does not fit what is already so."""

    slug = "wrong-state"


class OutsideStay(Conflicting):
    """A meeting would lie outside the stay at its stop."""

    slug = "outside-stay"


class StopsOverlap(Conflicting):
    """Two stops of one trip would overlap."""

    slug = "stops-overlap"


class MeetingsOutsideStay(Conflicting):
    """A changed or dropped stop would leave live meetings outside."""

    slug = "meetings-outside-stay"

    def __init__(self, detail: str, *, meetings: Sequence[UUID]) -> None:
        super().__init__(detail, meetings=[str(meeting) for meeting in meetings])


class WrongState(Conflicting):
    """The thing is not in a state in which the command makes sense."""

    slug = "wrong-state"


class NotYetKnown(Conflicting):
    """The command names a thing of another service of which this one has not heard (yet)."""

    slug = "not-yet-known"


class StaleVersion(Refusal):
    """If-Match names an older version than the newest one."""

    slug = "stale-version"


class TooLarge(Refusal):
    """The request's body is larger than the service takes."""

    slug = "too-large"


class MediaType(Refusal):
    """The request's body is not JSON."""

    slug = "media-type"


class Unprocessable(Refusal):
    """The command's content is wrong in itself."""

    slug = "invalid"


class Invalid(Unprocessable):
    """Fields do not fit; `errors` lists them the way pydantic does: `loc`, `msg`, `type`."""

    slug = "invalid"

    def __init__(self, detail: str, *, errors: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(detail, errors=[dict(error) for error in errors])

    @classmethod
    def field(cls, name: str, message: str) -> "Invalid":
        """One field of the body that is wrong by a rule."""
        return cls(f"{name}: {message}", errors=[{"loc": ["body", name], "msg": message, "type": "value_error"}])


class ZoneUnknown(Unprocessable):
    """The time zone is not in the IANA database that the program carries."""

    slug = "zone-unknown"


class ZoneAbbreviated(Unprocessable):
    """A time zone was given by an abbreviation, which can mean several."""

    slug = "zone-abbreviated"


class WallTimeUnclear(Unprocessable):
    """A wall time that is no single instant; `candidates` are the two (RFC 3339, UTC), by `fold` 0 and 1."""

    slug = "wall-time-repeated"

    def __init__(self, detail: str, *, candidates: tuple[datetime, datetime]) -> None:
        super().__init__(detail, candidates=[instant.isoformat().replace("+00:00", "Z") for instant in candidates])


class WallTimeSkipped(WallTimeUnclear):
    """The clocks were put forward over this wall time: it never was."""

    slug = "wall-time-skipped"


class WallTimeRepeated(WallTimeUnclear):
    """The clocks were put back over this wall time: it was twice."""

    slug = "wall-time-repeated"


class ReasonMissing(Unprocessable):
    """The command needs a reason."""

    slug = "reason-missing"


class KeyReused(Unprocessable):
    """An Idempotency-Key came again with another body."""

    slug = "key-reused"


class StoreAway(Refusal):
    """The service's database does not answer."""

    slug = "store-away"


class IssuerAway(Refusal):
    """Who calls cannot be told: the issuer of the token does not answer, and never has since the start."""

    slug = "issuer-away"
