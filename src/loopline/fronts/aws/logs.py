"""CloudWatch's logs of jobs: a group for each kind, a stream for each host of a job. They are read, never written.

A line has no time of its own: its event's is when the program began, which is how the SDK tells events apart (it counts
those of one time).
"""

from collections.abc import Callable, Iterator
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
    found = scripts.list_(
        call.ctx,
        call.actor,
        contract=GROUPS[group],
        contains=prefix.partition("/")[0] or None,
        order="created" if by_time else "name",
        descending=bool(given.get("descending")),
        limit=int(given.get("limit") or MAX_STREAMS),
        cursor=given.get("nextToken"),
    )
    streams = [stream for row in found["items"] for stream in _streams(call, group, row)]
    wanted = [stream for stream in streams if stream["logStreamName"].startswith(prefix)]
    if not wanted and not _any(call, GROUPS[group]):
        raise AwsError("ResourceNotFoundException", "The specified log group does not exist.")
    return {"logStreams": wanted, "nextToken": found["next"]}


def _any(call: Call, contract: str) -> bool:
    """Whether any program of that kind has begun."""
    rows = scripts.list_(call.ctx, call.actor, contract=contract, limit=100)["items"]
    return any(row["job_started_at"] is not None for row in rows)


def _streams(call: Call, group: str, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if row["job_started_at"] is None:
        return
    began = int(row["job_started_at"] * 1000)
    for number in range(row["definition"].get("hosts", 1)):
        name = f"{row['name']}/algo-{number + 1}-{began // 1000}"
        yield {
            "logStreamName": name,
            "creationTime": began,
            "firstEventTimestamp": began,
            "lastEventTimestamp": began,
            "lastIngestionTime": began,
            "uploadSequenceToken": "0",
            "arn": call.arn("logs", f"log-group:{group}:log-stream:{name}"),
            "storedBytes": 0,
        }


def get_log_events(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """GetLogEvents."""
    contract = GROUPS[_group(given)]
    began, lines = _lines(call, contract, given["logStreamName"])
    if not given.get("startTime", 0) <= began < given.get("endTime", began + 1):
        lines = []
    first, last = _range(lines, given)
    events = [{"timestamp": began, "ingestionTime": began, "message": line} for line in lines[first:last]]
    return {"events": events, "nextForwardToken": f"f/{last}", "nextBackwardToken": f"b/{first}"}


def _lines(call: Call, contract: str, stream: str) -> tuple[int, list[str]]:
    """When a stream began, in milliseconds, and its whole lines so far."""
    absent = AwsError("ResourceNotFoundException", "The specified log stream does not exist.")
    name, _, host = stream.partition("/")
    try:
        row = scripts.show(call.ctx, call.actor, contract=contract, name=name)
    except NotFound:
        raise absent from None
    known = [entry["logStreamName"] for entry in _streams(call, "", row)]
    if stream not in known:
        raise absent

    def read(offset: int) -> dict[str, Any]:
        return scripts.log(call.ctx, call.actor, contract=contract, name=name, offset=offset, limit=PIECE_BYTES)

    lines = "".join(_pieces(read))
    whole = lines.split("\n")
    if row["job_ended_at"] is None or not whole[-1]:
        whole.pop()  # a line that is being written
    if len(known) > 1:
        mark = f"[{host.rpartition('-')[0]}] "
        whole = [line.removeprefix(mark) for line in whole if line.startswith((mark, "[loopline] "))]
    return int(row["job_started_at"] * 1000), whole


def _pieces(read: Callable[[int], dict[str, Any]]) -> Iterator[str]:
    offset = 0
    while True:
        piece = read(offset)
        if not piece["text"]:
            return
        yield piece["text"]
        offset = piece["next_offset"]


def _range(lines: list[str], given: dict[str, Any]) -> tuple[int, int]:
    """Which lines a request means: as many as it may get after (or before) where the token or the start stands."""
    most = min(int(given.get("limit") or MAX_EVENTS), MAX_EVENTS)
    kind, _, text = str(given.get("nextToken") or "").partition("/")
    if kind:
        if kind not in ("f", "b") or not text.isdecimal():
            raise AwsError("InvalidParameterException", "The specified nextToken is invalid.")
        place, forward = min(int(text), len(lines)), kind == "f"
    else:
        forward = bool(given.get("startFromHead"))
        place = 0 if forward else len(lines)
    size, count = 0, 0
    ordered = lines[place:] if forward else lines[:place][::-1]
    for line in ordered[:most]:
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
