"""Searching logs: those of jobs as ``logs`` has them, and what the model servers of an endpoint print.

A stream of an endpoint's group, ``/aws/sagemaker/Endpoints/NAME``, is one server: ``VARIANT/SERVER``. The language of
patterns is that of the CloudWatch Logs user guide, "Match terms in unstructured log events".
"""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from loopline.control import endpoints
from loopline.control import logs as printed
from loopline.domain.access import Permission
from loopline.errors import AwsError, NotFound
from loopline.fronts.aws import logs
from loopline.fronts.aws.call import Call, Operation

ENDPOINTS = "/aws/sagemaker/Endpoints/"
MAX_EVENTS = 10_000
MAX_BYTES = 1 << 20
MAX_STREAMS = 50

Event = dict[str, Any]  # logStreamName, timestamp, message


def filter_log_events(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """FilterLogEvents: oldest first, by pages."""
    group = given.get("logGroupName") or str(given.get("logGroupIdentifier") or "").rpartition("log-group:")[2]
    wanted = _terms(given.get("filterPattern") or "")
    earliest, latest = given.get("startTime") or 0, given.get("endTime") or 1 << 62
    found = [
        event
        for event in (_of_endpoint if group.startswith(ENDPOINTS) else _of_jobs)(call, group, given)
        if earliest <= event["timestamp"] <= latest and wanted(event["message"])
    ]
    found.sort(key=lambda event: event["timestamp"])
    first = _place(given.get("nextToken"))
    last, size = first, 0
    for event in found[first : first + min(int(given.get("limit") or MAX_EVENTS), MAX_EVENTS)]:
        size += len(event["message"].encode()) + 26
        if size > MAX_BYTES and last > first:
            break
        last += 1
    more = {"nextToken": str(last)} if last < len(found) else {}
    return {"events": _numbered(found[:last])[first:], **more}


def _place(token: str | None) -> int:
    if token is None:
        return 0
    if not (token.isascii() and token.isdecimal() and len(token) < 10):
        raise AwsError("InvalidParameterException", "The specified nextToken is invalid.")
    return int(token)


def _numbered(events: list[Event]) -> list[Event]:
    """The events with ids that stay: those of alike lines of one moment are told apart by their order."""
    alike: Counter[tuple[str, int]] = Counter()
    for event in events:
        key = (event["logStreamName"], event["timestamp"])
        event |= {"eventId": f"{key[0]}:{key[1]}:{alike[key]}", "ingestionTime": event["timestamp"]}
        alike[key] += 1
    return events


def _is_chosen(stream: str, given: dict[str, Any]) -> bool:
    names = given.get("logStreamNames")
    return stream in names if names else stream.startswith(given.get("logStreamNamePrefix") or "")


# -- where they come from ---------------------------------------------------------------------------------------------


def _of_endpoint(call: Call, group: str, given: dict[str, Any]) -> Iterator[Event]:
    """The newest lines of an endpoint's servers. What has no time of its own has that of the line before it."""
    name = group.removeprefix(ENDPOINTS)
    try:
        shown = endpoints.show(call.ctx, call.actor, endpoint=name)
        lines = printed.read(call.ctx, call.actor, endpoint=name, lines=printed.MAX_LINES)["items"]
    except NotFound:
        raise AwsError("ResourceNotFoundException", "The specified log group does not exist.") from None
    called = {each["name"]: each["called"] or each["name"] for each in shown["variants"]}
    for line in lines:
        stream = f"{called.get(line['variant'], line['variant'])}/{line['server']}"
        if _is_chosen(stream, given):
            at = int(datetime.fromisoformat(line["at"]).timestamp() * 1000) if line["at"] else 0
            yield {"logStreamName": stream, "timestamp": at, "message": line["text"]}


def _of_jobs(call: Call, group: str, given: dict[str, Any]) -> Iterator[Event]:
    """The lines of the newest streams of a group of jobs."""
    asked = {"logGroupName": group, "orderBy": "LastEventTime", "descending": True, "limit": MAX_STREAMS}
    names = given.get("logStreamNames") or ()
    prefixes = [name.partition("/")[0] for name in names] or [given.get("logStreamNamePrefix")]
    for prefix in dict.fromkeys(prefixes):
        more = {"logStreamNamePrefix": prefix, "orderBy": "LogStreamName"} if prefix else {}
        for stream in logs.describe_log_streams(call, {**asked, **more})["logStreams"]:
            if _is_chosen(stream["logStreamName"], given):
                yield from _lines(call, group, stream["logStreamName"])


def _lines(call: Call, group: str, stream: str) -> Iterator[Event]:
    asked: dict[str, Any] = {"logGroupName": group, "logStreamName": stream, "startFromHead": True}
    while True:
        page = logs.get_log_events(call, asked)
        if not page["events"]:
            return
        for event in page["events"]:
            yield {"logStreamName": stream, "timestamp": event["timestamp"], "message": event["message"]}
        asked["nextToken"] = page["nextForwardToken"]


# -- what they have to hold -------------------------------------------------------------------------------------------


def _terms(pattern: str) -> Callable[[str], bool]:
    """Whether a message has every term of a pattern, none that is marked with ``-``, and one of those with ``?``."""
    refused = AwsError("InvalidParameterException", f"Invalid filter pattern, or not supported by loopline: {pattern}")
    if re.match(r"\s*[{\[%]", pattern):
        raise refused
    try:
        words = shlex.split(pattern)
    except ValueError:
        raise refused from None
    absent = [word[1:] for word in words if word[0:1] == "-" and len(word) > 1]
    any_of = [word[1:] for word in words if word[0:1] == "?" and len(word) > 1]
    present = [word for word in words if not word.startswith(("-", "?")) or len(word) == 1]

    def holds(message: str) -> bool:
        return (
            all(word in message for word in present)
            and not any(word in message for word in absent)
            and (not any_of or any(word in message for word in any_of))
        )

    return holds


OPERATIONS = {
    "FilterLogEvents": Operation(
        filter_log_events,
        Permission.READ,
        f"of jobs and endpoints; terms, no JSON or regular expressions; of a group of jobs the newest {MAX_STREAMS} "
        f"streams that were asked for, of an endpoint the newest {MAX_EVENTS} lines",
    )
}
