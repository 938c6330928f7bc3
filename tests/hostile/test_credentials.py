"""Credentials that are none, forged or of the wrong kind."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from maas_middleware.providers.keys import SigningKeys

from ..deployments import chat
from ..raw_upstream import Connection, answer, raw_upstream
from . import forgery
from .attack import CHAT, Answer, Target, besieged
from .forgery import Forgery, from_now, hs256, saying, tampered, without

MODELS, TOKENS = "/v1/models", "/maas-api/v1/tokens"
DECADE = 10 * 365 * 24 * 3600


@pytest.fixture(scope="module")
async def besieged_target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with besieged(tmp_path_factory.mktemp("keys")) as target:
        yield target


@pytest.fixture
def target(target: Target) -> Target:
    target.service.cluster.reviews.clear()
    target.service.simulator.requests.clear()
    return target


async def everywhere(target: Target, *headers: str, token: str | None = None) -> list[Answer]:
    """What inference, minting, revoking and the list of models answer."""
    body = json.dumps(chat())
    return [
        await target.ask(method, path, *headers, token=token, body=body if method == "POST" else None)
        for method, path in (("POST", CHAT), ("POST", TOKENS), ("DELETE", TOKENS), ("GET", MODELS))
    ]


def reached_nobody(target: Target) -> bool:
    return not target.service.cluster.reviews and not target.service.simulator.requests


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        pytest.param([], "missing", id="none"),
        pytest.param(["X-Token: {token}", "Cookie: token={token}"], "missing", id="elsewhere"),
        pytest.param(["Authorization: {token}"], "malformed", id="no-scheme"),
        pytest.param(["Authorization: Basic {token}"], "malformed", id="basic"),
        pytest.param(["Authorization: Bearer"], "malformed", id="scheme-alone"),
        pytest.param(["Authorization: Bearer   "], "malformed", id="empty-bearer"),
        pytest.param(["Authorization:"], "malformed", id="empty-header"),
        pytest.param(["X-Api-Key:"], "malformed", id="empty-key"),
        pytest.param(["Authorization: Bearer\t{token}"], "malformed", id="tab-behind-the-scheme"),
        pytest.param([f"Authorization: Bearer {'x' * 9216}"], "malformed", id="9-kb"),
        pytest.param([f"X-Api-Key: {'x' * 9216}"], "malformed", id="9-kb-key"),
        pytest.param(["Authorization: Basic {token}", "X-Api-Key: {token}"], "malformed", id="authorization-wins"),
    ],
)
async def test_header_that_carries_no_token_is_401_everywhere(target: Target, headers: list[str], reason: str) -> None:
    token = target.access()

    answers = await everywhere(target, *(line.format(token=token) for line in headers))

    assert [answer.refusal(401, "invalid_api_key")["details"] for answer in answers] == [{"reason": reason}] * 4
    assert reached_nobody(target)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(["Authorization: Bearer {token}", "authorization: Bearer {token}"], id="authorization"),
        pytest.param(["Authorization: Bearer {token}", "Authorization: Basic {token}"], id="two-schemes"),
        pytest.param(["X-Api-Key: {token}", "x-api-key: {token}"], id="key"),
        pytest.param(["Authorization: Bearer {token}", "X-Api-Key: {token}", "X-Api-Key: x"], id="key-that-loses"),
    ],
)
async def test_repeated_credential_is_400_everywhere(target: Target, headers: list[str]) -> None:
    token = target.access()

    answers = await everywhere(target, *(line.format(token=token) for line in headers))

    assert {answer.refusal(400, "repeated_header")["message"][:10] for answer in answers} == {"The header"}
    assert reached_nobody(target)


async def test_authorization_wins_over_the_key(target: Target) -> None:
    good, bad = target.access(), tampered(2)(target)
    body = json.dumps(chat())

    wins = await target.ask("POST", CHAT, f"X-Api-Key: {bad}", token=good, body=body)
    loses = await target.ask("POST", CHAT, f"X-Api-Key: {good}", token=bad, body=body)

    assert wins.status == 200
    assert loses.refusal(401, "invalid_api_key")["details"] == {"reason": "malformed"}
    assert len(target.service.simulator.requests) == 1


FORGERIES = [
    pytest.param(saying(iat=from_now(-900), nbf=from_now(-900), exp=from_now(-1)), "expired", id="expired"),
    pytest.param(saying(exp=0), "expired", id="expired-in-1970"),
    pytest.param(tampered(0), "malformed", id="tampered-header"),
    pytest.param(tampered(1), "malformed", id="tampered-payload"),
    pytest.param(tampered(2), "malformed", id="tampered-signature"),
    pytest.param(forgery.joined(0, 1), "malformed", id="no-signature"),
    pytest.param(forgery.joined("", 1, 2), "malformed", id="no-header"),
    pytest.param(forgery.joined("garbage", 1, 2), "malformed", id="garbage-as-header"),
    pytest.param(forgery.joined(0, 1, "!"), "malformed", id="garbage-as-signature"),
    pytest.param(forgery.joined(0, 1, 2, 1), "malformed", id="four-parts"),
    pytest.param(saying(aud="another"), "malformed", id="foreign-audience"),
    pytest.param(saying(aud=["maas", "another"]), "malformed", id="list-of-audiences"),
    pytest.param(forgery.of_somebody_elses_key, "malformed", id="foreign-key-with-our-kid"),
    pytest.param(forgery.with_an_embedded_key, "malformed", id="foreign-key-in-the-header"),
    pytest.param(saying({"kid": "another"}), "unknown", id="unknown-kid"),
    pytest.param(saying({"kid": "../../../dev/null"}), "unknown", id="kid-as-path"),
    pytest.param(saying({"kid": 5}), "malformed", id="kid-as-number"),
    pytest.param(saying({"kid": {"$ne": None}}), "malformed", id="kid-as-object"),
    pytest.param(without("kid"), "unknown", id="no-kid"),
    pytest.param(saying({"typ": "JWT"}), "unknown", id="wrong-typ"),
    pytest.param(saying({"typ": "logout+jwt"}), "unknown", id="typ-of-another-use"),
    pytest.param(without("typ"), "unknown", id="no-typ"),
    pytest.param(without("alg"), "malformed", id="no-alg"),
    pytest.param(forgery.of_no_algorithm, "malformed", id="alg-none"),
    pytest.param(forgery.of_no_algorithm_and_somebodys_signature, "malformed", id="alg-none-signed"),
    pytest.param(hs256(forgery.pem), "malformed", id="hs256-with-our-pem"),
    pytest.param(hs256(forgery.der), "malformed", id="hs256-with-our-der"),
    pytest.param(hs256(forgery.jwk), "malformed", id="hs256-with-our-jwk"),
    pytest.param(saying(exp="9999999999"), "malformed", id="exp-as-text"),
    pytest.param(saying(exp=10**18), "malformed", id="far-future-exp"),
    pytest.param(saying(exp=10**400), "malformed", id="exp-of-400-digits"),
    pytest.param(saying(exp=from_now(DECADE)), "malformed", id="exp-in-ten-years"),
    pytest.param(saying(exp=from_now(DECADE), iat=from_now(DECADE - 900)), "malformed", id="future-iat"),
    pytest.param(saying(nbf=from_now(600)), "malformed", id="future-nbf"),
    pytest.param(without("exp"), "malformed", id="no-exp"),
    pytest.param(without("iat"), "malformed", id="no-iat"),
    pytest.param(without("jti"), "malformed", id="no-jti"),
    pytest.param(saying(sub={"$ne": None}), "malformed", id="sub-as-object"),
]


@pytest.mark.parametrize(("forge", "reason"), FORGERIES)
async def test_token_of_our_issuer_that_is_broken_is_401_and_the_cluster_never_sees_it(
    target: Target, forge: Forgery, reason: str
) -> None:
    token = forge(target)
    target.secrets.append(token)

    answers = [*await everywhere(target, token=token), *await everywhere(target, f"X-Api-Key: {token}")]

    assert [answer.refusal(401, "invalid_api_key")["details"] for answer in answers] == [{"reason": reason}] * 8
    assert reached_nobody(target)


async def test_token_that_names_where_its_keys_are_has_nothing_fetched(target: Target) -> None:
    keys = SigningKeys.generate()

    async def somebodys_keys(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(answer("200 OK", json.dumps(keys.jwks()).encode(), b"Content-Type: application/json"))

    async with raw_upstream(somebodys_keys) as trap:
        headers: dict[str, Any] = {name: f"{trap.url}/jwks.json" for name in ("jku", "x5u")}
        tokens = [forgery.signed(target, keys, headers | {"kid": kid}, {}) for kid in ("another", target.keys.key_id)]
        answers = [answer for token in tokens for answer in await everywhere(target, token=token)]

    reasons = [answer.refusal(401, "invalid_api_key")["details"]["reason"] for answer in answers]
    assert reasons == ["unknown"] * 4 + ["malformed"] * 4
    assert trap.connections == []
    assert reached_nobody(target)


async def test_token_of_a_foreign_issuer_is_none_of_ours_and_only_control_routes_ask_whose_it_is(
    target: Target,
) -> None:
    token = saying(iss="https://elsewhere.example.com", sub="root")(target)

    inference, *control = await everywhere(target, token=token)

    assert inference.refusal(401, "invalid_api_key")["details"] == {"reason": "unknown"}
    assert [answer.refusal(401, "invalid_api_key")["details"] for answer in control] == [{"reason": "unknown"}] * 3
    assert {review.token for review in target.service.cluster.reviews} == {token}


async def test_login_is_401_on_inference_and_the_cluster_is_not_asked(target: Target) -> None:
    login = target.newcomer()

    answers = [
        await target.ask("POST", CHAT, token=login, body=json.dumps(chat())),
        await target.ask("POST", f"/simulator{CHAT}", token=login, body=json.dumps(chat())),
        await target.ask("POST", CHAT, f"X-Api-Key: {login}", body=json.dumps(chat())),
    ]
    head = await target.ask("HEAD", CHAT, token=login)

    assert [answer.refusal(401, "invalid_api_key")["details"] for answer in answers] == [{"reason": "unknown"}] * 3
    assert head.status == 401
    assert reached_nobody(target)


async def test_access_token_manages_no_tokens_and_stays_valid(target: Target) -> None:
    token = target.access()
    jti = forgery.decoded(token.split(".")[1])["jti"]

    answers = [
        await target.ask(method, path, token=token)
        for method, path in (("POST", TOKENS), ("DELETE", TOKENS), ("DELETE", f"{TOKENS}/{jti}"))
    ]
    after = await target.chat(token)

    assert {answer.refusal(403, "access_denied")["message"][:15] for answer in answers} == {"An access token"}
    assert after.status == 200
    assert target.service.cluster.reviews == []


@pytest.mark.parametrize(
    "name",
    [
        *("X-Maas-User", "x-maas-tier", "X-MAAS-Groups", "X-Forwarded-User", "X-Forwarded-Email", "X-Remote-User"),
        *("X-Remote-Group", "X-Remote-Extra-Scopes", "X-Forwarded-Groups", "X-Forwarded-Preferred-Username"),
        *("X-Auth-Request-User", "Authorization-X: 1\r\nx-remote-user", "Connection: x-remote-user\r\nX-Remote-User"),
    ],
)
async def test_forged_identity_reaches_no_upstream_and_changes_nothing(target: Target, name: str) -> None:
    token = target.access()

    chatted = await target.ask("POST", CHAT, f"{name}: captain-nemo", token=token, body=json.dumps(chat()))
    denied = await target.ask("POST", CHAT, f"{name}: captains", token=token, body=json.dumps(chat("qwen3")))

    (seen,) = target.service.simulator.requests
    assert chatted.status == 200
    assert denied.refusal(403, "access_denied")["message"] == "Insufficient permissions for this model"
    assert b"captain" not in b"".join(value for _, value in seen.headers)
    assert token.encode() not in b"".join(value for _, value in seen.headers) + seen.body


async def test_forged_identity_is_not_sent_to_the_cluster_and_mints_for_whoever_logged_in(target: Target) -> None:
    login = target.newcomer()

    minted = await target.ask("POST", TOKENS, "X-Remote-User: root", "X-Maas-User: root", token=login)

    claims = forgery.decoded(json.loads(minted.body)["token"].split(".")[1])
    assert minted.status == 201
    assert claims["sub"] == target.service.cluster.users[login].name
    assert claims["groups"] == ["crew", "system:authenticated"]
