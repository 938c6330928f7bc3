from __future__ import annotations

import base64
import hmac
import json
import string
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from jwt.utils import raw_to_der_signature

from maas_middleware.errors import InvalidCredentials, InvalidRequest, StoreUnavailable
from maas_middleware.identity import MAXIMUM_TOKEN_BYTES, Identity, Scope
from maas_middleware.providers.jwt import JWTMinter, JWTProvider
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.stores.memory import MemoryTokenStore
from maas_middleware.testing.clock import FakeClock
from maas_middleware.token_store import TokenRecord
from maas_middleware.tokens import Claims

ISSUER = "https://maas.example.com"
NOW = 1_000_000
ALICE = Identity("openshift", "alice", ("system:authenticated", "premium-group"))


class Service:
    """A minter and a provider of the same service."""

    def __init__(self, keys: SigningKeys | None = None) -> None:
        self.clock = FakeClock(NOW)
        self.keys = keys or SigningKeys.generate()
        self.store = MemoryTokenStore(clock=self.clock)
        self.minter = JWTMinter(
            keys=self.keys, issuer=ISSUER, audience="maas", clock=self.clock, id_factory=lambda: "token-1"
        )
        self.provider = JWTProvider(
            keys=self.keys,
            issuer=ISSUER,
            audience="maas",
            revocations=self.store,
            maximum_lifetime=3600,
            clock=self.clock,
        )

    def token(self, lifetime: int = 900) -> str:
        return self.minter.mint(ALICE, lifetime, 0).token

    def signed(self, changes: dict[str, Any] | None = None, headers: dict[str, Any] | None = None) -> str:
        """A token that our own key signed, whatever it says; a value of None leaves the claim or header out."""
        claims = {**decoded(self.token())[1], **(changes or {})}
        head = {"alg": "ES256", "kid": self.keys.key_id, "typ": "at+jwt", **(headers or {})}
        return signed(self.keys.key, present(head), present(claims))

    async def identify(self, token: str) -> Identity | None:
        return await self.provider.identify(bearer(token))

    async def refusal(self, token: str) -> str:
        with pytest.raises(InvalidCredentials) as caught:
            await self.identify(token)
        assert caught.value.status == 401
        assert caught.value.details is not None
        reason = caught.value.details["reason"]
        assert isinstance(reason, str)
        return reason


@pytest.fixture
def service() -> Service:
    return Service()


def bearer(token: str) -> Scope:
    return {"type": "http", "headers": [(b"authorization", b"Bearer " + token.encode("latin-1"))]}


