"""apply, diff and run: a project's working tree meets the platform."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from loopline.cli import tree
from loopline.cli.executions import follow
from loopline.cli.session import Session, assignments, options
from loopline.errors import GateRefused


def _folder(function: Any) -> Any:
    return click.option(
        "--project",
        "-C",
        "folder",
        default=".",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="A folder of the project (default: here).",
    )(function)


def upload(session: Session, root: Path) -> str:
    """Store a folder's files; gives the tree's digest."""
    files = tree.files_of(root)
    session.note(f"uploading {len(files)} files of {root}")
    packed, size = tree.pack(root, files)

    def pieces() -> Iterator[bytes]:
        while piece := packed.read(1 << 20):
            yield piece

    with packed:
        return str(session.client.upload("POST", "trees", data=pieces(), size=size)["tree"])


def _changes(session: Session, found: dict[str, Any], nothing: str) -> None:
    columns = (("", "change"), ("NOUN", "noun"), ("NAME", "name"), ("FIELDS", _fields))
    session.table({**found, "items": found["changes"]} if not session.as_json else found, columns, empty=nothing)


def _fields(row: dict[str, Any]) -> Any:
    return {key: value for key, value in row.items() if key not in ("change", "noun", "name")} or None


@click.command()
@_folder
@click.option("--branch", help="As if pushed to this branch.")
@options
def diff(session: Session, folder: Path, branch: str | None) -> None:
    """Show what apply would change, without changing it."""
    root = tree.root_of(folder)
    found = session.client.post("projects", "diff", tree=upload(session, root), branch=branch)
    _changes(session, found, "nothing would change")


@click.command()
@_folder
@click.option("--branch", help="As if pushed to this branch.")
@options
def apply(session: Session, folder: Path, branch: str | None) -> None:
    """Bring the platform to this project's loop.toml; running it again changes nothing."""
    root = tree.root_of(folder)
    found = session.client.post("projects", tree=upload(session, root), branch=branch)
    _changes(session, found, "nothing changed")


@click.command()
@_folder
@click.option("--parameter", "-p", "parameters", multiple=True, metavar="NAME=VALUE", help="May be repeated.")
@click.option("--branch", help="As if pushed to this branch (default: what the project's [model] says).")
@click.option("--no-cache", is_flag=True, help="Run every step anew.")
@click.option("--no-checks", is_flag=True, help="Leave out the commands of [checks].")
@click.option("--wait/--no-wait", default=False, help="Wait until the execution is over.")
@click.option("--timeout", type=float, help="Seconds to wait.")
@options
def run(
    session: Session,
    *,
    folder: Path,
    parameters: tuple[str, ...],
    branch: str | None,
    no_cache: bool,
    no_checks: bool,
    wait: bool,
    timeout: float | None,
) -> int:
    """Upload the working tree and run its pipeline.

    With --wait: exits 1 unless it succeeded, 3 when the gate refused a version that it registered.
    """
    root = tree.root_of(folder)
    state = tree.commit_of(root)
    push = session.client.post(
        "pushes",
        tree=upload(session, root),
        branch=branch,
        commit=state.commit,
        dirty=state.dirty,
        parameters=assignments(parameters) or None,
        cache=not no_cache,
        checks=not no_checks,
    )
    if not wait:
        session.done(push, f"push {push['id']} {push['status']}; see: loopline pushes show {push['id']}")
        return 0
    return _wait(session, push, timeout)


def _wait(session: Session, push: dict[str, Any], timeout: float | None) -> int:
    told: list[str] = []

    def progress(found: dict[str, Any]) -> None:
        if told[-1:] != [found["status"]]:
            told.append(found["status"])
            session.note(f"push {found['id']}: {found['status']}")

    push = session.client.wait_push(push["id"], timeout, progress)
    if not push["execution"]:
        session.done(push, f"push {push['id']} {push['status']}: {push['reason']}")
        return 1
    code = follow(session, push["execution"], timeout)
    return code or _gate(session, push["execution"], timeout)


def _gate(session: Session, execution: str, timeout: float | None) -> int:
    """Say what became of the versions that the execution registered."""
    code = 0
    for version in _registered(session, execution):
        number, model = version["number"], version["model"]
        judged = [row for row in session.client.get("evaluations", model=model)["items"] if row["number"] == number]
        if judged:
            newest = session.client.wait_evaluation(judged[0]["id"], timeout)
            reason = f": {newest['reason']}" if newest.get("reason") else ""
            session.note(f"gate of {model} v{number}: {newest['status']}{reason}")
            code = GateRefused.exit_code if newest["status"] == "Refused" else code
        now = session.client.get("models", model, "versions", number)
        if now["status"] == "PendingManualApproval":
            session.note(f"{model} v{number} waits: loopline approve {model} {number}")
    return code


def _registered(session: Session, execution: str) -> list[dict[str, Any]]:
    found = []
    for model in session.client.get("models")["items"]:
        page = session.client.get("models", model["name"], "versions", limit=20)
        found += [version for version in page["items"] if version.get("execution") == execution]
    return found
