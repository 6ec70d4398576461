"""Predictions as they were logged: list, show, why; labels; rows as a file."""

import json
from pathlib import Path
from typing import Any

import click

from loopline.cli import rowfiles
from loopline.cli.assets import chunks
from loopline.cli.session import Session, limit_option, moment, options

COLUMNS = (
    ("REQUEST", "id"),
    ("AT", "at"),
    ("STATUS", "status"),
    ("MODEL", "model"),
    ("VERSION", "version"),
    ("KEY", "key"),
    ("MS", lambda request: (request.get("latency_us") or 0) / 1000),
)


@click.group()
def requests() -> None:
    """Predictions as they were logged, and labels."""


@requests.command("list")
@click.argument("endpoint")
@click.option("--since", default="10m", show_default=True, help="A time, or 10m, 2h, 1d ago.")
@click.option("--status", type=int)
@limit_option
@options
def list_(session: Session, endpoint: str, since: str, status: int | None, limit: int) -> None:
    """The latest requests of an endpoint, without their bodies."""
    found = session.client.get("endpoints", endpoint, "requests", start=moment(since), status=status, limit=limit)
    session.table(found, COLUMNS, empty="no requests in this time")


@requests.command()
@click.argument("request_id")
@options
def show(session: Session, request_id: str) -> None:
    """One request with its input and output."""
    session.record(session.client.get("requests", request_id, "record"))


@requests.command()
@click.argument("endpoint")
@click.option("--since", help="A time, or 10m, 2h, 1d ago (default: all that is kept).")
@click.option("--until", help="The same.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help=".jsonl, .csv or .parquet")
@options
def export(session: Session, endpoint: str, since: str | None, until: str | None, out: Path) -> None:
    """Write an endpoint's captured rows, with answers and labels, to a file for analysis."""
    write = rowfiles.writer(out)
    chunks_ = session.client.download("endpoints", endpoint, "rows", start=moment(since), end=moment(until))
    rows = write(chunks_, out)
    session.done({"rows": rows, "file": str(out)}, f"{rows} rows in {out}")


@requests.command()
@click.argument("endpoint")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@options
def label(session: Session, endpoint: str, file: Path) -> None:
    """Send labels: a CSV file with the columns request_id (or join_id) and label, or JSON lines of such objects."""
    if file.suffix in (".jsonl", ".ndjson"):
        items = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        found = session.client.post("endpoints", endpoint, "labels", items=items)
    else:
        found = session.client.upload(
            "PUT", "endpoints", endpoint, "labels", data=chunks(file), size=file.stat().st_size
        )
    session.record(found)


@click.command()
@click.argument("request_id")
@options
def why(session: Session, request_id: str) -> None:
    """Everything that one prediction rests on: key, version, approver, run, commit, data, environment."""
    found = session.client.get("requests", request_id)
    if session.as_json:
        session.json(found)
        return
    for part, value in _told(found).items():
        if isinstance(value, dict):
            click.echo(click.style(part, bold=True))
            session.record({f"  {key}": item for key, item in value.items()})
        else:
            session.record({part: value})


def _told(found: dict[str, Any]) -> dict[str, Any]:
    """The answer without what only programs read; ``--json`` has it."""
    told = {part: dict(value) if isinstance(value, dict) else value for part, value in found.items()}
    hidden = {"environment": ("lock", "python"), "evaluation": ("verdict", "asset"), "version": ("artifact", "tree")}
    for part, keys in hidden.items():
        for key in keys:
            if isinstance(told.get(part), dict):
                told[part].pop(key, None)
    artifact = (found.get("version") or {}).get("artifact")
    if artifact:
        told["version"]["model_file"] = f"{artifact.get('format')} {artifact['sha256']}, {artifact.get('trust')}"
    if told.get("baseline"):
        told["baseline"]["features"] = len(told["baseline"].get("features") or ())
    if told.get("data"):
        told["data"] = {
            f"{asset['name']}:{asset['version']}": f"{asset['digest']} for {', '.join(asset['use'])}"
            for asset in found["data"]
        }
    return told