def present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def encoded(value: bytes | dict[str, Any]) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decoded(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    header, payload = (
        json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in token.split(".")[:2]
    )
    return header, payload


def signed(key: ec.EllipticCurvePrivateKey, header: dict[str, Any] | bytes, payload: dict[str, Any] | bytes) -> str:
    signing_input = f"{encoded(header)}.{encoded(payload)}"
    algorithm = ECAlgorithm(ECAlgorithm.SHA256)
    return f"{signing_input}.{encoded(algorithm.sign(signing_input.encode(), key))}"


# minting


def test_token_says_what_the_contract_says_and_nothing_else(service: Service) -> None:
    minted = service.minter.mint(ALICE, 900, 3)

    header, payload = decoded(minted.token)
    assert header == {"alg": "ES256", "typ": "at+jwt", "kid": service.keys.key_id}
    assert payload == {
        "iss": ISSUER,
        "sub": "alice",
        "idp": "openshift",
        "aud": "maas",
        "iat": NOW,
        "nbf": NOW,
        "exp": NOW + 900,
        "jti": "token-1",
        "gen": 3,
        "groups": ["system:authenticated", "premium-group"],
    }
    assert minted.claims == Claims("token-1", "openshift/alice", 3, issued_at=NOW, expires_at=NOW + 900)
    assert minted.expiration == "15m0s"


def test_anybody_with_the_public_keys_can_verify_a_token(service: Service) -> None:
    key = jwt.PyJWKSet.from_dict(service.keys.jwks())[service.keys.key_id]

    claims = jwt.decode(service.token(), key, ["ES256"], audience="maas", issuer=ISSUER, options={"verify_exp": False})

    assert claims["sub"] == "alice"


def test_ids_of_tokens_are_not_to_be_guessed() -> None:
    minter = JWTMinter(keys=SigningKeys.generate(), issuer=ISSUER, audience="maas")

    ids = {minter.mint(ALICE, 900, 0).claims.id for _ in range(10)}

    assert len(ids) == 10
    assert all(len(token_id) >= 32 for token_id in ids)


async def test_token_minted_by_the_clock_of_the_computer_is_accepted() -> None:
    keys = SigningKeys.generate()
    minter = JWTMinter(keys=keys, issuer=ISSUER, audience="maas")
    provider = JWTProvider(keys=keys, issuer=ISSUER, audience="maas", revocations=MemoryTokenStore())

    identity = await provider.identify(bearer(minter.mint(ALICE, 24 * 3600, 0).token))

    assert identity is not None
    assert identity.key == ALICE.key


def test_of_too_many_groups_a_token_holds_those_that_are_named_now() -> None:
    named = {"team-7"}
    groups = tuple(f"team-{number}" for number in range(1000))
    minter = JWTMinter(keys=SigningKeys.generate(), issuer=ISSUER, audience="maas", named_groups=lambda: named)

    first = minter.mint(Identity("openshift", "alice", groups), 900, 0)
    named.add("team-8")
    second = minter.mint(Identity("openshift", "alice", groups), 900, 0)

    assert decoded(first.token)[1]["groups"] == ["team-7"]
    assert decoded(second.token)[1]["groups"] == ["team-7", "team-8"]


@pytest.mark.parametrize(
    "group",
    [pytest.param("team", id="latin"), pytest.param("команда", id="not-latin"), pytest.param("😀😀", id="emoji")],
)
def test_token_with_as_many_groups_as_fit_is_not_too_large_to_be_accepted(service: Service, group: str) -> None:
    sizes = []

    for count in range(0, 500, 10):
        groups = tuple(f"{group}-{number}" for number in range(count))
        sizes.append(len(service.minter.mint(Identity("openshift", "alice", groups), 900, 0).token))

    assert max(sizes) <= MAXIMUM_TOKEN_BYTES


# who the caller is


async def test_caller_is_who_minted_the_token(service: Service) -> None:
    identity = await service.identify(service.token())

    assert identity is not None
    assert identity.key == "openshift/alice"
    assert identity.groups == ALICE.groups


async def test_minted_token_may_not_manage_tokens(service: Service) -> None:
    identity = await service.identify(service.token())

    assert identity is not None
    assert identity.restriction is not None
    assert "token that you logged in with" in identity.restriction


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("алиса", id="cyrillic"),
        pytest.param("愛麗絲 \U0001f600", id="beyond-the-bmp"),
        pytest.param("corp/alice@example.com", id="slash"),
        pytest.param('"alice"\\\n', id="quotes"),
        pytest.param("a" * 4000, id="long"),
    ],
)
async def test_names_and_groups_of_any_script_survive_the_token(service: Service, name: str) -> None:
    token = service.minter.mint(Identity("openshift", name, (name[:100],)), 900, 0).token

    identity = await service.identify(token)

    assert identity is not None
    assert (identity.name, identity.groups) == (name, (name[:100],))


async def test_token_in_x_api_key_is_accepted(service: Service) -> None:
    scope = {"type": "websocket", "headers": [(b"X-Api-Key", service.token().encode())]}

    assert await service.provider.identify(scope) is not None


# what is left to the next provider


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("sha256~" + "x" * 43, id="opaque"),
        pytest.param("a.b.c", id="garbage"),
        pytest.param("...", id="dots"),
        pytest.param("..", id="two-dots-only"),
        pytest.param("a", id="one-letter"),
        pytest.param("\xff.\xff.\xff", id="not-ascii"),
        pytest.param(f"e30.{encoded(b'[1]')}.x", id="payload-is-a-list"),
        pytest.param(f"e30.{encoded(b'{')}.x", id="payload-is-no-json"),
        pytest.param(f"e30.{encoded(bytes([255]))}.x", id="payload-is-no-text"),
        pytest.param(f"e30.{encoded(b'[' * 6000)}.x", id="deep-payload"),
        pytest.param(f"e30.{encoded({'iss': 'https://kubernetes.default.svc'})}.x", id="another-issuer"),
        pytest.param(f"e30.{encoded({'iss': ISSUER + '/'})}.x", id="almost-our-issuer"),
        pytest.param(f"e30.{encoded({'iss': [ISSUER]})}.x", id="issuer-in-a-list"),
        pytest.param(f"e30.{encoded({'sub': 'alice'})}.x", id="no-issuer"),
        pytest.param("e30.a.x.y.z", id="encrypted"),
    ],
)
async def test_token_that_is_not_of_our_issuer_is_left_to_the_next_provider(service: Service, token: str) -> None:
    assert await service.identify(token) is None


