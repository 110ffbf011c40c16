"""Tokens of an OpenID Connect issuer: which count, for whom, and what happens while the issuer is away."""

import base64
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from structlog.testing import capture_logs

from shared.errors import IssuerAway, TokenUnknown
from shared.oidc import ASK_SECONDS, KEYS_SECONDS, Oidc
from shared.tokens import Caller, TokenFile, add_token
from tests.edge_fixture import CONFIRM, Edge, of

ISSUER = "https://login.example.org/tenant"
KEYS_URL = "https://keys.example.org/jwks"
NOW = 1_790_000_000


class Issuer:
    """An issuer that answers in this process; `away` and `keys` can be changed, `asked` counts."""

    def __init__(self) -> None:
        self.private = {"first": rsa.generate_private_key(public_exponent=65537, key_size=2048)}
        self.away = False
        self.names = ISSUER
        self.asked: list[str] = []
        self.now = 0.0
        self.transport = httpx.MockTransport(self._answer)

    def oidc(self, **more: Any) -> Oidc:
        given: dict[str, Any] = {"issuer": ISSUER, "audience": "attache", **more}
        return Oidc(**given, transport=self.transport, clock=lambda: self.now)

    def token(self, *, kid: str | None = "first", key: Any = None, algorithm: str = "RS256", **claims: Any) -> str:
        whole = {"iss": ISSUER, "aud": "attache", "sub": "jane", "scope": "openid planner", "exp": time.time() + 300}
        told = {name: value for name, value in (whole | claims).items() if value is not None}
        headers = {} if kid is None else {"kid": kid}
        return jwt.encode(told, key or self.private["first"], algorithm=algorithm, headers=headers)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(str(request.url))
        if self.away:
            raise httpx.ConnectError("no route")
        if request.url.path.endswith("/openid-configuration"):
            return httpx.Response(200, json={"issuer": self.names, "jwks_uri": KEYS_URL})
        keys = [_public(name, key) for name, key in self.private.items()]
        return httpx.Response(200, json={"keys": [*keys, {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"}, "none"]})


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _public(name: str, key: rsa.RSAPrivateKey) -> dict[str, Any]:
    public: dict[str, Any] = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    return {**public, "kid": name, "use": "sig"}


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


async def test_the_issuers_word_names_the_caller_and_their_scopes(issuer: Issuer) -> None:
    caller = await issuer.oidc().caller(issuer.token(scope="openid planner operator root"))
    assert caller == Caller("oidc:jane", frozenset({"planner", "operator"}))
    assert issuer.asked == [f"{ISSUER}/.well-known/openid-configuration", KEYS_URL]


async def test_claims_can_have_other_names_and_lists(issuer: Issuer) -> None:
    oidc = issuer.oidc(keys_url=KEYS_URL, scopes_claim="roles", name_claim="upn")
    caller = await oidc.caller(issuer.token(roles=["staff", 7, "guest"], upn="Jane Doe", scope="planner"))
    assert caller == Caller("oidc:Jane Doe", frozenset({"staff"}))
    assert issuer.asked == [KEYS_URL]


async def test_without_a_scope_of_ours_the_caller_may_do_nothing(issuer: Issuer) -> None:
    assert (await issuer.oidc().caller(issuer.token(scope=None))).scopes == frozenset()


WRONG: dict[str, Callable[[Issuer], str]] = {
    "expired": lambda issuer: issuer.token(exp=NOW - 10**9),
    "another audience": lambda issuer: issuer.token(aud="payroll"),
    "another issuer": lambda issuer: issuer.token(iss="https://login.example.org/other"),
    "no audience": lambda issuer: issuer.token(aud=None),
    "for ever": lambda issuer: issuer.token(exp=None),
    "nobody": lambda issuer: issuer.token(sub=None),
    "not yet": lambda issuer: issuer.token(nbf=NOW + 10**9),
    "another's key": lambda issuer: issuer.token(key=rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    "another kind of key": lambda issuer: issuer.token(key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"),
    "a key nobody has": lambda issuer: issuer.token(kid="made-up"),
    "unsigned": lambda _: jwt.encode(
        {"iss": ISSUER, "aud": "attache", "sub": "jane", "exp": NOW + 10**9}, "", algorithm="none"
    ),
    "a shared secret": lambda issuer: issuer.token(kid="shared", key="secret" * 8, algorithm="HS256"),
    "a name with a line end": lambda issuer: issuer.token(sub="jane\nroot"),
    "a name of another kind": lambda issuer: issuer.token(name="x", sub="s" * 300),
    "no token": lambda _: "a.b.c",
}


@pytest.mark.parametrize("made", WRONG.values(), ids=WRONG)
async def test_what_the_issuer_did_not_say_for_this_system_now_is_refused(
    made: Callable[[Issuer], str], issuer: Issuer
) -> None:
    oidc = issuer.oidc()
    await oidc.caller(issuer.token())
    with pytest.raises(TokenUnknown):
        await oidc.caller(made(issuer))


async def test_the_public_key_as_a_shared_secret_is_refused(issuer: Issuer) -> None:
    oidc = issuer.oidc()
    pem = issuer.private["first"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = issuer.token().split(".")[1]
    header = _base64(b'{"alg":"HS256","kid":"first","typ":"JWT"}')
    signed = f"{header}.{claims}"
    with pytest.raises(TokenUnknown):
        await oidc.caller(f"{signed}.{_base64(hmac.digest(pem, signed.encode(), 'sha256'))}")


async def test_a_new_key_is_asked_for_and_made_up_ones_do_not_flood_the_issuer(issuer: Issuer) -> None:
    oidc = issuer.oidc(keys_url=KEYS_URL)
    await oidc.caller(issuer.token())
    for _ in range(50):
        with pytest.raises(TokenUnknown):
            await oidc.caller(issuer.token(kid="made-up"))
    assert len(issuer.asked) == 1
    issuer.private["second"] = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    issuer.now += ASK_SECONDS
    assert (await oidc.caller(issuer.token(kid="second", key=issuer.private["second"]))).name == "oidc:jane"
    assert len(issuer.asked) == 2


async def test_a_key_that_was_withdrawn_is_refused_within_the_hour(issuer: Issuer) -> None:
    oidc = issuer.oidc(keys_url=KEYS_URL)
    old = issuer.token()
    await oidc.caller(old)
    issuer.private = {"second": issuer.private["first"]}
    issuer.now += KEYS_SECONDS
    with pytest.raises(TokenUnknown):
        await oidc.caller(old)


async def test_the_last_keys_go_on_while_the_issuer_is_away(issuer: Issuer) -> None:
    oidc = issuer.oidc(keys_url=KEYS_URL)
    await oidc.caller(issuer.token())
    issuer.away = True
    issuer.now += KEYS_SECONDS
    with capture_logs() as lines:
        assert (await oidc.caller(issuer.token())).name == "oidc:jane"
        assert (await oidc.caller(issuer.token())).name == "oidc:jane"
    assert [line["event"] for line in lines] == ["oidc.issuer_away"]


async def test_an_issuer_that_never_answered_is_told_apart_from_a_wrong_token(issuer: Issuer) -> None:
    issuer.away = True
    oidc = issuer.oidc()
    with pytest.raises(IssuerAway):
        await oidc.caller(issuer.token())
    issuer.away = False
    issuer.now += ASK_SECONDS
    assert (await oidc.caller(issuer.token())).name == "oidc:jane"


async def test_a_discovery_document_of_another_issuer_is_not_believed(issuer: Issuer) -> None:
    issuer.names = "https://login.example.org/other"
    with pytest.raises(IssuerAway):
        await issuer.oidc().caller(issuer.token())


async def test_the_edge_takes_both_kinds_of_token(tmp_path: Path, issuer: Issuer) -> None:
    edge = Edge(tmp_path / "tokens")
    edge.app.state.oidc = issuer.oidc()
    assert (await edge.confirm()).status_code == 201

    async def status(token: str) -> int:
        return (await edge.ask("POST", CONFIRM, headers={"Authorization": f"Bearer {token}"})).status_code

    assert await status(issuer.token()) == 201
    assert [call.actor for call in edge.calls] == ["planner-desk", "oidc:jane"]
    assert await status(issuer.token(scope="staff")) == 403
    refused = await edge.ask("POST", CONFIRM, headers={"Authorization": f"Bearer {issuer.token(exp=1)}"})
    assert of(refused)["slug"] == "token-unknown"
    edge.app.state.oidc = None
    assert await status(issuer.token()) == 401


async def test_the_edge_asks_to_come_again_while_nobody_can_tell_who_calls(tmp_path: Path, issuer: Issuer) -> None:
    edge = Edge(tmp_path / "tokens")
    issuer.away = True
    edge.app.state.oidc = issuer.oidc()
    answer = await edge.ask("POST", CONFIRM, headers={"Authorization": f"Bearer {issuer.token()}"})
    assert (answer.status_code, of(answer)["slug"], answer.headers["Retry-After"]) == (503, "issuer-away", "10")
    assert (await edge.confirm()).status_code == 201


def test_no_token_of_the_file_can_be_called_like_one_of_the_issuers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name"):
        add_token(tmp_path / "tokens", "oidc:jane", ["planner"])
    (tmp_path / "tokens").write_text(f"{'0' * 64} planner oidc:jane\n")
    assert TokenFile(tmp_path / "tokens").caller("anything") is None
