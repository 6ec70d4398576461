"""Which SNS topics hear of a bucket's objects."""

from typing import Any

from loopline.control import buckets, publishing
from loopline.domain.notifications import iso
from loopline.domain.objectnotices import CHANGES, SUBJECT, trial
from loopline.errors import AwsError, NotFound
from loopline.fronts.aws import arns
from loopline.fronts.aws.call import Call

_SCHEME = "s3:"
_KINDS = ("ObjectCreated", "ObjectRemoved")
_OTHERS = {
    "QueueConfigurations": "queues (SQS)",
    "LambdaFunctionConfigurations": "functions (Lambda)",
    "EventBridgeConfiguration": "EventBridge",
}


def _changes(events: list[str]) -> list[str]:
    """What S3's events are called by loopline; raises ``AwsError`` for one that never happens here."""
    found: list[str] = []
    for event in events:
        name = event.removeprefix(_SCHEME)
        kind, _, which = name.partition(":")
        every = which == "*"
        meant = [each for each, said in CHANGES.items() if said == name or (every and said.startswith(f"{kind}:"))]
        if not meant:
            known = ", ".join(_SCHEME + said for said in (*(f"{kind}:*" for kind in _KINDS), *CHANGES.values()))
            raise AwsError("InvalidArgument", f"The event '{event}' is not supported by loopline; events: {known}")
        found += [change for change in meant if change not in found]
    return found


def _events(changes: list[str]) -> list[str]:
    """S3's names, all of a kind together."""
    names = [CHANGES[change] for change in changes]
    for kind in _KINDS:
        every = {said for said in CHANGES.values() if said.startswith(kind)}
        if every <= set(names):
            names = [f"{kind}:*", *(name for name in names if name not in every)]
    return [_SCHEME + name for name in names]


def _rule(given: dict[str, Any]) -> dict[str, Any]:
    arn = arns.find(given["TopicArn"])
    if arn is None or arn.service != "sns" or ":" in arn.resource:
        raise AwsError("InvalidArgument", "The ARN could not be parsed")
    affixes = {"prefix": "", "suffix": ""}
    for each in ((given.get("Filter") or {}).get("Key") or {}).get("FilterRules") or ():
        name = str(each.get("Name")).lower()
        if name not in affixes:
            raise AwsError("InvalidArgument", "filter rule name must be either prefix or suffix")
        if affixes[name]:
            raise AwsError("InvalidArgument", f"Cannot specify more than one {name} rule in a filter.")
        affixes[name] = each.get("Value") or ""
    return {"id": given.get("Id") or "", "topic": arn.resource, "events": _changes(given["Events"]), **affixes}


def put_bucket_notification_configuration(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Replace them; each topic is sent a message that says so, as S3 does."""
    wanted = given.get("NotificationConfiguration") or {}
    for member, said in _OTHERS.items():
        if wanted.get(member) is not None:
            raise AwsError("NotImplemented", f"{member} is not supported by loopline: it tells topics, not {said}", 501)
    rules = [_rule(each) for each in wanted.get("TopicConfigurations") or ()]
    try:
        buckets.set_notifications(call.ctx, call.actor, bucket=given["Bucket"], rules=rules)
    except NotFound as error:
        if error.details.get("missing") != "topic":
            raise
        text = f"Unable to validate the following destination configurations: {error.message}"
        raise AwsError("InvalidArgument", text) from None
    now = iso(call.ctx.clock.now())
    for topic in sorted({rule["topic"] for rule in rules}):
        publishing.publish(
            call.ctx, call.actor, topic=topic, subject=SUBJECT, message=trial(given["Bucket"], now, call.request_id)
        )
    return {}


def get_bucket_notification_configuration(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Those that there are."""
    rules = buckets.notifications(call.ctx, call.actor, bucket=given["Bucket"])["items"]
    return {"TopicConfigurations": [_configuration(call, rule) for rule in rules] or None}


def _configuration(call: Call, rule: dict[str, Any]) -> dict[str, Any]:
    affixes = [{"Name": name.capitalize(), "Value": rule[name]} for name in ("prefix", "suffix") if rule[name]]
    return {
        "Id": rule["id"],
        "TopicArn": call.arn("sns", rule["topic"]),
        "Events": _events(rule["events"]),
        "Filter": {"Key": {"FilterRules": affixes}} if affixes else None,
    }