async def test_token_of_a_foreign_issuer_is_left_to_the_next_provider_even_if_our_key_signed_it(
    service: Service,
) -> None:
    assert await service.identify(service.signed({"iss": "https://kubernetes.default.svc"})) is None


async def test_request_without_a_credential_is_left_to_the_next_provider(service: Service) -> None:
    assert await service.provider.identify({"type": "http", "headers": []}) is None


async def test_token_that_is_too_large_to_be_ours_is_malformed(service: Service) -> None:
    assert await service.refusal(service.signed({"sub": "a" * MAXIMUM_TOKEN_BYTES})) == "malformed"


async def test_repeated_credential_is_refused(service: Service) -> None:
    header = (b"authorization", b"Bearer " + service.token().encode())

    with pytest.raises(InvalidRequest):
        await service.provider.identify({"type": "http", "headers": [header, header]})


# time


async def test_token_is_accepted_until_the_second_it_expires(service: Service) -> None:
    token = service.token(900)

    service.clock.advance(899.9)
    assert await service.identify(token) is not None
    service.clock.advance(0.1)
    assert await service.refusal(token) == "expired"


@pytest.mark.parametrize(
    ("changes", "is_accepted"),
    [
        pytest.param({"nbf": NOW + 5}, True, id="nbf-within-the-skew"),
        pytest.param({"nbf": NOW + 6}, False, id="nbf-beyond-the-skew"),
        pytest.param({"iat": NOW + 5}, True, id="iat-within-the-skew"),
        pytest.param({"iat": NOW + 6}, False, id="iat-beyond-the-skew"),
    ],
)
async def test_token_from_the_future_is_malformed_beyond_a_skew_of_five_seconds(
    service: Service, changes: dict[str, Any], is_accepted: bool
) -> None:
    token = service.signed(changes)

    if is_accepted:
        assert await service.identify(token) is not None
    else:
        assert await service.refusal(token) == "malformed"


async def test_token_that_lives_longer_than_the_maximum_is_not_ours(service: Service) -> None:
    assert await service.identify(service.signed({"exp": NOW + 3600})) is not None
    assert await service.refusal(service.signed({"exp": NOW + 3601})) == "malformed"


