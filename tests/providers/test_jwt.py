from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from maas_middleware.errors import InvalidCredentials, InvalidRequest, StoreUnavailable
from maas_middleware.identity import MAXIMUM_TOKEN_BYTES, Identity, Scope
from maas_middleware.providers.jwt import JWTMinter, JWTProvider
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.stores.memory import MemoryTokenStore
from maas_middleware.testing.clock import FakeClock
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
        pytest.param({"kid": 5}, "malformed", id="kid-as-number"),
        pytest.param({"alg": "RS256"}, "malformed", id="another-alg"),
        pytest.param({"alg": "ES384"}, "malformed", id="another-curve"),
        pytest.param({"alg": "none"}, "malformed", id="alg-none-with-a-signature"),
        pytest.param({"alg": 5}, "malformed", id="alg-as-number"),
        pytest.param({"alg": None}, "malformed", id="no-alg"),
        pytest.param({"b64": False, "crit": ["b64"]}, "malformed", id="detached"),
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
    await service.store.record(minted.claims)

    await service.store.revoke("openshift/alice", minted.claims.id)

    assert await service.refusal(minted.token) == "revoked"


async def test_tokens_minted_before_all_were_revoked_are_refused(service: Service) -> None:
    old = service.token()

    await service.store.revoke_all("openshift/alice")
    new = service.minter.mint(ALICE, 900, await service.store.generation("openshift/alice")).token

    assert await service.refusal(old) == "revoked"
    assert await service.identify(new) is not None


async def test_expired_token_is_said_to_be_expired_even_if_it_was_revoked(service: Service) -> None:
    token = service.token()
    await service.store.revoke_all("openshift/alice")

    service.clock.advance(900)

    assert await service.refusal(token) == "expired"


# the key ring


def key_entry(key_id: str = "a") -> dict[str, Any]:
    return jwk_of(ec.generate_private_key(ec.SECP256R1()), key_id)


def jwk_of(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey, key_id: str = "a") -> dict[str, Any]:
    return {**ECAlgorithm.to_jwk(key, as_dict=True), "kid": key_id}


def key_file(directory: Path, content: object) -> Path:
    path = directory / "keys.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    path.chmod(0o600)
    return path


async def test_first_key_signs_and_all_keys_verify(tmp_path: Path) -> None:
    old, new = key_entry("old"), key_entry("new")
    before = Service(SigningKeys.load(key_file(tmp_path, {"keys": [old]})))
    announced = Service(SigningKeys.load(key_file(tmp_path, {"keys": [old, new]})))
    after = Service(SigningKeys.load(key_file(tmp_path, {"keys": [new, old]})))
    retired = Service(SigningKeys.load(key_file(tmp_path, {"keys": [new]})))

    assert decoded(announced.token())[0]["kid"] == "old"
    assert decoded(after.token())[0]["kid"] == "new"
    assert await announced.identify(after.token()) is not None
    assert await after.identify(before.token()) is not None
    assert await retired.identify(after.token()) is not None
    assert await retired.refusal(before.token()) == "unknown"


async def test_key_does_not_verify_what_another_key_of_the_ring_signed(tmp_path: Path) -> None:
    ring = Service(SigningKeys.load(key_file(tmp_path, {"keys": [key_entry("a"), key_entry("b")]})))

    assert await ring.refusal(ring.signed(headers={"kid": "b"})) == "malformed"


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_key_file_that_only_its_owner_may_read_is_loaded(tmp_path: Path, mode: int) -> None:
    jwk = key_entry("a")
    path = key_file(tmp_path, {"keys": [jwk]})
    path.chmod(mode)

    keys = SigningKeys.load(path)

    assert keys.key_id == "a"
    assert keys.jwks()["keys"][0]["x"] == jwk["x"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o644, 0o666, 0o777])
def test_key_file_that_others_may_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, {"keys": [key_entry()]})
    path.chmod(mode)

    with pytest.raises(ValueError, match="its mode must be 0600"):
        SigningKeys.load(path)


def test_key_file_that_is_missing_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SigningKeys.load(tmp_path / "none.json")


def rsa_jwk() -> dict[str, Any]:
    return {**RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048), as_dict=True), "kid": "a"}


def ed25519_jwk() -> dict[str, Any]:
    return {**OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate(), as_dict=True), "kid": "a"}


