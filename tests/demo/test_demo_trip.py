"""The demo's trip file against the facts that it is to show, and against the rules of the services that take it."""

import re
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest

from services.demo.trip_fields import Ref
from services.demo.trip_file import DEMO, Step, TripFile, read_trip_file
from services.notifications import feed_link
from services.notifications import shapes as link_shapes
from services.participants import delegation, member
from services.participants import shapes as roster_shapes
from services.schedule import meeting, movement, stop, trip
from services.schedule import shapes as schedule_shapes
from shared.shapes import Body

SCHEDULE: dict[str, ModuleType] = {"trip": trip, "stop": stop, "movement": movement, "meeting": meeting}
SHAPES: dict[str, type[Body]] = {
    **{name: each for shapes in (schedule_shapes, roster_shapes, link_shapes) for name, each in vars(shapes).items()},
    "ReportWheelsUp": schedule_shapes.Wheels,
    "ReportWheelsDown": schedule_shapes.Wheels,
    "DropMovement": schedule_shapes.Drop,
    "WithdrawMember": roster_shapes.Withdraw,
}
PATCHES = ("Change", "Reschedule", "Move", "Revise")
FOLDS = ("fold", "arrives_fold", "departs_fold")

STOPS = [
    ("Tel Aviv", "Asia/Jerusalem", "+02:00", date(2023, 11, 3), date(2023, 11, 3)),
    ("Amman", "Asia/Amman", "+03:00", date(2023, 11, 3), date(2023, 11, 4)),
    ("Ramallah", "Asia/Hebron", "+02:00", date(2023, 11, 5), date(2023, 11, 5)),
    ("Baghdad", "Asia/Baghdad", "+03:00", date(2023, 11, 5), date(2023, 11, 5)),
    ("Ankara", "Europe/Istanbul", "+03:00", date(2023, 11, 5), date(2023, 11, 6)),
    ("Tokyo", "Asia/Tokyo", "+09:00", date(2023, 11, 7), date(2023, 11, 8)),
    ("Seoul", "Asia/Seoul", "+09:00", date(2023, 11, 8), date(2023, 11, 9)),
    ("New Delhi", "Asia/Kolkata", "+05:30", date(2023, 11, 9), date(2023, 11, 10)),
]
HOSTED = {
    ("Tel Aviv", "Meeting with the Prime Minister of Israel", "Benjamin Netanyahu"),
    ("Tel Aviv", "Meeting with the war cabinet of Israel", "Benjamin Netanyahu"),
    ("Tel Aviv", "Meeting with the President of Israel", "Isaac Herzog"),
    ("Amman", "Audience with the King of Jordan", "King Abdullah II"),
    ("Amman", "Meeting with the ministers of Jordan, Saudi Arabia, the UAE, Qatar and Egypt", "King Abdullah II"),
    ("Ramallah", "Meeting with the President of the Palestinian Authority", "Mahmoud Abbas"),
    ("Baghdad", "Meeting with the Prime Minister of Iraq", "Mohammed Shia al-Sudani"),
    ("Ankara", "Meeting with the Foreign Minister of Türkiye", "Hakan Fidan"),
    ("Tokyo", "Meeting with the Prime Minister of Japan", "Fumio Kishida"),
    ("Tokyo", "Meeting with the Foreign Minister of Japan", "Yoko Kamikawa"),
    ("Tokyo", "Second G7 Foreign Ministers' Meeting of 2023: session on the Middle East", "Yoko Kamikawa"),
    ("Tokyo", "Second G7 Foreign Ministers' Meeting of 2023: session on Ukraine", "Yoko Kamikawa"),
    ("Tokyo", "Second G7 Foreign Ministers' Meeting of 2023: dialogue with Central Asia", "Yoko Kamikawa"),
    ("Tokyo", "Second G7 Foreign Ministers' Meeting of 2023: dialogue with Ukraine", "Yoko Kamikawa"),
    ("Seoul", "Meeting with the President of the Republic of Korea", "Yoon Suk Yeol"),
    ("Seoul", "Meeting with the Foreign Minister of the Republic of Korea", "Park Jin"),
    ("Seoul", "Meeting with the National Security Advisor of the Republic of Korea", "Cho Tae-yong"),
    ("New Delhi", "Meeting with the External Affairs Minister of India", "S. Jaishankar"),
    (
        "New Delhi",
        "2+2 Ministerial Dialogue with the External Affairs Minister and the Defence Minister of India",
        "Rajnath Singh",
    ),
}
"""Each known meeting: where, its title, and one of those who stand on the roster of the host that is invited to it."""
TOPICS = {
    "Tel Aviv": {
        "safety of U.S. citizens",
        "release of hostages",
        "humanitarian aid",
        "preventing escalation",
    },
    "Amman": {
        "civilian lives",
        "essential services",
        "forced displacement",
        "regional stability",
        "a Palestinian state",
    },
    "Ramallah": set[str](),
    "Baghdad": set[str](),
    "Ankara": set[str](),
    "Tokyo": {"Ukraine's recovery and energy needs", "the Indo-Pacific", "Japan's G7 presidency"},
    "Seoul": {
        "Russia's aggression",
        "Russia-DPRK military cooperation",
        "the Middle East",
        "investment and economic security",
        "trilateral engagement after Camp David",
    },
    "New Delhi": {"bilateral and global concerns", "the Indo-Pacific"},
}
SECRET = {
    "ramallah": datetime.fromisoformat("2023-11-05T09:00+02:00"),
    "palestinian": datetime.fromisoformat("2023-11-05T09:00+02:00"),
    "hebron": datetime.fromisoformat("2023-11-05T09:00+02:00"),
    "baghdad": datetime.fromisoformat("2023-11-05T17:00+03:00"),
    "iraq": datetime.fromisoformat("2023-11-05T17:00+03:00"),
}
"""Words that nothing may say before the party is there; "a Palestinian state" is a topic of Amman."""


