"""Servables: create, list, show, delete."""

from typing import Any

import click

from loopline.cli.session import Session, options

COLUMNS = (
    ("SERVABLE", "name"),
    ("STATUS", "status"),
    ("VERSION", lambda row: f"{row['model']}:{row['number']}" if row["gated"] else "ungated"),
    ("HANDLER", "handler"),
    ("IMAGE", "image"),
    ("REASON", "reason"),
)


@click.group()
def servables() -> None:
    """What endpoints run that is no version as its pipeline made it: model files, code and an environment."""


@servables.command()
@click.argument("name")
@click.option("--data", help="Model files: s3://BUCKET/KEY of a tar.")
@click.option("--store", help="Many models instead: s3://BUCKET/PREFIX/, each tar below it is one.")
@click.option("--version", help="A registered version instead: MODEL:NUMBER.")
@click.option("--code", help="Code: s3://BUCKET/KEY of a tar; default: code/ of the model files.")
@click.option("--program", help="The file of the code that is asked.")
@click.option("--handler", default="predict", show_default=True, help="predict, joblib, onnx or sagemaker.")
@click.option("--requirements", type=click.File(), help="A file of packages.")
@click.option("--variable", "variables", multiple=True, metavar="NAME=VALUE", help="Of its process; may be repeated.")
@options
def create(session: Session, name: str, **given: Any) -> None:
    """Make a servable of files, or of a version."""
    requirements = given.pop("requirements")
    wanted = {
        **given,
        "name": name,
        "requirements": requirements.read() if requirements else "",
        "variables": dict(each.partition("=")[::2] for each in given.pop("variables")),
    }
    made = session.client.post("servables", **{key: value for key, value in wanted.items() if value is not None})
    session.done(made, f"servable {name} is {made['status']}")


@servables.command("list")
@options
def list_(session: Session) -> None:
    """Servables, newest first."""
    session.table(session.client.get("servables"), COLUMNS)


@servables.command()
@click.argument("servable")
@options
def show(session: Session, servable: str) -> None:
    """One servable, and the endpoints that run it."""
    session.record(session.client.get("servables", servable))


@servables.command()
@click.argument("servable")
@options
def delete(session: Session, servable: str) -> None:
    """Take a servable away; endpoints that run it go on."""
    session.done(session.client.delete("servables", servable), f"servable {servable} deleted")