# tokens that are ours and broken


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"aud": "another"}, id="foreign-audience"),
        pytest.param({"aud": ["maas"]}, id="audience-in-a-list"),
        pytest.param({"aud": None}, id="no-audience"),
        pytest.param({"exp": str(NOW + 900)}, id="exp-as-text"),
        pytest.param({"exp": NOW + 900.0}, id="exp-as-float"),
        pytest.param({"exp": NOW + 900.5}, id="exp-as-fraction"),
        pytest.param({"exp": True}, id="exp-as-bool"),
        pytest.param({"exp": 10**18}, id="exp-far-in-the-future"),
        pytest.param({"exp": 10**400}, id="exp-400-digits"),
        pytest.param({"exp": 10**400, "iat": 10**400, "nbf": 10**400}, id="all-times-400-digits"),
        pytest.param({"iat": "now"}, id="iat-as-text"),
        pytest.param({"nbf": [NOW]}, id="nbf-in-a-list"),
        pytest.param({"iat": -1}, id="iat-before-the-epoch"),
        pytest.param({"exp": None}, id="no-exp"),
        pytest.param({"iat": None}, id="no-iat"),
        pytest.param({"nbf": None}, id="no-nbf"),
        pytest.param({"jti": None}, id="no-jti"),
        pytest.param({"gen": None}, id="no-gen"),
        pytest.param({"idp": None}, id="no-idp"),
        pytest.param({"sub": None}, id="no-sub"),
        pytest.param({"groups": None}, id="no-groups"),
        pytest.param({"sub": ""}, id="empty-sub"),
        pytest.param({"sub": 5}, id="sub-as-number"),
        pytest.param({"idp": "open/shift"}, id="slash-in-the-idp"),
        pytest.param({"groups": "admins"}, id="groups-as-text"),
        pytest.param({"groups": [1]}, id="groups-of-numbers"),
        pytest.param({"gen": "0"}, id="gen-as-text"),
        pytest.param({"gen": -1}, id="negative-gen"),
        pytest.param({"gen": 0.5}, id="gen-as-fraction"),
        pytest.param({"jti": ""}, id="empty-jti"),
        pytest.param({"jti": 5}, id="jti-as-number"),
        pytest.param({"groups": {"admins": 1}}, id="groups-as-object"),
        pytest.param({"groups": [["admins"]]}, id="groups-in-lists"),
        pytest.param({"groups": [None]}, id="groups-of-null"),
        pytest.param({"aud": ["maas", "another"]}, id="several-audiences"),
        pytest.param({"aud": {"maas": 1}}, id="audience-as-object"),
    ],
)
async def test_token_with_claims_that_we_never_sign_is_malformed_though_our_key_signed_it(
    service: Service, changes: dict[str, Any]
) -> None:
    assert await service.refusal(service.signed(changes)) == "malformed"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        pytest.param({"typ": "logout+jwt"}, "unknown", id="wrong-typ"),
        pytest.param({"typ": "JWT"}, "unknown", id="plain-jwt"),
        pytest.param({"typ": None}, "unknown", id="no-typ"),
        pytest.param({"kid": None}, "unknown", id="no-kid"),
        pytest.param({"kid": ""}, "unknown", id="empty-kid"),
        pytest.param({"kid": "another"}, "unknown", id="unknown-kid"),
        pytest.param({"kid": "../keys.json"}, "unknown", id="kid-as-path"),
        pytest.param({"kid": "../../../../dev/null"}, "unknown", id="kid-as-path-to-nothing"),
        pytest.param({"kid": "x' OR '1'='1"}, "unknown", id="kid-as-sql"),
        pytest.param({"kid": "a" * 4000}, "unknown", id="long-kid"),
        pytest.param({"kid": "a\x00b"}, "unknown", id="kid-with-a-nul"),
        pytest.param({"kid": ["a"]}, "malformed", id="kid-in-a-list"),
        pytest.param({"kid": {"a": 1}}, "malformed", id="kid-as-object"),
        pytest.param({"kid": 5}, "malformed", id="kid-as-number"),
        pytest.param({"typ": ["at+jwt"]}, "unknown", id="typ-in-a-list"),
        pytest.param({"alg": "RS256"}, "malformed", id="another-alg"),
        pytest.param({"alg": "ES384"}, "malformed", id="another-curve"),
        pytest.param({"alg": "none"}, "malformed", id="alg-none-with-a-signature"),
        pytest.param({"alg": 5}, "malformed", id="alg-as-number"),
        pytest.param({"alg": None}, "malformed", id="no-alg"),
        pytest.param({"b64": False, "crit": ["b64"]}, "malformed", id="detached"),
        pytest.param({"crit": ["exp"]}, "malformed", id="crit"),
        pytest.param({"crit": ["http://example.com/unheard"], "http://example.com/unheard": 1}, "malformed", id="own"),
        pytest.param({"crit": []}, "malformed", id="empty-crit"),
        pytest.param({"jku": "https://evil.example.com/jwks.json", "kid": "evil"}, "unknown", id="jku-is-not-fetched"),
    ],
)
async def test_token_with_headers_that_we_never_sign_is_refused_though_our_key_signed_it(
    service: Service, headers: dict[str, Any], reason: str
) -> None:
    assert await service.refusal(service.signed(headers=headers)) == reason


def without_signature(service: Service) -> str:
    header, payload, _ = service.token().split(".")
    return f"{header}.{payload}."


