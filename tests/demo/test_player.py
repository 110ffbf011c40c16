"""Loading a trip through an API that keeps the contract's promises, and through one that is hard to reach."""

import io
import json
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.demo.load_file import FeedAddress, Loaded, LoadFile, LoadFileWrong
from services.demo.player import (
    LoadTooOld,
    NobodyAnswers,
    OtherTrip,
    Patience,
    StepRefused,
    api_client,
    play,
)
from services.demo.progress import Progress
from services.demo.trip_file import DEMO, TripFile, read_trip_file

Trouble = Callable[[str], "Answer | Exception | None"]
HASTY = Patience(unknown=0.5, away=0.5, pause=0.001)
PATIENT = Patience(unknown=120, away=120, pause=0.001)


class Killed(Exception):
    """The loading process ends here."""


def no_trouble(_: str) -> None:
    """All goes well."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Api:
    """Things, made and changed by POSTs, under the contract's rules for idempotency keys and links' secrets.

    `before` and `after` may break a request, or answer in the API's stead, before or after it was carried out; they
    are asked with its path.
    """

    things: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    answered: dict[str, tuple[str, Answer]] = field(default_factory=dict)
    before: Trouble = no_trouble
    after: Trouble = no_trouble

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        event = await receive()
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        assert headers["authorization"] == "Bearer let-me-in"
        answer = self._answer(scope["method"], scope["path"], headers.get("idempotency-key"), event["body"].decode())
        raw = [(b"content-type", b"application/json")]
        raw += [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        await send({"type": "http.response.body", "body": json.dumps(answer.body).encode()})

    def _answer(self, method: str, path: str, key: str | None, body: str) -> Answer:
        if method == "GET":
            thing = self.things.get(path.rsplit("/", 1)[-1])
            return (
                Answer(200, thing) if thing else Answer(404, {"slug": "not-found", "detail": "there is no such thing"})
            )
        if broken := self._break(self.before, path):
            return broken
        assert key is not None
        if key in self.answered:
            given, first = self.answered[key]
            if given != path + body:
                return Answer(422, {"slug": "key-reused", "detail": "this key came with another body"})
        else:
            first = self._carry_out(path, json.loads(body))
            self.answered[key] = (
                path + body,
                Answer(first.status, {**first.body, **({"url": None} if "url" in first.body else {})}),
            )
        return self._break(self.after, path) or first

    def _break(self, trouble: Trouble, path: str) -> Answer | None:
        broken = trouble(path)
        if isinstance(broken, Exception):
            raise broken
        return broken

    def _carry_out(self, path: str, body: dict[str, Any]) -> Answer:
        self.done.append(path.rsplit("/", 1)[-1])
        verb = self.done[-1]
        collections = ("trips", "stops", "movements", "meetings", "delegations", "members", "feed-links")
        if verb in collections:
            number = body["delegation"][-1] if verb == "feed-links" else len(self.things) + 1
            thing = {"id": f"{verb[:-1]}-{number}", **body}
            self.things[thing["id"]] = thing
        else:
            thing = self.things[path.split("/")[-2]]
            thing |= body
        if verb in ("feed-links", "rotate"):
            # the secret is new each time, and the API shows it in this answer alone
            thing["secret"] = f"secret-{len(self.done)}"
            return Answer(
                201 if verb in collections else 200, {**_shown(thing), "url": f"/feeds/{thing['secret']}.ics"}
            )
        return Answer(201 if verb in collections else 200, _shown(thing))


def _shown(thing: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in thing.items() if name != "secret"}


def client_of(api: Api) -> httpx.AsyncClient:
    headers = {"Authorization": "Bearer let-me-in"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://api.test", headers=headers)


def once(trouble: Answer | Exception, *, at: int = 1, times: int = 1) -> Trouble:
    """Trouble at the `at`th request that asks (from 1), so many times."""
    asked = 0

    def ask(path: str) -> Answer | Exception | None:
        nonlocal asked
        asked += 1
        return trouble if at <= asked < at + times else None

    return ask


@pytest.fixture
def trip_file(small_text: str, write_trip: Callable[[str], Path]) -> TripFile:
    return read_trip_file(write_trip(small_text))


@pytest.fixture
def kept(tmp_path: Path) -> LoadFile:
    return LoadFile(tmp_path / "load.json")


def feeds(**urls: str) -> tuple[FeedAddress, ...]:
    """The feeds of the small trip, at these addresses."""
    return (
        FeedAddress(
            delegation="Our delegation",
            delegation_id="delegation-2",
            kind="own",
            level="full",
            link="feed-link-2",
            url=urls["ours"],
        ),
        FeedAddress(
            delegation="Hosts in Oslo",
            delegation_id="delegation-4",
            kind="host",
            level="delegation",
            link="feed-link-4",
            url=urls["theirs"],
        ),
    )


ORDER = [
    *("trips", "delegations", "members", "delegations", "stops", "movements", "meetings", "feed-links", "feed-links"),
    *("announce", "reschedule", "rename", "wheels-down"),
]


async def test_trip_is_played_step_by_step_with_the_ids_of_the_answers(trip_file: TripFile, kept: LoadFile) -> None:
    api = Api()

    async with client_of(api) as client:
        loaded = await play(trip_file, client, kept)

    assert api.done == ORDER
    assert api.things["stop-5"]["host"] == "delegation-4"
    assert api.things["meeting-7"] == {
        "id": "meeting-7",
        "stop": "stop-5",
        "title": "Talks",
        "kind": "bilateral",
        "start": "2023-03-02T11:00:00",
        "duration": "PT1H",
        "venue": {"name": "Hall", "geo": [59.91, 10.75]},
        "topics": ["fish", "wind"],
        "press": {"tag": "open", "preset": "2023-03-02T09:30:00"},
        "delegations": ["delegation-2", "delegation-4"],
    }
    assert loaded == Loaded(trip="trip-1", feeds=feeds(ours="/feeds/secret-8.ics", theirs="/feeds/secret-9.ics"))
    assert loaded == kept.loaded


async def test_loaded_trip_is_told_to_scripts(trip_file: TripFile, kept: LoadFile) -> None:
    async with client_of(Api()) as client:
        loaded = await play(trip_file, client, kept)

    assert loaded.as_json()["trip"] == "trip-1"
    assert loaded.as_json()["feeds"][0] == {
        "delegation": "Our delegation",
        "delegation_id": "delegation-2",
        "kind": "own",
        "level": "full",
        "link": "feed-link-2",
        "url": "/feeds/secret-8.ics",
    }


def test_addresses_follow_the_services_to_another_port() -> None:
    loaded = Loaded(
        trip="trip-1", feeds=feeds(ours="http://127.0.0.1:8080/feeds/a.ics", theirs="http://[::1]/feeds/b.ics")
    )

    assert loaded.under("http://127.0.0.1:8090") == Loaded(
        trip="trip-1",
        feeds=feeds(ours="http://127.0.0.1:8090/feeds/a.ics", theirs="http://127.0.0.1:8090/feeds/b.ics"),
    )


@pytest.mark.parametrize("at", range(1, len(ORDER) + 1))
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_load_that_breaks_anywhere_goes_on_and_loses_and_repeats_nothing(
    at: int, moment: str, trip_file: TripFile, tmp_path: Path
) -> None:
    whole, broken = Api(), Api(**{moment: once(Killed(), at=at)})  # type: ignore[arg-type]
    async with client_of(whole) as client:
        undisturbed = await play(trip_file, client, LoadFile(tmp_path / "whole.json"))

    async with client_of(broken) as client:
        with pytest.raises(Killed):
            await play(trip_file, client, LoadFile(tmp_path / "load.json"))
        loaded = await play(trip_file, client, LoadFile(tmp_path / "load.json"))

    assert [verb for verb in broken.done if verb != "rotate"] == ORDER
    assert {name: _shown(thing) for name, thing in broken.things.items()} == {
        name: _shown(thing) for name, thing in whole.things.items()
    }
    assert loaded.trip == undisturbed.trip
    assert [feed.link for feed in loaded.feeds] == [feed.link for feed in undisturbed.feeds]
    assert [feed.url for feed in loaded.feeds] == [
        f"/feeds/{broken.things[feed.link]['secret']}.ics" for feed in loaded.feeds
    ]
    # a link's address is lost only if the load broke after the answer and before it was written down
    assert broken.done.count("rotate") == (1 if moment == "after" and ORDER[at - 1] == "feed-links" else 0)


async def test_load_that_breaks_again_while_an_address_is_replaced_ends_with_one_that_works(
    trip_file: TripFile, tmp_path: Path
) -> None:
    api = Api(after=once(Killed(), at=ORDER.index("feed-links") + 1))
    path = tmp_path / "load.json"
    async with client_of(api) as client:
        with pytest.raises(Killed):
            await play(trip_file, client, LoadFile(path))
        api.after = lambda verb: Killed() if verb.endswith("/rotate") else None
        with pytest.raises(Killed):
            await play(trip_file, client, LoadFile(path))
        api.after = no_trouble
        loaded = await play(trip_file, client, LoadFile(path))

    assert loaded.feeds[0].url == f"/feeds/{api.things['feed-link-2']['secret']}.ics"
    assert api.done.count("rotate") == 2


async def test_finished_load_is_left_as_it_is(trip_file: TripFile, tmp_path: Path) -> None:
    api, path = Api(), tmp_path / "load.json"
    async with client_of(api) as client:
        first = await play(trip_file, client, LoadFile(path))
        api.things["meeting-7"]["title"] = "Changed by hand"
        second = await play(trip_file, client, LoadFile(path))

    assert second == first
    assert api.done == ORDER


async def test_trip_is_loaded_anew_where_its_data_are_gone(trip_file: TripFile, tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    async with client_of(Api()) as client:
        await play(trip_file, client, LoadFile(path))
    before = LoadFile(path).load

    fresh = Api()
    async with client_of(fresh) as client:
        await play(trip_file, client, LoadFile(path))

    assert fresh.done == ORDER
    assert LoadFile(path).load != before


async def test_two_loads_of_one_file_are_two_trips(trip_file: TripFile, tmp_path: Path) -> None:
    api = Api()
    async with client_of(api) as client:
        first = await play(trip_file, client, LoadFile(tmp_path / "one.json"))
        second = await play(trip_file, client, LoadFile(tmp_path / "two.json"))

    assert first.trip != second.trip
    assert api.done == ORDER * 2


async def test_record_of_another_trip_is_not_written_over(trip_file: TripFile, kept: LoadFile) -> None:
    kept.begin(of="grand-tour", now=datetime(2023, 5, 6, tzinfo=UTC))

    async with client_of(Api()) as client:
        with pytest.raises(OtherTrip) as caught:
            await play(trip_file, client, kept)

    assert str(caught.value) == "the record of the load is of the trip 'grand-tour', not of 'small-trip'"


async def test_load_that_broke_off_before_the_keys_were_forgotten_is_not_guessed_at(
    trip_file: TripFile, kept: LoadFile
) -> None:
    api = Api()
    began = datetime.now(UTC) - timedelta(days=30)
    kept.begin(of="small-trip", now=began)

    async with client_of(api) as client:
        with pytest.raises(LoadTooOld) as caught:
            await play(trip_file, client, kept)

    assert str(caught.value) == (
        f"{kept.path}: the load of {began:%d %B %Y} broke off too long ago to be taken up again; "
        "remove it to load the trip anew"
    )
    assert api.done == []


async def test_thing_that_is_not_yet_known_is_waited_for(trip_file: TripFile, kept: LoadFile) -> None:
    unknown = Answer(409, {"slug": "not-yet-known", "detail": "no such trip yet"}, {"Retry-After": "0.02"})
    api = Api(before=once(unknown, at=2, times=3))

    async with client_of(api) as client:
        await play(trip_file, client, kept, patience=PATIENT)

    assert api.done == ORDER


async def test_thing_that_never_becomes_known_stops_the_load(trip_file: TripFile, kept: LoadFile) -> None:
    unknown = Answer(409, {"slug": "not-yet-known", "detail": "no such trip yet"}, {"Retry-After": "0.2"})
    api = Api(before=once(unknown, at=2, times=1000))

    async with client_of(api) as client:
        with pytest.raises(NobodyAnswers) as caught:
            await play(trip_file, client, kept, patience=HASTY)

    assert str(caught.value) == (
        "trip.yaml:10: step plan:ours (RegisterDelegation): no answer to go on with for 0.5 s: 409 no such trip yet"
    )


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(503, {"slug": "store-away", "detail": "the database does not answer"}, {"Retry-After": "0"}),
        Answer(502, {}),
        httpx.ConnectError("connection refused"),
        httpx.ReadTimeout("no answer"),
    ],
)
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_service_that_is_away_for_a_while_is_waited_for(
    trouble: Answer | Exception, moment: str, trip_file: TripFile, kept: LoadFile
) -> None:
    api = Api(**{moment: once(trouble, at=5, times=4)})  # type: ignore[arg-type]

    async with client_of(api) as client:
        loaded = await play(trip_file, client, kept, patience=PATIENT)

    assert api.done == ORDER
    assert loaded.feeds == feeds(ours="/feeds/secret-8.ics", theirs="/feeds/secret-9.ics")


async def test_address_lost_in_an_answer_that_never_came_is_replaced(trip_file: TripFile, kept: LoadFile) -> None:
    lost = once(httpx.ReadTimeout("no answer"), at=ORDER.index("feed-links") + 1)
    api = Api(after=lost)

    async with client_of(api) as client:
        loaded = await play(trip_file, client, kept, patience=PATIENT)

    assert api.done.count("rotate") == 1
    assert loaded.feeds[0].url == f"/feeds/{api.things['feed-link-2']['secret']}.ics"


async def test_service_that_stays_away_stops_the_load(trip_file: TripFile, kept: LoadFile) -> None:
    api = Api(before=once(httpx.ConnectError("connection refused"), at=3, times=1000))

    async with client_of(api) as client:
        with pytest.raises(NobodyAnswers) as caught:
            await play(trip_file, client, kept, patience=HASTY)

    assert str(caught.value) == (
        "trip.yaml:14: step plan:minister (AddMember): no answer to go on with for 0.5 s: connection refused"
    )


async def test_refused_step_is_named_with_its_line_and_the_reason(trip_file: TripFile, kept: LoadFile) -> None:
    refusal = Answer(
        422,
        {
            "slug": "invalid",
            "detail": "start: is wrong",
            "errors": [{"loc": ["body", "start"], "msg": "not a time", "type": "value_error"}],
        },
    )
    api = Api(before=once(refusal, at=ORDER.index("reschedule") + 1))

    async with client_of(api) as client:
        with pytest.raises(StepRefused) as caught:
            await play(trip_file, client, kept)

    assert str(caught.value) == (
        "trip.yaml:51: step 2 (RescheduleMeeting): refused with 422 invalid: start: is wrong; body.start: not a time"
    )
    assert (caught.value.status, caught.value.slug) == (422, "invalid")


async def test_mended_file_goes_on_where_the_refusal_was(
    trip_file: TripFile, small_text: str, write_trip: Callable[[str], Path], kept: LoadFile
) -> None:
    refusal = Answer(409, {"slug": "outside-stay", "detail": "outside the stay"})
    api = Api(before=once(refusal, at=ORDER.index("reschedule") + 1))
    async with client_of(api) as client:
        with pytest.raises(StepRefused):
            await play(trip_file, client, kept)
        mended = read_trip_file(write_trip(small_text.replace("2023-03-02 11:00", "2023-03-02 15:00")))
        await play(mended, client, kept)

    assert api.done == ORDER
    assert api.things["meeting-7"]["start"] == "2023-03-02T15:00:00"


async def test_step_that_was_done_otherwise_before_is_refused(
    trip_file: TripFile, small_text: str, write_trip: Callable[[str], Path], kept: LoadFile
) -> None:
    api = Api(before=once(Killed(), at=8))
    async with client_of(api) as client:
        with pytest.raises(Killed):
            await play(trip_file, client, kept)
        other = read_trip_file(write_trip(small_text.replace("title: Talks", "title: Chats")))
        with pytest.raises(StepRefused) as caught:
            await play(other, client, kept)

    assert str(caught.value) == (
        "trip.yaml:36: step plan:talks (ScheduleMeeting): refused with 422 key-reused: this key came with another body"
    )


async def test_rotated_and_revoked_links_are_told_as_they_are(
    small_text: str, write_trip: Callable[[str], Path], kept: LoadFile
) -> None:
    more = """\
  - {step: 6, when: 2023-03-02 12:00 +01:00, command: RotateFeedLink, link: link-ours, grace: PT1H}
  - {step: 7, when: 2023-03-02 12:01 +01:00, command: RevokeFeedLink, link: link-theirs, reason: Lost}
