from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from maas_middleware.middleware.forwarded import ForwardedMiddleware, TrustedProxies
from maas_middleware.testing.converse import converse, http_scope
from tests.parts import Answering, json_answer, knock, start_up, starting_up
from tests.servers import serving

PRIVATE = ("10.0.0.0/8", "192.168.1.1", "fd00::/8")
PROXY = ("10.0.0.1", 40000)
STRANGER = ("203.0.113.9", 40000)
FORWARDED = [
    ("host", "internal:8080"),
    ("x-forwarded-for", "203.0.113.7"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "maas.example.com"),
]


async def seen_by_app(
    headers: Sequence[tuple[str, str]], *, client: Any = PROXY, trusted: Sequence[str] = PRIVATE
) -> Scope:
    """The scope that reaches the app."""
    app = Answering(*json_answer(b"{}"))
    answer = await converse(
        ForwardedMiddleware(app, trusted=trusted), headers=headers, scope={"client": client, "scheme": "http"}
    )
    assert answer.status == 200
    [scope] = app.scopes
    return scope


def hosts(scope: Scope) -> list[bytes]:
    return [value for name, value in scope["headers"] if name.lower() == b"host"]


@pytest.mark.parametrize(
    ("trusted", "host", "is_trusted"),
    [
        pytest.param(["10.0.0.1"], "10.0.0.1", True, id="an address"),
        pytest.param(["10.0.0.1"], "10.0.0.2", False, id="another address"),
        pytest.param(["10.0.0.1", "10.0.0.2"], "10.0.0.2", True, id="the second of two"),
        pytest.param(["10.0.0.0/8"], "10.255.255.255", True, id="the end of a network"),
        pytest.param(["10.0.0.0/8"], "11.0.0.0", False, id="past the end of a network"),
        pytest.param(["10.0.0.0/255.0.0.0"], "10.1.2.3", True, id="a network with a mask"),
        pytest.param(["0.0.0.0/0"], "203.0.113.9", True, id="all of IPv4"),
        pytest.param(["0.0.0.0/0"], "2001:db8::1", False, id="all of IPv4 has no IPv6"),
        pytest.param(["0.0.0.0/0", "::/0"], None, False, id="all networks have no Unix socket"),
        pytest.param(["2001:db8::1"], "2001:0DB8:0::1", True, id="IPv6, spelt in another way"),
        pytest.param(["2001:db8::/32"], "2001:db8:ffff::1", True, id="in an IPv6 network"),
        pytest.param(["2001:db8::/32"], "2001:db9::1", False, id="outside an IPv6 network"),
        pytest.param(["fe80::/10"], "fe80::1%eth0", True, id="with a zone"),
        pytest.param(["10.0.0.0/8"], "::ffff:10.0.0.1", True, id="IPv4 in IPv6"),
        pytest.param(["10.0.0.0/8"], "::ffff:11.0.0.1", False, id="another IPv4 in IPv6"),
        pytest.param(["::ffff:10.0.0.1"], "::ffff:10.0.0.1", True, id="IPv4 in IPv6, trusted as that"),
        pytest.param(["*"], "203.0.113.9", True, id="everybody"),
        pytest.param(["*"], "testclient", True, id="everybody, even a name"),
        pytest.param(["*"], None, True, id="everybody, even a Unix socket"),
        pytest.param(["*", "10.0.0.1"], "203.0.113.9", True, id="everybody and an address"),
        pytest.param(["10.0.0.1", "*"], None, True, id="an address and everybody"),
        pytest.param(["10.0.0.1"], None, False, id="a Unix socket"),
        pytest.param(["10.0.0.1"], "", False, id="empty"),
        pytest.param(["10.0.0.1"], "testclient", False, id="a name"),
        pytest.param(["10.0.0.1"], "10.0.0.1:80", False, id="an address with a port"),
        pytest.param([], "10.0.0.1", False, id="nobody"),
        pytest.param([], None, False, id="nobody, and a Unix socket"),
    ],
)
def test_who_is_trusted(trusted: list[str], host: str | None, is_trusted: bool) -> None:
    assert (host in TrustedProxies(trusted)) is is_trusted


