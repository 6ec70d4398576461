"""The names that loopline's roles go by elsewhere: list, create, delete."""

import click

from loopline.cli.session import Session, options

COLUMNS = (
    ("NAME", "name"),
    ("ROLE", "role"),
    ("POLICIES", lambda row: ",".join([*(row["policies"] or {}), *(row["attached"] or [])]) or None),
    ("DESCRIPTION", "description"),
)


@click.group()
def roles() -> None:
    """The names that roles go by elsewhere, such as roles of IAM."""


@roles.command("list")
@options
def list_(session: Session) -> None:
    """Every name, and the role of loopline that it stands for."""
    session.table(session.client.get("role-aliases"), COLUMNS)


@roles.command()
@click.argument("name")
@click.option("--as", "role", default="editor", show_default=True, help="The role of loopline; not more than yours.")
@options
def create(session: Session, name: str, role: str) -> None:
    """Let a role of loopline go by another NAME, too."""
    made = session.client.post("role-aliases", name=name, role=role)
    session.done(made, f"{made['name']} stands for the role {made['role']}")


@roles.command()
@click.argument("name")
@options
def delete(session: Session, name: str) -> None:
    """Remove a name."""
    session.done(session.client.delete("role-aliases", name), f"the name {name} is gone")
