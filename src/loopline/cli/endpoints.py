"""Endpoints: list, show, create, delete, drift, quality; release, rollback and live at the top level."""

from typing import Any

import click

from loopline.cli.session import VERSION, Session, assignments, moment, options
from loopline.cli.traffic import compare, shadow, stop, traffic

STRATEGIES = ("canary", "linear", "rolling", "blue-green", "all-at-once", "shadow")


def _shares(endpoint: dict[str, Any]) -> str:
    shown = [v for v in endpoint["variants"] if v["weight"] or v["status"] != "Warm"]
    total = sum(v["weight"] for v in shown) or 1.0
    return ", ".join(f"{v['name']} {100 * v['weight'] / total:g}% {v['status']}" for v in shown)


COLUMNS = (
    ("ENDPOINT", "name"),
    ("STATUS", "status"),
    ("MODEL", "model"),
    ("VARIANTS", _shares),
    ("PROJECT", "project"),
    ("REASON", "reason"),
)
LIVE_COLUMNS = (
    ("ENDPOINT", "endpoint"),
    ("MODEL", "model"),
    ("VERSION", lambda row: "ungated" if row["version"] is None else row["version"]),
    ("SHARE", lambda row: f"{row['share']:.1%}"),
    ("SINCE", "since_at"),
)


@click.group()
def endpoints() -> None:
    """Endpoints, their traffic, drift and quality."""


for command in (traffic, shadow, compare, stop):
    endpoints.add_command(command)


@endpoints.command("list")
@click.option("--project")
@options
def list_(session: Session, project: str | None) -> None:
    """Endpoints and what serves behind them."""
    session.table(session.client.get("endpoints", project=project), COLUMNS)


@endpoints.command()
@click.argument("endpoint")
@options
def show(session: Session, endpoint: str) -> None:
    """One endpoint with its variants and rollout."""
    found = session.client.get("endpoints", endpoint)
    if session.as_json:
        session.json(found)
        return
    rollout = found.get("rollout")
    moving = None if rollout is None else f"{rollout['id']} {rollout['status']}, step {rollout['step'] + 1}"
    told = {key: found[key] for key in ("name", "status", "model", "follows", "project", "reason", "created_at")}
    session.record({**told, "rollout": moving, **_flat(found["settings"] or {}, "")})
    total = sum(row["weight"] for row in found["variants"]) or 1.0
    columns: tuple[tuple[str, Any], ...] = (
        ("VARIANT", "name"),
        ("VERSION", _version),
        ("STATUS", "status"),
        ("WEIGHT", "weight"),
        ("SHARE", lambda row: f"{row['weight'] / total:.1%}"),
        ("COPIES", lambda row: None if row["shadow"] is None else f"{row['shadow']:g}%"),
        ("SERVERS", _servers),
        ("WARM UNTIL", "warm_until"),
        ("REASON", _reason),
    )
    doubted = any(row["verification"] != "verified" for row in found["variants"])
    doubts = (("VERIFICATION", lambda row: row["verification"] or "ungated"),) if doubted else ()
    session.table({"items": found["variants"]}, (*columns, *doubts), empty="no variant yet")


