"""The end-user guide works as pasted: its own bash blocks, taken out of the Markdown, run in one bash."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from .processes import ROOT, running_gateway

PROMISE = Path(__file__).parent / "guide" / "self-service-model-access.md"
CORRECTED = ROOT / "docs" / "self-service-model-access.md"

pytestmark = [
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing"),
    pytest.mark.skipif(shutil.which("jq") is None, reason="jq is missing"),
    pytest.mark.timeout(60),
]


@dataclass
class Block:
    """A bash block of the guide, and what became of it."""

    source: str
    output: str
    exit_code: int

    def json(self) -> Any:
        return json.loads(self.output)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of somebody who is logged in: `oc` and `kubectl` on the PATH, and the CA of the gateway."""
    authority = trustme.CA()
    certificate = authority.issue_cert("maas.localhost")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    with running_gateway("--ssl-certfile", str(tmp_path / "server.pem")) as gateway:
        programs = tmp_path / "bin"
        programs.mkdir()
        stand_in(programs / "oc", '[ "$1" = login ] || echo sha256~demo-free')
        stand_in(programs / "kubectl", f"echo localhost:{gateway.port}")
        path = f"{programs}:{os.environ['PATH']}"
        yield {"PATH": path, "HOME": str(tmp_path), "CURL_CA_BUNDLE": str(tmp_path / "ca.pem")}


@pytest.fixture(scope="module")
def example() -> Iterator[str]:
    """The URL of the example gateway."""
    with running_gateway() as gateway:
        yield f"http://127.0.0.1:{gateway.port}"