class Played:
    """The trip as the services' own rules make it of the steps. A step without effect is a fault of the file."""

    def __init__(self) -> None:
        self.states: dict[Ref, Any] = {}
        self.links: dict[str, tuple[str, str]] = {}
        self._ids: dict[Ref, UUID] = {}

    def of(self, kind: str) -> dict[str, Any]:
        """The things of a kind by their external ids."""
        return {ref.id: state for ref, state in self.states.items() if ref.kind == kind}

    def at(self, thing: UUID) -> Any:
        """The thing with this id."""
        return next(state for state in self.states.values() if state.id == thing)

    def play(self, step: Step) -> None:
        about = step.makes or step.target
        assert about is not None
        if about.kind == "link":
            link = _values(step.command, self._json(step.body))
            self.links[about.id] = self._ref(link["delegation"]).id, link["level"]
            return
        named = {ref.kind: self._ids.setdefault(ref, uuid4()) for ref in (step.target, step.makes) if ref}
        decide = self._on_schedule if about.kind in SCHEDULE else self._on_rosters
        assert decide(step, about, named, self._json(step.body)), f"step {step.key} has no effect"

    def _on_schedule(self, step: Step, about: Ref, named: dict[str, UUID], body: dict[str, Any]) -> bool:
        module, state = SCHEDULE[about.kind], self.states.get(about)
        command = getattr(module, step.command)(**named, **_values(step.command, body))
        if about.kind == "trip":
            events = trip.decide(command, state)
        else:
            status = next(iter(self.of("trip").values())).status
            around: list[Any] = [[stop.stay for stop in self.of("stop").values()]]
            if about.kind == "stop":
                around.append([each.engagement for each in self.of("meeting").values() if each.stop == named["stop"]])
                around[1] = [engagement for engagement in around[1] if engagement]
            events = module.decide(command, state, status, *around)
        for event in events:
            self.states[about] = module.evolve(self.states.get(about), event)
        return bool(events)

    def _on_rosters(self, step: Step, about: Ref, named: dict[str, UUID], body: dict[str, Any]) -> bool:
        values = _values(step.command, body)
        if about.kind == "delegation":
            return self._on_delegation(about, getattr(delegation, step.command)(**named, **values))
        state = self.states.get(about)
        home = self._ref(named["delegation"] if state is None else state.delegation)
        if step.command == "AddMember":
            values |= {"trip": next(iter(self.of("trip").values())).id, "person": uuid4()}
        events = member.decide(getattr(member, step.command)(**named, **values), state, self.states[home])
        for event in events:
            self.states[about] = member.evolve(self.states.get(about), event)
        after: member.Member = self.states[about]
        gone = after.status == "withdrawn"
        follow = delegation.strike if gone else lambda each, one: delegation.enrol(each, one, after.function)
        for followed in follow(self.states[home], after.id):
            self.states[home] = delegation.evolve(self.states[home], followed)
        return bool(events)

    def _on_delegation(self, about: Ref, command: Any) -> bool:
        events = delegation.decide(command, self.states.get(about))
        for event in events:
            self.states[about] = delegation.evolve(self.states.get(about), event)
        return bool(events)

    def _ref(self, thing: UUID) -> Ref:
        return next(ref for ref, known in self._ids.items() if known == thing)

    def _json(self, value: Any) -> Any:
        match value:
            case Ref():
                return self._ids[value]
            case dict():
                return {key: self._json(each) for key, each in value.items()}
            case tuple():
                return tuple(self._json(each) for each in value)
            case _:
                return value


