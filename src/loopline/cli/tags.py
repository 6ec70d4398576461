"""Tags: set, list, delete."""

import click

from loopline.cli.session import Session, options, pairs_of

COLUMNS = (("KEY", "key"), ("VALUE", "value"))


@click.group()
def tags() -> None:
    """Words on any record: a model, a version (MODEL:NUMBER), an endpoint, or anything by its id."""


@tags.command("set")
@click.argument("noun")
@click.argument("name")
@click.argument("pairs", nargs=-1, required=True, metavar="KEY=VALUE...")
@options
def set_(session: Session, noun: str, name: str, pairs: tuple[str, ...]) -> None:
    """Put tags on a record: loopline tags set model churn team=risk."""
    session.table(session.client.put("tags", noun, name, tags=pairs_of(pairs)), COLUMNS)


@tags.command("list")
@click.argument("noun")
@click.argument("name")
@options
def list_(session: Session, noun: str, name: str) -> None:
    """The tags of a record."""
    session.table(session.client.get("tags", noun, name), COLUMNS, empty="no tags")


@tags.command()
@click.argument("noun")
@click.argument("name")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@options
def delete(session: Session, noun: str, name: str, keys: tuple[str, ...]) -> None:
    """Take tags off a record."""
    session.table(session.client.delete("tags", noun, name, keys=list(keys)), COLUMNS, empty="no tags")
