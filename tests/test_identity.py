from __future__ import annotations

from collections.abc import Sequence

import pytest

from maas_middleware.errors import InvalidCredentials, InvalidRequest
from maas_middleware.identity import MAXIMUM_TOKEN_BYTES, FirstOf, Identity, Scope, credential, header


def scope(*headers: tuple[bytes, bytes]) -> Scope:
    return {"type": "http", "headers": list(headers)}


class Known:
    """A provider that knows one answer, and remembers that it was asked."""

    def __init__(self, answer: Identity | Exception | None) -> None:
        self.answer = answer
        self.asked: list[Scope] = []

    async def identify(self, scope: Scope, /) -> Identity | None:
        self.asked.append(scope)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


ALICE = Identity("openshift", "alice")
BOB = Identity("openshift", "bob")

# Identity


def test_key_of_a_user_is_provider_and_name() -> None:
    assert ALICE.key == "openshift/alice"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("alice", id="plain"),
        pytest.param("Alice", id="uppercase"),
        pytest.param("/alice", id="leading-slash"),
        pytest.param("corp/alice", id="slash"),
        pytest.param("alice ", id="space"),
        pytest.param("system:serviceaccount:ns:sa", id="service-account"),
        pytest.param("алиса", id="not-latin"),
    ],
)
def test_no_two_users_share_a_key_because_it_can_be_taken_apart_again(name: str) -> None:
    assert Identity("openshift", name).key.partition("/") == ("openshift", "/", name)


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        pytest.param("a/b", "c", id="slash-in-the-provider"),
        pytest.param("[a", "c", id="bracket-in-front-of-the-provider"),
        pytest.param("", "c", id="no-provider"),
        pytest.param("a", "", id="no-name"),
    ],
)
def test_identity_that_could_be_taken_for_another_is_impossible(provider: str, name: str) -> None:
    with pytest.raises(ValueError, match="an identity needs a name, and a provider that has no slash"):
        Identity(provider, name)


def test_identity_is_a_login_unless_it_says_otherwise() -> None:
    assert ALICE.groups == ()
    assert ALICE.restriction is None


# FirstOf


@pytest.mark.parametrize(
    ("answers", "expected", "asked"),
    [
        pytest.param([ALICE, BOB], ALICE, [1, 0], id="first"),
        pytest.param([None, BOB], BOB, [1, 1], id="second"),
        pytest.param([None, None], None, [1, 1], id="nobody"),
        pytest.param([], None, [], id="no-providers"),
    ],
)
async def test_first_provider_that_knows_the_caller_decides(
    answers: Sequence[Identity | None], expected: Identity | None, asked: list[int]
) -> None:
    providers = [Known(answer) for answer in answers]
    request = scope()

    assert await FirstOf(*providers).identify(request) == expected
    assert [len(provider.asked) for provider in providers] == asked
    assert all(seen is request for provider in providers for seen in provider.asked)


async def test_provider_that_refuses_ends_the_search() -> None:
    refusing, second = Known(InvalidCredentials("expired")), Known(BOB)

    with pytest.raises(InvalidCredentials):
        await FirstOf(refusing, second).identify(scope())

    assert second.asked == []


# header


def test_header_is_found_whatever_its_case() -> None:
    assert header(scope((b"X-Request-ID", b"1")), b"x-request-id") == b"1"
    assert header(scope((b"x-request-id", b"")), b"x-request-id") == b""
    assert header(scope((b"x-request-idx", b"1")), b"x-request-id") is None
    assert header(scope(), b"x-request-id") is None


def test_repeated_header_is_refused_even_if_it_says_the_same() -> None:
    with pytest.raises(InvalidRequest) as caught:
        header(scope((b"authorization", b"Bearer a"), (b"Authorization", b"Bearer a")), b"authorization")

    assert (caught.value.status, caught.value.code) == (400, "repeated_header")
    assert caught.value.message == "The header authorization is repeated"


