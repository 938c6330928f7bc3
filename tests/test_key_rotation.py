"""The documented way to another key: no token is refused at any step, by whatever replica."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml

from maas_middleware.cli import main
from maas_middleware.errors import InvalidCredentials
from maas_middleware.identity import Identity
from maas_middleware.providers.jwt import JWTMinter, JWTProvider
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.providers.rotation import KeyFile
from maas_middleware.providers.watching import WatchedKeys
from maas_middleware.stores.memory import MemoryTokenStore
from maas_middleware.testing.clock import FakeClock

DOCUMENT = (Path(__file__).parent.parent / "docs" / "keys.md").read_text()
ALICE = Identity("openshift", "alice", ("team",))
DAYS = 86_400
LIFETIME = 90 * DAYS


class Replica:
    """One process of the fleet, with its own time to look at the file."""

    def __init__(self, file: Path, clock: FakeClock, store: MemoryTokenStore) -> None:
        self.looks = FakeClock()
        self.watched = WatchedKeys(file, clock=self.looks)
        self._minter = JWTMinter(keys=self.watched.current, clock=clock)
        self._provider = JWTProvider(
            keys=self.watched.current, revocations=store, maximum_lifetime=LIFETIME, clock=clock
        )

    def mint(self) -> str:
        return self._minter.mint(ALICE, LIFETIME, 0).token

    async def verdict(self, token: str) -> str:
        scope: dict[str, Any] = {"type": "http", "headers": [(b"authorization", b"Bearer " + token.encode())]}
        try:
            return "accepted" if await self._provider.identify(scope) is not None else "not ours"
        except InvalidCredentials as refusal:
            return str((refusal.details or {})["reason"])

    def read(self) -> None:
        self.looks.advance(1)
        assert self.watched.problem is None

    @property
    def signs_with(self) -> str:
        return str(jwt.get_unverified_header(self.mint())["kid"])


class Delivery:
    """Puts the file where the replicas read it: there they rotate it themselves."""

    def __init__(self, directory: Path) -> None:
        self.edited = self.read = directory / "keys.json"

    def deliver(self) -> None:
        pass


class SecretDelivery(Delivery):
    """The same as Kubernetes does it with a Secret: a new directory, and a symbolic link that is exchanged."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._mount = directory / "mount"
        self._mount.mkdir()
        self._version = 0
        self.read = self._mount / "keys.json"
        self.read.symlink_to("..data/keys.json")

    def deliver(self) -> None:
        self._version += 1
        version = self._mount / f"..{self._version}"
        version.mkdir()
        (version / "keys.json").write_bytes(self.edited.read_bytes())
        (version / "keys.json").chmod(0o400)
        (self._mount / "..new").symlink_to(version.name)
        (self._mount / "..new").replace(self._mount / "..data")


class Fleet:
    """Three replicas, and every token that they minted."""

    def __init__(self, delivery: Delivery) -> None:
        self.clock = FakeClock(time.time())
        self.file = delivery.edited
        self.delivery = delivery
        assert main(["new-key", str(self.file)]) == 0
        delivery.deliver()
        store = MemoryTokenStore(clock=self.clock)
        self.replicas = [Replica(delivery.read, self.clock, store) for _ in range(3)]
        self.tokens: list[str] = []

    async def rotate(self, *step: str) -> None:
        """Take a step, and serve before, between and after the replicas come to know of it."""
        assert main(["rotate-key", str(self.file), *step]) == 0
        await self.arrive()

    async def arrive(self) -> None:
        self.delivery.deliver()
        await self.serve()
        for replica in self.replicas:
            replica.read()
            await self.serve()

    async def serve(self) -> None:
        """Each replica mints, and accepts what any of them ever minted."""
        self.tokens += [replica.mint() for replica in self.replicas]
        for replica in self.replicas:
            assert {await replica.verdict(token) for token in self.tokens} == {"accepted"}

    @property
    def signs_with(self) -> set[str]:
        return {replica.signs_with for replica in self.replicas}


