"""Data assets: list, show, put, get."""

from collections.abc import Iterator
from pathlib import Path

import click

from loopline.cli import tree
from loopline.cli.runs import save
from loopline.cli.session import Session, limit_option, options

COLUMNS = (
    ("PROJECT", "project"),
    ("ASSET", lambda asset: f"{asset['name']}:{asset['version']}"),
    ("KIND", "kind"),
    ("BYTES", "size_bytes"),
    ("DIGEST", lambda asset: asset["digest"][:12]),
    ("BY", "by"),
    ("CREATED", "created_at"),
)


@click.group()
def assets() -> None:
    """Data assets."""


@assets.command("list")
@click.option("--project")
@click.option("--name")
@limit_option
@options
def list_(session: Session, project: str | None, name: str | None, limit: int) -> None:
    """Versions of data assets, newest first."""
    session.table(session.client.get("assets", project=project, name=name, limit=limit), COLUMNS)


@assets.command()
@click.argument("project")
@click.argument("asset")
@options
def show(session: Session, project: str, asset: str) -> None:
    """One version: NAME:VERSION, or the newest of NAME."""
    session.record(session.client.get("assets", project, asset))


@assets.command()
@click.argument("project")
@click.argument("name")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@options
def put(session: Session, project: str, name: str, path: Path) -> None:
    """Add a version from a file or a folder; the same bytes add none."""
    if path.is_dir():
        found = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and not p.is_symlink())
        packed, size = tree.pack(path, found)
        with packed:
            made = session.client.upload(
                "PUT", "assets", project, name, "folder", data=iter(lambda: packed.read(1 << 20), b""), size=size
            )
    else:
        made = session.client.upload(
            "PUT", "assets", project, name, data=chunks(path), size=path.stat().st_size, file=path.name
        )
    session.done(made, f"{project}/{made['name']}:{made['version']}")


def chunks(file: Path) -> Iterator[bytes]:
    """A file's bytes, piece by piece."""
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            yield chunk


@assets.command()
@click.argument("project")
@click.argument("asset")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="A file (default: stdout).")
@options
def get(session: Session, project: str, asset: str, output: Path | None) -> None:
    """Fetch the bytes of a file asset."""
    save(session.client.download("assets", project, asset, "content"), output)
