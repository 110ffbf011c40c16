"""What is counted of requests: by template and status, commands by name and outcome, nothing that a stranger chose."""

from shared.tally import DONE, SECONDS, UNROUTED, Answered, Requests, Seconds


def test_a_histogram_counts_what_took_no_longer_than_each_bound() -> None:
    seconds = Seconds()
    for took in (0.004, 0.005, 0.006, 3.0, 11.0):
        seconds.note(took)
    counted = dict(seconds.buckets())
    assert (counted["0.005"], counted["0.01"], counted["2.5"], counted["5.0"], counted["10.0"]) == (2, 3, 3, 4, 4)
    assert (counted["+Inf"], seconds.total) == (5, 14.015)
    assert len(seconds.buckets()) == len(SECONDS) + 1


def test_a_command_is_counted_by_its_outcome_and_a_query_by_its_route_alone() -> None:
    requests = Requests()
    requests.note(Answered("POST", "/schedule/trips", "PlanTrip", 201, None), 0.2)
    requests.note(Answered("POST", "/schedule/trips", "PlanTrip", 409, "stale-version"), 0.1)
    requests.note(Answered("GET", "/schedule/trips/{trip}", None, 200, None), 0.01)
    assert requests.commands == {("PlanTrip", DONE): 1, ("PlanTrip", "stale-version"): 1}
    assert requests.answered == {
        ("POST", "/schedule/trips", 201): 1,
        ("POST", "/schedule/trips", 409): 1,
        ("GET", "/schedule/trips/{trip}", 200): 1,
    }
    assert requests.commands_took["PlanTrip"].total == 0.2 + 0.1
    assert set(requests.took) == {("POST", "/schedule/trips"), ("GET", "/schedule/trips/{trip}")}


def test_strangers_make_no_entries_of_their_own() -> None:
    requests = Requests()
    for number in range(50):
        requests.note(Answered(f"METHOD{number}", None, None, 404, "not-found"), 0.001)
    assert requests.answered == {("OTHER", UNROUTED, 404): 50}
