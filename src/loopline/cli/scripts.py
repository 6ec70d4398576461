"""Scripts: run, list, show, log, stop."""

from pathlib import Path

import click

from loopline.cli.executions import print_log
from loopline.cli.loop import upload
from loopline.cli.session import Session, limit_option, options, pairs_of

COLUMNS = (
    ("CONTRACT", "contract"),
    ("NAME", "name"),
    ("STATUS", "phase"),
    ("IMAGE", lambda row: row["definition"]["image"]),
    ("CREATED", "created_at"),
    ("REASON", "reason"),
)
_contract = click.option(
    "--contract", type=click.Choice(("training", "processing")), default="training", show_default=True
)


@click.group()
def scripts() -> None:
    """Programs written for a training or processing container, run here without one."""


@scripts.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", required=True, help="Of the job; no two may share it.")
@click.option("--program", required=True, help="The file of FOLDER that is run.")
@click.option("--image", required=True, help="The image whose packages it needs; see `loopline images list`.")
@click.option("--parameter", "-p", "parameters", multiple=True, metavar="NAME=VALUE", help="A hyperparameter.")
@click.option("--channel", "channels", multiple=True, metavar="NAME=s3://...", help="Objects that it finds as files.")
@click.option("--variable", "variables", multiple=True, metavar="NAME=VALUE", help="Of its environment.")
@click.option("--output", help="s3://BUCKET/PREFIX where the model goes.")
@click.option("--role", help="What its own calls may: a name of `loopline roles list`. Without it, nothing.")
@click.option("--hosts", type=int, default=1, show_default=True, help="Processes that know of each other.")
@options
def run(
    session: Session,
    *,
    folder: Path,
    name: str,
    program: str,
    image: str,
    parameters: tuple[str, ...],
    channels: tuple[str, ...],
    variables: tuple[str, ...],
    output: str | None,
    role: str | None,
    hosts: int,
) -> None:
    """Train with a program of FOLDER; it finds its data, settings and folders in SM_ variables and below /opt/ml."""
    settings = {
        "contract": "training",
        "image": image,
        "tree": upload(session, folder),
        "program": program,
        "hyperparameters": pairs_of(parameters),
        "channels": {channel: {"uri": uri} for channel, uri in pairs_of(channels).items()},
        "environment": pairs_of(variables),
        "output_uri": output or "",
        "role": role or "",
        "hosts": hosts,
    }
    made = session.client.post("scripts", name=name, settings=settings)
    session.done(made, f"job {name} begins; see: loopline scripts log {name} --follow")


@scripts.command("list")
@click.option("--contract", type=click.Choice(("training", "processing")))
@limit_option
@options
def list_(session: Session, contract: str | None, limit: int) -> None:
    """Jobs, newest first."""
    session.table(session.client.get("scripts", contract=contract, limit=limit), COLUMNS)


@scripts.command()
@click.argument("name")
@_contract
@options
def show(session: Session, name: str, contract: str) -> None:
    """One job: what was asked for, how it stands, what came of it."""
    session.record(session.client.get("scripts", contract, name))


@scripts.command()
@click.argument("name")
@_contract
@click.option("--follow", "-f", is_flag=True, help="Go on until the job is over.")
@options
def log(session: Session, name: str, contract: str, follow: bool) -> None:
    """What its program printed."""
    print_log(session, ("scripts", contract, name, "log"), follow)


@scripts.command()
@click.argument("name")
@_contract
@click.option("--reason")
@options
def stop(session: Session, name: str, contract: str, reason: str | None) -> None:
    """Stop a job: it is told to end, and ended by force two minutes later."""
    session.done(session.client.post("scripts", contract, name, "stop", reason=reason), f"job {name} is stopped")


@scripts.command()
@click.argument("name")
@_contract
@options
def delete(session: Session, name: str, contract: str) -> None:
    """Take a job that is over out of the list; its run and what it left stay."""
    session.done(session.client.delete("scripts", contract, name), f"job {name} is deleted")
