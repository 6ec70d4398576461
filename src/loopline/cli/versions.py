"""Model versions: list, show, compare, lineage, evaluate, copy, approve, reject."""

from typing import Any

import click

from loopline.cli.session import VERSION, Session, limit_option, model_and_number, options, pairs_of
from loopline.errors import GateRefused


def _metrics(version: dict[str, Any]) -> str:
    found = (version.get("metrics") or {}).items()
    return ", ".join(f"{k}={v:.4g}" for k, v in list(found)[:4] if isinstance(v, int | float))


COLUMNS = (
    ("MODEL", "model"),
    ("VERSION", "number"),
    ("STATUS", "status"),
    ("METRICS", _metrics),
    ("BY", "requested_by"),
    ("DECIDED BY", "decided_by"),
    ("CREATED", "created_at"),
)
DOUBTED = (*COLUMNS, ("VERIFICATION", "verification"))  # where one of them has not passed a gate
SHOWN = (
    *(
        "model",
        "number",
        "status",
        "verification",
        "description",
        "properties",
        "metrics",
        "aliases",
        "execution",
        "run",
        "requested_by",
        "created_at",
    ),
    *("decided_by", "decided_at", "policy", "comment", "copied_from", "evaluation", "gate", "compiled"),
)


@click.group()
def versions() -> None:
    """Model versions, their evidence and lineage."""


@versions.command("list")
@click.argument("model")
@click.option("--status")
@click.option("--order", help="A metric; -METRIC for the greatest first.")
@limit_option
@options
def list_(session: Session, model: str, status: str | None, order: str | None, limit: int) -> None:
    """Versions of a model, newest first or by a metric."""
    found = session.client.get("models", model, "versions", status=status, order=order, limit=limit)
    session.table(found, COLUMNS if all(row["verification"] == "verified" for row in found["items"]) else DOUBTED)


@versions.command()
@click.argument("model")
@click.argument("version", type=VERSION, required=False)
@options
def show(session: Session, model: str, version: int | None) -> None:
    """One version: loopline versions show patients 3 (or patients:3)."""
    name, number = model_and_number(model, version)
    found = session.client.get("models", name, "versions", number)
    if found.get("evaluation") and not session.as_json:
        judged = session.client.get("evaluations", found["evaluation"])
        found["gate"] = f"{judged['status']}: {judged['reason'] or (judged['verdict'] or {}).get('summary')}"
    told = found.get("metadata") or {}
    found |= {key: told[key] for key in ("description", "properties") if told.get(key)}
    if found.get("compilation"):
        found["compiled"] = _compiled(found["compilation"])
    session.record(found, None if session.as_json else SHOWN)


@versions.command()
@click.argument("model")
@click.argument("first", type=VERSION)
@click.argument("second", type=VERSION)
@options
def compare(session: Session, model: str, first: int, second: int) -> None:
    """The metrics of two versions side by side."""
    found = session.client.get("models", model, "versions", "compare", a=first, b=second)
    session.table(found, (("METRIC", "key"), (f"v{first}", "a"), (f"v{second}", "b"), ("DIFFERENCE", "difference")))


@versions.command()
@click.argument("model")
@click.argument("version", type=VERSION, required=False)
@options
def lineage(session: Session, model: str, version: int | None) -> None:
    """Where a version comes from: commit, data, parameters, environment."""
    name, number = model_and_number(model, version)
    session.record(session.client.get("models", name, "versions", number, "lineage"))


@versions.command()
@click.argument("model")
@click.argument("version", type=VERSION, required=False)
@click.option("--wait/--no-wait", default=True, help="Wait for the judgement.")
@click.option("--timeout", type=float, help="Seconds to wait.")
@options
def evaluate(session: Session, model: str, version: int | None, wait: bool, timeout: float | None) -> int:
    """Judge a version on the gate's test data; exits 3 when the gate refuses."""
    name, number = model_and_number(model, version)
    found = session.client.post("models", name, "versions", number, "evaluate")
    if wait:
        found = session.client.wait_evaluation(found["id"], timeout)
    reason = f": {found['reason']}" if found.get("reason") else ""
    session.done(found, f"evaluation {found['id']} {found['status']}{reason}")
    return {"Refused": GateRefused.exit_code, "Failed": 1}.get(found["status"], 0)


@versions.command("compile")
@click.argument("model")
@click.argument("version", type=VERSION, required=False)
@click.option("--tolerance", type=float, help="How far a number may be from the model's own (default: 1e-6).")
@click.option("--wait/--no-wait", default=True, help="Wait for the comparison.")
@click.option("--timeout", type=float, help="Seconds to wait.")
@options
def compile_(
    session: Session, model: str, version: int | None, tolerance: float | None, wait: bool, timeout: float | None
) -> int:
    """Convert a version's model to ONNX, used where it answers the same; exits 3 when it does not."""
    name, number = model_and_number(model, version)
    found = session.client.post("models", name, "versions", number, "compile", tolerance=tolerance)
    if wait:
        found = session.client.wait_compilation(found["id"], timeout)
    session.done(found, f"{name} v{number}: {_compiled(found)}")
    return {"Refused": GateRefused.exit_code, "Failed": 1}.get(found["status"], 0)