@pytest.fixture(params=[Delivery, SecretDelivery], ids=["file", "secret"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Fleet:
    return Fleet(request.param(tmp_path))


async def test_no_token_is_refused_while_the_key_is_exchanged(fleet: Fleet) -> None:
    old = SigningKeys.load(fleet.file).key_id
    await fleet.serve()

    await fleet.rotate("publish")
    assert fleet.signs_with == {old}
    await fleet.rotate("sign")
    assert old not in fleet.signs_with
    last_of_the_old = [token for token in fleet.tokens if jwt.get_unverified_header(token)["kid"] == old]
    fleet.clock.advance(LIFETIME + 60)  # the commands go by the clock of the computer, which moved on
    fleet.tokens.clear()
    await fleet.serve()
    KeyFile(fleet.file, clock=fleet.clock).retire()
    await fleet.arrive()

    assert len(last_of_the_old) > 3
    assert SigningKeys.load(fleet.file).public(old) is None
    for replica in fleet.replicas:
        assert {await replica.verdict(token) for token in last_of_the_old} == {"unknown"}


async def test_key_can_be_exchanged_again_while_the_old_one_waits_for_its_end(fleet: Fleet) -> None:
    for _ in range(3):
        await fleet.rotate("publish")
        await fleet.rotate("sign")
        fleet.clock.advance(DAYS)

    assert len(SigningKeys.load(fleet.file).jwks()["keys"]) == 4
    assert len({jwt.get_unverified_header(token)["kid"] for token in fleet.tokens}) == 4


async def test_without_the_wait_a_replica_refuses_what_another_signed(tmp_path: Path) -> None:
    fleet = Fleet(Delivery(tmp_path))
    first, second, _ = fleet.replicas

    for step in ("publish", "sign"):
        assert main(["rotate-key", str(fleet.file), step]) == 0
    first.read()
    token = first.mint()
    early = await second.verdict(token)
    second.read()

    assert (early, await second.verdict(token)) == ("unknown", "accepted")


@pytest.mark.parametrize("is_remembered", [True, False])
async def test_tokens_of_a_retired_key_are_unknown_within_a_second(fleet: Fleet, is_remembered: bool) -> None:
    (old,) = fleet.signs_with
    tokens = [replica.mint() for replica in fleet.replicas]
    await fleet.rotate("publish")
    await fleet.rotate("sign")
    if is_remembered:
        fleet.tokens = list(tokens)
        await fleet.serve()

    assert main(["rotate-key", str(fleet.file), "retire", f"--key={old}"]) == 0
    fleet.delivery.deliver()
    for replica in fleet.replicas:
        replica.looks.advance(1)

    for replica in fleet.replicas:
        assert [await replica.verdict(token) for token in tokens] == ["unknown"] * 3
        assert await replica.verdict(replica.mint()) == "accepted"


def test_whoever_reads_while_the_key_is_exchanged_never_sees_half_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    SigningKeys.generate().save(file)
    done, read = threading.Event(), []

    def reading() -> None:
        while not done.is_set():
            read.append(SigningKeys.load(file).key_id)

    reader = threading.Thread(target=reading)
    reader.start()
    keys = KeyFile(file)
    for _ in range(60):
        old = SigningKeys.load(file).key_id
        keys.publish()
        keys.sign()
        keys.retire(old)
    alive = reader.is_alive()
    done.set()
    reader.join(timeout=10)

    assert alive
    assert len(set(read)) > 1


# the document


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


def test_documented_commands_do_what_the_document_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^maas-gateway (.+?)(?:  +#.*)?$", "".join(blocks("sh")), re.MULTILINE)

    exits = [main(command.split()) for command in commands]

    assert [command.split()[-1] for command in commands] == ["keys.json", "publish", "list", "sign", "list", "retire"]
    assert exits == [0, 0, 0, 0, 0, 1]  # ninety days are not over
    assert KeyFile(Path("keys.json"), clock=lambda: time.time() + LIFETIME).retire()


def test_documented_copy_of_a_secret_is_for_its_owner_alone_and_follows_it(tmp_path: Path) -> None:
    (manifest,) = blocks("yaml")
    (container,) = yaml.safe_load(manifest)["spec"]["initContainers"]
    delivery = SecretDelivery(tmp_path)
    (tmp_path / "copy").mkdir()
    (script,) = container["args"]
    places = {"/secret/": f"{delivery.read.parent}/", "/keys/": f"{tmp_path}/copy/", "sleep 5": "sleep 0.05"}
    script = re.sub("|".join(places), lambda found: places[found[0]], script)
    copy = tmp_path / "copy" / "keys.json"
    SigningKeys.generate().save(delivery.edited)
    delivery.deliver()

    with subprocess.Popen([*container["command"], script]) as process:
        try:
            first = copied(delivery, copy)
            KeyFile(delivery.edited).publish()
            delivery.deliver()
            second = copied(delivery, copy)
        finally:
            process.kill()

    assert (len(first.jwks()["keys"]), len(second.jwks()["keys"])) == (1, 2)
    assert first.key_id == second.key_id


def copied(delivery: Delivery, copy: Path) -> SigningKeys:
    """Wait until the copy is as the file; what there is of it until then has to be whole, too."""
    expected = SigningKeys.load(delivery.edited).private_jwks()
    while not copy.exists() or SigningKeys.load(copy).private_jwks() != expected:
        os.sched_yield()
    return SigningKeys.load(copy)
