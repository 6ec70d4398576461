"""What the lists of hosting have in common: SortBy, SortOrder, NameContains, times, MaxResults and NextToken.

Source: botocore's ListModelsInput, ListEndpointConfigsInput and ListEndpointsInput.
"""

import base64
import binascii
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from loopline.errors import AwsError

USUAL_RESULTS = 10  # as AWS does
EVERY = 10_000  # records that are looked through

Row = dict[str, Any]


def seconds(moment: datetime | None, usual: float) -> float:
    """A time of a request in seconds since the epoch."""
    return usual if moment is None else moment.timestamp()


def page(rows: Iterable[Row], given: Row, member: str, summary: Callable[[Row], Row]) -> Row:
    """One page of a list. ``rows`` have ``name`` and ``created_at``; ``summary`` makes of one what ``member`` holds."""
    wanted = str(given.get("NameContains") or "").lower()
    after, before = seconds(given.get("CreationTimeAfter"), 0.0), seconds(given.get("CreationTimeBefore"), float("inf"))
    kept = [row for row in rows if wanted in row["name"].lower() and after <= row["created_at"] <= before]
    key = "name" if given.get("SortBy") == "Name" else "created_at"
    kept.sort(key=lambda row: row[key], reverse=given.get("SortOrder", "Descending") != "Ascending")
    start = _offset(given.get("NextToken"))
    end = start + int(given.get("MaxResults") or USUAL_RESULTS)
    token = {"NextToken": base64.b64encode(str(end).encode()).decode()} if end < len(kept) else {}
    return {member: [summary(row) for row in kept[start:end]], **token}


def _offset(token: str | None) -> int:
    if token is None:
        return 0
    try:
        return max(0, int(base64.b64decode(token, validate=True)))
    except (binascii.Error, ValueError):
        raise AwsError("ValidationException", "The NextToken is not one that was given") from None
