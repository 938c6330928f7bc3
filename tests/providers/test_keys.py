"""The ring of signing keys, and its file."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.utils import base64url_encode

from maas_middleware.providers.keys import SigningKeys


def key_entry(key_id: str = "a") -> dict[str, Any]:
    return jwk_of(ec.generate_private_key(ec.SECP256R1()), key_id)


def jwk_of(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey, key_id: str = "a") -> dict[str, Any]:
    return {**ECAlgorithm.to_jwk(key, as_dict=True), "kid": key_id}


def key_file(directory: Path, content: object) -> Path:
    path = directory / "keys.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    path.chmod(0o600)
    return path


def encoded(value: bytes) -> str:
    return base64url_encode(value).decode()


# what is loaded, and what is refused


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


@pytest.mark.parametrize(("mode", "is_accepted"), [(0o600, True), (0o640, False)])
def test_mode_that_counts_is_that_of_the_file_behind_a_symbolic_link(
    tmp_path: Path, mode: int, is_accepted: bool
) -> None:
    target = key_file(tmp_path, {"keys": [key_entry()]})
    target.chmod(mode)
    link = tmp_path / "link.json"
    link.symlink_to(target.name)

    if is_accepted:
        assert SigningKeys.load(link).key_id == "a"
    else:
        with pytest.raises(ValueError, match="its mode must be 0600"):
            SigningKeys.load(link)


# what is written


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_saved_keys_are_loaded_again_in_their_order(tmp_path: Path) -> None:
    keys = SigningKeys.load(key_file(tmp_path, {"keys": [key_entry("b"), key_entry("a")]}))
    file = tmp_path / "saved.json"

    keys.save(file)

    assert file.stat().st_mode & 0o777 == 0o600
    assert SigningKeys.load(file).private_jwks() == keys.private_jwks()
    assert [key["kid"] for key in keys.private_jwks()["keys"]] == ["b", "a"]
    assert names_in(tmp_path) == ["keys.json", "saved.json"]


@pytest.mark.parametrize("is_dangling_link", [False, True])
def test_saving_overwrites_nothing_and_leaves_nothing_behind(tmp_path: Path, is_dangling_link: bool) -> None:
    file = tmp_path / "keys.json"
    if is_dangling_link:
        file.symlink_to("nowhere.json")
    else:
        file.write_text("precious")

    with pytest.raises(FileExistsError):
        SigningKeys.generate().save(file)

    assert names_in(tmp_path) == ["keys.json"]
    assert is_dangling_link or file.read_text() == "precious"


def test_nothing_of_the_keys_is_written_into_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))

    SigningKeys.generate().save(tmp_path / "keys.json")

    assert names_in(tmp_path) == ["keys.json"]


def test_keys_cannot_be_saved_where_there_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SigningKeys.generate().save(tmp_path / "nowhere" / "keys.json")


# the file that is made where there is none


def test_missing_key_file_is_made_for_its_owner_alone_and_then_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"

    made = SigningKeys.load_or_make(file)
    changed = tmp_path.stat().st_mtime_ns
    again = SigningKeys.load_or_make(file)

    assert tmp_path.stat().st_mtime_ns == changed  # the directory may be read-only
    assert made.private_jwks() == again.private_jwks() == json.loads(file.read_text())
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"{}"])
def test_key_file_that_is_refused_is_not_made_anew(tmp_path: Path, content: bytes) -> None:
    file = key_file(tmp_path, content)

    with pytest.raises(ValueError, match="is not a JWK set"):
        SigningKeys.load_or_make(file)

    assert file.read_bytes() == content


def test_file_that_can_be_neither_read_nor_made_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.symlink_to("nowhere.json")

    with pytest.raises(FileNotFoundError):
        SigningKeys.load_or_make(file)


STARTING = """
import sys
from pathlib import Path
from maas_middleware.providers.keys import SigningKeys

print("ready", flush=True)
for line in sys.stdin:
    print(SigningKeys.load_or_make(Path(line.strip())).key_id, flush=True)
"""


def test_processes_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    files = [tmp_path / f"keys-{number}.json" for number in range(30)]
    with ExitStack() as stack:
        processes = [stack.enter_context(starting()) for _ in range(3)]
        for process in processes:
            assert said(process) == "ready"

        for file in files:
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{file}\n")
                process.stdin.flush()
            assert {said(process) for process in processes} == {SigningKeys.load(file).key_id}

    assert names_in(tmp_path) == sorted(file.name for file in files)


def starting() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STARTING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