def stand_in(path: Path, line: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{line}\n")
    path.chmod(0o755)


def run_blocks(sources: list[str], shell: dict[str, str], folder: Path) -> list[Block]:
    script = ""
    for index, source in enumerate(sources):
        script += f"{{\n{source}\n}} >{folder}/{index}.out 2>{folder}/{index}.err\necho $? >{folder}/{index}.code\n"
    subprocess.run(["bash", "-c", script], env=shell, check=True, timeout=50, cwd=folder)
    return [
        Block(source, (folder / f"{index}.out").read_text(), int((folder / f"{index}.code").read_text()))
        for index, source in enumerate(sources)
    ]


def bash_blocks(guide: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", guide.read_text(), re.MULTILINE | re.DOTALL)


def test_every_block_of_the_guide_works_verbatim(shell: dict[str, str], tmp_path: Path) -> None:
    sources = bash_blocks(PROMISE)

    login, token, models, details, chat, stream, headers, formats, again = run_blocks(sources, shell, tmp_path)

    assert login.exit_code == 0
    assert token.output.count(".") == 2
    assert [model["id"] for model in models.json()["data"]] == ["simulator"]
    assert set(models.json()["data"][0]) >= {"id", "name", "url", "tier"}
    assert details.json()["id"] == "simulator"
    assert chat.json()["choices"][0]["message"]["content"].startswith("Hello!")
    assert stream.output.startswith("data: {")
    assert stream.output.endswith("data: [DONE]\n\n")
    assert "rate_limit" not in chat.output + stream.output
    # curl itself refuses -I together with -d, so that grep finds nothing; the meaning is tested below
    assert headers.exit_code == 1
    assert headers.output == ""
    # this block shows a format, and is no command
    assert formats.exit_code == 127
    assert [model["id"] for model in json.loads(again.output)["data"]] == ["simulator"]


def test_usage_can_be_monitored_with_the_headers_of_a_head_request_or_of_an_answer(
    shell: dict[str, str], tmp_path: Path
) -> None:
    login, token, *_ = bash_blocks(PROMISE)
    call = '-H "Authorization: Bearer ${ACCESS_TOKEN}" "${MAAS_API_URL}/simulator/v1/chat/completions"'
    body = """-d '{"model": "simulator", "messages": [{"role": "user", "content": "test"}]}'"""

    _, _, free, asked, after = run_blocks(
        [login, token, f"curl -I -sS {call}", f"curl -sS -D - -o /dev/null {body} {call}", f"curl -I -sS {call}"],
        shell,
        tmp_path,
    )

    assert remaining(free) == 5
    assert remaining(asked) == 4
    assert remaining(after) == 4
    assert "x-odhu-usage-total-tokens: " in asked.output


def remaining(block: Block) -> int:
    found = re.search(r"^x-ratelimit-remaining-requests: (\d+)", block.output, re.MULTILINE)
    assert found is not None, block.output
    return int(found[1])


def test_the_formats_of_the_guide_are_the_right_and_the_wrong_one(shell: dict[str, str], tmp_path: Path) -> None:
    login, token, *_ = bash_blocks(PROMISE)
    models = '"${MAAS_API_URL}/v1/models"'

    _, _, right, wrong = run_blocks(
        [
            login,
            token,
            f'curl -sS -H "Authorization: Bearer ${{ACCESS_TOKEN}}" {models}',
            f'curl -sS -H "Authorization: ${{ACCESS_TOKEN}}" {models}',
        ],
        shell,
        tmp_path,
    )

    assert right.json()["object"] == "list"
    assert wrong.json()["error"] == {
        "message": "Invalid authentication token",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
        "details": {"reason": "malformed"},
    }


def test_every_block_of_the_corrected_guide_works(shell: dict[str, str], tmp_path: Path) -> None:
    sources = bash_blocks(CORRECTED)

    blocks = run_blocks(sources, shell, tmp_path)

    formats = next(block for block in blocks if "YOUR_TOKEN" in block.source)
    assert [block.source for block in blocks if block.exit_code and block is not formats] == []
    monitoring = next(block for block in blocks if "x-odhu-usage" in block.source)
    assert monitoring.output.count("x-ratelimit-remaining-requests: ") == 2
    assert "x-odhu-usage-total-tokens: " in monitoring.output
    assert "error" not in "".join(block.output for block in blocks)


def test_a_revoked_token_is_refused_at_once(shell: dict[str, str], tmp_path: Path) -> None:
    login, token, *_ = bash_blocks(PROMISE)
    revoke = bash_blocks(CORRECTED)[-1]
    list_models = 'curl -sS -H "Authorization: Bearer ${ACCESS_TOKEN}" "${MAAS_API_URL}/v1/models"'

    _, _, before, _, after = run_blocks([login, token, list_models, revoke, list_models], shell, tmp_path)

    assert "data" in before.json()
    assert after.json()["error"]["details"] == {"reason": "revoked"}


def test_what_the_example_gateway_prints_works_as_pasted_and_ctrl_c_ends_it() -> None:
    with running_gateway() as gateway:
        _, _, pasted = gateway.printed.partition("\nOC_TOKEN=")
        pasted, _, _ = pasted.partition("\nCtrl-C")
        ran = subprocess.run(["bash", "-c", f"OC_TOKEN={pasted}"], capture_output=True, text=True, timeout=20)
        exit_code = gateway.interrupt()

    assert ran.returncode == 0, ran.stderr
    assert "data: [DONE]" in ran.stdout
    assert "x-ratelimit-remaining-requests: 4" in ran.stdout
    assert exit_code == 0


@pytest.mark.parametrize(
    ("user", "models", "requests", "tokens"),
    [
        pytest.param("free", ["simulator"], "5", "100", id="free"),
        pytest.param("premium", ["simulator", "qwen3"], "20", "50000", id="premium"),
        pytest.param("enterprise", ["simulator", "qwen3"], "50", "100000", id="enterprise"),
        pytest.param("admin", ["simulator", "qwen3"], "50", "100000", id="admin"),
    ],
)
def test_users_of_the_example_gateway_have_the_tiers_of_the_guide(
    user: str, models: list[str], requests: str, tokens: str, example: str
) -> None:
    with httpx.Client(base_url=example) as client:
        minted = client.post("/v1/tokens", headers={"authorization": f"Bearer sha256~demo-{user}"})
        headers = {"authorization": f"Bearer {minted.json()['token']}"}
        listed = client.get("/v1/models", headers=headers).json()["data"]
        limits = client.head("/v1/chat/completions", headers=headers).headers

    assert [model["id"] for model in listed] == models
    assert (limits["x-ratelimit-limit-requests"], limits["x-ratelimit-limit-tokens"]) == (requests, tokens)
