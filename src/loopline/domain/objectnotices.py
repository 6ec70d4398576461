"""Which topics hear of which objects of a bucket, and the message for receivers that were written for S3's.

Source of the message: Amazon S3 User Guide, "Event message structure" (version 2.1). Of its members those are left out
that say where a request came from.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote_plus

import msgspec

from loopline.domain.names import check_name
from loopline.errors import InvalidInput

MAX_RULES = 100  # of a bucket
MAX_AFFIX_BYTES = 1024
SUBJECT = "Amazon S3 Notification"
# What happens to objects, and S3's names for it.
CHANGES = {
    "put": "ObjectCreated:Put",
    "copy": "ObjectCreated:Copy",
    "upload": "ObjectCreated:CompleteMultipartUpload",
    "delete": "ObjectRemoved:Delete",
    "mark": "ObjectRemoved:DeleteMarkerCreated",
}


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tell ``topic`` of these changes of objects whose keys begin and end so; ``id`` is made unless given."""

    topic: str
    events: tuple[str, ...] = ("put", "copy", "upload")
    prefix: str = ""
    suffix: str = ""
    id: str = ""


def check_rules(given: object) -> list[Rule]:
    """The rules of one bucket; raises ``InvalidInput`` for what is none, and for two that tell of the same event."""
    try:
        found = [_named(rule) for rule in msgspec.convert(given, list[Rule])]
    except msgspec.ValidationError as error:
        raise InvalidInput(f"rules: {error}", field="rules") from None
    if len(found) > MAX_RULES:
        raise InvalidInput(f"rules: a bucket has at most {MAX_RULES}, not {len(found)}", field="rules")
    for position, rule in enumerate(found):
        _check(rule)
        for other in found[:position]:
            if rule.id == other.id:
                raise InvalidInput(f"rules: two have the id {rule.id!r}", field="rules")
            if _overlap(rule, other):
                raise InvalidInput(
                    f"rules {other.id} and {rule.id}: Configurations overlap. Configurations on the same bucket cannot "
                    "share a common event type: let their prefixes, their suffixes or their events differ",
                    field="rules",
                )
    return found


def _named(rule: Rule) -> Rule:
    if rule.id:
        return rule
    told = json.dumps([rule.topic, rule.events, rule.prefix, rule.suffix])
    return msgspec.structs.replace(rule, id=hashlib.sha256(told.encode()).hexdigest()[:16])


def _check(rule: Rule) -> None:
    check_name(rule.topic, "a topic")
    unknown = [each for each in rule.events if each not in CHANGES]
    if unknown or not rule.events:
        said = f"{unknown[0]!r} is not what happens to an object" if unknown else "a rule needs events"
        raise InvalidInput(f"rules: {said}; events: {', '.join(CHANGES)}", field="events")
    for name, text in (("id", rule.id), ("prefix", rule.prefix), ("suffix", rule.suffix)):
        if len(text.encode()) > MAX_AFFIX_BYTES or "\x00" in text:
            raise InvalidInput(f"rules: {name} has at most {MAX_AFFIX_BYTES} bytes, and no NUL", field=name)


def _overlap(one: Rule, other: Rule) -> bool:
    """Whether an event could fit both."""
    return (
        not set(one.events).isdisjoint(other.events)
        and (one.prefix.startswith(other.prefix) or other.prefix.startswith(one.prefix))
        and (one.suffix.endswith(other.suffix) or other.suffix.endswith(one.suffix))
    )


def change_of(event: Mapping[str, Any]) -> str | None:
    """What an event of the noun ``object`` means; None for what nobody is told of, such as new tags."""
    data = event["data"] or {}
    if event["kind"] == "deleted":
        return "delete" if "key" in data else None  # else it was overwritten
    if event["kind"] != "created":
        return None
    kind = "mark" if data.get("marker") else (data.get("source") or {}).get("kind")
    return kind if kind in CHANGES else "put"


def fits(rules: Iterable[Mapping[str, Any]], bucket: str, key: str, change: str) -> Mapping[str, Any] | None:
    """The rule that tells of this; there is at most one of a bucket."""
    for rule in rules:
        there = rule["bucket"] == bucket and change in rule["events"]
        if there and key.startswith(rule["prefix"]) and key.endswith(rule["suffix"]):
            return rule
    return None


def message(sent: Mapping[str, Any], region: str, account: str) -> str:
    """S3's JSON for what ``notifications.message`` made of such an event."""
    data = sent["data"]
    thing = {
        "key": quote_plus(data["key"], safe="/"),
        "size": data.get("size_bytes"),
        "eTag": data.get("etag"),
        "versionId": data.get("version"),
        "sequencer": f"{data['event']:018X}",
    }
    bucket = {
        "name": data["bucket"],
        "ownerIdentity": {"principalId": account},
        "arn": f"arn:aws:s3:::{data['bucket']}",
    }
    record = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": region,
        "eventTime": sent["timestamp"],
        "eventName": CHANGES[data["change"]],
        "userIdentity": {"principalId": f"AWS:{data['actor']}"},
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": data["rule"],
            "bucket": bucket,
            "object": {name: value for name, value in thing.items() if value is not None},
        },
    }
    return json.dumps({"Records": [record]}, ensure_ascii=False)


def trial(bucket: str, at: str, request: str) -> str:
    """What S3 sends when somebody asks to be told."""
    return json.dumps(
        {"Service": "Amazon S3", "Event": "s3:TestEvent", "Time": at, "Bucket": bucket, "RequestId": request}
    )
