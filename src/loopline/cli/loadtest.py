"""A load on an endpoint, from here, through the public port."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import click

from loopline.cli.session import Session, options
from loopline.cli.tests import body_of


@click.command()
@click.argument("endpoint")
@click.option(
    "--body",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The request: .json, else CSV.",
)
@click.option("--content-type", help="Instead of the one by the file's name.")
@click.option(
    "--rate", type=click.FloatRange(0, 1_000_000, min_open=True), help="Requests/s, whatever the answers take."
)
@click.option("--connections", type=click.IntRange(1, 4096), default=64, show_default=True, help="At most.")
@click.option("--seconds", type=click.FloatRange(0, 86400, min_open=True), default=10.0, show_default=True)
@click.option("--variant", help="Only this one, by name, such as v3.")
@click.option("--save", is_flag=True, help="Keep the result with the version that answered.")
@click.option("--max-p50-ms", type=float, help="Exit 1 above this.")
@click.option("--max-p99-ms", type=float, help="Exit 1 above this.")
@click.option("--max-error-share", type=float, help="Exit 1 above this.")
@click.option("--min-rate", type=float, help="Exit 1 with fewer good answers/s.")
@options
def loadtest(
    session: Session,
    endpoint: str,
    *,
    body: Path,
    content_type: str | None,
    rate: float | None,
    connections: int,
    seconds: float,
    variant: str | None,
    save: bool,
    **limits: float | None,
) -> int:
    """Put a load on an endpoint and say what callers would see: at a rate, or as fast as it answers."""
    given = {name: value for name, value in limits.items() if value is not None}
    request = _request(session, endpoint, body, content_type, variant)
    refusals: dict[int, str] = {}
    figures = _measure(session, request, refusals, rate=rate or 0.0, connections=connections, seconds=seconds)
    failed = _judge(given, figures)
    if save:
        kept = session.client.post("endpoints", endpoint, "load-tests", figures=figures, limits=given or None)
        session.note(f"kept as {kept['id']} with {kept['model']} v{kept['number']}")
    if session.as_json:
        session.json({**figures, "failed": failed})
    else:
        _tell(figures)
        for line in (*(f"{status}: {said}" for status, said in sorted(refusals.items())), *failed):
            session.note(line)
    return 1 if failed else 0


def _request(session: Session, endpoint: str, body: Path, content_type: str | None, variant: str | None) -> bytes:
    """The bytes that are sent again and again."""
    from loopline.sdk.load import post

    text, kind = body_of(body)
    headers = {"Authorization": f"Bearer {session.client.key}"} if session.client.key else {}
    if variant is not None:
        headers["X-Loopline-Variant"] = variant
    parts = urlsplit(session.client.url)
    target = f"{parts.path.rstrip('/')}/endpoints/{quote(endpoint, safe='')}/invocations"
    return post(parts.netloc, target, text.encode(), content_type or kind, headers)


def _measure(session: Session, request: bytes, refusals: dict[int, str], **plan: Any) -> dict[str, Any]:
    """The figures of a load on a server. ``refusals`` gets what the first answer of each status but 2xx said."""
    from loopline.sdk.load import Plan, run

    def look(which: int, status: int, head: bytes, body: bytes, seconds: float) -> None:
        del which, head, seconds
        if not 200 <= status < 300 and status not in refusals:
            refusals[status] = _message(body)

    parts, tls = urlsplit(session.client.url), session.client.tls
    port = parts.port or (443 if tls else 80)
    return run(Plan([request], host=parts.hostname or "127.0.0.1", port=port, tls=tls, look=look, **plan))


def _message(body: bytes) -> str:
    """What an error's body says."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return body[:200].decode("utf-8", "replace")


def _judge(limits: dict[str, float], figures: dict[str, Any]) -> list[str]:
    """The limits that were broken, in words."""
    from loopline.domain.endpoint_tests import judge_load
    from loopline.domain.projects import EndpointTest

    test = EndpointTest(name="loadtest", kind="load", **{"max_error_share": 1.0, **limits})  # type: ignore[arg-type]
    return [str(failure) for failure in judge_load(test, figures)]


def _tell(figures: dict[str, Any]) -> None:
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(figures["statuses"].items()))
    lines = {
        "requests": f"{figures['requests']} in {figures['seconds']:g} s, {figures['per_second']:g} a second",
        "answers": statuses,
        "by": ", ".join(f"{name} {count}" for name, count in sorted(figures["variants"].items())),
        "latency": "  ".join(
            f"{name} {figures[key]:.2f} ms" if figures[key] is not None else f"{name} -"
            for name, key in (
                ("p50", "p50_ms"),
                ("p90", "p90_ms"),
                ("p99", "p99_ms"),
                ("p99.9", "p999_ms"),
                ("max", "max_ms"),
            )
        ),
    }
    for name, text in lines.items():
        click.echo(f"{name:10}{text}")