def without(jwk: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in jwk.items() if key != name}


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param([], id="empty"),
        pytest.param([jwk_of(ec.generate_private_key(ec.SECP256R1()).public_key())], id="public"),
        pytest.param(
            [key_entry("a"), jwk_of(ec.generate_private_key(ec.SECP256R1()).public_key(), "b")],
            id="one-of-two-public",
        ),
        pytest.param([key_entry("a"), key_entry("a")], id="same-kid"),
        pytest.param([without(key_entry(), "kid")], id="no-kid"),
        pytest.param([{**key_entry(), "kid": ""}], id="empty-kid"),
        pytest.param([{**key_entry(), "kid": None}], id="null-kid"),
        pytest.param([{**key_entry(), "kid": 7}], id="number-as-kid"),
        pytest.param([{**key_entry(), "kid": ["a"]}], id="list-as-kid"),
        pytest.param([rsa_jwk()], id="rsa"),
        pytest.param([key_entry("b"), rsa_jwk()], id="rsa-among-others"),
        pytest.param([ed25519_jwk()], id="ed25519"),
        pytest.param([jwk_of(ec.generate_private_key(ec.SECP384R1()))], id="p-384"),
        pytest.param([jwk_of(ec.generate_private_key(ec.SECP256K1()))], id="secp256k1"),
        pytest.param([{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}], id="secret"),
        pytest.param([{**key_entry(), "d": key_entry()["d"]}], id="private-part-of-another-key"),
        pytest.param([{**key_entry(), "d": "AA"}], id="short-private-part"),
        pytest.param([{**key_entry(), "d": None}], id="null-private-part"),
        pytest.param([{**key_entry(), "d": 5}], id="number-as-private-part"),
        pytest.param([{**key_entry(), "x": encoded(bytes(32))}], id="not-on-the-curve"),
        pytest.param([{**key_entry(), "x": "é"}], id="not-base64"),
        pytest.param([{**key_entry(), "x": 1}], id="number-as-x"),
        pytest.param([without(key_entry(), "crv")], id="no-curve"),
        pytest.param(["a"], id="text-as-key"),
        pytest.param([None], id="null-as-key"),
        pytest.param({}, id="object"),
        pytest.param("keys", id="text"),
        pytest.param(None, id="null"),
    ],
)
def test_key_file_without_private_p_256_keys_with_a_kid_each_is_refused(tmp_path: Path, keys: object) -> None:
    with pytest.raises(ValueError, match="is not a JWK set of private P-256 keys with a kid each"):
        SigningKeys.load(key_file(tmp_path, {"keys": keys}))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"-----BEGIN EC PRIVATE KEY-----", id="pem"),
        pytest.param(b"\xff\xfe", id="not-utf-8"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"{}", id="no-keys"),
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_key_file_that_is_no_jwk_set_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match="is not a JWK set of private P-256 keys with a kid each"):
        SigningKeys.load(key_file(tmp_path, content))


def test_refused_key_file_does_not_say_what_is_in_it(tmp_path: Path) -> None:
    jwk = {**key_entry(), "x": "AAAA"}

    with pytest.raises(ValueError, match="JWK") as caught:
        SigningKeys.load(key_file(tmp_path, {"keys": [jwk]}))

    assert jwk["d"] not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_public_key_set_has_every_key_and_no_private_part(tmp_path: Path) -> None:
    private = [key_entry("a"), key_entry("b")]

    public = SigningKeys.load(key_file(tmp_path, {"keys": private})).jwks()

    assert public == {
        "keys": [
            {
                **{name: jwk[name] for name in ("kty", "crv", "x", "y", "kid")},
                "use": "sig",
                "alg": "ES256",
            }
            for jwk in private
        ]
    }
    assert not any(jwk["d"] in json.dumps(public) for jwk in private)


def test_generated_key_is_fresh_and_named_by_its_thumbprint() -> None:
    keys = SigningKeys.generate()

    (jwk,) = keys.jwks()["keys"]
    thumbprint = json.dumps({name: jwk[name] for name in ("crv", "kty", "x", "y")}, separators=(",", ":"))
    assert keys.key_id == jwk["kid"] == encoded(hashlib.sha256(thumbprint.encode()).digest())
    assert "d" not in jwk
    assert keys.public(keys.key_id) is not None
    assert keys.public("another") is None
    assert SigningKeys.generate().key_id != keys.key_id