def _values(name: str, body: dict[str, Any]) -> dict[str, Any]:
    """A command's values, read by the API's own shape of the command (there is none where only a reason is told)."""
    shape = SHAPES.get(name)
    if shape is None:
        return body
    checked = shape.model_validate({**body, **{key: list(body[key]) for key in body if isinstance(body[key], tuple)}})
    if not name.startswith(PATCHES):
        return checked.values("id")
    folds = {fold: getattr(checked, fold) for fold in FOLDS if fold in shape.model_fields}
    return {"changes": checked.changes(*FOLDS), **folds}


@pytest.fixture(scope="module")
def trip_file() -> TripFile:
    return read_trip_file(DEMO)


@pytest.fixture(scope="module")
def planned(trip_file: TripFile) -> Played:
    played = Played()
    for step in trip_file.plan:
        played.play(step)
    return played


@pytest.fixture(scope="module")
def played(trip_file: TripFile) -> Played:
    played = Played()
    for step in trip_file.steps:
        played.play(step)
    return played


def test_announced_plan_has_five_stops(planned: Played, trip_file: TripFile) -> None:
    announced = trip_file.happened[0]
    party = planned.of("trip")["secretary-of-state-2023-11"]

    assert [each.place for each in planned.of("stop").values()] == [
        "Tel Aviv",
        "Amman",
        "Tokyo",
        "Seoul",
        "New Delhi",
    ]
    assert (announced.command, announced.when and announced.when.date()) == ("AnnounceTrip", date(2023, 11, 1))
    assert (party.starts_on, party.ends_on) == (date(2023, 11, 2), date(2023, 11, 10))


def test_trip_came_to_eight_stops(played: Played) -> None:
    stays = sorted(played.of("stop").values(), key=lambda each: each.arrives_at)

    assert [
        (
            each.place,
            each.zone,
            each.arrives_at.astimezone(ZoneInfo(each.zone)).isoformat()[-6:],
            each.arrives.date(),
            each.departs.date(),
        )
        for each in stays
    ] == STOPS
    assert {each.status for each in stays} == {"planned"}


def test_each_known_meeting_is_on_the_programme_with_its_host(played: Played) -> None:
    hosted = set()
    for each in played.of("meeting").values():
        place, title = played.at(each.stop).place, each.title
        for person in played.of("member").values():
            if person.delegation in each.delegations and (place, title, person.personal.name) in HOSTED:
                hosted.add((place, title, person.personal.name))
                assert played.at(each.stop).host == person.delegation
                assert each.status == "confirmed"

    assert hosted == HOSTED


def test_travelling_delegation_is_at_every_meeting(played: Played) -> None:
    ours = played.of("delegation")["us"].id

    assert [each.title for each in played.of("meeting").values() if ours not in each.delegations] == []


def test_every_link_says_when_it_ends_and_is_live_for_years(trip_file: TripFile) -> None:
    now, secret_hash = datetime.now(UTC), "0" * 64
    live = []
    for step in trip_file.steps:
        if step.command == "IssueFeedLink":
            assert "expires_at" in step.body, f"line {step.line}"
            values = _values(step.command, {**step.body, "delegation": uuid4()})
            command = feed_link.IssueFeedLink(
                trip=uuid4(), feed_link=uuid4(), creator="demo", secret_hash=secret_hash, at=now, **values
            )
            own = feed_link.Audience(delegation_kind="own", trip_ends_at=datetime(2023, 11, 10, tzinfo=UTC))
            [issued] = feed_link.decide(command, None, own)
            link = feed_link.evolve(None, issued)
            live.append(feed_link.standing(link, secret_hash, now + timedelta(days=3650)))

    assert live == ["live"] * 10


