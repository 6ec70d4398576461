"""Users: list, create, delete."""

import click

from loopline.cli.session import Session, options


@click.group()
def users() -> None:
    """People and programs."""


@users.command("list")
@options
def list_(session: Session) -> None:
    """All users."""
    session.table(session.client.get("users"), (("USER", "name"), ("ROLE", "role"), ("CREATED", "created_at")))


@users.command()
@click.argument("name")
@click.argument("role")
@options
def create(session: Session, name: str, role: str) -> None:
    """Add a user with a role: viewer, editor, approver, admin or invoker."""
    session.done(session.client.post("users", name=name, role=role), f"user {name} is {role}")


@users.command()
@click.argument("name")
@options
def delete(session: Session, name: str) -> None:
    """Remove a user and revoke every key of theirs."""
    session.done(session.client.delete("users", name), f"user {name} removed, their keys revoked")