@pytest.mark.parametrize(
    ("trusted", "forwarded_for", "client"),
    [
        pytest.param(PRIVATE, "203.0.113.7", "203.0.113.7", id="one client"),
        pytest.param(PRIVATE, "\t203.0.113.7 ", "203.0.113.7", id="white space"),
        pytest.param(PRIVATE, "203.0.113.7, 10.0.0.2", "203.0.113.7", id="before a trusted hop"),
        pytest.param(PRIVATE, "203.0.113.7,10.0.0.2 ,192.168.1.1", "203.0.113.7", id="before two trusted hops"),
        pytest.param(PRIVATE, "198.51.100.1, 203.0.113.7, 10.0.0.2", "203.0.113.7", id="its claim is not believed"),
        pytest.param(PRIVATE, "10.0.0.3, 203.0.113.7", "203.0.113.7", id="a trusted hop that it claims"),
        pytest.param(PRIVATE, "203.0.113.7, 192.168.1.2", "192.168.1.2", id="a neighbour that is not trusted"),
        pytest.param(PRIVATE, "10.0.0.3, 10.0.0.2", "10.0.0.3", id="all trusted"),
        pytest.param(PRIVATE, "", None, id="empty"),
        pytest.param(PRIVATE, " ", None, id="blank"),
        pytest.param(PRIVATE, ",", None, id="a comma"),
        pytest.param(PRIVATE, "203.0.113.7:4711", "203.0.113.7", id="a port"),
        pytest.param(PRIVATE, "203.0.113.7, 10.0.0.2:4711", "203.0.113.7", id="a trusted hop with a port"),
        pytest.param(PRIVATE, "2001:db8::7", "2001:db8::7", id="IPv6"),
        pytest.param(PRIVATE, "[2001:db8::7]", "2001:db8::7", id="IPv6 in brackets"),
        pytest.param(PRIVATE, "[2001:db8::7]:4711", "2001:db8::7", id="IPv6 in brackets with a port"),
        pytest.param(PRIVATE, "2001:0DB8::0007", "2001:db8::7", id="IPv6, spelt in another way"),
        pytest.param(PRIVATE, "2001:db8::7, [fd00::1]:4711, 10.0.0.2", "2001:db8::7", id="both families"),
        pytest.param(PRIVATE, "::ffff:203.0.113.7", "203.0.113.7", id="IPv4 in IPv6"),
        pytest.param(PRIVATE, "203.0.113.7, ::ffff:10.0.0.2", "203.0.113.7", id="trusted IPv4 in IPv6"),
        pytest.param(["::ffff:10.0.0.2"], "203.0.113.7, ::ffff:10.0.0.2", "203.0.113.7", id="trusted as IPv4 in IPv6"),
        pytest.param(PRIVATE, "unknown", None, id="unknown"),
        pytest.param(PRIVATE, "203.0.113.7, unknown", None, id="unknown next to us"),
        pytest.param(PRIVATE, "203.0.113.7, unknown, 10.0.0.2", "10.0.0.2", id="unknown before a trusted hop"),
        pytest.param(PRIVATE, "203.0.113.7, , 10.0.0.2", "10.0.0.2", id="empty before a trusted hop"),
        pytest.param(PRIVATE, "203.0.113.7,", None, id="empty next to us"),
        pytest.param(PRIVATE, "unix:", None, id="a Unix socket"),
        pytest.param(PRIVATE, "client.example.com", None, id="a name"),
        pytest.param(PRIVATE, "203.0.113", None, id="three parts"),
        pytest.param(PRIVATE, "203.0.113.256", None, id="a part too large"),
        pytest.param(PRIVATE, "203.0.113.07", None, id="a leading zero"),
        pytest.param(PRIVATE, "203.0.113.7/32", None, id="a network"),
        pytest.param(PRIVATE, "203.0.113.7:", None, id="no port behind the colon"),
        pytest.param(PRIVATE, "203.0.113.7:http", None, id="a name for a port"),
        pytest.param(PRIVATE, "203.0.113.7:123456", None, id="six digits for a port"),
        pytest.param(PRIVATE, "203.0.113.7 10.0.0.2", None, id="no comma"),
        pytest.param(PRIVATE, "[2001:db8::7", None, id="an open bracket"),
        pytest.param(PRIVATE, "[2001:db8::7]4711", None, id="no colon before the port"),
        pytest.param(PRIVATE, "2001:db8::7::1", None, id="no IPv6"),
        pytest.param(PRIVATE, "fe80::1%eth0", None, id="a zone"),
        pytest.param(PRIVATE, '"203.0.113.7"', None, id="quoted"),
        pytest.param(PRIVATE, "203.0.113.7\xa0", None, id="white space of another kind"),
        pytest.param(PRIVATE, "203.0.113.\xb2", None, id="a digit of another kind"),
        pytest.param(["*"], "198.51.100.1, 203.0.113.7, 10.0.0.2", "198.51.100.1", id="everybody: the first"),
        pytest.param(["*"], "unknown, 203.0.113.7", "203.0.113.7", id="everybody: the first address"),
        pytest.param(["*"], "198.51.100.1" + ", 10.0.0.2" * 63, "198.51.100.1", id="63 proxies"),
        pytest.param(["*"], "198.51.100.1" + ", 10.0.0.2" * 64, "198.51.100.1", id="64 proxies"),
        pytest.param(["*"], "198.51.100.1, 10.0.0.3" + ", 10.0.0.2" * 64, "10.0.0.2", id="more proxies"),
        pytest.param([], "203.0.113.7, 10.0.0.2", "10.0.0.2", id="nobody: the last"),
    ],
)
def test_the_client_of_a_chain_of_proxies(trusted: Sequence[str], forwarded_for: str, client: str | None) -> None:
    assert TrustedProxies(trusted).client(forwarded_for) == client