def as_alg_none(service: Service) -> str:
    head = {"alg": "none", "kid": service.keys.key_id, "typ": "at+jwt"}
    return f"{encoded(head)}.{service.token().split('.')[1]}."


def as_hs256_with_the_public_key(service: Service) -> str:
    public = service.keys.key.public_key()
    secret = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    head = {"alg": "HS256", "kid": service.keys.key_id, "typ": "at+jwt"}
    signing_input = f"{encoded(head)}.{service.token().split('.')[1]}"
    return f"{signing_input}.{encoded(hmac.digest(secret, signing_input.encode(), 'sha256'))}"


def with_another_signature(service: Service) -> str:
    header, payload, signature = service.token().split(".")
    return f"{header}.{payload}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"


def with_the_signature_of_another_token(service: Service) -> str:
    header, payload, _ = service.token(900).split(".")
    return f"{header}.{payload}.{service.token(901).split('.')[2]}"


def with_another_payload(service: Service) -> str:
    header, _, signature = service.token().split(".")
    claims = {**decoded(service.token())[1], "sub": "admin"}
    return f"{header}.{encoded(claims)}.{signature}"


def signed_by_somebody_else(service: Service) -> str:
    header, payload = decoded(service.token())
    return signed(SigningKeys.generate().key, header, payload)


def signed_by_a_key_that_it_brings(service: Service) -> str:
    header, payload = decoded(service.token())
    theirs = SigningKeys.generate()
    jwk = theirs.jwks()["keys"][0]
    return signed(theirs.key, {**header, "jwk": jwk}, payload)


def signed_by_a_key_that_it_tells_where_to_find(service: Service) -> str:
    header, payload = decoded(service.token())
    where = {"jku": "https://evil.example.com/jwks.json", "x5u": "https://evil.example.com/key.pem"}
    return signed(SigningKeys.generate().key, {**header, **where}, payload)


def signed_by_a_key_with_a_certificate(service: Service) -> str:
    header, payload = decoded(service.token())
    theirs = SigningKeys.generate().key.public_key()
    der = theirs.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return signed(SigningKeys.generate().key, {**header, "x5c": [base64.b64encode(der).decode()]}, payload)


def as_hs256_with_the_public_key_as_jwk(service: Service) -> str:
    head = {"alg": "HS256", "kid": service.keys.key_id, "typ": "at+jwt"}
    signing_input = f"{encoded(head)}.{service.token().split('.')[1]}"
    secret = json.dumps(service.keys.jwks()["keys"][0]).encode()
    return f"{signing_input}.{encoded(hmac.digest(secret, signing_input.encode(), 'sha256'))}"


def with_a_repeated_alg(service: Service) -> str:
    head = f'{{"alg":"ES256","kid":"{service.keys.key_id}","typ":"at+jwt","alg":"none"}}'
    return f"{encoded(head.encode())}.{service.token().split('.')[1]}."


def with_more_claims(service: Service, more: bytes) -> str:
    header, payload, signature = service.token().split(".")
    claims = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    return f"{header}.{encoded(claims[:-1] + more)}.{signature}"


def with_a_repeated_claim(service: Service) -> str:
    return with_more_claims(service, b', "sub": "admin"}')


def with_a_zero_signature(service: Service) -> str:
    return f"{with_two_segments(service)}.{encoded(bytes(64))}"


def with_a_signature_in_der(service: Service) -> str:
    head, _, signature = service.token().rpartition(".")
    return f"{head}.{encoded(raw_to_der_signature(base64.urlsafe_b64decode(signature + '=='), service.keys.key.curve))}"


def with_deep_claims(service: Service) -> str:
    return with_more_claims(service, b', "x": ' + b"[" * 2500 + b"]" * 2500 + b"}")


def with_padding_bits(service: Service) -> str:
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    token = service.token()
    return token[:-1] + alphabet[alphabet.index(token[-1]) + 1]  # 64 bytes leave the last four bits free


def with_padding(service: Service) -> str:
    return service.token() + "=="


def with_a_gap_in_the_signature(service: Service) -> str:
    return service.token()[:-10] + "!" + service.token()[-10:]


def with_the_other_alphabet(service: Service) -> str:
    token = next(token for _ in range(1000) if "-" in (token := service.token()).rpartition(".")[2])
    head, _, signature = token.rpartition(".")
    return f"{head}.{signature.replace('-', '+').replace('_', '/')}"


