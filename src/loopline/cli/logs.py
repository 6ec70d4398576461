"""logs: what the predict code of an endpoint prints."""

import re
import sys
import time
from typing import Any

import click

from loopline.cli.session import Session, clean, moment, options

MAX_LINES = 10_000
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 1.0


@click.command()
@click.argument("endpoint")
@click.option("--follow", "-f", is_flag=True, help="Go on with what is printed from now on.")
@click.option("--grep", metavar="REGEX", help="Only lines whose text matches.")
@click.option("--request", metavar="ID", help="Only what was printed while this request was predicted.")
@click.option("--variant", help="Only of this variant.")
@click.option("--since", help="A time, or 10m, 2h, 1d ago.")
@click.option("--lines", "-n", type=click.IntRange(1, MAX_LINES), default=100, show_default=True, help="The last ones.")
@options
def logs(
    session: Session, *, endpoint: str, follow: bool, grep: str | None, since: str | None, lines: int, **which: Any
) -> None:
    """What predict code prints and logs, by request id; of a job: loopline jobs log."""
    try:
        pattern = re.compile(grep or "")
    except re.error as error:
        raise click.BadParameter(f"{grep!r} is no regular expression: {error}", param_hint="--grep") from None
    asked = {"start": moment(since), **which}
    # The server does not run other people's patterns: more is fetched, and searched here.
    found = session.client.get("endpoints", endpoint, "logs", lines=MAX_LINES if grep else lines, **asked)
    _print(session, [item for item in found["items"] if pattern.search(item["text"])][-lines:])
    pause = FIRST_PAUSE_SECONDS
    while follow:
        found = session.client.get("endpoints", endpoint, "logs", cursor=found["next"], **asked)
        _print(session, [item for item in found["items"] if pattern.search(item["text"])])
        pause = FIRST_PAUSE_SECONDS if found["items"] else min(pause * 1.5, LONGEST_PAUSE_SECONDS)
        time.sleep(pause)


def _print(session: Session, items: list[dict[str, Any]]) -> None:
    for item in items:
        if session.as_json:
            session.json(item)
            continue
        text = clean(item["text"]) if sys.stdout.isatty() else item["text"]
        head = f"{item['at'] or '-'} {item['variant']} [{','.join(item['requests']) or '-'}]"
        click.echo(f"{click.style(clean(head), dim=True)} {text}")
    sys.stdout.flush()
