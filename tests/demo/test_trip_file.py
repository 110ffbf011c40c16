"""What a trip file may say, and that each fault names the file, the line and what is wrong."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from services.demo.trip_fields import Ref, TripFileWrong
from services.demo.trip_file import Step, read_trip_file

Write = Callable[[str | bytes], Path]


def test_trip_file_becomes_steps_in_their_order(small_text: str, write_trip: Write) -> None:
    trip_file = read_trip_file(write_trip(small_text))

    assert (trip_file.name, trip_file.id, trip_file.title) == ("trip.yaml", "small-trip", "To Oslo and back")
    assert [(step.key, step.line, step.command) for step in trip_file.steps] == [
        ("plan:small-trip", 3, "PlanTrip"),
        ("plan:ours", 10, "RegisterDelegation"),
        ("plan:minister", 14, "AddMember"),
        ("plan:theirs", 15, "RegisterDelegation"),
        ("plan:oslo", 19, "AddStop"),
        ("plan:there", 27, "AddMovement"),
        ("plan:talks", 36, "ScheduleMeeting"),
        ("plan:link-ours", 47, "IssueFeedLink"),
        ("plan:link-theirs", 48, "IssueFeedLink"),
        ("1", 50, "AnnounceTrip"),
        ("2", 51, "RescheduleMeeting"),
        ("3", 52, "RenameDelegation"),
        ("5", 53, "ReportWheelsDown"),
    ]
    assert trip_file.plan + trip_file.happened == trip_file.steps
    assert len(trip_file.happened) == 4


def test_thing_of_the_plan_names_others_by_their_external_ids(small_text: str, write_trip: Write) -> None:
    talks = next(step for step in read_trip_file(write_trip(small_text)).steps if step.key == "plan:talks")

    assert talks == Step(
        key="plan:talks",
        line=36,
        command="ScheduleMeeting",
        when=None,
        target=Ref("trip", "small-trip"),
        makes=Ref("meeting", "talks"),
        body={
            "stop": Ref("stop", "oslo"),
            "title": "Talks",
            "kind": "bilateral",
            "start": "2023-03-02T10:00:00",
            "duration": "PT1H",
            "venue": {"name": "Hall", "geo": (59.91, 10.75)},
            "topics": ("fish", "wind"),
            "press": {"tag": "open", "preset": "2023-03-02T09:30:00"},
            "delegations": (Ref("delegation", "ours"), Ref("delegation", "theirs")),
        },
    )


def test_thing_that_happened_has_its_date_and_its_instant(small_text: str, write_trip: Write) -> None:
    landed = read_trip_file(write_trip(small_text)).steps[-1]

    assert landed == Step(
        key="5",
        line=53,
        command="ReportWheelsDown",
        when=datetime(2023, 3, 1, 12, 9, tzinfo=timezone(timedelta(hours=1))),
        target=Ref("movement", "there"),
        makes=None,
        body={"at": "2023-03-01T12:04:00+01:00"},
    )
    assert landed.when == datetime(2023, 3, 1, 11, 9, tzinfo=UTC)


@pytest.mark.parametrize("spelling", ["no", "0123", "12:30", "2023-01-01", "1e3", '"null"'])
def test_text_is_never_taken_for_anything_else(spelling: str, small_text: str, write_trip: Write) -> None:
    text = small_text.replace("name: Hall,", f"name: {spelling},")

    talks = next(step for step in read_trip_file(write_trip(text)).steps if step.key == "plan:talks")

    assert talks.body["venue"] == {"name": spelling.strip('"'), "geo": (59.91, 10.75)}


def test_field_can_be_emptied_where_the_api_takes_null(small_text: str, write_trip: Write) -> None:
    text = small_text.replace("command: AnnounceTrip", "command: ChangeStop, stop: oslo, host: null")

    assert read_trip_file(write_trip(text)).happened[0].body == {"host": None}


def test_wall_time_that_was_twice_is_taken_with_its_fold(small_text: str, write_trip: Write) -> None:
    text = small_text.replace("2023-03-0", "2023-10-2").replace("2023-10-23 09:00", "2023-10-29 09:00")
    text = text.replace("start: 2023-10-22 11:00", "start: 2023-10-29 02:30, fold: 1")

    body = read_trip_file(write_trip(text)).happened[1].body

    assert body == {"start": "2023-10-29T02:30:00", "fold": 1}


WRONG = {
    # YAML itself
    "an empty file": ("*", "", 1, "the file is empty"),
    "a text alone": ("*", "plan", 1, "keys with values are expected here"),
    "a list on top": ("*", "- plan", 1, "keys with values are expected here"),
    "two documents": ("*", "plan: {}\n---\nplan: {}\n", 2, "no YAML: but found another document"),
    "a bracket left open": ("[fish, wind]", "[fish, wind", 44, "no YAML: expected ',' or ']', but got ':'"),
    "a tab for blanks": (
        "    title: To",
        "\ttitle: To",
        4,
        "no YAML: found character '\\t' that cannot start any token",
    ),
    "an alias of nothing": ("name: Hall", "name: *hall", 42, "no YAML: found undefined alias 'hall'"),
    # keys
    "no plan": ("plan:", "plans:", 1, "unknown key 'plans' (did you mean 'plan'?)"),
    "no trip": ("*", "plan:\n  stops: []\n", 2, "'trip' is missing"),
    "an unknown section": ("  stops:", "  stop:", 18, "unknown key 'stop' (did you mean 'stops'?)"),
    "an unknown field": ("country: Norway", "land: Norway", 21, "unknown key 'land'; known here: id, place, country, "),
    "a misspelt field": ("label: Lisbon", "lable: Lisbon", 29, "unknown key 'lable' (did you mean 'label'?)"),
    "a field twice": ("country: Norway", "place: Norway", 21, "'place' stands here twice"),
    "a missing field": ("      country: Norway\n", "", 19, "'country' is missing"),
    "a missing part": ("{place: Lisbon, zone: Europe/Lisbon}", "{place: Lisbon}", 6, "'zone' is missing"),
    "a missing id": ("- id: talks\n      stop", "- stop", 36, "'id' is missing"),
    "a missing date": (", when: 2023-02-20 12:00 +00:00", "", 50, "'when' is missing"),
    "a missing number": ("step: 1, ", "", 50, "'step' is missing"),
    "a missing target": (", meeting: talks", "", 51, "'meeting' is missing"),
    "a list for a thing": (
        "command: AnnounceTrip}",
        "command: AnnounceTrip}\n  - [step, 2]",
        51,
        "keys with values are expected",
    ),
    "a thing for a list": ("topics: [fish, wind]", "topics: fish", 43, "a list is expected here"),
    "nothing for a text": ("title: Talks", "title:", 38, "a text is expected here"),
    "blanks for a text": ("title: Talks", 'title: "  "', 38, "a text is expected here"),
    "a list for a text": ("title: Talks", "title: [Talks]", 38, "a text is expected here"),
    # values
    "an unknown word": ("kind: bilateral", "kind: chat", 39, "'chat' is none of bilateral, multilateral, pull-aside, "),
    "an unknown command": ("AnnounceTrip", "PublishTrip", 50, "'PublishTrip' is none of AnnounceTrip, CompleteTrip, "),
    "a second trip": ("AnnounceTrip", "PlanTrip", 50, "'PlanTrip' is none of "),
    "a flag that is none": ("host: theirs", "assumed: yes", 25, "'yes' is none of true, false"),
    "a date that is none": ("ends_on: 2023-03-03", "ends_on: 2023-02-30", 8, "'2023-02-30' is no date like 2023-11-07"),
    "a wall time that is none": (
        "arrives: 2023-03-01 12:00\n      dep",
        "arrives: 2023-03-01 24:30\n      dep",
        23,
        "'2023-03-01 24:30' is no local time like ",
    ),
    "a wall time with an offset": (
        "start: 2023-03-02 10:00",
        "start: 2023-03-02 10:00 +01:00",
        40,
        "'2023-03-02 10:00 +01:00' is no local time",
    ),
    "an instant without an offset": (
        "at: 2023-03-01 12:04 +01:00",
        "at: 2023-03-01 12:04",
        53,
        "'2023-03-01 12:04' is no instant like ",
    ),
    "a duration that is none": ("duration: PT1H", "duration: 60", 41, "'60' is no duration like PT45M or PT1H30M"),
    "a duration of nothing": ("duration: PT1H", "duration: PT0M", 41, "'PT0M' is no duration like PT45M or PT1H30M"),
    "an external id in capitals": ("id: talks", "id: Talks", 36, "'Talks' is no external id: "),
    "a point off the globe": (
        "[59.91, 10.75]",
        "[10.75, 259.91]",
        42,
        "there is no place at 10.75, 259.91: latitude first, ",
    ),
    "half a point": ("[59.91, 10.75]", "[59.91]", 42, "two numbers are expected here: latitude and longitude"),
    "a number that is none": ("step: 1,", "step: one,", 50, "'one' is no number of a step"),
    "a number again": ("step: 3,", "step: 2,", 52, "step 2 after step 2: the numbers have to rise"),
    "a date that goes back": (
        "2023-02-21 13:00 +01:00",
        "2023-02-21 13:00 +03:00",
        52,
        "step 3 is dated before the step above it",
    ),
    "a change of nothing": (
        ", start: 2023-03-02 11:00",
        "",
        51,
        "RescheduleMeeting says nothing: it takes start, zone, ",
    ),
    # things that name each other
    "an id again": ("- id: there", "- id: oslo", 27, "'oslo' is already a stop (line 19)"),
    "an unknown thing": ("host: theirs", "host: them", 25, "no delegation 'them' was declared before this line"),
    "a thing of another kind": (
        "host: theirs",
        "host: minister",
        25,
        "'minister' is a member, and a delegation is expected here",
    ),
    "a thing that comes later": (
        "meeting: talks",
        "meeting: more-talks",
        51,
        "no meeting 'more-talks' was declared before this line",
    ),
    "a thing twice in a list": ("[ours, theirs]", "[ours, ours]", 45, "'ours' stands in this list twice"),
    # zones and clocks
    "an abbreviated zone": (
        "zone: Europe/Oslo\n",
        "zone: IST\n",
        22,
        "'IST' is no IANA time zone like Asia/Tokyo; abbreviations can mean",
    ),
    "an unknown zone": (
        "zone: Europe/Oslo\n",
        "zone: Europe/Olso\n",
        22,
        "the time zone database holds no 'Europe/Olso'",
    ),
    "a folder of zones": (
        "zone: Europe/Oslo\n",
        "zone: America/Argentina\n",
        22,
        "the time zone database holds no 'America/Argentina'",
    ),
    "a wall time that never was": (
        "departs: 2023-03-03 09:00",
        "departs: 2023-03-26 02:30",
        24,
        "the clocks of Europe/Oslo are put forward over 2023-03-26 02:30: it never is",
    ),
    "a wall time that was twice": (
        "departs: 2023-03-03 09:00",
        "departs: 2023-10-29 02:30",
        24,
        "the clocks of Europe/Oslo show 2023-10-29 02:30 twice: say which by departs_fold, 0 or 1",
    ),
    "a new wall time that was twice": (
        "start: 2023-03-02 11:00",
        "start: 2023-10-29 02:30",
        51,
        "the clocks of Europe/Oslo show 2023-10-29 02:30 twice: say which by fold, 0 or 1",
    ),
    "a stop that ends before it begins": (
        "departs: 2023-03-03 09:00",
        "departs: 2023-03-01 11:59",
        24,
        "'departs' is not after 'arrives', each taken in its own zone",
    ),
    "a movement that lands before it leaves": (
        "departs: 2023-03-01 07:00\n      arrives: 2023-03-01 12:00",
        "departs: 2023-03-01 07:00\n      arrives: 2023-03-01 08:00",
        34,
        "'arrives' is not after 'departs', each taken in its own zone",
    ),
}


@pytest.mark.parametrize(("old", "new", "line", "problem"), WRONG.values(), ids=WRONG.keys())
def test_fault_names_file_line_and_problem(
    old: str, new: str, line: int, problem: str, small_text: str, write_trip: Write
) -> None:
    assert old == "*" or small_text.count(old) >= 1
    path = write_trip(new if old == "*" else small_text.replace(old, new, 1))

    with pytest.raises(TripFileWrong) as caught:
        read_trip_file(path)

    assert (caught.value.file, caught.value.line) == ("trip.yaml", line)
    assert caught.value.problem.startswith(problem)
    assert str(caught.value) == f"trip.yaml:{line}: {caught.value.problem}"
    assert "\n" not in str(caught.value)


def test_file_that_is_no_text_names_the_line(small_text: str, write_trip: Write) -> None:
    content = small_text.encode().replace(b"Oslo", b"\xd8slo", 1)

    with pytest.raises(TripFileWrong) as caught:
        read_trip_file(write_trip(content))

    assert str(caught.value) == "trip.yaml:4: this is not UTF-8 text"


def test_control_character_is_a_fault(small_text: str, write_trip: Write) -> None:
    with pytest.raises(TripFileWrong, match=r"^trip\.yaml:1: no YAML: .*special characters are not allowed"):
        read_trip_file(write_trip(small_text.replace("Oslo", "\x07slo")))


def test_movement_may_land_before_it_leaves_by_the_clocks_on_the_wall(small_text: str, write_trip: Write) -> None:
    text = small_text.replace("{place: Oslo, zone: Europe/Oslo}", "{place: Horta, zone: Atlantic/Azores}")
    text = text.replace("      arrives: 2023-03-01 12:00\n  meet", "      arrives: 2023-03-01 06:50\n  meet")

    assert read_trip_file(write_trip(text)).steps[5].body["arrives"] == "2023-03-01T06:50:00"