def with_two_segments(service: Service) -> str:
    return service.token().rpartition(".")[0]


def with_four_segments(service: Service) -> str:
    return service.token() + ".x"


def with_garbage_as_header(service: Service) -> str:
    return "garbage." + service.token().partition(".")[2]


def with_a_list_as_header(service: Service) -> str:
    return f"{encoded(b'[1]')}." + service.token().partition(".")[2]


def with_a_deep_header(service: Service) -> str:
    head = json.dumps({**decoded(service.token())[0], "x": "deep"}).encode()
    deep = head.replace(b'"deep"', b"[" * 2500 + b"]" * 2500)
    return f"{encoded(deep)}." + service.token().partition(".")[2]


def with_garbage_as_signature(service: Service) -> str:
    return with_two_segments(service) + ".!\xe9!"


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(without_signature, id="no-signature"),
        pytest.param(as_alg_none, id="alg-none"),
        pytest.param(as_hs256_with_the_public_key, id="hs256-with-our-public-key"),
        pytest.param(with_another_signature, id="tampered-signature"),
        pytest.param(with_the_signature_of_another_token, id="signature-of-another-token"),
        pytest.param(with_another_payload, id="tampered-payload"),
        pytest.param(signed_by_somebody_else, id="our-kid-and-another-key"),
        pytest.param(signed_by_a_key_that_it_brings, id="embedded-jwk"),
        pytest.param(signed_by_a_key_that_it_tells_where_to_find, id="jku"),
        pytest.param(signed_by_a_key_with_a_certificate, id="x5c"),
        pytest.param(as_hs256_with_the_public_key_as_jwk, id="hs256-with-our-jwk"),
        pytest.param(with_a_repeated_alg, id="repeated-alg"),
        pytest.param(with_a_repeated_claim, id="repeated-claim"),
        pytest.param(with_a_zero_signature, id="zero-signature"),
        pytest.param(with_a_signature_in_der, id="der-signature"),
        pytest.param(with_deep_claims, id="deep-claims"),
        pytest.param(with_padding_bits, id="padding-bits"),
        pytest.param(with_padding, id="padding"),
        pytest.param(with_a_gap_in_the_signature, id="gap-in-the-signature"),
        pytest.param(with_the_other_alphabet, id="other-alphabet"),
        pytest.param(with_two_segments, id="two-segments"),
        pytest.param(with_four_segments, id="four-segments"),
        pytest.param(with_garbage_as_header, id="garbage-header"),
        pytest.param(with_a_list_as_header, id="list-as-header"),
        pytest.param(with_a_deep_header, id="deep-header"),
        pytest.param(with_garbage_as_signature, id="garbage-signature"),
    ],
)
async def test_broken_token_of_our_issuer_is_refused_and_never_left_to_the_next_provider(
    service: Service, broken: Callable[[Service], str]
) -> None:
    token = broken(service)

    assert len(token) < MAXIMUM_TOKEN_BYTES
    assert await service.refusal(token) == "malformed"


async def test_broken_token_is_refused_before_it_is_looked_up(service: Service) -> None:
    class Unreachable(MemoryTokenStore):
        async def is_revoked(self, claims: Claims, /) -> bool:
            raise StoreUnavailable

    provider = JWTProvider(
        keys=service.keys, issuer=ISSUER, audience="maas", revocations=Unreachable(), clock=service.clock
    )

    with pytest.raises(InvalidCredentials):
        await provider.identify(bearer(with_another_signature(service)))
    with pytest.raises(StoreUnavailable):
        await provider.identify(bearer(service.token()))


# revocation


async def test_token_revoked_by_its_id_is_refused(service: Service) -> None:
    minted = service.minter.mint(ALICE, 900, 0)
    await service.store.record(TokenRecord(minted.claims))

    await service.store.revoke("openshift/alice", minted.claims.id)

    assert await service.refusal(minted.token) == "revoked"


async def test_tokens_minted_before_all_were_revoked_are_refused(service: Service) -> None:
    old = service.token()

    await service.store.revoke_all("openshift/alice")
    new = service.minter.mint(ALICE, 900, await service.store.generation("openshift/alice")).token

    assert await service.refusal(old) == "revoked"
    assert await service.identify(new) is not None


