"""Messages in the form of Amazon SNS, for receivers that were written for it.

Source: "Parsing Amazon SNS message formats" and "HTTP/HTTPS headers" of the SNS developer guide; the text of an alarm's
message is that of CloudWatch. There is no signature: AWS's name its own certificate, which nobody else has. A
subscription's settings say ``topic_arn``, and ``raw`` for the message alone.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from loopline.domain import cloudwatch, objectnotices
from loopline.domain.metrics import NO_UNIT

CONFIRM = "subscription.confirm"


def notification(
    sent: Mapping[str, Any], delivery: str, subscription: str, settings: Mapping[str, Any]
) -> tuple[bytes, dict[str, str]]:
    """(body, headers) for what ``notifications.message`` made; ``delivery`` and ``subscription`` are their ids."""
    topic = str(settings.get("topic_arn") or sent["data"].get("topic") or "")
    kind = "SubscriptionConfirmation" if sent["type"] == CONFIRM else "Notification"
    identifier = message_id(delivery)
    body: dict[str, Any] = {"Type": kind, "MessageId": identifier, "TopicArn": topic}
    if kind == "Notification":
        subject, text = subject_and_text(sent, settings)
        body |= {"Subject": subject} if subject else {}
        body["Message"] = text
    else:
        link = sent["data"]["link"]
        body["Token"] = sent["data"]["token"]
        body["Message"] = f"You have chosen to subscribe to the topic {topic}.\nTo confirm, visit the SubscribeURL."
        body["SubscribeURL"] = link
    body["Timestamp"] = sent["timestamp"]
    attributes = sent["data"].get("attributes")
    if attributes and kind == "Notification":
        body["MessageAttributes"] = {
            name: {"Type": "String", "Value": str(value)} for name, value in attributes.items()
        }
    headers = {
        "Content-Type": "text/plain; charset=UTF-8",
        "x-amz-sns-message-type": kind,
        "x-amz-sns-message-id": identifier,
        "x-amz-sns-topic-arn": topic,
    }
    if kind == "Notification":
        headers["x-amz-sns-subscription-arn"] = f"{topic}:{subscription}"
        if settings.get("raw"):
            return str(body["Message"]).encode(), {**headers, "x-amz-sns-rawdelivery": "true"}
    return json.dumps(body, ensure_ascii=False, indent=2).encode(), headers


def message_id(delivery: str) -> str:
    """A UUID that is the same in every try of a delivery."""
    digest = hashlib.sha256(delivery.encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"


def subject_and_text(sent: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, str]:
    """What a message says: what was published, an alarm's change as CloudWatch tells it, an object's as S3 does, else
    the event as it is."""
    data = sent["data"]
    if "message" in data:
        return str(data.get("subject") or ""), str(data["message"])
    if data["noun"] == "alarm" and data.get("definition") and data.get("after"):
        return _alarm(sent, settings)
    if data["noun"] == "object":
        return objectnotices.SUBJECT, objectnotices.message(sent, *_region_and_account(settings))
    text = json.dumps({"type": sent["type"], "timestamp": sent["timestamp"], "data": data}, ensure_ascii=False)
    return str(data["summary"])[:100], text


def _region_and_account(settings: Mapping[str, Any]) -> tuple[str, str]:
    """Of the topic."""
    _, _, _, region, account, *_ = [*str(settings.get("topic_arn") or "").split(":"), "", "", "", "", ""]
    return region, account


def _alarm(sent: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, str]:
    data = sent["data"]
    region, account = _region_and_account(settings)
    name = str(data.get("name") or data["id"])
    shown = cloudwatch.show_alarm(name, data["definition"], data.get("endpoint"))
    statistic = shown.get("Statistic")
    trigger = {
        "MetricName": shown["MetricName"],
        "Namespace": shown["Namespace"],
        "StatisticType": "Statistic" if statistic else "ExtendedStatistic",
        **({"Statistic": statistic.upper()} if statistic else {"ExtendedStatistic": shown.get("ExtendedStatistic")}),
        "Unit": shown.get("Unit", NO_UNIT) if "Unit" in shown else None,
        "Dimensions": [{"value": each["Value"], "name": each["Name"]} for each in shown["Dimensions"]],
        "Period": shown["Period"],
        "EvaluationPeriods": shown["EvaluationPeriods"],
        "DatapointsToAlarm": shown.get("DatapointsToAlarm", shown["EvaluationPeriods"]),
        "ComparisonOperator": shown["ComparisonOperator"],
        "Threshold": shown["Threshold"],
        "TreatMissingData": shown["TreatMissingData"],
    }
    said = {
        "AlarmName": name,
        "AlarmDescription": shown.get("AlarmDescription"),
        "AWSAccountId": account,
        "NewStateValue": data["after"],
        "NewStateReason": data.get("reason"),
        "StateChangeTime": str(sent["timestamp"]).replace("Z", "+0000"),
        "Region": region,
        "AlarmArn": f"arn:aws:cloudwatch:{region}:{account}:alarm:{name}",
        "OldStateValue": data.get("before"),
        "Trigger": trigger,
    }
    return f'{data["after"]}: "{name}" in {region}'[:100], json.dumps(said, ensure_ascii=False)
