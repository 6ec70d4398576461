"""Git's way to the platform: the remote of a project, and the key when git asks for one."""

import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import click

from loopline.cli.session import Session, options
from loopline.domain.names import check_name
from loopline.errors import Conflict, InvalidInput, Unavailable

NAME = "loopline"


@click.command()
@click.option("--project", help="The project's name (default: what loop.toml here says).")
@click.option("--set", "set_", is_flag=True, help="Run the commands in place of showing them.")
@options
def remote(session: Session, project: str | None, set_: bool) -> None:
    """Show the git commands that let `git push loopline main` reach this server."""
    url = session.client.url
    name = check_name(project or _project_here(), "a project")
    commands = [
        ["git", "config", f"credential.{url}.helper", _helper()],
        ["git", "remote", "add", NAME, f"{url}/git/{name}.git"],
    ]
    if session.client.authorities is not None:
        commands.insert(1, ["git", "config", f"http.{url}.sslCAInfo", str(Path(session.client.authorities).absolute())])
    if not set_:
        answer = {"items": [{"command": shlex.join(command)} for command in commands], "next": None}
        session.table(answer, [("run these in the project's folder", "command")])
        return
    for command in commands:
        _run(command)
    done = {"remote": NAME, "url": commands[-1][-1]}
    session.done(done, f"the remote {NAME} is {done['url']}; next: git push {NAME} main")


def _project_here() -> str:
    try:
        return str(tomllib.loads(Path("loop.toml").read_text())["project"]["name"])
    except FileNotFoundError:
        raise InvalidInput("there is no loop.toml here; go to the project's folder, or say --project") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise InvalidInput("loop.toml names no project; `loopline check` explains it") from None


def _helper() -> str:
    """What git runs when it needs a key; the leading ! means a command line (git help gitcredentials)."""
    found = shutil.which("loopline")
    argv = [found] if found else [sys.executable, "-c", "from loopline.cli import main; main()"]
    return f"!{shlex.join([*argv, 'credential'])}"


def _run(argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Unavailable("git is not installed here") from None
    if done.returncode != 0:
        raise Conflict(f"{shlex.join(argv)}: {done.stderr.strip()}")


@click.command()
@click.argument("operation", type=click.Choice(["get", "store", "erase"]))
@options
def credential(session: Session, operation: str) -> None:
    """Answer git's question for a key (git runs this; it keeps nothing, and speaks of this server only)."""
    if operation != "get":
        return
    asked = dict(line.split("=", 1) for line in sys.stdin.read().splitlines() if "=" in line)
    client = session.client
    parts = urlsplit(client.url)
    if (asked.get("protocol"), asked.get("host")) != (parts.scheme, parts.netloc) or not client.key:
        return
    sys.stdout.write(f"username={NAME}\npassword={client.key}\n")
