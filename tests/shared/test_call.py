"""Who may call, and what is read of a request."""

from datetime import UTC, datetime
from hashlib import sha256

import pytest

from shared.call import Call
from tests.edge_fixture import CANARY, CONFIRM, MEETING, TRIP, Edge, of


@pytest.mark.parametrize("value", [None, "", "Bearer", "Bearer  ", "Basic ZGVzazpwYXNz"])
async def test_call_without_a_bearer_token_is_refused(edge: Edge, value: str | None) -> None:
    headers = {} if value is None else {"Authorization": value}
    response = await edge.ask("POST", CONFIRM, headers=headers)
    assert of(response) == {"slug": "token-missing", "detail": "this needs a bearer token"}


async def test_call_with_an_unknown_token_is_refused_without_repeating_it(edge: Edge) -> None:
    response = await edge.ask("POST", CONFIRM, headers={"Authorization": f"Bearer attache_{CANARY}"})
    assert of(response) == {"slug": "token-unknown", "detail": "nobody has this bearer token"}
    assert CANARY not in response.text


async def test_call_without_the_scope_is_refused_with_the_one_it_needs(edge: Edge) -> None:
    response = await edge.ask("POST", CONFIRM, headers=edge.headers("staff"))
    assert of(response) == {
        "slug": "scope-missing",
        "detail": "this needs a token with the scope planner",
        "needed": ["planner"],
    }
    assert edge.calls == []


@pytest.mark.parametrize(("scope", "status"), [("staff", 200), ("planner", 200), ("service", 403)])
async def test_staff_and_planners_read(edge: Edge, scope: str, status: int) -> None:
    response = await edge.ask("GET", f"/schedule/meetings/{MEETING}", headers=edge.headers(scope))
    assert response.status_code == status


async def test_one_of_several_scopes_is_enough(edge: Edge) -> None:
    response = await edge.ask("GET", "/schedule/messages", headers=edge.headers("service"))
    assert response.json() == {"items": [{"a": 1}, {"b": 2}], "next": None}


async def test_wrong_body_of_a_stranger_is_no_reason_to_explain_the_body(edge: Edge) -> None:
    response = await edge.ask("POST", TRIP, json={"titel": "x"})
    assert of(response)["slug"] == "token-missing"


# The Call


async def test_call_carries_who_when_and_with_what(edge: Edge) -> None:
    before = datetime.now(UTC)
    await edge.ask(
        "POST",
        TRIP,
        headers=edge.headers(
            Idempotency_Key="key-1",
            If_Match='"3", W/"4" ,"5"',
            X_Correlation_Id="6F9619FF-8B86-D011-B42D-00CF4FC964FF",
            Occurred_At="2023-11-07T18:25:00+09:00",
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        json={"title": "Signing"},
    )
    (call,) = edge.calls
    assert before <= call.now <= datetime.now(UTC)
    assert call == Call(
        actor="planner-desk",
        scopes=frozenset({"planner"}),
        now=call.now,
        occurred_at=datetime(2023, 11, 7, 9, 25, tzinfo=UTC),
        correlation_id="6f9619ff-8b86-d011-b42d-00cf4fc964ff",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        idempotency_key="key-1",
        request_digest=sha256(b'POST\n%s\n{"title":"Signing"}' % TRIP.encode()).digest(),
        if_match=('"3"', '"5"'),
        if_none_match=None,
    )
    assert (call.may("planner"), call.may("staff"), call.may("operator")) == (True, True, False)


async def test_call_happened_now_unless_its_caller_says_when(edge: Edge) -> None:
    await edge.confirm()
    assert [call.occurred_at for call in edge.calls] == [call.now for call in edge.calls]


async def test_digest_is_of_what_was_sent_not_of_how(edge: Edge) -> None:
    for content in (b'{"title":"A","minutes":5}', b' {"minutes": 5,\n "title": "\\u0041"}', b'{"title":"A"}'):
        await edge.ask("POST", TRIP, headers=edge.headers(Content_Type="application/json"), content=content)
    first, second, third = (call.request_digest for call in edge.calls)
    assert first == second != third


async def test_digest_tells_commands_apart_that_have_no_body(edge: Edge) -> None:
    await edge.confirm()
    await edge.ask("POST", CONFIRM.replace(MEETING[0], "9", 1), headers=edge.headers())
    assert len({call.request_digest for call in edge.calls}) == 2


@pytest.mark.parametrize(
    ("value", "tags"),
    [("*", ("*",)), ('"3"', ('"3"',)), ('W/"3"', ()), ('"*"', ('"*"',)), (',"a", ,"b",', ('"a"', '"b"'))],
)
async def test_if_match_is_read_as_tags(edge: Edge, value: str, tags: tuple[str, ...]) -> None:
    await edge.confirm(If_Match=value)
    assert [call.if_match for call in edge.calls] == [tags]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("If-Match", "3"),
        ("If-Match", ""),
        ("If-Match", '"3'),
        ("If-Match", '"3" "4"'),
        ("If-Match", '*, "3"'),
        ("Idempotency-Key", ""),
        ("Idempotency-Key", "two words"),
        ("Idempotency-Key", "k" * 256),
        ("Occurred-At", "yesterday"),
        ("Occurred-At", "2023-11-07"),
        ("Occurred-At", "2023-11-07T09:25:00"),
        ("Occurred-At", "2999-01-01T00:00:00Z"),
    ],
)
async def test_header_that_cannot_be_read_is_invalid(edge: Edge, name: str, value: str) -> None:
    response = await edge.ask("POST", CONFIRM, headers={**edge.headers(), name: value})
    body = of(response)
    assert body["slug"] == "invalid"
    assert [(one["loc"], one["type"]) for one in body["errors"]] == [(["header", name], "value_error")]
    assert edge.calls == []


async def test_longest_idempotency_key_is_taken(edge: Edge) -> None:
    await edge.confirm(Idempotency_Key="k" * 255)
    assert [call.idempotency_key for call in edge.calls] == ["k" * 255]
