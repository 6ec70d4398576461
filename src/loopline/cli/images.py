"""Images: list, set, remove."""

from typing import TextIO

import click

from loopline.cli.session import Session, options

COLUMNS = (
    ("IMAGE", "name"),
    ("PACKAGES", lambda row: ", ".join(row["requirements"].split()) or "the standard library alone"),
    ("GIVEN BY", lambda row: row["by"] if row["own"] else None),
)


@click.group()
def images() -> None:
    """Which packages stand for a container image's name; no image is ever run."""


@images.command("list")
@options
def list_(session: Session) -> None:
    """Every image that is known here."""
    session.table(session.client.get("images"), COLUMNS)


@images.command("set")
@click.argument("image")
@click.argument("requirements", type=click.File())
@options
def set_(session: Session, image: str, requirements: TextIO) -> None:
    """Give IMAGE (a repository's name, such as team/churn) the packages of a requirements.txt."""
    made = session.client.put("images", image, requirements=requirements.read())
    session.done(made, f"the image {image} stands for these packages from now on")


@images.command()
@click.argument("image")
@options
def remove(session: Session, image: str) -> None:
    """Forget what was given for IMAGE."""
    session.done(session.client.delete("images", image), f"nothing is given for the image {image} any more")