# credential


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        pytest.param([(b"authorization", b"Bearer secret")], "secret", id="bearer"),
        pytest.param([(b"authorization", b"bearer secret")], "secret", id="lowercase-scheme"),
        pytest.param([(b"authorization", b"BEARER secret")], "secret", id="uppercase-scheme"),
        pytest.param([(b"Authorization", b"Bearer secret")], "secret", id="uppercase-name"),
        pytest.param([(b"AUTHORIZATION", b"Bearer   secret ")], "secret", id="spaces-around"),
        pytest.param([(b"x-api-key", b"secret")], "secret", id="x-api-key"),
        pytest.param([(b"X-Api-Key", b" secret ")], "secret", id="uppercase-x-api-key"),
        pytest.param([(b"x-api-key", b"old"), (b"authorization", b"Bearer new")], "new", id="authorization-wins"),
        pytest.param([(b"authorization", b"Bearer new"), (b"x-api-key", b"")], "new", id="empty-x-api-key-beside"),
        pytest.param([(b"authorization", b"Bearer \xff\xe9")], "\xff\xe9", id="latin-1"),
        pytest.param(
            [(b"authorization", b"Bearer " + b"x" * MAXIMUM_TOKEN_BYTES)], "x" * MAXIMUM_TOKEN_BYTES, id="largest"
        ),
        pytest.param([], None, id="none"),
        pytest.param([(b"authorization", b"secret")], None, id="no-scheme"),
        pytest.param([(b"authorization", b"Basic c2VjcmV0")], None, id="another-scheme"),
        pytest.param([(b"authorization", b"BearerX secret")], None, id="longer-scheme"),
        pytest.param([(b"authorization", b"Bearersecret")], None, id="no-space"),
        pytest.param([(b"authorization", b"Bearer\tsecret")], None, id="tab"),
        pytest.param([(b"authorization", b"")], None, id="empty-header"),
        pytest.param([(b"authorization", b"Basic x"), (b"x-api-key", b"secret")], None, id="another-scheme-wins"),
        pytest.param([(b"api-key", b"secret"), (b"cookie", b"token=secret")], None, id="other-headers"),
    ],
)
def test_credential_is_the_bearer_token_or_else_the_api_key(
    headers: list[tuple[bytes, bytes]], token: str | None
) -> None:
    assert credential(scope(*headers)) == token


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([(b"authorization", b"Bearer")], id="scheme-alone"),
        pytest.param([(b"authorization", b"Bearer ")], id="empty-token"),
        pytest.param([(b"authorization", b"Bearer   ")], id="blank-token"),
        pytest.param([(b"x-api-key", b"")], id="empty-x-api-key"),
        pytest.param([(b"authorization", b"Bearer " + b"x" * (MAXIMUM_TOKEN_BYTES + 1))], id="a-byte-too-large"),
        pytest.param([(b"authorization", b"Bearer " + b"x" * 9 * 1024)], id="9-kb"),
        pytest.param([(b"x-api-key", b"x" * 9 * 1024)], id="9-kb-x-api-key"),
    ],
)
def test_bearer_that_holds_no_token_is_malformed(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(InvalidCredentials) as caught:
        credential(scope(*headers))

    assert caught.value.status == 401
    assert caught.value.details == {"reason": "malformed"}
    assert "secret" not in repr(caught.value)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([(b"authorization", b"Bearer a"), (b"Authorization", b"Bearer b")], id="authorization"),
        pytest.param([(b"x-api-key", b"a"), (b"x-api-key", b"a")], id="x-api-key"),
        pytest.param(
            [(b"x-api-key", b"a"), (b"authorization", b"Bearer a"), (b"x-api-key", b"b")],
            id="x-api-key-beside-authorization",
        ),
    ],
)
def test_repeated_credential_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        credential(scope(*headers))

    assert (caught.value.status, caught.value.code) == (400, "repeated_header")
