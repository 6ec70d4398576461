"""Asynchronous invocations: submit, list, show, output."""

from pathlib import Path

import click

from loopline.cli.assets import chunks
from loopline.cli.runs import check_target, save
from loopline.cli.session import Session, limit_option, options

COLUMNS = (
    ("INVOCATION", "id"),
    ("STATUS", "status"),
    ("ENDPOINT", "endpoint"),
    ("BYTES", "size_bytes"),
    ("ANSWER", "answer.status"),
    ("REQUEST", "request"),
    ("BY", "by"),
    ("CREATED", "created_at"),
    ("REASON", "reason"),
)
TYPES = {".json": "application/json", ".csv": "text/csv"}


@click.group()
def invocations() -> None:
    """Asynchronous invocations: asked now, answered later."""


@invocations.command()
@click.argument("endpoint")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--type", "content_type", help="The content type (default: by the file's ending, else JSON).")
@click.option("--inference-id", help="Your own id, for labels that arrive later.")
@click.option("--out", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Wait, and write the answer here.")
@click.option("--timeout", type=float, help="Seconds to wait.")
@options
def submit(
    session: Session,
    *,
    endpoint: str,
    file: Path,
    content_type: str | None,
    inference_id: str | None,
    out: Path | None,
    timeout: float | None,
) -> int:
    """Ask an endpoint for the answer to a file. With --out: waits, exits 1 unless it Succeeded."""
    if out is not None:
        check_target(out)
    made = session.client.upload(
        "POST",
        "endpoints",
        endpoint,
        "async-invocations",
        data=chunks(file),
        size=file.stat().st_size,
        content_type=content_type or TYPES.get(file.suffix, "application/json"),
        inference_id=inference_id,
    )
    if out is None:
        session.done(made, made["id"])
        return 0
    found = session.client.wait_invocation(made["id"], timeout)
    if found["status"] == "Succeeded":
        save(session.client.download("async-invocations", made["id"], "output"), out)
    reason = f": {found['reason']}" if found["reason"] else ""
    session.done(found, f"invocation {made['id']} {found['status']}{reason}")
    return 0 if found["status"] == "Succeeded" else 1


@invocations.command("list")
@click.option("--endpoint")
@click.option("--status")
@limit_option
@options
def list_(session: Session, endpoint: str | None, status: str | None, limit: int) -> None:
    """Asynchronous invocations, newest first."""
    found = session.client.get("async-invocations", endpoint=endpoint, status=status, limit=limit)
    session.table(found, COLUMNS, empty="no asynchronous invocation yet")


@invocations.command()
@click.argument("invocation")
@options
def show(session: Session, invocation: str) -> None:
    """One asynchronous invocation."""
    session.record(session.client.get("async-invocations", invocation))


@invocations.command()
@click.argument("invocation")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="A file (default: stdout).")
@options
def output(session: Session, invocation: str, output: Path | None) -> None:
    """Fetch the answer, once it has Succeeded."""
    save(session.client.download("async-invocations", invocation, "output"), output)