@pytest.mark.parametrize(
    ("trusted", "message"),
    [
        pytest.param(["proxy.example.com"], "'proxy.example.com' does not appear to be", id="a name"),
        pytest.param(["10.0.0.1", ""], "'' does not appear to be", id="empty"),
        pytest.param(["10.0.0.1/33"], "'10.0.0.1/33' does not appear to be", id="too narrow a network"),
        pytest.param(["10.0.0.1/8"], "10.0.0.1/8 has host bits set", id="an address with a mask"),
        pytest.param(["10.*"], "'10.*' does not appear to be", id="a pattern"),
        pytest.param(["*", "proxy"], "'proxy' does not appear to be", id="a name beside everybody"),
    ],
)
def test_what_is_neither_an_address_nor_a_network_is_refused(trusted: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="trusted proxies are addresses") as error:
        ForwardedMiddleware(starting_up, trusted=trusted)

    assert f"trusted proxies are addresses, networks such as 10.0.0.0/8, or *: {message}" in str(error.value)


@pytest.mark.parametrize("trusted", ["*", "10.0.0.1"])
def test_a_text_for_a_list_is_refused(trusted: str) -> None:
    with pytest.raises(ValueError, match="trusted proxies are a list of addresses and networks, not the text '"):
        ForwardedMiddleware(starting_up, trusted=trusted)


async def test_a_trusted_proxy_says_who_calls_and_how() -> None:
    scope = await seen_by_app(FORWARDED)

    assert scope["client"] == ("203.0.113.7", 0)
    assert scope["scheme"] == "https"
    assert hosts(scope) == [b"maas.example.com"]
    assert [name for name, _ in scope["headers"]].count(b"x-forwarded-for") == 1


@pytest.mark.parametrize(
    ("client", "trusted"),
    [
        pytest.param(STRANGER, PRIVATE, id="a stranger"),
        pytest.param(None, PRIVATE, id="a Unix socket"),
        pytest.param(PROXY, (), id="nobody is trusted"),
    ],
)
async def test_nothing_changes_where_the_peer_is_not_trusted(client: object, trusted: Sequence[str]) -> None:
    scope = await seen_by_app(FORWARDED, client=client, trusted=trusted)

    assert scope["client"] == client
    assert scope["scheme"] == "http"
    assert scope["headers"] == [(name.encode(), value.encode()) for name, value in FORWARDED]


async def test_a_unix_socket_is_trusted_with_everybody() -> None:
    scope = await seen_by_app(FORWARDED, client=None, trusted=["*"])

    assert (scope["client"], scope["scheme"], hosts(scope)) == (("203.0.113.7", 0), "https", [b"maas.example.com"])