async def test_generation_is_of_the_user_whom_the_token_names(service: Service) -> None:
    token = service.token()

    await service.store.revoke_all("openshift/bob")

    assert await service.identify(token) is not None


def with_the_other_signature(token: str) -> str:
    """The same token once more: where (r, s) is a signature, (r, n - s) is one too."""
    head, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
    other = order - int.from_bytes(raw[32:])
    return f"{head}.{encoded(raw[:32] + other.to_bytes(32))}"


@pytest.mark.parametrize("is_known", [False, True])
async def test_revoking_a_token_ends_it_however_its_signature_is_written(service: Service, is_known: bool) -> None:
    minted = service.minter.mint(ALICE, 900, 0)
    twins = [minted.token, with_the_other_signature(minted.token)]
    await service.store.record(TokenRecord(minted.claims))
    accepted = [await service.identify(token) for token in twins if is_known]

    await service.store.revoke("openshift/alice", minted.claims.id)

    assert accepted == [await Service(service.keys).identify(minted.token)] * len(accepted)
    assert [await service.refusal(token) for token in twins] == ["revoked", "revoked"]


async def test_expired_token_is_said_to_be_expired_even_if_it_was_revoked(service: Service) -> None:
    token = service.token()
    await service.store.revoke_all("openshift/alice")

    service.clock.advance(900)

    assert await service.refusal(token) == "expired"


# what is remembered of verified tokens


class CountingKeys(SigningKeys):
    """Keys that tell how often one was asked for in order to verify."""

    asked = 0

    def public(self, key_id: str) -> Any | None:
        self.asked += 1
        return super().public(key_id)


@pytest.fixture
def counting() -> Service:
    return Service(CountingKeys([("a", ec.generate_private_key(ec.SECP256R1()))]))


def verifications(service: Service) -> int:
    assert isinstance(service.keys, CountingKeys)
    return service.keys.asked


async def test_signature_is_verified_once_in_thirty_seconds(counting: Service) -> None:
    token = counting.token(3600)

    for _ in range(300):
        assert await counting.identify(token) is not None
        counting.clock.advance(0.0999)
    within = verifications(counting)
    counting.clock.advance(0.1)
    await counting.identify(token)

    assert (within, verifications(counting)) == (1, 2)


async def test_remembered_token_expires_in_time(counting: Service) -> None:
    token = counting.token(600)
    counting.clock.advance(580)
    assert await counting.identify(token) is not None

    counting.clock.advance(19.9)
    assert await counting.identify(token) is not None
    counting.clock.advance(0.1)

    assert await counting.refusal(token) == "expired"
    assert verifications(counting) == 1


@pytest.mark.parametrize("everything", [False, True], ids=["by-its-id", "with-all"])
async def test_remembered_token_is_refused_at_once_when_it_is_revoked(counting: Service, everything: bool) -> None:
    minted = counting.minter.mint(ALICE, 900, 0)
    await counting.store.record(TokenRecord(minted.claims))
    assert await counting.identify(minted.token) is not None

    if everything:
        await counting.store.revoke_all("openshift/alice")
    else:
        await counting.store.revoke("openshift/alice", minted.claims.id)

    assert await counting.refusal(minted.token) == "revoked"
    assert verifications(counting) == 1


async def test_what_is_refused_is_not_remembered(counting: Service) -> None:
    early = counting.signed({"nbf": NOW + 10})
    broken = with_another_signature(counting)
    assert [await counting.refusal(early), await counting.refusal(broken)] == ["malformed", "malformed"]

    counting.clock.advance(5)

    assert await counting.identify(early) is not None
    assert await counting.refusal(broken) == "malformed"
    assert verifications(counting) == 4


async def test_remembered_token_is_not_accepted_before_its_time_when_the_clock_goes_back(counting: Service) -> None:
    token = counting.token()
    assert await counting.identify(token) is not None

    counting.clock.advance(-6)

    assert await counting.refusal(token) == "malformed"


