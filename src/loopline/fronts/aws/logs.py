"""CloudWatch's logs of jobs: a group for each kind, a stream for each host of a job. They are read, never written.

An event is a line, and its time is when it came, to a tenth of a second. It never changes, because clients go on where
they were by a time and the number of events that they have seen of it.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

from loopline.control import scripts
from loopline.domain.access import Permission
from loopline.errors import AwsError, NotFound
from loopline.fronts.aws.call import Call, Operation

GROUPS = {
    "/aws/sagemaker/TrainingJobs": "training",
    "/aws/sagemaker/ProcessingJobs": "processing",
    "/aws/sagemaker/TransformJobs": "transform",
}
MAX_STREAMS = 50
MAX_EVENTS = 10_000
MAX_BYTES = 1 << 20
PIECE_BYTES = 1 << 20
LAST = 1 << 40  # behind the end of any log


def _group(given: dict[str, Any]) -> str:
    name = given.get("logGroupName") or str(given.get("logGroupIdentifier") or "").rpartition(":")[2]
    if name not in GROUPS:
        raise AwsError("ResourceNotFoundException", "The specified log group does not exist.")
    return name


def describe_log_streams(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DescribeLogStreams."""
    group = _group(given)
    prefix = given.get("logStreamNamePrefix") or ""
    by_time = given.get("orderBy") == "LastEventTime"
    if by_time and prefix:
        text = "Cannot order by LastEventTime with a logStreamNamePrefix."
        raise AwsError("InvalidParameterException", text)
    found = scripts.list_(
        call.ctx,
        call.actor,
        contract=GROUPS[group],
        contains=prefix.partition("/")[0] or None,
        order="ended" if by_time else "name",
        descending=bool(given.get("descending")),
        limit=int(given.get("limit") or MAX_STREAMS),
        cursor=given.get("nextToken"),
    )
    streams = [stream for row in found["items"] for stream in _streams(call, group, row)]
    wanted = [stream for stream in streams if stream["logStreamName"].startswith(prefix)]
    if not wanted and not _any(call, GROUPS[group]):
        raise AwsError("ResourceNotFoundException", "The specified log group does not exist.")
    if by_time:
        wanted.sort(key=lambda stream: int(stream["lastEventTimestamp"]), reverse=bool(given.get("descending")))
    return {"logStreams": wanted, "nextToken": found["next"]}


def _any(call: Call, contract: str) -> bool:
    """Whether any program of that kind has begun."""
    rows = scripts.list_(call.ctx, call.actor, contract=contract, limit=100)["items"]
    return any(row["job_started_at"] is not None for row in rows)


def _names(row: dict[str, Any]) -> list[str]:
    """The streams of a job that has begun, one for each of its hosts."""
    if row["job_started_at"] is None:
        return []
    hosts = range(1, row["definition"].get("hosts", 1) + 1)
    return [f"{row['name']}/algo-{host}-{int(row['job_started_at'])}" for host in hosts]


def _streams(call: Call, group: str, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    names = _names(row)
    if not names:
        return
    began = int(row["job_started_at"] * 1000)
    first, last = (_time(call, row, offset) or began for offset in (0, LAST))
    for name in names:
        yield {
            "logStreamName": name,
            "creationTime": began,
            "firstEventTimestamp": first,
            "lastEventTimestamp": last,
            "lastIngestionTime": last,
            "uploadSequenceToken": "0",
            "arn": call.arn("logs", f"log-group:{group}:log-stream:{name}"),
            "storedBytes": 0,
        }


def _time(call: Call, row: dict[str, Any], offset: int) -> int | None:
    """When what stands there in a program's log came, in milliseconds; None when nothing did."""
    piece = scripts.log(call.ctx, call.actor, contract=row["contract"], name=row["name"], offset=offset, limit=1)
    return int(piece["times"][0][1] * 1000) if piece["times"] else None


def get_log_events(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """GetLogEvents."""
    contract = GROUPS[_group(given)]
    lines = _lines(call, contract, given["logStreamName"])
    first, last = _range(lines, given)
    events = [{"timestamp": at, "ingestionTime": at, "message": line} for at, line in lines[first:last]]
    return {"events": events, "nextForwardToken": f"f/{last}", "nextBackwardToken": f"b/{first}"}


def _lines(call: Call, contract: str, stream: str) -> list[tuple[int, str]]:
    """The whole lines of a stream so far, each with its time in milliseconds."""
    absent = AwsError("ResourceNotFoundException", "The specified log stream does not exist.")
    name, _, host = stream.partition("/")
    try:
        row = scripts.show(call.ctx, call.actor, contract=contract, name=name)
    except NotFound:
        raise absent from None
    known = _names(row)
    if stream not in known:
        raise absent

    def read(offset: int) -> dict[str, Any]:
        return scripts.log(call.ctx, call.actor, contract=contract, name=name, offset=offset, limit=PIECE_BYTES)

    text, times = _whole(read, row["job_started_at"])
    whole = text.split("\n")
    begins = accumulate((len(line) + 1 for line in whole), initial=0)
    came = [int(times[bisect_right(times, (begin, float("inf"))) - 1][1] * 1000) for begin in begins]
    if row["job_ended_at"] is None or not whole[-1]:
        whole.pop()  # a line that is being written
    found = list(zip(accumulate(came, max), whole, strict=False))
    if len(known) > 1:
        mark = f"[{host.rpartition('-')[0]}] "
        return [(at, line.removeprefix(mark)) for at, line in found if line.startswith((mark, "[loopline] "))]
    return found


def _whole(read: Callable[[int], dict[str, Any]], began_at: float) -> tuple[str, list[tuple[int, float]]]:
    """A log, and when what stands from a place in it on came; at least since the program began."""
    text, times = "", [(0, float(began_at))]
    offset = 0
    while True:
        piece = read(offset)
        if not piece["text"]:
            return text, times
        times += [(len(text) + place, at) for place, at in piece["times"]]
        text += piece["text"]
        offset = piece["next_offset"]


def _range(lines: list[tuple[int, str]], given: dict[str, Any]) -> tuple[int, int]:
    """Which lines a request means: as many as it may get after (or before) where the token or the start stands, of
    those of its times. Tokens are places among all lines."""
    least = bisect_left(lines, (given.get("startTime") or 0,))
    end = max(least, bisect_left(lines, (given["endTime"],)) if given.get("endTime") is not None else len(lines))
    most = min(int(given.get("limit") or MAX_EVENTS), MAX_EVENTS)
    kind, _, text = str(given.get("nextToken") or "").partition("/")
    if kind:
        if kind not in ("f", "b") or not text.isdecimal():
            raise AwsError("InvalidParameterException", "The specified nextToken is invalid.")
        place, forward = max(least, min(int(text), end)), kind == "f"
    else:
        forward = bool(given.get("startFromHead"))
        place = least if forward else end
    size, count = 0, 0
    ordered = lines[place:end] if forward else lines[least:place][::-1]
    for _, line in ordered[:most]:
        size += len(line.encode()) + 26
        if size > MAX_BYTES:
            break
        count += 1
    return (place, place + count) if forward else (place - count, place)


OPERATIONS = {
    "DescribeLogStreams": Operation(
        describe_log_streams, Permission.READ, "of training, processing and transform jobs"
    ),
    "GetLogEvents": Operation(get_log_events, Permission.READ, "of jobs, a stream for each host"),
}
