"""Tests of endpoints: list, show, put, delete, record, run, history, result."""

from pathlib import Path
from typing import Any

import click

from loopline.cli.session import Session, assignments, clean, limit_option, moment, options
from loopline.errors import InvalidInput

KINDS = ["golden", "call", "load"]
COLUMNS = (
    ("TEST", "name"),
    ("KIND", "kind"),
    ("CASES", lambda test: test["case_count"] or None),
    ("FROM", "source"),
    ("CHANGED", "changed_at"),
    ("BY", "by"),
)
RUN_COLUMNS = (
    ("RUN", "id"),
    ("STATUS", "status"),
    ("VERSION", lambda run: f"{run['model']} v{run['number']}" if run.get("number") else run["variant"]),
    ("STAGE", "stage"),
    ("AT", "created_at"),
    ("BY", "by"),
    ("REASON", "reason"),
)
LINES = ("requests", "errors", "per_second", "p50_ms", "p99_ms", "max_ms", "right", "cases")


@click.group()
def tests() -> None:
    """What an endpoint's versions have to show before traffic moves."""


@tests.command("list")
@click.argument("endpoint")
@options
def list_(session: Session, endpoint: str) -> None:
    """An endpoint's tests in the order in which they are run."""
    session.table(session.client.get("endpoints", endpoint, "tests"), COLUMNS, empty="no tests")


@tests.command()
@click.argument("endpoint")
@click.argument("name")
@options
def show(session: Session, endpoint: str, name: str) -> None:
    """One test with its cases."""
    session.record(session.client.get("endpoints", endpoint, "tests", name))


@tests.command()
@click.argument("endpoint")
@click.argument("name")
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--cases", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="golden: one case a line.")
@click.option("--body", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="load: what is sent.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="As in [[tests]] of loop.toml.")
@options
def put(
    session: Session,
    endpoint: str,
    name: str,
    kind: str,
    cases: Path | None,
    body: Path | None,
    settings: tuple[str, ...],
) -> None:
    """Create or change a test: loopline tests put patients smoke golden --cases golden.jsonl."""
    definition: dict[str, Any] = {"kind": kind, **assignments(settings)}
    if cases is not None:
        from loopline.domain.endpoint_tests import read_cases

        definition["cases"] = read_cases(cases.read_text(), cases.name)
    if body is not None:
        text, content_type = body_of(body)
        definition["body"] = text
        definition.setdefault("content_type", content_type)
    made = session.client.put("endpoints", endpoint, "tests", name, definition=definition)
    session.done(made, f"test {name} of {endpoint}: {kind}" + _count(made))


def body_of(path: Path) -> tuple[str, str]:
    """The text of a request and its type, by the file's name: JSON, else CSV."""
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not text; a test's request is JSON or CSV") from None
    return text, "application/json" if path.suffix == ".json" else "text/csv"


def _count(test: dict[str, Any]) -> str:
    return f", {test['case_count']} cases" if test["case_count"] else ""


@tests.command()
@click.argument("endpoint")
@click.argument("name")
@options
def delete(session: Session, endpoint: str, name: str) -> None:
    """Remove a test."""
    session.done(session.client.delete("endpoints", endpoint, "tests", name), f"test {name} of {endpoint} removed")


@tests.command()
@click.argument("endpoint")
@click.option("--name", default="recorded", show_default=True, help="What the test is called.")
@click.option("--last", default=50, show_default=True, type=click.IntRange(1, 1000), help="How many requests.")
@click.option("--since", default="1h", show_default=True, help="A time, or 10m, 2h, 1d ago.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Such as relative=0.01, min_share=0.95.")
@options
def record(session: Session, endpoint: str, name: str, last: int, since: str, settings: tuple[str, ...]) -> None:
    """Make a golden test of captured requests and the answers that they got."""
    path = ("endpoints", endpoint, "tests", name, "record")
    made = session.client.post(*path, last=last, start=moment(since), definition=assignments(settings) or None)
    session.done(made, f"test {name} of {endpoint}: golden" + _count(made))


@tests.command()
@click.argument("endpoint")
@click.argument("names", nargs=-1)
@click.option("--variant", help="By name, such as v3 (default: the one that serves most).")
@click.option("--wait/--no-wait", default=True, help="Wait for the verdict; exits 1 when a test fails.")
@click.option("--timeout", type=float, help="Seconds to wait.")
@options
def run(
    session: Session, endpoint: str, names: tuple[str, ...], variant: str | None, wait: bool, timeout: float | None
) -> int:
    """Run an endpoint's tests (all, or those named) against a variant."""
    made = session.client.post("endpoints", endpoint, "test-runs", variant=variant, tests=list(names) or None)
    if not wait:
        session.done(made, f"run {made['id']} {made['status']}")
        return 0
    found = session.client.wait_test_run(made["id"], timeout)
    _tell(session, found)
    return 0 if found["status"] == "Passed" else 1


def _tell(session: Session, run: dict[str, Any]) -> None:
    """A run: a line for each test, then what failed."""
    if session.as_json:
        session.json(run)
        return
    version = f"{run['model']} v{run['number']}" if run.get("number") else run["variant"]
    click.echo(clean(f"{run['status']}: {version} behind {run['endpoint']} ({run['id']}, {run['stage']})"))
    for result in run["results"] or ():
        figures = ", ".join(f"{name} {result['figures'][name]}" for name in LINES if name in result["figures"])
        line = f"  {result['status']:7} {result['test']} ({result['kind']}, {result['seconds']:.2f} s)"
        click.echo(clean(f"{line} {figures}".rstrip()))
        for each in result["failed"]:
            click.echo(clean(f"          {each['check']}: expected {each['expected']}, got {each['got']}"))
    if not run["results"] or run["status"] == "Stopped":
        session.note(run["reason"] or "no test has run yet")


@tests.command()
@click.argument("endpoint", required=False)
@click.option("--model", help="Of a version: with --version.")
@click.option("--version", "number", type=int)
@click.option("--status")
@limit_option
@options
def history(session: Session, **filters: Any) -> None:
    """What tests and load tests found, newest first: of an endpoint, or of a version."""
    session.table(session.client.get("test-runs", **filters), RUN_COLUMNS, empty="no test has run")


@tests.command()
@click.argument("run")
@options
def result(session: Session, run: str) -> None:
    """What one run found, test by test."""
    _tell(session, session.client.get("test-runs", run))
