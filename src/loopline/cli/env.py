"""The environment in which scripts written for SageMaker run against this server."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import click

import loopline
from loopline import config
from loopline.cli.session import Session, options

CLIENTS = Path(loopline.__file__).parent / "runtime" / "clients"
CLEARED = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE")


@click.command()
@options
def env(session: Session) -> None:
    """Print what a shell has to set: eval "$(loopline env)".

    AWS's SDKs and its command line then speak to this server: its address, a region, a key pair of yours. Python also
    gets a small module in front of its path, which sends home what the SageMaker SDK would send to AWS all the same.
    """
    client = session.client
    known = client.get("access-keys")
    pair = _pair(session, known["items"])
    values = {
        "AWS_ENDPOINT_URL": client.url,
        "AWS_REGION": known["region"],
        "AWS_DEFAULT_REGION": known["region"],
        "AWS_ACCESS_KEY_ID": pair["id"],
        "AWS_SECRET_ACCESS_KEY": pair["secret_key"],
        "AWS_EC2_METADATA_DISABLED": "true",
        "SAGEMAKER_ADMIN_CONFIG_OVERRIDE": str(CLIENTS / "sagemaker.yaml"),
    }
    if client.authorities is not None:
        values["AWS_CA_BUNDLE"] = str(Path(client.authorities).absolute())
    if session.as_json:
        session.json({**values, "PYTHONPATH": str(CLIENTS)})
        return
    for name, value in values.items():
        click.echo(f"export {name}={shlex.quote(value)}")
    click.echo(f"export PYTHONPATH={shlex.quote(str(CLIENTS))}${{PYTHONPATH:+:$PYTHONPATH}}")
    click.echo(f"unset {' '.join(CLEARED)}")


def _pair(session: Session, known: list[dict[str, Any]]) -> dict[str, Any]:
    """The key pair of this machine's owner; where there is none (any longer), a new one, kept for the next time."""
    path = config.load().dir / "client.json"
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError):
        stored = {}
    client = session.client
    own = (stored.get("url"), stored.get("key")) == (client.url, client.key)
    kept = stored.get("access_key") if own else None
    if kept is not None and any(row["id"] == kept["id"] and not row["revoked_at"] for row in known):
        return dict(kept)
    made = client.post("access-keys", name="env")
    pair = {"id": made["id"], "secret_key": made["secret_key"]}
    if own:
        _keep(path, {**stored, "access_key": pair})
    else:
        session.note(f"made the access key {made['id']}; it is good for 90 days: loopline access-keys list")
    return pair


def _keep(path: Path, document: dict[str, Any]) -> None:
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(document, file)
    temporary.rename(path)