def _compiled(made: dict[str, Any]) -> str:
    return f"{made['format']} {made['status']}: {made['reason'] or 'not done yet'}"


@versions.command()
@click.argument("model")
@click.argument("version", type=VERSION)
@click.argument("to")
@options
def copy(session: Session, model: str, version: int, to: str) -> None:
    """Copy a version into another model."""
    made = session.client.post("models", model, "versions", version, "copy", to=to)
    session.done(made, f"{model} v{version} is {to} v{made['number']}")


@versions.command()
@click.argument("model")
@click.option("--data", help="s3://BUCKET/KEY of a tar of model files.")
@click.option("--image", help="The container image whose packages it needs.")
@click.option("--code", help="s3://BUCKET/KEY of a tar of code, where it does not stand in the model files' code/.")
@click.option("--program", help="The file of the code that is asked.")
@click.option("--requirements", type=click.File(), help="Its packages, in place of the image's.")
@click.option("--variable", "variables", multiple=True, metavar="NAME=VALUE", help="Of its process; may be repeated.")
@click.option("-p", "--property", "properties", multiple=True, metavar="KEY=VALUE", help="What you want to know of it.")
@click.option("--report", "reports", multiple=True, metavar="KIND=URI", help="model_quality=s3://...: what is claimed.")
@click.option("--description")
@options
def register(session: Session, model: str, requirements: Any, **given: Any) -> None:
    """Add a version made of objects: loopline versions register churn --data s3://models/model.tar.gz."""
    pairs = {key: pairs_of(given.pop(key)) for key in ("variables", "properties", "reports")}
    body = {**given, **{key: value for key, value in pairs.items() if value}}
    if requirements is not None:
        body["requirements"] = requirements.read()
    made = session.client.post("models", model, "versions", **body)
    session.done(made, f"{model} v{made['number']} is {made['status']}, {made['verification']}")


@versions.command()
@click.argument("model")
@click.argument("version", type=VERSION, required=False)
@click.option("--description")
@click.option("-p", "--property", "properties", multiple=True, metavar="KEY=VALUE", help="Change or add one.")
@click.option("--remove", multiple=True, metavar="KEY", help="Forget one.")
@options
def describe(
    session: Session,
    model: str,
    version: int | None,
    description: str | None,
    properties: tuple[str, ...],
    remove: tuple[str, ...],
) -> None:
    """Change the words about a version."""
    name, number = model_and_number(model, version)
    body = {"properties": pairs_of(properties) or None, "remove": list(remove) or None, "description": description}
    session.done(
        session.client.put("models", name, "versions", number, "words", **body), f"{name} v{number} is described anew"
    )


@versions.command()
@click.argument("model")
@click.argument("version", type=VERSION, required=False)
@click.option("--comment", help="Why.")
@options
def reopen(session: Session, model: str, version: int | None, comment: str | None) -> None:
    """Let a version that was decided on wait for a decision again."""
    name, number = model_and_number(model, version)
    found = session.client.post("models", name, "versions", number, "reopen", comment=comment)
    session.done(found, f"{name} v{number} is {found['status']}")


@versions.command()
@click.argument("model")
@click.argument("version", type=VERSION, required=False)
@click.option("--reason", help="Why.")
@options
def delete(session: Session, model: str, version: int | None, reason: str | None) -> None:
    """Take a version out of the registry; one that runs behind an endpoint stays."""
    name, number = model_and_number(model, version)
    session.done(session.client.delete("models", name, "versions", number, reason=reason), f"{name} v{number} deleted")


# -- the two verbs of approval, at the top level ----------------------------------------------------------------------


@click.command()
@click.argument("model")
@click.argument("version", type=VERSION, required=False)
@click.option("--comment", help="Why.")
@click.option("--force", is_flag=True, help="Although the gate refuses; needs --reason, is audited.")
@click.option("--reason", help="Why by force.")
@click.option(
    "--unverified", is_flag=True, help="Before it has passed; it works once it has, where the gate is enforced."
)
@click.option("--again", is_flag=True, help="Although it is Approved: endpoints that follow the model take it again.")
@options
def approve(
    session: Session,
    model: str,
    version: int | None,
    comment: str | None,
    force: bool,
    reason: str | None,
    *,
    unverified: bool,
    again: bool,
) -> None:
    """Approve a version: loopline approve patients 3. Exits 3 when the gate refuses."""
    name, number = model_and_number(model, version)
    path = ("models", name, "versions", number, "approve")
    given = {
        "comment": comment,
        "force": force or None,
        "reason": reason,
        "unverified": unverified or None,
        "again": again or None,
    }
    found = session.client.post(*path, **given)
    session.done(found, f"{name} v{number} is {found['status']}")


@click.command()
@click.argument("model")
@click.argument("version", type=VERSION, required=False)
@click.option("--comment", required=True, help="Why.")
@options
def reject(session: Session, model: str, version: int | None, comment: str) -> None:
    """Reject a version, saying why."""
    name, number = model_and_number(model, version)
    found = session.client.post("models", name, "versions", number, "reject", comment=comment)
    session.done(found, f"{name} v{number} is {found['status']}")
    for endpoint in found.get("serving") or ():
        session.note(f"it still serves {endpoint}; to take it away: loopline rollback {endpoint}")
