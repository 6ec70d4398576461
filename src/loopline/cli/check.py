"""Explains every mistake in a project, without a server."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loopline.errors import InvalidInput

if TYPE_CHECKING:
    from loopline.domain.loopfile import Problem


@click.command()
@click.argument("folder", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the mistakes as JSON.")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def check(folder: Path, as_json: bool, debug: bool) -> int:
    """Explain every mistake in loop.toml, pipeline.py and predict.py; exits 1 when there is one."""
    del debug  # read by ``root.run``
    import msgspec

    from loopline.cli import tree

    root = tree.root_of(folder)
    problems = problems_of(root)
    errors = sum(problem.level == "error" for problem in problems)
    if as_json:
        click.echo(json.dumps({"ok": not errors, "problems": [msgspec.to_builtins(problem) for problem in problems]}))
        return int(bool(errors))
    for problem in problems:
        click.echo(str(problem))
    if not errors:
        click.echo(f"{root.name}: {'nothing is wrong' if not problems else 'no errors'}", err=True)
    return int(bool(errors))


def problems_of(root: Path) -> "list[Problem]":
    """Every mistake of a project that can be seen without running it."""
    from loopline.cli import source, tree
    from loopline.config import MAX_LOOP_TOML_BYTES
    from loopline.domain.loopfile import parse

    path = root / "loop.toml"
    if path.stat().st_size > MAX_LOOP_TOML_BYTES:
        raise InvalidInput(f"{path} is larger than {MAX_LOOP_TOML_BYTES} bytes")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8: {error}") from None
    loop, problems = parse(text, "loop.toml", frozenset(tree.files_of(root)))
    file = loop.pipeline.file if loop else "pipeline.py"
    name = loop.pipeline.name if loop else None
    parameters = tuple(loop.pipeline.parameters) if loop else ()
    if (root / file).is_file():
        problems += source.check_pipeline((root / file).read_bytes(), file, name, parameters)
    if (root / "predict.py").is_file() and (loop is None or loop.model.handler == "predict"):
        problems += source.check_predict((root / "predict.py").read_bytes(), "predict.py")
    return problems
