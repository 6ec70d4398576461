"""Blueprints: create, list, show, start, apply, delete."""

from typing import Any

import click

from loopline.cli.session import Session, options

COLUMNS = (
    ("BLUEPRINT", "name"),
    ("VARIANTS", lambda row: ", ".join(f"{each['name']}={each['servable']}" for each in row["variants"])),
    ("CAPTURE", "capture.uri"),
    ("BY", "by"),
    ("CREATED", "created_at"),
)


@click.group()
def blueprints() -> None:
    """The variants that an endpoint is brought to, all at once."""


@blueprints.command()
@click.argument("name")
@click.option("--variant", "variants", multiple=True, required=True, metavar="NAME=SERVABLE", help="May be repeated.")
@click.option("--weight", "weights", multiple=True, metavar="NAME=WEIGHT", help="Relative; 1 unless said.")
@click.option("--instances", multiple=True, metavar="NAME=COUNT", help="Servers of a variant; 1 unless said.")
@click.option("--copies", multiple=True, metavar="NAME=PERCENT", help="The variant is a shadow of the others.")
@click.option("--memory-mb", multiple=True, metavar="NAME=MB", help="Of all servers of a store of models together.")
@click.option("--capture", help="Requests and answers become objects below s3://BUCKET/PREFIX.")
@options
def create(session: Session, name: str, variants: tuple[str, ...], capture: str | None, **given: Any) -> None:
    """Make a blueprint of servables."""
    wanted: dict[str, dict[str, Any]] = {}
    for text in variants:
        variant, servable = _pair(text)
        wanted[variant] = {"name": variant, "servable": servable}
    given["weight"] = given.pop("weights")
    for key, texts in given.items():
        for text in texts:
            variant, number = _pair(text)
            if variant not in wanted:
                raise click.BadParameter(f"there is no variant {variant!r} among those named")
            wanted[variant][key] = int(number) if key in ("instances", "memory_mb") else float(number)
    body = {"uri": capture} if capture else None
    made = session.client.post("blueprints", name=name, variants=list(wanted.values()), capture=body)
    session.done(made, f"blueprint {name}: {', '.join(wanted)}")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE")
    return name, value


@blueprints.command("list")
@options
def list_(session: Session) -> None:
    """Blueprints, newest first."""
    session.table(session.client.get("blueprints"), COLUMNS)


@blueprints.command()
@click.argument("blueprint")
@options
def show(session: Session, blueprint: str) -> None:
    """One blueprint."""
    session.record(session.client.get("blueprints", blueprint))


@blueprints.command()
@click.argument("blueprint")
@click.argument("endpoint")
@options
def start(session: Session, blueprint: str, endpoint: str) -> None:
    """Create an endpoint and bring it to a blueprint."""
    made = session.client.post("blueprints", blueprint, "endpoints", endpoint)
    session.done(made, f"{endpoint} starts; watch it: loopline endpoints show {endpoint}")


@blueprints.command()
@click.argument("blueprint")
@click.argument("endpoint")
@click.option("--strategy", default="all-at-once", show_default=True)
@click.option("--steps", help="canary: percent, such as 5,50")
@click.option("--step-percent", type=float, help="linear")
@click.option("--bake-seconds", type=float, help="How long each step is watched.")
@click.option("--last-bake-seconds", type=float, default=0.0, help="How long the last one is.")
@click.option("--alarm", "alarms", multiple=True, help="Turns it back when it fires; may be repeated.")
@click.option("--reason", default="")
@options
def apply(session: Session, blueprint: str, endpoint: str, **given: Any) -> None:
    """Bring an endpoint to a blueprint by a rollout."""
    steps = given.pop("steps")
    settings = {
        "steps": [float(each) for each in steps.split(",")] if steps else None,
        "step_percent": given.pop("step_percent"),
        "bake_seconds": given.pop("bake_seconds"),
    }
    made = session.client.put(
        "blueprints",
        blueprint,
        "endpoints",
        endpoint,
        settings={key: value for key, value in settings.items() if value is not None},
        alarms=list(given.pop("alarms")),
        **given,
    )
    session.done(made, f"{endpoint}: {made['id']}; watch it: loopline rollouts show {made['id']}")


@blueprints.command()
@click.argument("blueprint")
@options
def delete(session: Session, blueprint: str) -> None:
    """Take a blueprint away; endpoints stay as they are."""
    session.done(session.client.delete("blueprints", blueprint), f"blueprint {blueprint} deleted")
