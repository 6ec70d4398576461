"""Batches: run, list, show, stop, resume, output, errors."""

import sys
from pathlib import Path
from typing import Any

import click

from loopline.cli.assets import chunks
from loopline.cli.runs import check_target, save
from loopline.cli.session import Session, limit_option, options

COLUMNS = (
    ("BATCH", "id"),
    ("STATUS", "status"),
    ("MODEL", lambda batch: f"{batch['model']} v{batch['number']}"),
    ("INPUT", lambda batch: batch["input"].get("asset") or batch["input"]["name"]),
    ("ROWS", lambda batch: _rows(batch["progress"])),
    ("SET ASIDE", "progress.bad"),
    ("BY", "by"),
    ("CREATED", "created_at"),
    ("REASON", "reason"),
)
SHOWN = (
    *("id", "status", "model", "number", "input.name", "input.asset", "progress", "columns", "output.size_bytes"),
    *("asset", "rows", "bad", "reason", "job", "by", "created_at", "started_at", "ended_at"),
)


def _rows(progress: dict[str, Any]) -> str | None:
    if "rows_total" not in progress:
        return None
    return f"{progress.get('rows_done', 0)}/{progress['rows_total']}"


@click.group()
def batch() -> None:
    """Tables scored by a version."""


@batch.command()
@click.argument("model", metavar="MODEL[:N]")
@click.argument("table", metavar="INPUT")
@click.option("--out", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Wait, and write the output here.")
@click.option("--keep", multiple=True, metavar="COLUMN", help="A column that is passed through; may be repeated.")
@click.option("--as", "save_as", metavar="NAME", help="The output becomes a version of this data asset, too.")
@click.option("--format", "format", help="Of INPUT: csv, tsv, jsonl, ndjson, parquet (default: by its ending).")
@click.option("--output-format", help="csv, jsonl or parquet (default: by --out, else that of INPUT).")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that score.")
@click.option("--rows-per-call", type=click.IntRange(1), help="Rows that predict is given at once (default: 4096).")
@click.option("--max-bad-share", type=click.FloatRange(0, 1), help="Of rows set aside that stops it (default: 0.1).")
@click.option("--timeout", "timeout_seconds", type=float, help="Seconds after which it is stopped.")
@click.option("--force", is_flag=True, help="Although the version is not Approved; needs --reason, is audited.")
@click.option("--reason")
@options
def run(session: Session, model: str, table: str, out: Path | None, save_as: str | None, **settings: Any) -> int:
    """Score a file or data asset (NAME or NAME:VERSION) with a version (default: the champion).

    With --out: waits, exits 1 unless it succeeded. It goes on when this command is interrupted.
    """
    if out is not None:
        check_target(out)
    name, _, number = model.partition(":")
    if number and not number.removeprefix("v").isdecimal():
        raise click.UsageError(f"{model!r} is not MODEL or MODEL:3")
    if out is not None and not settings["output_format"]:
        settings["output_format"] = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}.get(out.suffix)
    settings["keep"] = list(settings["keep"]) or None
    settings["force"] = settings["force"] or None
    version = int(number.removeprefix("v")) if number else None
    given = _input(session, table)
    made = session.client.post("batches", model=name, number=version, save_as=save_as, **given, **settings)
    if out is None:
        session.done(made, f"batch {made['id']} {made['status']}; see: loopline batch show {made['id']} --follow")
        return 0
    session.note(f"batch {made['id']}")
    found = _follow(session, made["id"])
    if found["status"] != "Succeeded":
        session.done(found, f"batch {found['id']} {found['status']}: {found['reason']}")
        return 1
    save(session.client.download("batches", found["id"], "output"), out)
    if found["bad"]:
        session.note(f"{found['bad']} rows were set aside: loopline batch errors {found['id']}")
    session.done(found, f"{out}: {found['rows'] - found['bad']} rows")
    return 0


def _input(session: Session, table: str) -> dict[str, Any]:
    """A file is uploaded; what is no file is a data asset."""
    path = Path(table)
    if not path.is_file():
        return {"asset": table}
    stored = session.client.upload("POST", "batches", "inputs", data=chunks(path), size=path.stat().st_size)
    return {"digest": stored["digest"], "file": path.name}


def _follow(session: Session, identifier: str) -> dict[str, Any]:
    """Wait for its end, with its progress on stderr: one line that is written over on a terminal."""
    told: list[str] = []
    terminal = sys.stderr.isatty()

    def progress(found: dict[str, Any]) -> None:
        known = found["progress"]
        parts = [found["status"], known.get("stage"), _rows(known)]
        if known.get("rows_per_second"):
            parts.append(f"{known['rows_per_second']:.0f} rows/s")
        if known.get("bad"):
            parts.append(f"{known['bad']} set aside")
        line = "  " + ", ".join(part for part in parts if part)
        if told[-1:] == [line]:
            return
        told.append(line)
        if terminal:
            click.echo(f"\r\033[K{line}", err=True, nl=False)
        else:
            session.note(line)

    try:
        return session.client.wait_batch(identifier, None, progress)
    finally:
        if terminal:
            click.echo(err=True)


@batch.command("list")
@click.option("--model")
@limit_option
@options
def list_(session: Session, model: str | None, limit: int) -> None:
    """Batches, newest first."""
    session.table(session.client.get("batches", model=model, limit=limit), COLUMNS, empty="no batch yet")


@batch.command()
@click.argument("batch_id", metavar="BATCH")
@click.option("--follow", "-f", is_flag=True, help="Go on until it is over; exits 1 unless it succeeded.")
@options
def show(session: Session, batch_id: str, follow: bool) -> int:
    """One batch and its progress."""
    found = _follow(session, batch_id) if follow else session.client.get("batches", batch_id)
    if not session.as_json:
        found["columns"] = ", ".join((found["output"] or {}).get("columns") or ())
    session.record(found, None if session.as_json else SHOWN)
    return 1 if follow and found["status"] != "Succeeded" else 0


@batch.command()
@click.argument("batch_id", metavar="BATCH")
@click.option("--reason")
@options
def stop(session: Session, batch_id: str, reason: str | None) -> None:
    """Stop a batch; what it has done stays, see resume."""
    found = session.client.post("batches", batch_id, "stop", reason=reason)
    session.done(found, f"batch {batch_id} {found['status']}")


@batch.command()
@click.argument("batch_id", metavar="BATCH")
@options
def resume(session: Session, batch_id: str) -> None:
    """Let a batch that failed or was stopped go on where it was."""
    found = session.client.post("batches", batch_id, "resume")
    session.done(found, f"batch {batch_id} {found['status']}")


@batch.command()
@click.argument("batch_id", metavar="BATCH")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="A file (default: stdout).")
@options
def output(session: Session, batch_id: str, output: Path | None) -> None:
    """Fetch the predictions."""
    save(session.client.download("batches", batch_id, "output"), output)


@batch.command()
@click.argument("batch_id", metavar="BATCH")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="A file (default: stdout).")
@options
def errors(session: Session, batch_id: str, output: Path | None) -> None:
    """Fetch the rows that were set aside, with reasons, as JSON lines."""
    save(session.client.download("batches", batch_id, "errors"), output)
