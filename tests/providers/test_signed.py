"""Assertions of a gateway: who may be believed, about whom, and for how long."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies
from itsdangerous import URLSafeSerializer

from maas_middleware.assertions import AssertionKeys
from maas_middleware.errors import InvalidCredentials, InvalidRequest
from maas_middleware.identity import MAXIMUM_TOKEN_BYTES, AssertedIdentity, Identity, Scope
from maas_middleware.providers.signed import AssertionSigner, SignedProvider
from maas_middleware.testing.clock import FakeClock
from maas_middleware.tokens import MAXIMUM_GROUPS_BYTES

NOW = 1_000_000
SALT = b"maas_middleware.assertion"
OLD, NEW, FOREIGN = b"o" * 32, b"n" * 32, b"f" * 32
ALICE = Identity("openshift", "alice", ("system:authenticated", "premium-group"))
BOUND = 8 << 10
CLAIMS = {
    "idp": "openshift",
    "sub": "alice",
    "groups": ["system:authenticated", "premium-group"],
    "tier": "premium",
    "aud": "granite",
    "iat": NOW,
    "exp": NOW + 30,
    "rid": "request-1",
}


class Pair:
    """A gateway, and an app behind it that has the same key."""

    def __init__(self) -> None:
        self.clock = FakeClock(NOW)
        self.signer = AssertionSigner(keys=AssertionKeys((NEW,)), clock=self.clock)
        self.provider = SignedProvider(keys=AssertionKeys((NEW,)), audiences={"granite"}, clock=self.clock)

    def assertion(self, identity: Identity = ALICE, audience: str = "granite") -> bytes:
        return self.signer.sign(identity, tier="premium", audience=audience, request_id="request-1")

    async def identify(self, assertion: bytes) -> Identity | None:
        return await self.provider.identify(carrying(assertion))

    async def refusal(self, assertion: bytes) -> str:
        with pytest.raises(InvalidCredentials) as caught:
            await self.identify(assertion)
        assert caught.value.status == 401
        return str((caught.value.details or {})["reason"])


@pytest.fixture
def pair() -> Pair:
    return Pair()


def carrying(*assertions: bytes) -> Scope:
    return {"type": "http", "headers": [(b"X-MaaS-Assertion", assertion) for assertion in assertions]}


def encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def decoded(segment: bytes) -> bytes:
    return base64.urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))


def payload_of(assertion: bytes) -> Any:
    segment = assertion.rpartition(b".")[0]
    return json.loads(zlib.decompress(decoded(segment[1:])) if segment.startswith(b".") else decoded(segment))


def signed(payload: bytes, key: bytes = NEW, digest: Callable[..., Any] = hashlib.sha256, salt: bytes = SALT) -> bytes:
    """What somebody who has a key may write, put together without any library."""
    derived = hmac.new(key, salt, digest).digest()
    return payload + b"." + encoded(hmac.new(derived, payload, digest).digest())


def claiming(**changes: Any) -> bytes:
    """The claims, rightly signed, with changes; a value of None leaves the claim out."""
    claims = {name: value for name, value in {**CLAIMS, **changes}.items() if value is not None}
    return signed(encoded(json.dumps(claims).encode()))


# what it says


async def test_assertion_says_who_calls_in_which_tier_for_which_model_and_for_30_seconds(pair: Pair) -> None:
    assertion = pair.assertion()

    assert payload_of(assertion) == CLAIMS
    assert await pair.identify(assertion) == AssertedIdentity(
        "openshift",
        "alice",
        ("system:authenticated", "premium-group"),
        "An assertion of a gateway cannot manage tokens: use the token that you logged in with",
        tier="premium",
        audience="granite",
        request_id="request-1",
    )


async def test_user_is_the_same_behind_the_gateway_and_may_mint_nothing(pair: Pair) -> None:
    identity = await pair.identify(pair.assertion())

    assert identity is not None
    assert identity.key == ALICE.key
    assert identity.restriction is not None


async def test_signature_is_hmac_sha256_with_a_key_derived_for_this_use(pair: Pair) -> None:
    assertion = pair.assertion()

    payload = assertion.rpartition(b".")[0]

    assert assertion == signed(payload)


async def test_request_without_the_header_is_left_to_the_next_provider(pair: Pair) -> None:
    other: Scope = {"type": "http", "headers": [(b"authorization", b"Bearer x"), (b"x-maas-user", b"mallory")]}

    assert await pair.provider.identify(other) is None


async def test_repeated_header_is_refused(pair: Pair) -> None:
    assertion = pair.assertion()

    with pytest.raises(InvalidRequest) as caught:
        await pair.provider.identify(carrying(assertion, assertion))

    assert (caught.value.status, caught.value.code) == (400, "repeated_header")


@given(
    name=strategies.text(min_size=1, max_size=100),
    groups=strategies.lists(strategies.text(max_size=50), max_size=20),
    request_id=strategies.text(min_size=1, max_size=64),
)
async def test_names_of_every_script_arrive_as_they_were(name: str, groups: list[str], request_id: str) -> None:
    pair = Pair()
    identity = Identity("openshift", name, tuple(groups))

    assertion = pair.signer.sign(identity, tier="premium", audience="granite", request_id=request_id)
    seen = await pair.identify(assertion)

    assert isinstance(seen, AssertedIdentity)
    assert (seen.name, seen.groups, seen.request_id) == (name, tuple(groups), request_id)


async def test_time_is_that_of_the_computer_by_default() -> None:
    keys = AssertionKeys((NEW,))
    signer, provider = AssertionSigner(keys=keys), SignedProvider(keys=keys, audiences=["granite"])

    assertion = signer.sign(ALICE, tier="premium", audience="granite", request_id="request-1")

    assert payload_of(assertion)["iat"] == pytest.approx(time.time(), abs=5)
    assert await provider.identify(carrying(assertion)) is not None


# for how long


@pytest.mark.parametrize(
    ("age", "reason"),
    [
        pytest.param(-5.0, None, id="app-is-late-by-the-leeway"),
        pytest.param(-5.5, "malformed", id="app-is-later-than-that"),
        pytest.param(0.0, None, id="at-once"),
        pytest.param(34.9, None, id="just-before-the-end-of-the-leeway"),
        pytest.param(35.0, "expired", id="at-its-end"),
        pytest.param(3600.0, "expired", id="long-after"),
    ],
)
async def test_assertion_lives_for_30_seconds_with_a_leeway_of_5(pair: Pair, age: float, reason: str | None) -> None:
    assertion = pair.assertion()
    pair.clock.advance(age)

    if reason is None:
        assert await pair.identify(assertion) is not None
    else:
        assert await pair.refusal(assertion) == reason


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        pytest.param({"exp": NOW + 31}, "malformed", id="made-out-for-longer"),
        pytest.param({"exp": NOW + 10**9}, "malformed", id="made-out-for-ever"),
        pytest.param({"iat": NOW + 5, "exp": NOW + 36}, "malformed", id="for-longer-from-the-future"),
        pytest.param({"iat": NOW + 6, "exp": NOW + 30}, "malformed", id="from-the-future"),
        pytest.param({"iat": NOW + 2, "exp": NOW + 1}, "malformed", id="ends-before-it-begins"),
        pytest.param({"exp": NOW}, "malformed", id="for-no-time-at-all"),
        pytest.param({"iat": NOW - 35, "exp": NOW - 5}, "expired", id="over"),
        pytest.param({"iat": NOW - 3600, "exp": NOW + 1}, "malformed", id="old-and-long"),
    ],
)
async def test_times_that_no_gateway_writes_are_refused(pair: Pair, times: dict[str, int], reason: str) -> None:
    assert await pair.refusal(claiming(**times)) == reason


# by whom, and for whom


async def test_each_key_verifies_and_the_first_signs() -> None:
    both = AssertionKeys((NEW, OLD))
    clock = FakeClock(NOW)
    by = {key: AssertionSigner(keys=AssertionKeys((key,)), clock=clock) for key in (NEW, OLD)}
    provider = SignedProvider(keys=both, audiences=["granite"], clock=clock)

    accepted = [
        await provider.identify(carrying(signer.sign(ALICE, tier="t", audience="granite", request_id="r")))
        for signer in by.values()
    ]
    of_both = AssertionSigner(keys=both, clock=clock).sign(ALICE, tier="t", audience="granite", request_id="r")

    assert None not in accepted
    assert of_both == by[NEW].sign(ALICE, tier="t", audience="granite", request_id="r")


async def test_keys_that_change_are_in_force_for_the_next_request() -> None:
    ring = [AssertionKeys((OLD,))]
    clock = FakeClock(NOW)
    signer = AssertionSigner(keys=lambda: ring[0], clock=clock)
    provider = SignedProvider(keys=lambda: ring[0], audiences=["granite"], clock=clock)
    first = signer.sign(ALICE, tier="t", audience="granite", request_id="r")
    before = await provider.identify(carrying(first))

    ring[0] = AssertionKeys((NEW,))
    second = await provider.identify(carrying(signer.sign(ALICE, tier="t", audience="granite", request_id="r")))

    assert None not in (before, second)
    with pytest.raises(InvalidCredentials, match="Invalid authentication token"):
        await provider.identify(carrying(first))


@pytest.mark.parametrize(
    "assertion",
    [
        pytest.param(signed(encoded(json.dumps(CLAIMS).encode()), FOREIGN), id="key"),
        pytest.param(signed(encoded(json.dumps(CLAIMS).encode()), salt=b"itsdangerous"), id="salt"),
        pytest.param(signed(encoded(json.dumps(CLAIMS).encode()), salt=b""), id="no-salt"),
        pytest.param(
            URLSafeSerializer(NEW, salt=SALT, signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "none"})
            .dumps(CLAIMS)
            .encode(),
            id="no-derivation",
        ),
        pytest.param(
            URLSafeSerializer(NEW, salt=SALT, signer_kwargs={"digest_method": hashlib.sha256}).dumps(CLAIMS).encode(),
            id="derivation",
        ),
        pytest.param(
            URLSafeSerializer(
                NEW, salt=SALT, signer_kwargs={"digest_method": hashlib.sha3_256, "key_derivation": "hmac"}
            )
            .dumps(CLAIMS)
            .encode(),
            id="digest-of-the-same-size",
        ),
        pytest.param(claiming(aud="qwen3"), id="audience"),
        pytest.param(claiming(aud="Granite"), id="audience-in-other-letters"),
    ],
)
async def test_assertion_of_another_or_for_another_is_unknown(pair: Pair, assertion: bytes) -> None:
    assert await pair.refusal(assertion) == "unknown"


@pytest.mark.parametrize("digest", [hashlib.sha1, hashlib.sha224, hashlib.sha384, hashlib.sha512])
async def test_signature_of_another_size_is_no_assertion(pair: Pair, digest: Callable[..., Any]) -> None:
    assertion = signed(encoded(json.dumps(CLAIMS).encode()), digest=digest)

    assert await pair.refusal(assertion) == "malformed"


async def test_no_byte_of_an_assertion_can_be_changed_dropped_or_added(pair: Pair) -> None:
    assertion = pair.assertion()
    assert await pair.identify(assertion) is not None

    for place in range(len(assertion)):
        before, after = assertion[:place], assertion[place + 1 :]
        changed = [before + bytes([byte]) + after for byte in range(256) if byte != assertion[place]]
        for tampered in (
            *changed,
            before + after,
            before + b"A" + assertion[place:],
            before + b"=" + assertion[place:],
        ):
            assert await pair.refusal(tampered) in ("malformed", "unknown"), (place, tampered)


async def test_tampering_with_the_words_of_an_assertion_needs_a_key(pair: Pair) -> None:
    signature = pair.assertion().rpartition(b".")[2]
    claims = json.dumps({**payload_of(pair.assertion()), "sub": "mallory"}).encode()

    assert await pair.refusal(encoded(claims) + b"." + signature) == "unknown"
    assert await pair.refusal(b"." + encoded(zlib.compress(claims)) + b"." + signature) == "unknown"


# what it may say


@pytest.mark.parametrize(
    "changes",
    [
        *[pytest.param({name: None}, id=f"no-{name}") for name in CLAIMS],
        *[pytest.param({name: 1}, id=f"number-as-{name}") for name in ("idp", "sub", "groups", "tier", "aud", "rid")],
        *[pytest.param({name: ["x"]}, id=f"list-as-{name}") for name in ("idp", "sub", "tier", "aud", "rid")],
        *[pytest.param({name: ""}, id=f"empty-{name}") for name in ("idp", "sub", "tier", "aud", "rid")],
        *[pytest.param({name: "x" * 4097}, id=f"long-{name}") for name in ("idp", "sub", "tier", "aud", "rid")],
        *[
            pytest.param({name: value}, id=f"{name}-{kind}")
            for name in ("iat", "exp")
            for kind, value in {"text": str(NOW), "fraction": NOW + 0.5, "true": True, "list": [NOW]}.items()
        ],
        pytest.param({"groups": "premium-group"}, id="text-as-groups"),
        pytest.param({"groups": [1]}, id="number-as-group"),
        pytest.param({"groups": [["x"]]}, id="list-as-group"),
        pytest.param({"groups": ["x" * 4097]}, id="long-group"),
        pytest.param({"groups": ["x"] * 1025}, id="many-groups"),
        pytest.param({"idp": "open/shift"}, id="provider-with-a-slash"),
        pytest.param({"idp": "[restricted]openshift"}, id="provider-with-a-bracket"),
    ],
)
async def test_claims_of_other_types_and_sizes_are_malformed(pair: Pair, changes: dict[str, Any]) -> None:
    assert await pair.refusal(claiming(**changes)) == "malformed"


async def test_claims_of_a_later_version_do_no_harm(pair: Pair) -> None:
    assert await pair.identify(claiming(nonce="x")) is not None


@pytest.mark.parametrize(
    "assertion",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b".", id="dot"),
        pytest.param(b"..", id="dots"),
        pytest.param(b"eyJhbGciOiJub25lIn0.e30.", id="jwt"),
        pytest.param(b"\xff\xfe.\xff", id="no-text"),
        pytest.param(encoded(b"{}"), id="no-signature"),
        pytest.param(signed(b""), id="no-payload"),
        pytest.param(signed(encoded(b"{")), id="no-json"),
        pytest.param(signed(encoded(b"[]")), id="list"),
        pytest.param(signed(encoded(b"null")), id="null"),
        pytest.param(signed(encoded(b"\xff")), id="no-utf-8"),
        pytest.param(signed(b"A"), id="no-base64"),
        pytest.param(signed(b"." + encoded(b"{}")), id="not-compressed"),
        pytest.param(signed(encoded(b"[" * 5000)), id="nested"),
        pytest.param(signed(encoded(b"x" * BOUND)), id="large"),
    ],
)
async def test_what_is_no_assertion_is_malformed_whoever_signed_it(pair: Pair, assertion: bytes) -> None:
    assert await pair.refusal(assertion) == "malformed"


async def test_largest_assertion_that_is_accepted_is_of_8_KiB(pair: Pair) -> None:
    payload = json.dumps(CLAIMS).encode()
    size = (BOUND - 44) // 4 * 3
    largest = signed(encoded(payload + b" " * (size - len(payload))))
    larger = signed(encoded(payload + b" " * (size + 1 - len(payload))))

    assert BOUND == MAXIMUM_TOKEN_BYTES == len(largest)
    assert await pair.identify(largest) is not None
    assert await pair.refusal(larger) == "malformed"


async def test_all_groups_that_an_access_token_may_hold_fit(pair: Pair) -> None:
    """They have 4 KiB of JSON there, which is the worst where they cannot be compressed."""
    words = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(64)]
    most = tuple(words[:61])
    one = ("".join(words)[:4092],)

    for groups in (most, one, tuple("x" for _ in range(1023))):
        assert 3900 < len(json.dumps(groups, separators=(",", ":"))) <= 4096 == MAXIMUM_GROUPS_BYTES
        seen = await pair.identify(pair.assertion(replace(ALICE, groups=groups)))

        assert seen is not None
        assert seen.groups == groups


async def test_gateway_does_not_send_what_would_be_refused(pair: Pair) -> None:
    groups = tuple(hashlib.sha256(str(number).encode()).hexdigest() for number in range(200))

    with pytest.raises(ValueError, match="an assertion would take more than 8192 bytes: too many groups"):
        pair.assertion(replace(ALICE, groups=groups))
    with pytest.raises(ValueError, match=r"Expected `str` of length <= 4096 - at `\$.sub`"):
        pair.assertion(replace(ALICE, name="x" * 4097))


@pytest.mark.parametrize("audiences", ["granite", (), []])
def test_audiences_are_a_collection_of_names(audiences: Any) -> None:
    with pytest.raises(ValueError, match="audiences are the names of models, at least one"):
        SignedProvider(keys=AssertionKeys((NEW,)), audiences=audiences)


# keys


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "assertion-keys"
    file.write_text(text)
    file.chmod(mode)
    return file


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440, 0o640, 0o660])
def test_key_file_has_a_secret_a_line_with_comments_and_empty_lines(tmp_path: Path, mode: int) -> None:
    text = f"# since January\n\n  {NEW.decode()}  \r\n#{'x' * 40}\n{OLD.decode()}"

    assert AssertionKeys.load(written(tmp_path, text, mode)).secrets == (NEW, OLD)


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        pytest.param("", 0o600, "holds no key", id="empty"),
        pytest.param("# nothing\n \n", 0o600, "holds no key", id="comments"),
        pytest.param("x" * 31, 0o600, "holds a key of less than 32 bytes: the 1. one", id="short"),
        pytest.param(f"{'x' * 32}\nyyy", 0o600, "holds a key of less than 32 bytes: the 2. one", id="second-is-short"),
        pytest.param("x" * 32, 0o644, "is open to everybody: its mode must be 0640 or narrower", id="others-read"),
        pytest.param("x" * 32, 0o602, "is open to everybody: its mode must be 0640 or narrower", id="others-write"),
    ],
)
def test_bad_key_file_is_refused_and_not_quoted(tmp_path: Path, text: str, mode: int, reason: str) -> None:
    file = written(tmp_path, text, mode)

    with pytest.raises(ValueError, match=r"key|open") as caught:
        AssertionKeys.load(file)

    assert str(caught.value) == reason


def test_missing_key_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AssertionKeys.load(tmp_path / "nowhere")


def test_keys_do_not_show_their_secrets() -> None:
    keys = AssertionKeys((NEW,))

    assert NEW.decode() not in repr(keys)