async def test_a_scope_without_a_client_is_a_unix_socket() -> None:
    app = Answering(*json_answer(b"{}"))
    scope = http_scope(headers=FORWARDED)
    del scope["client"]

    async def without_client(_: Scope, receive: Receive, send: Send) -> None:
        await ForwardedMiddleware(app, trusted=PRIVATE)(scope, receive, send)

    await converse(without_client)

    assert app.scopes == [scope]


async def test_nothing_changes_where_a_trusted_peer_says_nothing() -> None:
    scope = await seen_by_app([("host", "internal:8080"), ("accept", "*/*")])

    assert (scope["client"], scope["scheme"]) == (PROXY, "http")
    assert scope["headers"] == [(b"host", b"internal:8080"), (b"accept", b"*/*")]


async def test_addresses_in_repeated_headers_are_one_list() -> None:
    headers = [("x-forwarded-for", "198.51.100.1"), ("X-Forwarded-For", "203.0.113.7, 10.0.0.3")]

    scope = await seen_by_app([*headers, ("x-forwarded-for", "10.0.0.2")])

    assert scope["client"] == ("203.0.113.7", 0)


@pytest.mark.parametrize(
    ("values", "http", "websocket"),
    [
        pytest.param(["https"], "https", "wss", id="https"),
        pytest.param(["http"], "http", "ws", id="http"),
        pytest.param(["HTTPS"], "https", "wss", id="upper case"),
        pytest.param([" https\t"], "https", "wss", id="white space"),
        pytest.param(["wss"], "initial", "wss", id="wss"),
        pytest.param(["ws"], "initial", "ws", id="ws"),
        pytest.param(["http, https"], "https", "wss", id="the last of a list"),
        pytest.param(["http", "https"], "https", "wss", id="the last of two headers"),
        pytest.param(["https, ftp"], "initial", "initial", id="garbage at the end of a list"),
        pytest.param(["ftp"], "initial", "initial", id="another"),
        pytest.param(["https://"], "initial", "initial", id="more than a scheme"),
        pytest.param([""], "initial", "initial", id="empty"),
        pytest.param([], "initial", "initial", id="absent"),
    ],
)
async def test_the_scheme(values: list[str], http: str, websocket: str) -> None:
    app = Answering()
    forwarded = ForwardedMiddleware(app, trusted=["127.0.0.1"])
    headers = [("x-forwarded-proto", value) for value in values]

    async def from_initial(scope: Scope, receive: Receive, send: Send) -> None:
        await forwarded({**scope, "scheme": "initial"}, receive, send)

    await converse(from_initial, headers=headers)
    await knock(from_initial, headers=headers)

    assert [scope["type"] for scope in app.scopes] == ["http", "websocket"]
    assert [scope["scheme"] for scope in app.scopes] == [http, websocket]


@pytest.mark.parametrize(
    ("values", "host"),
    [
        pytest.param(["maas.example.com"], b"maas.example.com", id="a name"),
        pytest.param(["maas.example.com:8443"], b"maas.example.com:8443", id="a name with a port"),
        pytest.param(["a:65535"], b"a:65535", id="the highest port"),
        pytest.param(["203.0.113.1:443"], b"203.0.113.1:443", id="IPv4"),
        pytest.param(["[2001:db8::1]"], b"[2001:db8::1]", id="IPv6"),
        pytest.param(["[2001:db8::1]:443"], b"[2001:db8::1]:443", id="IPv6 with a port"),
        pytest.param([" a.example\t"], b"a.example", id="white space"),
        pytest.param(["a.example, b.example"], b"b.example", id="the last of a list"),
        pytest.param(["a.example", "b.example"], b"b.example", id="the last of two headers"),
        pytest.param(["a.example,"], None, id="empty at the end of a list"),
        pytest.param(["a.example, b example"], None, id="garbage at the end of a list"),
        pytest.param([""], None, id="empty"),
        pytest.param([], None, id="absent"),
        pytest.param(["a.example/path"], None, id="a path"),
        pytest.param(["https://a.example"], None, id="a URL"),
        pytest.param(["user@a.example"], None, id="a user"),
        pytest.param(["a.example:"], None, id="no port behind the colon"),
        pytest.param(["a.example:65536"], None, id="a port too high"),
        pytest.param(["a.example:http"], None, id="a name for a port"),
        pytest.param(["a.example?x"], None, id="a query"),
        pytest.param(["2001:db8::1"], None, id="IPv6 without brackets"),
        pytest.param(["[2001:db8::1"], None, id="an open bracket"),
        pytest.param(["[2001:db8::1::]"], None, id="no IPv6"),
        pytest.param(["[203.0.113.1]"], None, id="IPv4 in brackets"),
        pytest.param(["[]"], None, id="nothing in brackets"),
        pytest.param(["b\xfccher.example"], None, id="no ASCII"),
        pytest.param(["a.example\r\nx: y"], None, id="two lines"),
    ],
)
async def test_the_host(values: list[str], host: bytes | None) -> None:
    scope = await seen_by_app([("host", "internal:8080"), *(("x-forwarded-host", value) for value in values)])

    assert hosts(scope) == [host or b"internal:8080"]