"""
    api = Api()
    async with client_of(api) as client:
        loaded = await play(read_trip_file(write_trip(small_text + more)), client, kept)

    assert loaded.feeds == feeds(ours="/feeds/secret-14.ics", theirs="")[:1]


async def test_feeds_of_the_plan_are_told_before_anything_happens(trip_file: TripFile, kept: LoadFile) -> None:
    api = Api()
    told: list[tuple[int, Loaded]] = []

    async with client_of(api) as client:
        await play(trip_file, client, kept, planned=lambda loaded: told.append((len(api.done), loaded)))

    assert [(done, [feed.delegation for feed in loaded.feeds]) for done, loaded in told] == [
        (9, ["Our delegation", "Host delegation"])
    ]


async def test_slow_play_pauses_before_what_happened_and_not_where_it_was_done(
    trip_file: TripFile, tmp_path: Path
) -> None:
    api, path = Api(before=once(Killed(), at=12)), tmp_path / "load.json"
    pauses: list[tuple[int, float]] = []

    async def sleep(seconds: float) -> None:
        pauses.append((len(api.done), seconds))

    async with client_of(api) as client:
        with pytest.raises(Killed):
            await play(trip_file, client, LoadFile(path), pace=1.5, sleep=sleep)
        await play(trip_file, client, LoadFile(path), pace=1.5, sleep=sleep)

    assert pauses == [(9, 1.5), (10, 1.5), (11, 1.5), (11, 1.5), (12, 1.5)]
    assert api.done == ORDER


async def test_demo_is_loaded_whole(kept: LoadFile) -> None:
    demo, api = read_trip_file(DEMO), Api()

    async with client_of(api) as client:
        loaded = await play(demo, client, kept)

    assert len(api.done) == len(demo.steps) == len(api.answered)
    assert Counter(feed.kind for feed in loaded.feeds) == {"own": 1, "host": 8, "press": 1}
    assert {feed.delegation_id for feed in loaded.feeds} == {name for name in api.things if name[:11] == "delegation-"}


async def test_progress_is_a_line_a_step_in_a_log(trip_file: TripFile, kept: LoadFile) -> None:
    stream = io.StringIO()

    async with client_of(Api()) as client:
        await play(trip_file, client, kept, watch=Progress(stream, lines=True))

    lines = stream.getvalue().splitlines()
    assert len(lines) == 13
    assert lines[3] == "4/13 RegisterDelegation theirs"
    assert lines[10] == "11/13 21 Feb 12:00 RescheduleMeeting talks"


async def test_progress_is_a_bar_on_a_terminal(trip_file: TripFile, kept: LoadFile) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    async with client_of(Api()) as client:
        await play(trip_file, client, kept, watch=Progress(stream, lines=False))

    written = stream.getvalue().split("\r")
    assert written[1] == "[##............................] 1/13 PlanTrip small-trip\x1b[K"
    assert written[13] == "[##############################] 13/13 1 Mar 12:09 ReportWheelsDown there\x1b[K\n"


async def test_progress_of_a_quick_load_is_one_line_in_a_log(trip_file: TripFile, kept: LoadFile) -> None:
    stream = io.StringIO()

    async with client_of(Api()) as client:
        await play(trip_file, client, kept, watch=Progress(stream, lines=False))

    assert stream.getvalue() == "13/13 1 Mar 12:09 ReportWheelsDown there\n"


def test_record_of_a_load_is_for_its_owner_alone(kept: LoadFile, tmp_path: Path) -> None:
    kept.begin(of="small-trip", now=datetime(2023, 5, 6, tzinfo=UTC))
    kept.keep_url("plan:link-ours", "/feeds/secret.ics")

    path = tmp_path / "load.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith("load")] == ["load.json"]
    assert LoadFile(path).url_of("plan:link-ours") == "/feeds/secret.ics"
    assert LoadFile(path).began == datetime(2023, 5, 6, tzinfo=UTC)


def test_record_left_half_written_is_written_over(kept: LoadFile, tmp_path: Path) -> None:
    (tmp_path / "load.json.new").write_text("{")

    kept.begin(of="small-trip", now=datetime(2023, 5, 6, tzinfo=UTC))

    assert LoadFile(tmp_path / "load.json").load == kept.load


@pytest.mark.parametrize("content", ["{", "[]", '{"load": "1"}', ""])
def test_file_that_is_no_record_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    path.write_text(content)

    with pytest.raises(LoadFileWrong, match=r"load\.json: not the record of a load"):
        LoadFile(path)


async def test_client_passes_by_the_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")

    async with api_client("http://api.test", "let-me-in") as client:
        assert client.headers["Authorization"] == "Bearer let-me-in"
        assert client.base_url == "http://api.test"
        assert client.trust_env is False
