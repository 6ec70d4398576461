"""What subscribers are told: which events a topic carries, how a message looks, how it is signed, when it is retried.

Webhooks follow Standard Webhooks (https://www.standardwebhooks.com): the headers ``webhook-id``, ``webhook-timestamp``
and ``webhook-signature: v1,BASE64(HMAC-SHA256(key, id.timestamp.body))``, the key being the base-64 part of
``whsec_...``. A receiver should refuse timestamps more than 5 minutes off and ids that it has seen.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from loopline.domain import states
from loopline.errors import InvalidInput

KINDS = ("webhook", "slack", "sns", "email")
NOUNS_WITHOUT_STATUS = frozenset(
    {
        "alias",
        "asset",
        "environment_version",
        "key",
        "model",
        "pipeline",
        "stored_pipeline",
        "project",
        "test",
        "topic",
        "trigger",
        "user",
    }
)
MAX_TRIES = 10
FIRST_RETRY_SECONDS = 1.0
RETRY_FACTOR = 5.0
LONGEST_RETRY_SECONDS = 3600.0
LONGEST_RETRY_AFTER_SECONDS = 86_400.0
MAX_SLACK_CHARACTERS = 2900  # a text block of Slack holds 3000
_PATTERN = re.compile(r"(\*|[a-z_]+)\.(\*|[A-Za-z_]+)")
_MAIL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_SECRET = "whsec_"  # noqa: S105 - the prefix of every secret, not one of them


def check_pattern(pattern: str) -> str:
    """``pattern`` itself when it is "noun.Status", "noun.kind", "noun.*" or "*.*"; raises ``InvalidInput``."""
    found = _PATTERN.fullmatch(pattern) if isinstance(pattern, str) else None
    if found is None:
        raise InvalidInput(f"{pattern!r} is no event: write noun.Status, such as version.Approved, or noun.*")
    noun, word = found[1], found[2]
    known = set(states.MOVES) | NOUNS_WITHOUT_STATUS
    if noun != "*" and noun not in known:
        raise InvalidInput(f"{pattern!r}: there is no {noun!r}; nouns: {', '.join(sorted(known))}")
    if noun in states.STATUSES and word[0].isupper() and word not in {str(each) for each in states.STATUSES[noun]}:
        legal = ", ".join(str(each) for each in states.STATUSES[noun])
        raise InvalidInput(f"{pattern!r}: a {noun} is never {word}; it can be {legal}")
    return pattern


def is_mail(address: object) -> bool:
    """Whether mail may be sent to this address: nothing in it can begin a header or a second recipient."""
    return isinstance(address, str) and _MAIL.fullmatch(address) is not None and ".." not in address


def check_mail(address: str) -> str:
    """``address`` itself when mail may be sent to it; raises ``InvalidInput``."""
    if not is_mail(address):
        raise InvalidInput(f"{str(address)[:80]!r} is not an e-mail address")
    return address


def matches(patterns: Iterable[str], event: Mapping[str, Any]) -> bool:
    """Whether one of the patterns names this event's noun and its status after or its kind.

    ``*`` in place of the word means what a person wants to hear of: not changes of settings or tags, not that an alarm
    was made, lacks data or has been quiet since, not that a batch or an invocation goes on, and not the notes that a
    message was sent. ``*`` in place of the noun means all but asynchronous invocations, of which there may be many.
    """
    for pattern in patterns:
        noun, _, word = pattern.partition(".")
        if noun not in ("*", event["noun"]) or (noun == "*" and event["noun"] == "invocation"):
            continue
        if word in (event.get("after"), event["kind"]) or (word == "*" and not _is_routine(event)):
            return True
    return False


def _is_routine(event: Mapping[str, Any]) -> bool:
    if event["noun"] in ("delivery", "subscription", "topic") or event["kind"] in ("changed", "tagged", "untagged"):
        return True
    if event["noun"] in ("batch", "invocation"):
        return not states.is_terminal(event["noun"], str(event.get("after")))
    if event["noun"] != "alarm":
        return False
    quiet = {str(states.AlarmStatus.OK), str(states.AlarmStatus.INSUFFICIENT_DATA)}
    return event["kind"] in ("created", "acted") or (event.get("before") in quiet and event.get("after") in quiet)


def event_type(event: Mapping[str, Any]) -> str:
    """ "alarm.ALARM" for a status that was reached, else "model.changed"."""
    return f"{event['noun']}.{event.get('after') or event['kind']}"


def make_secret(random_bytes: bytes) -> str:
    """The text of a signing secret over 24 to 64 random bytes."""
    if not 24 <= len(random_bytes) <= 64:
        raise InvalidInput("a signing secret has 24 to 64 bytes")
    return _SECRET + base64.b64encode(random_bytes).decode()


def check_secret(secret: str) -> bytes:
    """The key inside a signing secret; raises ``InvalidInput`` when it is none."""
    try:
        if not secret.startswith(_SECRET):
            raise ValueError
        key = base64.b64decode(secret.removeprefix(_SECRET), validate=True)
    except (ValueError, binascii.Error):
        raise InvalidInput("a signing secret is whsec_ followed by base 64") from None
    if not 24 <= len(key) <= 64:
        raise InvalidInput("a signing secret has 24 to 64 bytes")
    return key


def sign(secret: str, message_id: str, at: float, body: bytes) -> dict[str, str]:
    """The three headers that sign ``body`` at the time ``at`` (seconds since the epoch)."""
    stamp = str(int(at))
    digest = hmac.digest(check_secret(secret), f"{message_id}.{stamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": stamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def retry_seconds(tries: int, retry_after: str | None = None, now: float = 0.0) -> float | None:
    """How long to wait after the ``tries``-th attempt failed; None when it was the last of ``MAX_TRIES``.

    1, 5, 25, 125, 625 and 3,125 seconds, then an hour each time; a longer ``Retry-After`` (seconds or an HTTP date)
    of the receiver is honoured up to a day.
    """
    if tries >= MAX_TRIES:
        return None
    pause = min(FIRST_RETRY_SECONDS * RETRY_FACTOR ** (tries - 1), LONGEST_RETRY_SECONDS)
    return max(pause, min(_retry_after(retry_after, now), LONGEST_RETRY_AFTER_SECONDS))


def _retry_after(text: str | None, now: float) -> float:
    if not text:
        return 0.0
    if re.fullmatch(r"[0-9]{1,9}", text.strip()):
        return float(text)
    try:
        parsed = datetime.strptime(text.strip(), "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    except ValueError:
        return 0.0
    return max(parsed.timestamp() - now, 0.0)


def iso(at: float) -> str:
    """A time as people and programs read it: 2026-11-20T10:00:00.000Z."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def message(event: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept for a delivery and sent to webhooks: ``{"type", "timestamp", "data"}``.

    ``facts`` are what the record says of itself (project, model, version, endpoint, alarm, numbers); None is left out.
    ``said`` among them is the summary, where a person has written it.
    """
    told = {name: value for name, value in facts.items() if value is not None}
    said = told.pop("said", None)
    return {
        "type": event_type(event),
        "timestamp": iso(event["at"]),
        "data": {
            "noun": event["noun"],
            "id": event["record"],
            "event": event["number"],
            "actor": event["actor"],
            "before": event.get("before"),
            "after": event.get("after"),
            "reason": event.get("reason"),
            **told,
            "summary": said or summary(event, told),
        },
    }


def email(sent: Mapping[str, Any]) -> tuple[str, str]:
    """(subject, text) of an e-mail for what ``message`` made."""
    data = sent["data"]
    if "link" in data:
        text = (
            f"Somebody has subscribed this address to messages of the topic {data['topic']}.\n\n"
            f"To receive them, open this link within three days:\n\n    {data['link']}\n\n"
            "Where you did not expect this, do nothing: no further message will come.\n"
        )
        return str(data["summary"]), text
    if "message" in data:
        return str(data.get("subject") or f"Message of the topic {data.get('name')}"), f"{data['message']}\n"
    subject = str(data["summary"])
    if data["noun"] == "alarm" and data.get("after"):
        subject = f'{data["after"]}: "{data.get("name") or data["id"]}"'
    facts = [f"{name}: {_plain(data[name])}" for name in _SHOWN if data.get(name) not in (None, "", {}, [])]
    lines = [str(data["summary"]), "", *facts, f"at: {sent['timestamp']}", f"id: {data['id']}"]
    return subject, "\n".join(lines) + "\n"


def summary(event: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """One sentence for a person, such as "Alarm drift of endpoint patients is ALARM: psi of age is 0.31"."""
    noun = str(event["noun"])
    what = f"{noun.replace('_', ' ').capitalize()} {_title(noun, facts, str(event['record']))}"
    if event.get("after"):
        says = f"is {event['after']}"
    else:
        says = {"created": "was created", "changed": "was changed", "deleted": "was deleted"}.get(
            str(event["kind"]), f"says {event['kind']}"
        )
    by = "" if event["actor"] == "loopline" else f" (by {event['actor']})"
    reason = f": {event['reason']}" if event.get("reason") else ""
    return f"{what} {says}{by}{reason}"


def _title(noun: str, facts: Mapping[str, Any], record: str) -> str:
    """What a person calls the record."""
    model = f"{facts['model']} v{facts['version']}" if "model" in facts and "version" in facts else None
    endpoint = f"endpoint {facts['endpoint']}" if "endpoint" in facts else None
    name = facts.get("name")
    if noun in ("version", "evaluation"):
        return model or record
    if noun in ("rollout", "retraining", "test_run", "variant", "batch", "invocation"):
        parts = (f"of {model}" if model else None, f"on {endpoint}" if endpoint else None)
        return " ".join(part for part in parts if part) or record
    if noun == "alarm":
        return f"{name or record}" + (f" of {endpoint}" if endpoint else "")
    project = f" of {facts['project']}" if "project" in facts else ""
    return f"{name or record}{project}"


_EMOJI = {
    "ALARM": ":rotating_light:",
    "OK": ":white_check_mark:",
    "Succeeded": ":white_check_mark:",
    "Approved": ":white_check_mark:",
    "Failed": ":x:",
    "Passed": ":white_check_mark:",
    "Rejected": ":x:",
    "RolledBack": ":leftwards_arrow_with_hook:",
    "RollingBack": ":leftwards_arrow_with_hook:",
    "PendingManualApproval": ":hourglass_flowing_sand:",
}
_SHOWN = (
    "project",
    "model",
    "version",
    "endpoint",
    "variant",
    "stage",
    "metric",
    "value",
    "threshold",
    "metrics",
    "by",
)


def slack_payload(sent: Mapping[str, Any]) -> dict[str, Any]:
    """An incoming-webhook message of Slack (and of the many that speak like it) for what ``message`` made."""
    data = sent["data"]
    mark = _EMOJI.get(str(data.get("after")), ":information_source:")
    text = _escape(str(data["summary"]))[:MAX_SLACK_CHARACTERS]
    fields = [
        {"type": "mrkdwn", "text": f"*{name}*\n{_escape(_plain(data[name]))[:500]}"}
        for name in _SHOWN
        if data.get(name) not in (None, "", {}, [])
    ]
    blocks: list[dict[str, Any]] = [{"type": "section", "text": {"type": "mrkdwn", "text": f"{mark} {text}"}}]
    if fields:
        blocks.append({"type": "section", "fields": fields[:10]})
    foot = f"{sent['type']} · {sent['timestamp']} · {data['id']}"
    blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": _escape(foot)}]})
    return {"text": text, "blocks": blocks}


def encode(payload: Mapping[str, Any]) -> bytes:
    """The bytes that are sent and signed."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(each) for each in value)
    return str(value)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
