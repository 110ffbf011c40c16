"""The commands that a trip file can give: where each is posted, what it needs, what it may say.

One table over the public API. The names of commands and fields are the API's own, so that whoever reads a trip file
can read the API's pages, and the other way round.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.demo.trip_fields import (
    PERSONAL,
    PLACE,
    PRESS,
    VENUE,
    Reader,
    choice,
    day,
    duration,
    flag,
    fold,
    instant,
    or_null,
    ref,
    refs,
    text,
    texts,
    wall,
    zone,
)


@dataclass(frozen=True, kw_only=True)
class Form:
    """One command. `{}` in the path is the id of the target; what it makes is named by `id` in the file."""

    path: str
    target: str | None = None
    """The kind of the thing that the command is posted to; a trip is never named, for a file has one."""
    makes: str | None = None
    required: Mapping[str, Reader] = field(default_factory=dict)
    optional: Mapping[str, Reader] = field(default_factory=dict)
    patch: bool = False
    """Whether at least one of the optional fields has to be given."""


_MOVEMENT_MODE = choice("flight", "motorcade", "train", "helicopter")
_MEETING_KIND = choice(
    *("bilateral", "multilateral", "pull-aside", "ceremony", "working-meal"),
    *("press-availability", "internal", "site-visit", "call"),
)
_MEMBER_FUNCTION = choice("head", "principal", "member", "interpreter", "note-taker", "press", "security", "staff")
_REASON = {"reason": text}
_FOLDS: dict[str, Reader] = {"arrives_fold": fold, "departs_fold": fold}
_STAY: dict[str, Reader] = {"arrives": wall, "departs": wall}
_WHEN: dict[str, Reader] = {"start": wall, "zone": zone, "fold": fold, "duration": duration, "assumed": flag}
_LEG: dict[str, Reader] = {"from": PLACE, "to": PLACE, "departs": wall, "arrives": wall}

TRIP: dict[str, Form] = {
    "PlanTrip": Form(
        path="/schedule/trips",
        makes="trip",
        required={"title": text, "principals": texts, "home": PLACE, "starts_on": day, "ends_on": day},
    ),
    "AnnounceTrip": Form(path="/schedule/trips/{}/announce", target="trip"),
    "CompleteTrip": Form(path="/schedule/trips/{}/complete", target="trip"),
    "CancelTrip": Form(path="/schedule/trips/{}/cancel", target="trip", required=_REASON),
}

STOP: dict[str, Form] = {
    "AddStop": Form(
        path="/schedule/trips/{}/stops",
        target="trip",
        makes="stop",
        required={"place": text, "country": text, "zone": zone, **_STAY},
        optional={"host": ref("delegation"), "assumed": flag, **_FOLDS},
    ),
    "ChangeStop": Form(
        path="/schedule/stops/{}/change",
        target="stop",
        optional={
            "place": text,
            "country": text,
            "zone": zone,
            "host": or_null(ref("delegation")),
            "assumed": flag,
            **_STAY,
            **_FOLDS,
        },
        patch=True,
    ),
    "DropStop": Form(path="/schedule/stops/{}/drop", target="stop", optional=_REASON),
}

MOVEMENT: dict[str, Form] = {
    "AddMovement": Form(
        path="/schedule/trips/{}/movements",
        target="trip",
        makes="movement",
        required={"mode": _MOVEMENT_MODE, "label": text, **_LEG},
        optional={"stop": ref("stop"), "hard": flag, "assumed": flag, "notes": text, **_FOLDS},
    ),
    "ChangeMovement": Form(
        path="/schedule/movements/{}/change",
        target="movement",
        optional={
            "mode": _MOVEMENT_MODE,
            "label": text,
            "stop": or_null(ref("stop")),
            "hard": flag,
            "assumed": flag,
            "notes": or_null(text),
            **_LEG,
            **_FOLDS,
        },
        patch=True,
    ),
    "DropMovement": Form(path="/schedule/movements/{}/drop", target="movement", optional=_REASON),
    "ReportWheelsUp": Form(path="/schedule/movements/{}/wheels-up", target="movement", required={"at": instant}),
    "ReportWheelsDown": Form(path="/schedule/movements/{}/wheels-down", target="movement", required={"at": instant}),
}

MEETING: dict[str, Form] = {
    "ScheduleMeeting": Form(
        path="/schedule/trips/{}/meetings",
        target="trip",
        makes="meeting",
        required={"stop": ref("stop"), "title": text, "kind": _MEETING_KIND, "start": wall, "duration": duration},
        optional={
            "zone": zone,
            "fold": fold,
            "venue": VENUE,
            "topics": texts,
            "notes": text,
            "press": PRESS,
            "hard": flag,
            "assumed": flag,
            "delegations": refs("delegation"),
            "status": choice("tentative", "confirmed"),
        },
    ),
    "RescheduleMeeting": Form(
        path="/schedule/meetings/{}/reschedule", target="meeting", optional={**_WHEN, "hard": flag}, patch=True
    ),
    "MoveMeeting": Form(
        path="/schedule/meetings/{}/move",
        target="meeting",
        optional={**_WHEN, "stop": ref("stop"), "venue": or_null(VENUE)},
        patch=True,
    ),
    "ReviseMeeting": Form(
        path="/schedule/meetings/{}/revise",
        target="meeting",
        optional={
            "title": text,
            "kind": _MEETING_KIND,
            "topics": texts,
            "notes": or_null(text),
            "press": or_null(PRESS),
        },
        patch=True,
    ),
    "ConfirmMeeting": Form(path="/schedule/meetings/{}/confirm", target="meeting"),
    "CancelMeeting": Form(path="/schedule/meetings/{}/cancel", target="meeting", required=_REASON),
    "ReinstateMeeting": Form(path="/schedule/meetings/{}/reinstate", target="meeting"),
    "InviteDelegation": Form(
        path="/schedule/meetings/{}/invite-delegation", target="meeting", required={"delegation": ref("delegation")}
    ),
    "UninviteDelegation": Form(
        path="/schedule/meetings/{}/uninvite-delegation", target="meeting", required={"delegation": ref("delegation")}
    ),
}

DELEGATION: dict[str, Form] = {
    "RegisterDelegation": Form(
        path="/participants/trips/{}/delegations",
        target="trip",
        makes="delegation",
        required={"name": text, "kind": choice("own", "host", "partner", "press")},
    ),
    "RenameDelegation": Form(path="/participants/delegations/{}/rename", target="delegation", required={"name": text}),
    "NameHead": Form(
        path="/participants/delegations/{}/name-head", target="delegation", required={"member": ref("member")}
    ),
    "ReorderMembers": Form(
        path="/participants/delegations/{}/reorder", target="delegation", required={"members": refs("member")}
    ),
    "DissolveDelegation": Form(path="/participants/delegations/{}/dissolve", target="delegation", required=_REASON),
    "AddMember": Form(
        path="/participants/delegations/{}/members",
        target="delegation",
        makes="member",
        required={"function": _MEMBER_FUNCTION, "personal": PERSONAL},
    ),
    "ChangeMember": Form(
        path="/participants/members/{}/change",
        target="member",
        optional={"function": _MEMBER_FUNCTION, "personal": PERSONAL},
        patch=True,
    ),
    "WithdrawMember": Form(path="/participants/members/{}/withdraw", target="member", optional=_REASON),
}

FEED_LINK: dict[str, Form] = {
    "IssueFeedLink": Form(
        path="/notifications/trips/{}/feed-links",
        target="trip",
        makes="link",
        required={"delegation": ref("delegation"), "level": choice("full", "delegation"), "label": text},
        optional={"cleared": flag, "alarm": duration, "expires_at": instant},
    ),
    "RotateFeedLink": Form(path="/notifications/feed-links/{}/rotate", target="link", optional={"grace": duration}),
    "RevokeFeedLink": Form(path="/notifications/feed-links/{}/revoke", target="link", required=_REASON),
}

FORMS: dict[str, Form] = {**TRIP, **STOP, **MOVEMENT, **MEETING, **DELEGATION, **FEED_LINK}
"""Every command by its name."""
