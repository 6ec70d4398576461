"""Makes a new project from a packaged template."""

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from loopline.domain.names import check_name
from loopline.errors import Conflict

NAME = "{{name}}"  # stands in a template's files for the project's name
TEMPLATES = ("tabular", "plain")


@click.command()
@click.argument("name")
@click.option("--template", type=click.Choice(TEMPLATES), default="tabular", show_default=True)
@click.option("--into", type=click.Path(file_okay=False, path_type=Path), help="The folder (default: NAME).")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def init(name: str, template: str, into: Path | None, debug: bool) -> None:
    """Make a new project, with data, that runs as it is."""
    del debug  # read by ``root.run``
    check_name(name, "a project")
    folder = into or Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Conflict(f"{folder} exists and is not empty; nothing was written; choose another name or --into")
    made = _copy(resources.files("loopline.cli") / "templates" / template, folder, name)
    click.echo(f"{folder}: {made} files")
    click.echo("  read loop.toml: it is the whole loop")
    click.echo(f"  next: cd {folder} && loopline check && loopline run --wait")


def _copy(source: Traversable, target: Path, name: str) -> int:
    """Copy a template's folder with the project's name put in; gives the number of files."""
    target.mkdir(parents=True, exist_ok=True)
    made = 0
    for entry in source.iterdir():
        if entry.is_dir():
            made += _copy(entry, target / entry.name, name)
            continue
        # Packaged code ends in .in: tools that read *.py and .gitignore here would take it for their own.
        written = target / entry.name.removesuffix(".in")
        written.write_text(entry.read_text(encoding="utf-8").replace(NAME, name), encoding="utf-8")
        made += 1
    return made
