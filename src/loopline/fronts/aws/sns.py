"""SNS: topics, and subscribers by https and e-mail, who are asked first as AWS asks them."""

import json
import uuid
from typing import Any

from loopline.control import confirmations, events, publishing, topics
from loopline.domain.access import Permission
from loopline.errors import AwsError, Conflict, NotFound
from loopline.fronts.aws import arns
from loopline.fronts.aws.call import Call, Operation

PENDING = "PendingConfirmation"
PROTOCOLS = {"http": "sns", "https": "sns", "email": "email"}
_SETTABLE = ("DisplayName", "Policy", "DeliveryPolicy")
PAGE = 100


def _topic(text: str) -> str:
    """The name in a topic's ARN."""
    arn = arns.find(text)
    if arn is None or arn.service != "sns" or ":" in arn.resource:
        raise AwsError("InvalidParameter", f"Invalid parameter: TopicArn Reason: {text!r} is not the ARN of a topic")
    return arn.resource


def _row(call: Call, name: str) -> dict[str, Any]:
    for row in topics.list_(call.ctx, call.actor)["items"]:
        if row["name"] == name:
            return dict(row)
    raise AwsError("NotFound", "Topic does not exist", 404)


# -- topics -----------------------------------------------------------------------------------------------------------


def create_topic(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Create one that carries what is published to it; the same name again gives the same topic."""
    name = given["Name"]
    if name.endswith(".fifo"):
        raise AwsError("InvalidParameter", "Invalid parameter: Name Reason: FIFO topics are not supported")
    settings = {key: value for key, value in (given.get("Attributes") or {}).items() if key in _SETTABLE}
    try:
        topics.create(call.ctx, call.actor, name=name, events=[], settings=settings or None)
    except Conflict:
        _row(call, name)
    return {"TopicArn": call.arn("sns", name)}


def delete_topic(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Remove one with its subscriptions; one that is not there is no error."""
    try:
        topics.delete(call.ctx, call.actor, name=_topic(given["TopicArn"]))
    except NotFound:
        return {}
    return {}


def list_topics(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """By name."""
    rows = topics.list_(call.ctx, call.actor)["items"]
    page = _page([{"TopicArn": call.arn("sns", row["name"])} for row in rows], given)
    return {"Topics": page["items"], "NextToken": page["next"]}


def _page(found: list[dict[str, Any]], given: dict[str, Any]) -> dict[str, Any]:
    offset = events.cursor_offset(given.get("NextToken"))
    return events.page(found[offset : offset + PAGE + 1], PAGE, offset)


def get_topic_attributes(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """What is known of a topic."""
    row = _row(call, _topic(given["TopicArn"]))
    pending = sum(each["pending_until"] is not None for each in row["subscriptions"])
    found = {
        "TopicArn": call.arn("sns", row["name"]),
        "Owner": call.account,
        "DisplayName": "",
        "SubscriptionsConfirmed": str(len(row["subscriptions"]) - pending),
        "SubscriptionsPending": str(pending),
        "SubscriptionsDeleted": "0",
        **(row["settings"] or {}),
    }
    return {"Attributes": found}


def set_topic_attributes(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Change what a topic's owner says of it."""
    name = given["AttributeName"]
    if name not in _SETTABLE:
        raise AwsError("InvalidParameter", f"Invalid parameter: AttributeName Reason: {name} is not supported")
    row = _row(call, _topic(given["TopicArn"]))
    settings = {**(row["settings"] or {}), name: given.get("AttributeValue") or ""}
    topics.set_settings(call.ctx, call.actor, name=row["name"], settings=settings)
    return {}


# -- subscriptions ----------------------------------------------------------------------------------------------------


def _subscription_arn(call: Call, row: dict[str, Any]) -> str:
    return call.arn("sns", f"{row['topic']}:{row['id']}")


def _subscription(text: str) -> str:
    """The id in a subscription's ARN."""
    arn = arns.find(text)
    if arn is None or arn.service != "sns" or ":" not in arn.resource:
        raise AwsError("InvalidParameter", f"Invalid parameter: SubscriptionArn Reason: {text!r} is none")
    return arn.resource.partition(":")[2]


def subscribe(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Ask an address whether it wants a topic's messages; the same address again gives the same subscription."""
    topic = _row(call, _topic(given["TopicArn"]))
    kind = PROTOCOLS.get(given["Protocol"])
    if kind is None:
        known = ", ".join(PROTOCOLS)
        text = f"Invalid parameter: Protocol Reason: {given['Protocol']} is not supported; {known} are"
        raise AwsError("InvalidParameter", text)
    attributes = dict(given.get("Attributes") or {})
    raw = attributes.pop("RawMessageDelivery", "false") == "true"
    if attributes:
        text = f"Invalid parameter: Attributes Reason: {', '.join(sorted(attributes))} is not supported"
        raise AwsError("InvalidParameter", text)
    endpoint = given.get("Endpoint") or ""
    there = [each for each in topic["subscriptions"] if (each["kind"], each["url"]) == (kind, endpoint)]
    if not there:
        row = topics.subscribe(
            call.ctx,
            call.actor,
            topic=topic["name"],
            kind=kind,
            url=endpoint,
            settings={"topic_arn": given["TopicArn"], **({"raw": True} if raw else {})},
        )
    elif there[0]["pending_until"] is not None:
        row = confirmations.ask_again(call.ctx, call.actor, subscription=there[0]["id"])
    else:
        row = there[0]
    pending = row["pending_until"] is not None and not given.get("ReturnSubscriptionArn")
    return {"SubscriptionArn": "pending confirmation" if pending else _subscription_arn(call, row)}


def confirm_subscription(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """What a receiver does with the token that it was sent."""
    topic = _topic(given["TopicArn"])
    identifier, _ = confirmations.read_token(given["Token"])
    if not any(each["id"] == identifier for each in _row(call, topic)["subscriptions"]):
        raise AwsError("InvalidParameter", "Invalid parameter: Token Reason: it is of no subscription of this topic")
    row = confirmations.confirm(call.ctx, call.actor, token=given["Token"])
    return {"SubscriptionArn": _subscription_arn(call, row)}


def unsubscribe(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Remove a subscription; one that is not there is no error."""
    try:
        topics.unsubscribe(call.ctx, call.actor, subscription=_subscription(given["SubscriptionArn"]))
    except NotFound:
        return {}
    return {}


def _shown(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    """A Subscription: webhooks of loopline's own kinds are shown by host and digest."""
    protocol = "email" if row["kind"] == "email" else str(row["url"]).partition(":")[0]
    return {
        "SubscriptionArn": PENDING if row["pending_until"] is not None else _subscription_arn(call, row),
        "Owner": call.account,
        "Protocol": protocol,
        "Endpoint": row["url"],
        "TopicArn": call.arn("sns", row["topic"]),
    }


def list_subscriptions(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Of all topics."""
    rows = topics.list_(call.ctx, call.actor)["items"]
    page = _page([_shown(call, each) for row in rows for each in row["subscriptions"]], given)
    return {"Subscriptions": page["items"], "NextToken": page["next"]}


def list_subscriptions_by_topic(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Of one topic."""
    row = _row(call, _topic(given["TopicArn"]))
    page = _page([_shown(call, each) for each in row["subscriptions"]], given)
    return {"Subscriptions": page["items"], "NextToken": page["next"]}


def publish(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Send a message to a topic's subscribers."""
    if given.get("PhoneNumber"):
        raise AwsError("InvalidParameter", "Invalid parameter: PhoneNumber Reason: text messages are not supported")
    message: str = given["Message"]
    by_kind: dict[str, str] = {}
    if given.get("MessageStructure") == "json":
        message, by_kind = _structured(message)
    attributes = {
        name: value.get("StringValue") or "" for name, value in (given.get("MessageAttributes") or {}).items()
    }
    topic = _topic(given.get("TopicArn") or given.get("TargetArn") or "")
    _row(call, topic)
    publishing.publish(
        call.ctx,
        call.actor,
        topic=topic,
        message=message,
        subject=given.get("Subject"),
        by_kind=by_kind or None,
        attributes=attributes or None,
    )
    return {"MessageId": str(uuid.uuid5(uuid.NAMESPACE_URL, call.request_id))}


def _structured(text: str) -> tuple[str, dict[str, str]]:
    """(the message for all, those for some) of ``MessageStructure="json"``."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("default"), str):
        reason = "Message Structure - No default entry in JSON message body"
        raise AwsError("InvalidParameter", f"Invalid parameter: {reason}")
    own = {PROTOCOLS[key]: value for key, value in found.items() if key in PROTOCOLS and isinstance(value, str)}
    return found["default"], own


OPERATIONS = {
    "CreateTopic": Operation(create_topic, Permission.WRITE, "standard topics; tags are not kept"),
    "DeleteTopic": Operation(delete_topic, Permission.WRITE),
    "ListTopics": Operation(list_topics, Permission.READ),
    "GetTopicAttributes": Operation(get_topic_attributes, Permission.READ),
    "SetTopicAttributes": Operation(set_topic_attributes, Permission.WRITE, "DisplayName, Policy, DeliveryPolicy"),
    "Subscribe": Operation(subscribe, Permission.WRITE, "http, https and email; messages carry no AWS signature"),
    "ConfirmSubscription": Operation(confirm_subscription, Permission.WRITE),
    "Unsubscribe": Operation(unsubscribe, Permission.WRITE),
    "ListSubscriptions": Operation(list_subscriptions, Permission.READ),
    "ListSubscriptionsByTopic": Operation(list_subscriptions_by_topic, Permission.READ),
    "Publish": Operation(publish, Permission.WRITE, "to topics"),
}