async def test_no_byte_of_a_remembered_token_may_be_another(service: Service) -> None:
    token = service.token()
    assert await service.identify(token) is not None

    for index, old in enumerate(token):
        for new in ("A" if old != "A" else "B", ".", "~"):
            try:
                identity = await service.identify(token[:index] + new + token[index + 1 :])
            except InvalidCredentials:
                identity = None
            assert identity is None or old == new

    assert await service.identify(token) is not None


async def test_two_services_with_the_same_keys_do_not_share_what_they_remember(service: Service) -> None:
    other = JWTProvider(
        keys=service.keys, issuer=ISSUER, audience="another", revocations=service.store, clock=service.clock
    )
    assert await service.identify(service.token()) is not None

    with pytest.raises(InvalidCredentials):
        await other.identify(bearer(service.token()))


@pytest.mark.parametrize("is_remembered", [False, True])
async def test_token_of_a_dropped_key_is_unknown_as_soon_as_the_keys_are_others(is_remembered: bool) -> None:
    keys = ring("old", "new")
    service = Service(SigningKeys(list(keys.items())))
    in_force = service.keys
    provider = JWTProvider(
        keys=lambda: in_force, issuer=ISSUER, revocations=service.store, maximum_lifetime=900, clock=service.clock
    )
    token = service.token()
    if is_remembered:
        assert await provider.identify(bearer(token)) is not None

    in_force = SigningKeys([("new", keys["new"])])

    with pytest.raises(InvalidCredentials) as caught:
        await provider.identify(bearer(token))
    assert caught.value.details == {"reason": "unknown"}


def test_minter_signs_with_the_first_of_the_keys_in_force() -> None:
    rings = [SigningKeys.generate(), SigningKeys.generate()]
    minter = JWTMinter(keys=lambda: rings[0])

    first = minter.mint(ALICE, 900, 0).token
    rings.reverse()
    second = minter.mint(ALICE, 900, 0).token

    assert [decoded(token)[0]["kid"] for token in (second, first)] == [keys.key_id for keys in rings]
    for token, keys in zip((second, first), rings, strict=True):
        jwt.decode(token, keys.key.public_key(), ["ES256"], audience="maas")


# who is told of their use


async def test_each_accepted_token_is_told_by_its_id(service: Service) -> None:
    used: list[str] = []
    provider = JWTProvider(
        keys=service.keys, issuer=ISSUER, revocations=service.store, used=used.append, clock=service.clock
    )
    tokens = [service.token(), service.signed({"jti": "token-2"}), service.token()]

    for token in tokens:
        assert await provider.identify(bearer(token)) is not None

    assert used == ["token-1", "token-2", "token-1"]


async def test_refused_token_is_not_told_as_used(service: Service) -> None:
    used: list[str] = []
    provider = JWTProvider(
        keys=service.keys, issuer=ISSUER, revocations=service.store, used=used.append, clock=service.clock
    )
    await service.store.revoke_all("openshift/alice")
    broken = [service.token(), with_another_signature(service), service.signed({"exp": NOW})]

    for token in broken:
        with pytest.raises(InvalidCredentials):
            await provider.identify(bearer(token))
    assert await provider.identify(bearer("sha256~opaque")) is None

    assert used == []


# the key ring


def ring(*key_ids: str) -> dict[str, ec.EllipticCurvePrivateKey]:
    return {key_id: ec.generate_private_key(ec.SECP256R1()) for key_id in key_ids}


async def test_first_key_signs_and_all_keys_verify() -> None:
    keys = ring("old", "new")
    before, announced, after, retired = (
        Service(SigningKeys([(key_id, keys[key_id]) for key_id in key_ids]))
        for key_ids in (["old"], ["old", "new"], ["new", "old"], ["new"])
    )

    assert decoded(announced.token())[0]["kid"] == "old"
    assert decoded(after.token())[0]["kid"] == "new"
    assert await announced.identify(after.token()) is not None
    assert await after.identify(before.token()) is not None
    assert await retired.identify(after.token()) is not None
    assert await retired.refusal(before.token()) == "unknown"


async def test_key_does_not_verify_what_another_key_of_the_ring_signed() -> None:
    service = Service(SigningKeys(list(ring("a", "b").items())))

    assert await service.refusal(service.signed(headers={"kid": "b"})) == "malformed"
