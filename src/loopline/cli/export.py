"""export: a version as a folder that serves it elsewhere."""

import io
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

import click

from loopline.cli.session import Session, options
from loopline.errors import Conflict, Corrupt


@click.command()
@click.argument("model", metavar="MODEL[:N]")
@click.option(
    "--docker",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder to write: Dockerfile, requirements, server, model, code.",
)
@click.option("--compiled", is_flag=True, help="The ONNX form, where the version has one: loopline versions compile.")
@click.option("--force", is_flag=True, help="Although the version is not Approved; needs --reason, is audited.")
@click.option("--reason")
@options
def export(session: Session, model: str, folder: Path, *, compiled: bool, force: bool, reason: str | None) -> None:
    """Write a version (default: the champion) as a folder that serves it without loopline."""
    name, _, number = model.partition(":")
    if number and not number.removeprefix("v").isdecimal():
        raise click.UsageError(f"{model!r} is not MODEL or MODEL:3")
    if folder.exists() and any(folder.iterdir()):
        raise Conflict(f"{folder} exists and is not empty; nothing was written")
    asked = {
        "number": int(number.removeprefix("v")) if number else None,
        "compiled": compiled or None,
        "force": force or None,
        "reason": reason,
    }
    with tempfile.TemporaryFile() as file:
        for piece in session.client.download("models", name, "export", **asked):
            file.write(piece)
        file.seek(0, io.SEEK_SET)
        with tarfile.open(fileobj=file) as tar:
            made = {"folder": str(folder), "files": _unpack(tar, folder)}
    session.done(made, f"{folder}: {made['files']} files; read {folder / 'README.md'}")


def _unpack(tar: tarfile.TarFile, folder: Path) -> int:
    """Write the files of a tar below a folder, and nothing elsewhere; gives how many."""
    made = 0
    for entry in tar:
        inside = PurePosixPath(entry.name)
        source = tar.extractfile(entry)
        if source is None or inside.is_absolute() or ".." in inside.parts:
            raise Corrupt(f"the export holds {entry.name!r}, which is no file of a folder")
        target = folder.joinpath(*inside.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with source, target.open("xb") as file:
            shutil.copyfileobj(source, file)
        made += 1
    return made