async def test_the_host_replaces_whatever_was_there() -> None:
    several = [("Host", "a"), ("host", "b"), ("x-forwarded-host", "maas.example.com")]

    assert hosts(await seen_by_app(several)) == [b"maas.example.com"]
    assert hosts(await seen_by_app([("X-Forwarded-Host", "maas.example.com")])) == [b"maas.example.com"]


async def test_each_of_the_three_counts_by_itself() -> None:
    garbage = [("host", "internal"), ("x-forwarded-for", "?"), ("x-forwarded-proto", "?"), ("x-forwarded-host", "?")]

    scope = await seen_by_app([*garbage[:3], ("x-forwarded-host", "maas.example.com")])
    assert (scope["client"], scope["scheme"], hosts(scope)) == (PROXY, "http", [b"maas.example.com"])
    scope = await seen_by_app([*garbage[:2], ("x-forwarded-proto", "https"), garbage[3]])
    assert (scope["client"], scope["scheme"], hosts(scope)) == (PROXY, "https", [b"internal"])
    scope = await seen_by_app([garbage[0], ("x-forwarded-for", "203.0.113.7"), *garbage[2:]])
    assert (scope["client"], scope["scheme"], hosts(scope)) == (("203.0.113.7", 0), "http", [b"internal"])


@pytest.mark.parametrize("client", [PROXY, list(PROXY), STRANGER])
async def test_the_scope_of_the_server_is_left_as_it_was(client: Any) -> None:
    app = Answering(*json_answer(b"{}"))
    given = http_scope(headers=FORWARDED, client=client)
    before = copy.deepcopy(given)

    async def server(_: Scope, receive: Receive, send: Send) -> None:
        await ForwardedMiddleware(app, trusted=PRIVATE)(given, receive, send)

    await converse(server)

    assert given == before
    assert app.scopes[0]["state"] is given["state"]
    assert (app.scopes[0]["client"] == ("203.0.113.7", 0)) is (client != STRANGER)


async def test_lifespan_passes_untouched() -> None:
    scopes: list[Scope] = []

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await starting_up(scope, receive, send)

    assert await start_up(ForwardedMiddleware(noting, trusted=["*"])) == [{"type": "lifespan.startup.complete"}]
    assert scopes == [{"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}]


@pytest.mark.parametrize(
    ("trusted", "url", "client"),
    [
        pytest.param(["127.0.0.0/8"], "https://maas.example.com/v1/models?a=b", "203.0.113.7", id="trusted"),
        pytest.param(["10.0.0.0/8"], None, "127.0.0.1", id="not trusted"),
    ],
)
async def test_over_a_socket(trusted: list[str], url: str | None, client: str) -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        assert request.client is not None
        await JSONResponse([str(request.url), request.client.host])(scope, receive, send)

    app = ForwardedMiddleware(answer, trusted=trusted)
    # uvicorn's own middleware trusts 127.0.0.1, and would leave us no peer to judge
    async with (
        serving(app, lifespan="off", proxy_headers=False) as own_url,
        httpx.AsyncClient(base_url=own_url) as http,
    ):
        response = await http.get("/v1/models?a=b", headers=FORWARDED[1:])

    assert response.json() == [url or f"{own_url}/v1/models?a=b", client]