def test_topics_of_each_stop_are_those_that_are_known(played: Played) -> None:
    topics: dict[str, set[str]] = {each.place: set() for each in played.of("stop").values()}
    for each in played.of("meeting").values():
        topics[played.at(each.stop).place].update(each.topics)

    assert topics == TOPICS


def test_known_clock_times_are_the_only_ones_that_are_not_assumed(played: Played) -> None:
    known = {
        name: (each.start, each.duration, each.hard) for name, each in played.of("meeting").items() if not each.assumed
    }

    assert known == {
        "tokyo-foreign-minister": (datetime(2023, 11, 7, 18, 25), timedelta(minutes=45), True),
        "g7-central-asia": (datetime(2023, 11, 8, 14, 15), timedelta(minutes=50), True),
        "g7-dialogue-with-ukraine": (datetime(2023, 11, 8, 15, 20), timedelta(minutes=45), True),
    }
    assert [name for kind in ("stop", "movement") for name, each in played.of(kind).items() if not each.assumed] == []


def test_sessions_of_the_g7_are_on_their_days(played: Played) -> None:
    sessions = played.of("meeting")

    assert sessions["g7-middle-east"].start.date() == date(2023, 11, 7)
    assert sessions["g7-middle-east"].start.hour >= 18
    assert sessions["g7-ukraine"].start.date() == date(2023, 11, 8)
    assert (sessions["g7-ukraine"].start + sessions["g7-ukraine"].duration).hour < 12


def test_each_delegation_has_one_feed_at_its_level(played: Played) -> None:
    parties = played.of("delegation")
    hosts = {each.host for each in played.of("stop").values()}

    assert sorted((parties[owner].name, parties[owner].kind, level) for owner, level in played.links.values()) == [
        ("Host delegation of India", "host", "delegation"),
        ("Host delegation of Iraq", "host", "delegation"),
        ("Host delegation of Israel", "host", "delegation"),
        ("Host delegation of Japan, G7 Presidency", "host", "delegation"),
        ("Host delegation of Jordan", "host", "delegation"),
        ("Host delegation of Türkiye", "host", "delegation"),
        ("Host delegation of the Palestinian Authority", "host", "delegation"),
        ("Host delegation of the Republic of Korea", "host", "delegation"),
        ("Press pool", "press", "delegation"),
        ("United States delegation", "own", "full"),
    ]
    assert {each.id for each in parties.values() if each.kind == "host"} == hosts
    assert [name for name, each in parties.items() if each.kind != "press" and each.head is None] == []


def test_nothing_of_the_secret_stops_stands_there_before_the_party_does(trip_file: TripFile) -> None:
    for step in trip_file.steps:
        said = repr(step).lower().replace("a palestinian state", "")
        for word, landed in SECRET.items():
            if word in said:
                assert step.when is not None
                assert step.when >= landed, step.key


def test_names_of_people_stand_in_rosters_alone(trip_file: TripFile, played: Played) -> None:
    names = {each.personal.name for each in played.of("member").values()}
    words = {word for name in names for word in re.findall(r"[\w-]{4,}", name)} - {"King"}
    elsewhere = " ".join(
        str({key: value for key, value in step.body.items() if key != "personal"}) for step in trip_file.steps
    )

    assert {"Blinken", "Austin", "Netanyahu", "Kamikawa", "Jaishankar", "Yoon"} <= words
    assert [word for word in words if re.search(rf"\b{word}\b", elsewhere)] == []


def test_telephone_numbers_belong_to_nobody(played: Played) -> None:
    contacts = [each.personal.contact for each in played.of("member").values() if each.personal.contact]

    assert [contact for contact in contacts if not re.fullmatch(r"\+1 202-555-01\d\d", contact)] == []
    assert len(set(contacts)) == len(contacts) > 20


def test_people_in_public_office_have_no_telephone_number(played: Played) -> None:
    public = [each for each in played.of("member").values() if each.function in ("head", "principal")]

    assert len(public) == 15
    assert [each.personal for each in public if each.personal.contact] == []


def test_press_pool_is_at_each_press_availability(played: Played) -> None:
    pool = played.of("delegation")["press"].id
    talks = [each for each in played.of("meeting").values() if each.kind == "press-availability"]

    assert [played.at(each.stop).place for each in talks] == [
        *("Tel Aviv", "Amman", "Tokyo", "Seoul", "New Delhi"),
        *("Ankara", "Baghdad"),
    ]
    assert [each.title for each in talks if pool not in each.delegations or not each.assumed] == []


