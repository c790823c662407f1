"""The server starts whatever its user's surroundings are, or one line says what to change."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from pictures import png
from processes import ROOT, START_LIMIT_S, other_server

BARE = {"PATH": "/usr/bin:/bin"}  # as of `env -i`
NOWHERE = "127.0.0.1:9"
SERVE = ("llava_demo", "serve", "--model", "miniature", "--port", "PORT")


def serves(**variables: str) -> None:
    """Start with these variables and no others, show the page, and answer a question about a picture."""
    with (
        other_server(*SERVE, health="health/ready", variables=BARE | variables, is_bare=True) as server,
        httpx.Client(base_url=server.url, timeout=START_LIMIT_S) as client,
    ):
        answer = client.post("ai/run/@cf/llava-hf/llava-1.5-7b-hf", content=png())
        assert answer.status_code == 200, answer.text
        assert client.get("").status_code == 200
        assert client.get("gradio_api/mcp/schema").status_code == 200


def test_it_starts_in_a_bare_shell() -> None:
    serves(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", PYTHONIOENCODING="ascii", HOME="/nowhere")


def test_it_starts_on_a_companys_laptop() -> None:
    """Every request of this machine goes through a proxy, and no exception is made for its own addresses."""
    proxy = f"http://{NOWHERE}"
    serves(HTTP_PROXY=proxy, https_proxy=proxy, ALL_PROXY=f"socks5h://{NOWHERE}", NO_PROXY="intranet.example")


@pytest.mark.parametrize("address", ["socks://127.0.0.1:9", "http://127.0.0.1:port", "ftp://proxy.example"])
def test_a_proxy_that_cannot_be_used_is_one_line(address: str) -> None:
    command = [sys.executable, "-m", "llava_demo", "serve", "--model", "miniature"]
    variables = BARE | {"ALL_PROXY": address}
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=START_LIMIT_S, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "proxy in ALL_PROXY cannot be used; it must begin with http://" in done.stderr
    assert address not in done.stderr  # it may hold a password


def test_exceptions_that_were_made_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from llava_demo.settings import reach_own_address

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("http_proxy", f"http://{NOWHERE}")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "a.example, .b.example")
    reach_own_address("10.0.0.7")
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "a.example,.b.example,127.0.0.1,localhost,::1,10.0.0.7"
