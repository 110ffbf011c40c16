"""The picture of a trip: the fold of messages into documents, the count for SEQUENCE, and reading it all."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notifications.picture import (
    Delegation,
    End,
    Meeting,
    Member,
    Movement,
    Picture,
    Press,
    Stop,
    Trip,
    Venue,
    merge,
    sequence,
    snapshot,
)

TRIP, STOP, MOVEMENT, MEETING, OWN, HOST, HEAD, AIDE = (UUID(int=number) for number in range(1, 9))
wall = datetime.fromisoformat
EMPTY = Picture(trip=None, stops={}, movements={}, meetings={}, delegations={}, members={})

WHOLE: Mapping[str, Mapping[str, Any]] = {
    "trip": {
        "trip": str(TRIP),
        "title": "Secretary's trip",
        "principals": ["Secretary of State"],
        "home": {"place": "Washington", "zone": "America/New_York"},
        "starts_on": "2023-11-02",
        "ends_on": "2023-11-10",
        "status": "planned",
        "reason": None,
    },
    "stop": {
        "trip": str(TRIP),
        "stop": str(STOP),
        "place": "Tokyo",
        "country": "Japan",
        "zone": "Asia/Tokyo",
        "arrives": "2023-11-07T14:05:00",
        "departs": "2023-11-08T16:40:00",
        "arrives_at": "2023-11-07T05:05:00Z",
        "departs_at": "2023-11-08T07:40:00Z",
        "tz": "2025.2",
        "host": str(HOST),
        "assumed": True,
        "status": "planned",
        "reason": "aircraft",
    },
    "movement": {
        "trip": str(TRIP),
        "movement": str(MOVEMENT),
        "mode": "flight",
        "label": "To Tokyo",
        "from": {"place": "Ankara", "zone": "Europe/Istanbul"},
        "to": {"place": "Yokota", "zone": "Asia/Tokyo"},
        "stop": str(STOP),
        "departs": "2023-11-06T20:10:00",
        "arrives": "2023-11-07T13:30:00",
        "departs_at": "2023-11-06T17:10:00Z",
        "arrives_at": "2023-11-07T04:30:00Z",
        "tz": "2025.2",
        "hard": True,
        "assumed": False,
        "notes": "quiet cabin",
        "left_at": "2023-11-06T17:21:00Z",
        "landed_at": "2023-11-07T04:44:00Z",
        "status": "planned",
        "reason": "weather",
    },
    "meeting": {
        "trip": str(TRIP),
        "meeting": str(MEETING),
        "stop": str(STOP),
        "title": "Foreign Minister Kamikawa",
        "kind": "bilateral",
        "status": "confirmed",
        "start": "2023-11-07T18:25:00",
        "zone": "Asia/Tokyo",
        "duration": "PT45M",
        "starts_at": "2023-11-07T09:25:00Z",
        "ends_at": "2023-11-07T10:10:00Z",
        "tz": "2025.2",
        "venue": {
            "name": "Iikura Guest House",
            "address": "1 Azabudai",
            "geo": [35.66, 139.74],
            "conference": "https://example.org/call",
        },
        "topics": ["Ukraine", "Indo-Pacific"],
        "notes": "gift",
        "press": {"tag": "pooled-spray", "preset": "2023-11-07T17:40:00", "final": "2023-11-07T18:10:00"},
        "hard": True,
        "assumed": False,
        "delegations": [str(OWN), str(HOST)],
        "reason": "moved up",
    },
    "delegation": {
        "trip": str(TRIP),
        "delegation": str(HOST),
        "name": "Host delegation of Japan",
        "kind": "host",
        "status": "registered",
        "head": str(HEAD),
        "order": [str(HEAD), str(AIDE)],
        "reason": None,
    },
    "member": {
        "trip": str(TRIP),
        "member": str(AIDE),
        "delegation": str(HOST),
        "person": "00000000-0000-0000-0000-00000000000a",
        "function": "note-taker",
        "personal": {"name": "Mori", "title": "Second Secretary", "contact": "mori@example.org"},
        "status": "on-roster",
        "reason": None,
    },
}
IDS = {"trip": TRIP, "stop": STOP, "movement": MOVEMENT, "meeting": MEETING, "delegation": HOST, "member": AIDE}

READ = Picture(
    trip=Trip(id=TRIP, title="Secretary's trip", years=(2023, 2023)),
    stops={
        STOP: Stop(
            id=STOP,
            sequence=11,
            place="Tokyo",
            country="Japan",
            zone="Asia/Tokyo",
            arrives=wall("2023-11-07T14:05"),
            departs=wall("2023-11-08T16:40"),
            arrives_at=datetime(2023, 11, 7, 5, 5, tzinfo=UTC),
            departs_at=datetime(2023, 11, 8, 7, 40, tzinfo=UTC),
            host=HOST,
            assumed=True,
            status="planned",
            reason="aircraft",
        )
    },
    movements={
        MOVEMENT: Movement(
            id=MOVEMENT,
            sequence=12,
            mode="flight",
            label="To Tokyo",
            origin=End(place="Ankara", zone="Europe/Istanbul"),
            destination=End(place="Yokota", zone="Asia/Tokyo"),
            departs=wall("2023-11-06T20:10"),
            arrives=wall("2023-11-07T13:30"),
            departs_at=datetime(2023, 11, 6, 17, 10, tzinfo=UTC),
            arrives_at=datetime(2023, 11, 7, 4, 30, tzinfo=UTC),
            left_at=datetime(2023, 11, 6, 17, 21, tzinfo=UTC),
            landed_at=datetime(2023, 11, 7, 4, 44, tzinfo=UTC),
            hard=True,
            assumed=False,
            notes="quiet cabin",
            status="planned",
            reason="weather",
        )
    },
    meetings={
        MEETING: Meeting(
            id=MEETING,
            sequence=13,
            stop=STOP,
            title="Foreign Minister Kamikawa",
            kind="bilateral",
            status="confirmed",
            start=wall("2023-11-07T18:25"),
            zone="Asia/Tokyo",
            starts_at=datetime(2023, 11, 7, 9, 25, tzinfo=UTC),
            ends_at=datetime(2023, 11, 7, 10, 10, tzinfo=UTC),
            venue=Venue(
                name="Iikura Guest House",
                address="1 Azabudai",
                geo=(35.66, 139.74),
                conference="https://example.org/call",
            ),
            topics=("Ukraine", "Indo-Pacific"),
            notes="gift",
            press=Press(
                tag="pooled-spray",
                preset=wall("2023-11-07T17:40"),
                final=wall("2023-11-07T18:10"),
            ),
            hard=True,
            assumed=False,
            delegations=(OWN, HOST),
            reason="moved up",
        )
    },
    delegations={
        HOST: Delegation(
            id=HOST,
            name="Host delegation of Japan",
            kind="host",
            status="registered",
            head=HEAD,
            order=(HEAD, AIDE),
        )
    },
    members={
        AIDE: Member(
            id=AIDE,
            delegation=HOST,
            function="note-taker",
            name="Mori",
            title="Second Secretary",
            contact="mori@example.org",
            status="on-roster",
        )
    },
)

Message = tuple[str, UUID, Mapping[str, Any]]
Row = tuple[str, UUID, int, Mapping[str, Any]]


def row(kind: str, count: int = 0, /, **changes: Any) -> Row:
    return kind, IDS[kind], count, merge({}, {**WHOLE[kind], **changes}, kind)


def without(kind: str, *names: str) -> Row:
    kept = {name: value for name, value in WHOLE[kind].items() if name not in names}
    return kind, IDS[kind], 0, merge({}, kept, kind)


def changed(kind: str, /, **values: Any) -> dict[str, Any]:
    """A message that changes these fields; the old values are of no interest here."""
    ids = {name: WHOLE[kind][name] for name in ("trip", kind)}
    return {**ids, **values, "was": dict.fromkeys(values)}


def folded(messages: Iterable[Message]) -> list[Row]:
    rows: dict[tuple[str, UUID], tuple[int, Mapping[str, Any]]] = {}
    for kind, thing, body in messages:
        count, document = rows.get((kind, thing), (None, {}))
        rows[kind, thing] = sequence(count, body, kind), merge(document, body, kind)
    return [(kind, thing, count, document) for (kind, thing), (count, document) in rows.items()]


def test_snapshot_reads_every_field_that_a_feed_needs() -> None:
    rows = [row(kind, count) for count, kind in enumerate(WHOLE, start=10)]
    assert snapshot(rows) == READ
    assert snapshot(reversed(rows)) == READ


def test_snapshot_of_no_rows_is_the_empty_picture() -> None:
    assert snapshot([]) == EMPTY


def test_snapshot_passes_over_kinds_and_fields_that_it_does_not_know() -> None:
    rows = [row(kind, count, seats=5, hidden=False) for count, kind in enumerate(WHOLE, start=10)]
    assert snapshot([*rows, ("conflict", UUID(int=99), 0, {"title": "double-booked"})]) == READ


def test_snapshot_reads_unknown_values_of_enums_as_they_are() -> None:
    read = snapshot(
        [
            row("stop", status="suspended"),
            row("movement", mode="tiltrotor", status="held"),
            row("meeting", kind="hologram", status="postponed"),
            row("delegation", kind="observer", status="dormant"),
            row("member", function="astrologer", status="on-leave"),
        ]
    )
    assert read.stops[STOP].status == "suspended"
    assert (read.movements[MOVEMENT].mode, read.movements[MOVEMENT].status) == ("tiltrotor", "held")
    assert (read.meetings[MEETING].kind, read.meetings[MEETING].status) == ("hologram", "postponed")
    assert (read.delegations[HOST].kind, read.delegations[HOST].status) == ("observer", "dormant")
    assert (read.members[AIDE].function, read.members[AIDE].status) == ("astrologer", "on-leave")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("stop", name) for name in ("place", "zone", "arrives", "departs", "arrives_at", "departs_at")),
        *(("movement", name) for name in ("mode", "from", "to", "departs", "arrives", "departs_at", "arrives_at")),
        *(("meeting", name) for name in ("stop", "title", "kind", "start", "zone", "starts_at", "ends_at")),
        *(("delegation", name) for name in ("name", "kind")),
        *(("member", name) for name in ("delegation", "function")),
        ("trip", "title"),
    ],
)
def test_snapshot_leaves_out_what_lacks_a_field_that_it_cannot_do_without(kind: str, name: str) -> None:
    others = [other for other in WHOLE if other != kind]
    assert snapshot([without(kind, name), *map(row, others)]) == snapshot(map(row, others))


def test_snapshot_reads_a_meeting_that_says_only_what_it_must() -> None:
    optional = ("status", "venue", "topics", "notes", "press", "hard", "assumed", "delegations", "reason")
    read = snapshot([without("meeting", *optional)]).meetings[MEETING]
    assert read == Meeting(
        id=MEETING,
        sequence=0,
        stop=STOP,
        title="Foreign Minister Kamikawa",
        kind="bilateral",
        status="tentative",
        start=wall("2023-11-07T18:25"),
        zone="Asia/Tokyo",
        starts_at=datetime(2023, 11, 7, 9, 25, tzinfo=UTC),
        ends_at=datetime(2023, 11, 7, 10, 10, tzinfo=UTC),
        venue=None,
        topics=(),
        notes=None,
        press=None,
        hard=False,
        assumed=False,
        delegations=(),
        reason=None,
    )


def test_snapshot_reads_a_member_whose_personal_data_are_gone() -> None:
    read = snapshot([row("member", personal=None)]).members[AIDE]
    assert (read.name, read.title, read.contact, read.function) == (None, None, None, "note-taker")


def test_snapshot_reads_instants_of_any_offset_as_utc() -> None:
    read = snapshot([row("meeting", starts_at="2023-11-07T18:25:00+09:00")]).meetings[MEETING]
    assert read.starts_at.isoformat() == "2023-11-07T09:25:00+00:00"


def test_merge_of_a_whole_keeps_all_but_the_ids_of_trip_and_thing() -> None:
    for kind, body in WHOLE.items():
        assert merge({"stale": 1}, body, kind) == {
            name: value for name, value in body.items() if name not in {"trip", kind}
        }


def test_merge_keeps_the_ids_that_are_fields() -> None:
    assert merge({}, WHOLE["meeting"], "meeting")["stop"] == str(STOP)
    assert merge({}, WHOLE["movement"], "movement")["stop"] == str(STOP)
    assert merge({}, WHOLE["member"], "member")["delegation"] == str(HOST)


def test_merge_of_a_change_sets_the_fields_that_it_carries_and_no_others() -> None:
    document = merge({}, WHOLE["meeting"], "meeting")
    body = changed("meeting", status="cancelled", reason="illness", topics=[])
    assert merge(document, body, "meeting") == {**document, "status": "cancelled", "reason": "illness", "topics": []}


def test_merge_leaves_its_arguments_alone() -> None:
    document, body = {"title": "old", "notes": "kept"}, changed("meeting", title="new")
    before = {**document}, {**body}
    assert merge(document, body, "meeting") == {"title": "new", "notes": "kept"}
    assert (document, body) == before


COUNTED = {
    "stop": ("arrives", "departs", "arrives_at", "departs_at", "zone", "place", "country", "status"),
    "movement": ("departs", "arrives", "departs_at", "arrives_at", "from", "to", "stop", "status"),
    "meeting": ("start", "zone", "duration", "starts_at", "ends_at", "stop", "venue", "status"),
    "trip": (),
    "delegation": (),
    "member": (),
}
FIELDS = [(kind, name) for kind, body in WHOLE.items() for name in body if name not in {"trip", kind}]


def test_sequence_of_a_first_message_is_nought() -> None:
    for kind, body in WHOLE.items():
        assert sequence(None, body, kind) == 0


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_sequence_counts_changes_of_start_end_place_and_status_alone(kind: str, name: str) -> None:
    counts = name in COUNTED[kind]
    assert sequence(7, changed(kind, **{name: "new"}), kind) == (8 if counts else 7)


def test_sequence_counts_a_message_once_however_much_it_changes() -> None:
    body = changed("meeting", start="2023-11-07T19:00:00", starts_at="2023-11-07T10:00:00Z", stop=str(STOP), title="x")
    assert sequence(7, body, "meeting") == 8


def test_sequence_counts_a_reinstatement() -> None:
    assert sequence(7, WHOLE["meeting"], "meeting") == 8


def test_sequence_does_not_take_a_stop_for_its_own_place() -> None:
    assert sequence(7, changed("stop", host=str(OWN)), "stop") == 7


def test_sequence_follows_the_life_of_a_meeting() -> None:
    life = [
        WHOLE["meeting"],  # 0
        changed("meeting", topics=["Gaza"]),
        changed("meeting", delegations=[str(OWN)]),
        changed("meeting", start="2023-11-07T18:30:00", starts_at="2023-11-07T09:30:00Z"),  # 1
        changed("meeting", notes="seating"),
        changed("meeting", venue={"name": "Kantei"}),  # 2
        changed("meeting", status="cancelled", reason="illness"),  # 3
        WHOLE["meeting"],  # 4: reinstated
        changed("meeting", tz="2026.1"),
    ]
    [(_, _, count, document)] = folded(("meeting", MEETING, body) for body in life)
    assert count == 4
    assert document == {**merge({}, WHOLE["meeting"], "meeting"), "tz": "2026.1"}


_VALUES: Mapping[str, Mapping[str, st.SearchStrategy[Any]]] = {
    "meeting": {
        "status": st.sampled_from(["tentative", "confirmed", "cancelled", "postponed"]),
        "start": st.sampled_from(["2023-11-07T18:25:00", "2023-11-07T19:00:00"]),
        "title": st.sampled_from(["Kamikawa", "Kishida"]),
        "delegations": st.lists(st.sampled_from([str(OWN), str(HOST), str(UUID(int=77))]), unique=True),
        "venue": st.sampled_from([None, {"name": "Kantei"}]),
    },
    "stop": {"place": st.sampled_from(["Tokyo", "Kyoto"]), "host": st.sampled_from([None, str(HOST)])},
    "movement": {"notes": st.sampled_from([None, "late"]), "status": st.sampled_from(["planned", "dropped"])},
    "trip": {"title": st.sampled_from(["Trip", "Journey"])},
    "delegation": {
        "name": st.sampled_from(["Japan", "Nippon"]),
        "order": st.permutations([str(HEAD), str(AIDE)]),
        "status": st.sampled_from(["registered", "dissolved"]),
    },
    "member": {
        "personal": st.sampled_from([None, {"name": "Mori"}, {"name": "Abe", "contact": "+81"}]),
        "status": st.sampled_from(["on-roster", "withdrawn"]),
    },
}


@st.composite
def histories(draw: st.DrawFn, kinds: tuple[str, ...]) -> list[Message]:
    """The messages of one topic in their order: two things of each kind, each whole before it changes."""
    things = [(kind, UUID(int=IDS[kind].int + 100 * twin)) for kind in kinds for twin in (0, 1)]
    seen: set[UUID] = set()
    messages: list[Message] = []
    for kind, thing in draw(st.lists(st.sampled_from(things), max_size=25)):
        if thing not in seen or draw(st.integers(0, 9)) == 0:
            seen.add(thing)
            messages.append((kind, thing, WHOLE[kind]))
        else:
            names = draw(st.sets(st.sampled_from(sorted(_VALUES[kind])), min_size=1))
            messages.append((kind, thing, changed(kind, **{name: draw(_VALUES[kind][name]) for name in sorted(names)})))
    return messages


@given(
    schedule=histories(("trip", "stop", "movement", "meeting")),
    participants=histories(("delegation", "member")),
    data=st.data(),
)
def test_the_picture_is_the_same_for_every_interleaving_of_topics(
    schedule: list[Message], participants: list[Message], data: st.DataObject
) -> None:
    turns = data.draw(st.permutations([True] * len(schedule) + [False] * len(participants)))
    topics = {True: iter(schedule), False: iter(participants)}
    shuffled = [next(topics[turn]) for turn in turns]
    rows = folded(shuffled)
    expected = folded([*schedule, *participants])
    assert {entry[:2]: entry[2:] for entry in rows} == {entry[:2]: entry[2:] for entry in expected}
    assert snapshot(rows) == snapshot(expected)
    # Each thing is the fold of its own messages alone, whatever came between them.
    for kind, thing, count, document in rows:
        assert folded(m for m in shuffled if m[:2] == (kind, thing)) == [(kind, thing, count, document)]
