"""Who calls, by an OpenID Connect issuer's word: its signed access tokens, besides the token file's own.

Off unless `OIDC_ISSUER` is set. A token (JWT, RFC 7519) counts if one of the issuer's keys signed it and it is for
`OIDC_AUDIENCE`, in time, and names somebody. Its scopes are those values of one claim that are scopes of ours; with
none of them the caller is known and may do nothing. The issuer is asked for its keys when a token names one that is
not known, never for each token; while it is away, the keys that it gave last go on.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import httpx
import structlog

from shared.errors import IssuerAway, TokenUnknown
from shared.settings import Settings
from shared.tokens import PREFIX, SCOPES, Caller

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a key pair alone: a shared secret, or `none`, would let whoever reads the keys make tokens."""
ACTOR_PREFIX: Final = "oidc:"
"""Stands before the actor's name, so that nobody can call themselves like a token of the file (no colon in those)."""
NAME_LIMIT: Final = 255
LEEWAY_SECONDS: Final = 30
KEYS_SECONDS: Final = 3600.0
"""So long keys are used unasked: one that the issuer has withdrawn is refused from then on."""
ASK_SECONDS: Final = 10.0
"""The issuer is not asked more often, however many tokens with made-up keys come."""
TIMEOUT_SECONDS: Final = 5.0

log = structlog.get_logger()


class Oidc:
    """One issuer. `keys_url` is found by the issuer's discovery document where it is None.

    `transport` and `clock` (monotonic seconds) are given by tests.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        keys_url: str | None = None,
        scopes_claim: str = "scope",
        name_claim: str = "sub",
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._keys_url = keys_url
        self._scopes_claim = scopes_claim
        self._name_claim = name_claim
        self._transport = transport
        self._clock = clock
        self._keys: Mapping[str | None, Any] = {}
        self._had_at = self._asked_at = float("-inf")
        self._asking = asyncio.Lock()

    def takes(self, bearer: str) -> bool:
        """Whether this bearer token can be one of the issuer's; the others are the token file's."""
        return not bearer.startswith(PREFIX) and bearer.count(".") == 2

    async def caller(self, bearer: str) -> Caller:
        """Who the token says is calling. Raises `TokenUnknown`, and `IssuerAway` where no key was ever had."""
        import jwt  # here, so that who has no issuer does not pay for it

        try:
            wanted = jwt.get_unverified_header(bearer).get("kid")
            claims: Mapping[str, Any] = jwt.decode(
                bearer,
                await self._key(wanted),
                algorithms=list(ALGORITHMS),
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise TokenUnknown("this bearer token has expired") from None
        except jwt.PyJWTError as error:
            log.info("oidc.refused", reason=type(error).__name__)
            raise TokenUnknown("this bearer token is not one of the issuer's for this system") from None
        name = claims.get(self._name_claim)
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= NAME_LIMIT:
            raise TokenUnknown(f"this bearer token's {self._name_claim} names nobody")
        return Caller(ACTOR_PREFIX + name, SCOPES & _values(claims.get(self._scopes_claim)))

    async def _key(self, wanted: str | None) -> Any:
        import jwt

        if (key := self._known(wanted)) is None:
            async with self._asking:
                if (key := self._known(wanted)) is None and self._clock() - self._asked_at >= ASK_SECONDS:
                    self._asked_at = self._clock()
                    await self._ask()
                    key = self._known(wanted)
        if key is None and wanted in self._keys:
            key = self._keys[wanted]  # the issuer is away, and this is what it said last
        if key is None:
            if not self._keys:
                raise IssuerAway("the issuer of this bearer token does not answer")
            raise jwt.InvalidKeyError("no such key")
        return key

    def _known(self, wanted: str | None) -> Any:
        return self._keys.get(wanted) if self._clock() - self._had_at < KEYS_SECONDS else None

    async def _ask(self) -> None:
        try:
            async with httpx.AsyncClient(transport=self._transport, timeout=TIMEOUT_SECONDS) as client:
                if self._keys_url is None:
                    self._keys_url = await self._discovered(client)
                self._keys = _usable((await _document(client, self._keys_url)).get("keys"))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            log.warning("oidc.issuer_away", issuer=self._issuer, error=type(error).__name__)
            return
        self._had_at = self._clock()
        log.info("oidc.keys_read", issuer=self._issuer, keys=len(self._keys))

    async def _discovered(self, client: httpx.AsyncClient) -> str:
        """OpenID Connect Discovery 1.0, section 4: the document has to name the very issuer that was configured."""
        found = await _document(client, f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != self._issuer or not isinstance(found.get("jwks_uri"), str):
            raise ValueError("the discovery document is another issuer's")
        return str(found["jwks_uri"])


def oidc_of(settings: Settings) -> Oidc | None:
    """The issuer that the settings name, if they do."""
    if settings.oidc_issuer is None or settings.oidc_audience is None:
        return None
    return Oidc(
        issuer=settings.oidc_issuer,
        audience=settings.oidc_audience,
        keys_url=settings.oidc_keys_url,
        scopes_claim=settings.oidc_scopes_claim,
        name_claim=settings.oidc_name_claim,
    )


async def _document(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    answer = await client.get(url, follow_redirects=False)
    answer.raise_for_status()
    document = answer.json()
    if not isinstance(document, dict):
        raise ValueError("no JSON object")
    return document


def _usable(keys: Any) -> dict[str | None, Any]:
    """The public keys for signatures by their ids (JWK Set, RFC 7517); those that this program cannot use are left out.

    A set of one key needs no id.
    """
    import jwt

    usable: dict[str | None, Any] = {}
    for key in keys if isinstance(keys, Sequence) else ():
        try:
            if key.get("use", "sig") == "sig" and key["kty"] in ("RSA", "EC", "OKP"):
                usable[key.get("kid")] = jwt.PyJWK(key)
        except (jwt.PyJWTError, KeyError, AttributeError, TypeError, ValueError):
            continue
    if len(usable) == 1:
        usable.setdefault(None, next(iter(usable.values())))
    return usable


def _values(claim: Any) -> frozenset[str]:
    """A claim's words: a text of words (RFC 8693, 4.2), or a list of them."""
    words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else ()
    return frozenset(word for word in words if isinstance(word, str))