def test_tel_aviv_to_amman_is_a_flight_of_forty_minutes(played: Played) -> None:
    flight = played.of("movement")["tel-aviv-amman"]

    assert (flight.departs, flight.arrives) == (datetime(2023, 11, 3, 19, 30), datetime(2023, 11, 3, 21, 10))
    assert flight.arrives_at - flight.departs_at == timedelta(minutes=40)


def test_washington_puts_its_clocks_back_during_the_trip(played: Played) -> None:
    out, back = (played.of("movement")[name] for name in ("andrews-tel-aviv", "new-delhi-andrews"))
    call = played.of("meeting")["ankara-washington-call"]
    washington = played.of("trip")["secretary-of-state-2023-11"].home.zone

    assert {washington, out.origin.zone, back.destination.zone, call.zone} == {"America/New_York"}
    assert out.departs_at.astimezone(ZoneInfo(washington)).utcoffset() == timedelta(hours=-4)
    assert back.arrives_at.astimezone(ZoneInfo(washington)).utcoffset() == timedelta(hours=-5)
    assert call.starts_at.astimezone(ZoneInfo("Europe/Istanbul")).isoformat() == "2023-11-05T23:30:00+03:00"


def test_flight_to_new_delhi_lands_by_the_half_hour(played: Played) -> None:
    flight = played.of("movement")["seoul-new-delhi"]

    assert (flight.origin.zone, flight.destination.zone) == ("Asia/Seoul", "Asia/Kolkata")
    assert flight.arrives_at - flight.departs_at == timedelta(hours=7, minutes=45)
    assert (flight.arrives_at.minute, flight.arrives.minute) == (15, 45)


def test_one_flight_lands_before_it_leaves_by_the_clocks_on_the_wall(played: Played) -> None:
    backwards = [name for name, each in played.of("movement").items() if each.arrives < each.departs]

    assert backwards == ["amman-tel-aviv"]


def test_flights_join_up_with_the_stays(played: Played) -> None:
    flights = [each for each in played.of("movement").values() if each.mode == "flight" and each.status == "planned"]
    arrivals = {played.at(each.stop).place: (each.arrives, each.arrives_at) for each in flights if each.stop}
    ramallah = played.of("movement")["tel-aviv-ramallah"]
    arrivals["Ramallah"] = (ramallah.arrives, ramallah.arrives_at)

    assert arrivals == {each.place: (each.arrives, each.arrives_at) for each in played.of("stop").values()}
    departures = {
        each.origin.place: each.departs_at for each in played.of("movement").values() if each.status == "planned"
    }
    stays = played.of("stop").values()
    assert {each.place: each.departs_at for each in stays} == {each.place: departures[each.place] for each in stays}


def test_what_was_reported_was_reported_afterwards(trip_file: TripFile) -> None:
    reports = [step for step in trip_file.happened if step.command.startswith("ReportWheels")]

    assert len(reports) == 18
    assert [
        step.key for step in reports if step.when and datetime.fromisoformat(str(step.body["at"])) > step.when
    ] == []


def test_changes_of_every_kind_happened(trip_file: TripFile, played: Played) -> None:
    counts = Counter(step.command for step in trip_file.happened)
    meetings = played.of("meeting")

    assert counts.keys() >= {
        *("RescheduleMeeting", "MoveMeeting", "ReviseMeeting", "ConfirmMeeting", "InviteDelegation"),
        *("UninviteDelegation", "CancelMeeting", "ReinstateMeeting", "ScheduleMeeting"),
        *("AddStop", "ChangeStop", "AddMovement", "ChangeMovement", "DropMovement", "ReportWheelsUp"),
        *("RegisterDelegation", "RenameDelegation", "AddMember", "ChangeMember", "ReorderMembers", "WithdrawMember"),
    }
    assert [(name, each.reason) for name, each in meetings.items() if each.status == "cancelled"] == [
        ("seoul-embassy", "No time is left before the flight to New Delhi")
    ]
    assert meetings["amman-press"].status == "confirmed"
    assert "CompleteTrip" not in counts
    assert played.of("trip")["secretary-of-state-2023-11"].status == "announced"
