"""``python -m loopline.fronts.aws.compatibility`` writes docs/compatibility/sagemaker.md from what is served."""

import sys
import textwrap

from loopline.fronts.aws import models
from loopline.fronts.aws.call import Operation
from loopline.fronts.aws.table import TABLE

# Answered by the gateway itself, on the way of every prediction.
GATEWAY = {"sagemaker-runtime": {"InvokeEndpoint": ""}}

_HEAD = """\
# AWS operations that loopline answers

Written from the code by `make compatibility`; a test keeps it true. How to use it: [how-to](../how-to/sagemaker.md).

*yes*: it does what AWS's does, as far as one installation can. *partly*: it does, but for what is named. Everything
else of these services answers 501 with the operation's name, other services too; nothing pretends to have been done.
Required members, types and minima are checked as AWS does. Enums, patterns and maxima are checked where
`aws_strict = 1` stands in settings.toml; else a call that breaks one works and leaves a warning
(`loopline warnings list`).
"""


def _rows(service: str) -> dict[str, str]:
    """Operation to what of it is not done."""
    table: dict[str, Operation] = TABLE.get(service, {})
    return {**{name: operation.partly for name, operation in table.items()}, **GATEWAY.get(service, {})}


def render() -> str:
    """The page."""
    services = sorted({*TABLE, *GATEWAY})
    lines = [_HEAD, "| service | operations of AWS | yes | partly |", "|---|---|---|---|"]
    for service in services:
        rows = _rows(service)
        partly = sum(1 for text in rows.values() if text)
        lines.append(f"| {service} | {len(models.service(service).names)} | {len(rows) - partly} | {partly} |")
    for service in services:
        rows = _rows(service)
        lines += ["", f"## {service}", "", "| operation | |", "|---|---|"]
        lines += [f"| {name} | {f'partly: {rows[name]}' if rows[name] else 'yes'} |" for name in sorted(rows)]
        absent = sorted(set(models.service(service).names) - rows.keys())
        if absent:
            lines += ["", textwrap.fill(f"Not: {', '.join(absent)}.", 140, break_long_words=False)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
