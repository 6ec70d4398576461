"""``loopline remote`` and the credential helper, as git calls it."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from loopline.cli.remote import credential, remote
from loopline.gateway.tls import make_local

URL = "http://127.0.0.1:18600"
KEY = "lk_" + "a" * 8 + "_" + "b" * 43


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOOPLINE_URL", URL)
    monkeypatch.setenv("LOOPLINE_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.toml").write_text('[project]\nname = "patients"\n')
    return tmp_path


def run(command: object, *arguments: str, given: str = "") -> Result:
    return CliRunner().invoke(command, list(arguments), input=given)  # type: ignore[arg-type]


def test_the_two_commands_are_shown_and_name_the_project_of_this_folder() -> None:
    lines = run(remote).stdout.splitlines()
    assert shlex.split(lines[0])[:3] == ["git", "config", f"credential.{URL}.helper"]
    assert lines[1] == f"git remote add loopline {URL}/git/patients.git"
    assert KEY not in "".join(lines)
    assert run(remote, "--project", "other").stdout.splitlines()[1].endswith("/git/other.git")


def test_git_is_told_of_the_authority_that_this_machine_made(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_local(here / "tls", ["127.0.0.1"])
    monkeypatch.setenv("LOOPLINE_URL", "https://127.0.0.1:18600")
    monkeypatch.setenv("LOOPLINE_CA", "tls/ca.pem")
    lines = run(remote).stdout.splitlines()
    assert lines[1] == f"git config http.https://127.0.0.1:18600.sslCAInfo {here / 'tls' / 'ca.pem'}"
    assert len(lines) == 3


@pytest.mark.parametrize("text", [None, "x", "[project]\n", "[project]\nname = '../x'\n"])
def test_a_folder_that_names_no_project_is_said_so(here: Path, text: str | None) -> None:
    (here / "loop.toml").unlink() if text is None else (here / "loop.toml").write_text(text)
    found = run(remote)
    assert found.exit_code != 0 and "project" in str(found.exception)


def test_git_gets_the_key_from_the_helper_that_was_set_and_only_for_this_server(here: Path) -> None:
    environ = {**os.environ, "HOME": str(here), "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
    environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    subprocess.run(["git", "init", "-q"], check=True, env=environ)
    assert "next: git push loopline main" in run(remote, "--set").stdout
    assert KEY not in (here / ".git" / "config").read_text()

    def fill(host: str) -> str:
        asked = f"protocol=http\nhost={host}\n\n"
        done = subprocess.run(
            ["git", "credential", "fill"], input=asked, env=environ, capture_output=True, text=True, check=False
        )
        return done.stdout

    assert f"password={KEY}" in fill("127.0.0.1:18600")
    assert "password" not in fill("127.0.0.1:18601")
    again = run(remote, "--set")
    assert again.exit_code != 0 and "already exists" in str(again.exception)


@pytest.mark.parametrize("host", ["127.0.0.1:18601", "127.0.0.1", "evil.example", ""])
def test_the_key_is_told_to_no_other_server(host: str) -> None:
    assert run(credential, "get", given=f"protocol=http\nhost={host}\n").stdout == ""
    assert run(credential, "get", given="protocol=https\nhost=127.0.0.1:18600\n").stdout == ""
    assert run(credential, "store", given="protocol=http\nhost=127.0.0.1:18600\n").stdout == ""
    assert "password=" in run(credential, "get", given="protocol=http\nhost=127.0.0.1:18600\n").stdout