def _flat(settings: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Settings a line each: ``rollout strategy``."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found.update(_flat(value, f"{prefix}{key} ") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return found


def _version(variant: dict[str, Any]) -> str:
    return "ungated" if variant["number"] is None else f"{variant['model']} v{variant['number']}"


def _servers(variant: dict[str, Any]) -> str:
    """How many servers are in which state: "2 ready, 1 loading"."""
    states = ["failing" if server.get("failing") else str(server["state"]) for server in variant["servers"]]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _reason(variant: dict[str, Any]) -> str | None:
    """Why it is as it is; of servers that fail all they are asked, what is done about them."""
    said = [variant["reason"], *(server["failing"]["says"] for server in variant["servers"] if server.get("failing"))]
    return "; ".join(filter(None, said)) or None


@endpoints.command()
@click.argument("endpoint")
@click.argument("model", required=False)
@click.option("--stop", "stopped", is_flag=True, help="Follow no model any more.")
@options
def follow(session: Session, endpoint: str, model: str | None, stopped: bool) -> None:
    """Take each version of a model that is approved, from now on: loopline endpoints follow patients patients."""
    if stopped == (model is not None):
        raise click.UsageError("give a model, or --stop")
    found = session.client.put("endpoints", endpoint, "follow", **({"model": model} if model else {}))
    session.done(found, f"{endpoint} follows {model or 'nothing'}")


@endpoints.command()
@click.argument("name")
@click.option("--model", help="The model whose versions it serves.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="As in [endpoint] of loop.toml.")
@click.option("--multi-model", is_flag=True, help="Each request names its model; they are loaded on demand.")
@click.option("--memory-mb", type=int, help="With --multi-model: of all its servers together.")
@click.option("--follow", multiple=True, metavar="PATTERN", help="With --multi-model: models served by themselves.")
@options
def create(
    session: Session,
    name: str,
    model: str | None,
    settings: tuple[str, ...],
    multi_model: bool,
    memory_mb: int | None,
    follow: tuple[str, ...],
) -> None:
    """Create an endpoint by hand."""
    given: dict[str, Any] = assignments(settings)
    if multi_model:
        if memory_mb is None:
            raise click.UsageError("--multi-model needs --memory-mb: what all its servers may take together")
        given["multi_model"] = {"memory_mb": memory_mb, **({"follow": list(follow)} if follow else {})}
    elif memory_mb is not None:
        given["memory_mb"] = memory_mb
    made = session.client.post("endpoints", name=name, model=model, settings=given or None)
    session.done(made, f"endpoint {name} {made['status']}")


@endpoints.command()
@click.argument("endpoint")
@options
def models(session: Session, endpoint: str) -> None:
    """The models of an endpoint with many: which run, and their memory."""
    columns = (
        ("MODEL", "model"),
        ("VERSION", "version"),
        ("BY NAME", lambda row: "yes" if row["default"] else ""),
        ("STATE", "state"),
        ("MEMORY MB", "memory_mb"),
    )
    found = session.client.get("endpoints", endpoint, "models")
    session.table(found, columns, empty="no models; add one: loopline endpoints add-model")
    session.note(f"{found['memory_mb']:g} of {found['limit_mb']:g} MB")


@endpoints.command("add-model")
@click.argument("endpoint")
@click.argument("models", nargs=-1, required=True, metavar="MODEL[:VERSION|@ALIAS]...")
@click.option("--force", is_flag=True, help="Although a version is not Approved; needs --reason, is audited.")
@click.option("--reason")
@options
def add_model(session: Session, endpoint: str, models: tuple[str, ...], force: bool, reason: str | None) -> None:
    """Serve more models (default: the newest Approved version of each)."""
    made = session.client.post("endpoints", endpoint, "models", models=list(models), force=force or None, reason=reason)
    session.done(made, ", ".join(f"{row['model']} v{row['version']}" for row in made["items"]) + f" on {endpoint}")


@endpoints.command("remove-model")
@click.argument("endpoint")
@click.argument("model", metavar="MODEL[:VERSION]")
@options
def remove_model(session: Session, endpoint: str, model: str) -> None:
    """Serve a model, or one version of it, no longer."""
    gone = session.client.delete("endpoints", endpoint, "models", model)
    session.done(gone, f"{model} taken from {endpoint}")


@endpoints.command()
@click.argument("endpoint")
@click.option("--min", type=int, help="0: the last server stops when nobody asks.")
@click.option("--max", type=int)
@click.option("--target-in-flight", type=float, help="Requests in flight per server, on average.")
@click.option("--target-latency-ms", type=float, help="p95.")
@click.option("--target-per-minute", type=float, help="Requests a minute per server.")
@click.option("--scale-out-cooldown-seconds", type=float)
@click.option("--scale-in-cooldown-seconds", type=float)
@click.option("--idle-seconds", type=float, help="With --min 0: after so long without requests.")
@click.option("--cold-start-seconds", type=float, help="How long a request waits for a server that starts.")
@click.option("--off", is_flag=True, help="Leave the number of servers as it is.")
@options
def scale(session: Session, endpoint: str, off: bool, **changes: Any) -> None:
    """How many model servers each version gets, and by what they are counted."""
    if off and any(value is not None for value in changes.values()):
        raise click.UsageError("--off leaves the number of servers as it is; it goes with no other option")
    made = session.client.put("endpoints", endpoint, "scaling", off=off or None, **changes)
    table = made["settings"].get("scaling") or {}
    said = ", ".join(f"{key} {value:g}" for key, value in table.items() if value is not None)
    session.done(made, f"{endpoint}: {said or 'the number of servers is fixed'}")


@endpoints.command()
@click.argument("endpoint")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options
def delete(session: Session, endpoint: str, yes: bool) -> None:
    """Take an endpoint away: its callers get 404."""
    if not yes:
        click.confirm(f"Take {endpoint} away from its callers?", abort=True, err=True)
    session.done(session.client.delete("endpoints", endpoint), f"endpoint {endpoint} deleted")


@endpoints.command()
@click.argument("endpoint")
@options
def drift(session: Session, endpoint: str) -> None:
    """The newest drift reports."""
    columns = (
        ("END", "end_at"),
        ("VARIANT", "variant"),
        ("FIRED", "fired"),
        ("RULE", "body.rule"),
        ("ROWS", "body.rows"),
        ("DRIFTED", lambda report: ", ".join(report["body"].get("drifted") or ())),
    )
    found = session.client.get("endpoints", endpoint, "drift")
    session.table(found, columns, empty="no drift report yet")
    for line in [] if session.as_json else _drift_reasons(found["items"]):
        session.note(line)


def _drift_reasons(reports: list[dict[str, Any]]) -> list[str]:
    """What the newest report says in words."""
    if not reports:
        return []
    body = reports[0]["body"]
    features = [feature for feature in body.get("features") or () if feature["drifted"]]
    return [*(f"{feature['feature']}: {feature['reason']}" for feature in features), *filter(None, [body.get("note")])]


@endpoints.command()
@click.argument("endpoint")
@click.option("--since", default="7d", show_default=True, help="A time, or 10m, 2h, 1d ago.")
@options
def quality(session: Session, endpoint: str, since: str) -> None:
    """How right the predictions were, from labels that have arrived."""
    found = session.client.get("endpoints", endpoint, "quality", start=moment(since))
    session.record(found if session.as_json else found["total"])


# -- traffic moves: verbs at the top level ----------------------------------------------------------------------------


@click.command()
@click.argument("endpoint")
@click.argument("version", type=VERSION, required=False)
@click.option("--model", help="Another model than the endpoint's own.")
@click.option("--strategy", type=click.Choice([*STRATEGIES]), help="Default: the endpoint's own.")
@click.option("--no-traffic", is_flag=True, help="Start and test it as a variant, and leave traffic as it is.")
@click.option("--as", "variant", metavar="NAME", help="What the variant is called (default: v and the number).")
@click.option("--share", type=float, help="Of a shadow: the percentage of requests that it gets a copy of.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A key of [rollout] for this time.")
@click.option("--force", is_flag=True, help="Although the version is not Approved; needs --reason, is audited.")
@click.option("--reason")
@click.option("--wait/--no-wait", default=False, help="Wait until traffic moves no more.")
@click.option("--timeout", type=float, help="Seconds to wait.")
@options
def release(
    session: Session,
    endpoint: str,
    version: int | None,
    *,
    wait: bool,
    timeout: float | None,
    force: bool,
    no_traffic: bool,
    strategy: str | None,
    settings: tuple[str, ...],
    **body: Any,
) -> int:
    """Move an endpoint's traffic to a version (default: the newest Approved one)."""
    if no_traffic and strategy not in (None, "standby"):
        raise click.UsageError(f"--no-traffic and --strategy {strategy} say different things")
    body.update(
        number=version,
        force=force or None,
        strategy="standby" if no_traffic else strategy,
        settings=assignments(settings) or None,
    )
    made = session.client.post("endpoints", endpoint, "release", **body)
    if not wait:
        plan = made["plan"]
        does = {"standby": "starts beside it", "shadow": "starts as its shadow"}.get(made["kind"])
        what = f"{plan['model']} v{plan['number']}"
        sentence = f"{what} {does}" if does else f"{endpoint} moves to {what}"
        session.done(made, f"rollout {made['id']} {made['status']}: {sentence}")
        return 0
    told: list[str] = []

    def progress(found: dict[str, Any]) -> None:
        line = f"  {found['status']}, step {found['step']}"
        if told[-1:] != [line]:
            told.append(line)
            session.note(line)

    found = session.client.wait_rollout(made["id"], timeout, progress)
    reason = f": {found['reason']}" if found.get("reason") else ""
    session.done(found, f"rollout {found['id']} {found['status']}{reason}")
    return 0 if found["status"] == "Succeeded" else 1


@click.command()
@click.argument("endpoint")
@click.option("--to", type=VERSION, help="Further back, to a version that served earlier.")
@click.option("--reason")
@options
def rollback(session: Session, endpoint: str, to: int | None, reason: str | None) -> None:
    """Put an endpoint back on the version it served before."""
    found = session.client.post("endpoints", endpoint, "rollback", reason=reason, to=to)
    now = found.get("serving") or {}
    what = (f"{now['model']} v{now['version']}" if now["version"] else now["variant"]) if now else "nothing"
    session.done(found, f"{endpoint} serves {what} again, after {found['seconds']:.3f} s")


@click.command()
@click.option("--at", "at", metavar="TIME", help="2026-01-31T12:00:00Z, or 10m, 2h, 1d ago (default: now).")
@click.option("--endpoint")
@options
def live(session: Session, at: str | None, endpoint: str | None) -> None:
    """Which version serves, or served at a time, which share of each endpoint."""
    found = session.client.get("live", at=moment(at), endpoint=endpoint)
    session.table(found, LIVE_COLUMNS, empty="nothing serves")
