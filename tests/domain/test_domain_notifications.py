"""Messages: which events a topic carries, what receivers get, and that an independent verifier accepts them."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from loopline.domain import notifications
from loopline.errors import InvalidInput


def event(**changes: Any) -> dict[str, Any]:
    return {
        "number": 7,
        "at": 1_795_000_000.25,
        "actor": "loopline",
        "noun": "alarm",
        "record": "am_1",
        "kind": "moved",
        "before": "OK",
        "after": "ALARM",
        "reason": "psi is 0.31",
        "data": None,
        **changes,
    }


@pytest.mark.parametrize("pattern", ["alarm.ALARM", "alarm.moved", "alarm.*", "*.*", "*.ALARM"])
def test_a_pattern_matches_by_status_by_kind_and_by_star(pattern: str) -> None:
    assert notifications.matches([notifications.check_pattern(pattern)], event())


@pytest.mark.parametrize("pattern", ["alarm.OK", "version.*", "alarm.created"])
def test_a_pattern_for_something_else_does_not_match(pattern: str) -> None:
    assert not notifications.matches([notifications.check_pattern(pattern)], event())


@pytest.mark.parametrize(
    "routine",
    [
        {"kind": "created", "before": None, "after": "INSUFFICIENT_DATA"},
        {"kind": "acted", "before": None, "after": None},
        {"kind": "changed", "before": None, "after": None},
        {"before": "INSUFFICIENT_DATA", "after": "OK"},
        {"before": "OK", "after": "INSUFFICIENT_DATA"},
        {"noun": "delivery", "before": "Pending", "after": "Delivered"},
    ],
)
def test_a_star_leaves_out_what_nobody_wants_to_hear_and_a_word_does_not(routine: dict[str, Any]) -> None:
    heard = event(**routine)
    assert not notifications.matches(["alarm.*", "*.*", "delivery.*"], heard)
    assert notifications.matches([f"{heard['noun']}.{heard['after'] or heard['kind']}"], heard)


def test_a_star_tells_that_an_alarm_is_over_or_was_refused_an_action() -> None:
    assert notifications.matches(["alarm.*"], event(before="ALARM", after="OK"))
    assert notifications.matches(["alarm.*"], event(kind="refused", before=None, after=None))


@pytest.mark.parametrize("pattern", ["", "alarm", "alarm.", "alarms.*", "alarm.Alarm", "version.Aproved", "a b.*", 3])
def test_a_pattern_that_can_never_match_is_refused(pattern: Any) -> None:
    with pytest.raises(InvalidInput):
        notifications.check_pattern(pattern)


def test_an_independent_verifier_accepts_the_signature_and_refuses_a_changed_body() -> None:
    secret = notifications.make_secret(bytes(range(32)))
    body = notifications.encode(notifications.message(event(), {"name": "drift", "note": "é"}))
    now = datetime.now(UTC).timestamp()
    headers = notifications.sign(secret, "de_1", now, body)
    assert Webhook(secret).verify(body, headers)["type"] == "alarm.ALARM"
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body.replace(b"0.31", b"0.01"), headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, {**headers, "webhook-id": "de_2"})
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, notifications.sign(secret, "de_1", now - 3600, body))


@pytest.mark.parametrize("secret", ["", "abc", "whsec_", "whsec_***", "whsec_c2hvcnQ="])
def test_a_secret_of_another_form_is_refused(secret: str) -> None:
    with pytest.raises(InvalidInput):
        notifications.sign(secret, "de_1", 0.0, b"")


def test_waits_grow_to_an_hour_and_end() -> None:
    waits = [notifications.retry_seconds(tries) for tries in range(1, 11)]
    assert waits == [1.0, 5.0, 25.0, 125.0, 625.0, 3125.0, 3600.0, 3600.0, 3600.0, None]


def test_retry_after_is_honoured_in_seconds_and_as_a_date_but_not_for_ever() -> None:
    assert notifications.retry_seconds(1, "120") == 120.0
    assert notifications.retry_seconds(3, "2") == 25.0
    assert notifications.retry_seconds(1, "99999999") == 86_400.0
    now = datetime(2026, 11, 20, 10, 0, 0, tzinfo=UTC).timestamp()
    assert notifications.retry_seconds(1, "Fri, 20 Nov 2026 10:01:00 GMT", now) == 60.0
    assert notifications.retry_seconds(1, "soon") == 1.0


def test_a_message_names_what_a_person_calls_the_record() -> None:
    sent = notifications.message(
        event(noun="version", record="ve_1", before=None, after="PendingManualApproval", reason=None, actor="ana"),
        {"model": "patients", "version": 3, "project": None},
    )
    assert sent["data"]["summary"] == "Version patients v3 is PendingManualApproval (by ana)"
    assert sent["timestamp"] == "2026-11-18T11:06:40.250Z"
    assert "project" not in sent["data"]


def test_a_slack_message_shows_names_and_numbers_and_escapes_text() -> None:
    sent = notifications.message(
        event(reason="psi of <age> & co"), {"name": "p-drift", "endpoint": "patients", "metrics": {"psi": 0.31234}}
    )
    payload = notifications.slack_payload(sent)
    assert payload["text"] == "Alarm p-drift of endpoint patients is ALARM: psi of &lt;age&gt; &amp; co"
    fields = json.dumps(payload["blocks"])
    assert "*endpoint*\\npatients" in fields and "psi 0.3123" in fields and ":rotating_light:" in fields
    assert "<age>" not in fields
