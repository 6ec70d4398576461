"""E-mail and SNS endpoints: asked first, told afterwards, and never before."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from loopline.config import load, mail_server
from loopline.control import alarms, confirmations, deliveries, publishing, topics
from loopline.domain.access import Actor
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.outbound.mail import Mailer
from loopline.testing.clock import ManualClock
from loopline.testing.mailbox import Mailbox
from loopline.testing.world import World

ANA = Actor("ana", "editor")
ARN = "arn:aws:sns:us-east-1:123456789012:ops"


class Sink:
    """An HTTP server on loopback that keeps what it is sent."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.seen.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.place = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def said(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.seen]


@pytest.fixture
def sink() -> Iterator[Sink]:
    made = Sink()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    made = Mailbox()
    yield made
    made.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_790_000_000.0)


@pytest.fixture
def world(tmp_path: Path, mailbox: Mailbox, sink: Sink, clock: ManualClock) -> Iterator[World]:
    opened = World(
        tmp_path / "data",
        clock=clock,
        smtp_url=mailbox.url,
        smtp_from="loop@example.com",
        outbound_allow=sink.place,
        public_url="https://loop.example.com/",
    )
    topics.create(opened.ctx, ANA, name="ops", events=[])
    yield opened
    opened.close()


def token_of(link: str) -> str:
    return parse_qs(urlsplit(link).query)["token"][0]


def status(world: World) -> list[str]:
    return [row["status"] for row in deliveries.list_(world.ctx, ANA)["items"]]


def test_an_address_is_asked_and_then_told(world: World, mailbox: Mailbox) -> None:
    made = topics.subscribe(world.ctx, ANA, topic="ops", kind="email", url="night@example.com")
    world.settle(lambda: bool(mailbox.letters))
    (asked,) = mailbox.letters
    assert (asked.sender, asked.to) == ("loop@example.com", ["night@example.com"])
    assert asked.message["subject"] == "Confirm the subscription to the topic ops"
    (link,) = [word for word in asked.text.split() if word.startswith("https://")]
    assert link.startswith("https://loop.example.com/api/subscriptions/confirm?token=")
    publishing.publish(world.ctx, ANA, topic="ops", message="too early")
    confirmations.confirm(world.ctx, ANA, token=token_of(link))
    publishing.publish(world.ctx, ANA, topic="ops", subject="Slow", message="p99 is 3 s\n.\nreally: 中文")
    world.settle(lambda: len(mailbox.letters) == 2)
    told = mailbox.letters[1]
    assert told.message["subject"] == "Slow" and told.text == "p99 is 3 s\n.\nreally: 中文\n"
    assert told.message["x-loopline-delivery"].startswith("de_")
    assert topics.list_(world.ctx, ANA)["items"][0]["subscriptions"][0]["url"] == "night@example.com"
    with pytest.raises(NotFound):
        confirmations.confirm(world.ctx, ANA, token=token_of(link))
    with pytest.raises(Conflict):
        confirmations.ask_again(world.ctx, ANA, subscription=made["id"])


def test_no_list_shows_the_token(world: World, mailbox: Mailbox) -> None:
    topics.subscribe(world.ctx, ANA, topic="ops", kind="email", url="night@example.com")
    world.settle(lambda: bool(mailbox.letters))
    (link,) = [word for word in mailbox.letters[0].text.split() if word.startswith("https://")]
    identifier, secret = confirmations.read_token(token_of(link))
    shown = json.dumps([deliveries.list_(world.ctx, ANA), topics.list_(world.ctx, ANA)])
    assert identifier in shown and secret not in shown and token_of(link) not in shown


def test_a_token_grows_old_and_another_message_replaces_it(world: World, mailbox: Mailbox, clock: ManualClock) -> None:
    made = topics.subscribe(world.ctx, ANA, topic="ops", kind="email", url="night@example.com")
    world.settle(lambda: bool(mailbox.letters))
    first = token_of(mailbox.letters[0].text.split("https://")[1].split()[0])
    clock.advance(confirmations.VALID_SECONDS + 1)
    with pytest.raises(NotFound, match="too old"):
        confirmations.confirm(world.ctx, ANA, token=first)
    confirmations.ask_again(world.ctx, ANA, subscription=made["id"])
    world.settle(lambda: len(mailbox.letters) == 2)
    second = token_of(mailbox.letters[1].text.split("https://")[1].split()[0])
    with pytest.raises(NotFound):
        confirmations.confirm(world.ctx, ANA, token=first)
    assert confirmations.confirm(world.ctx, ANA, token=second)["pending_until"] is None


@pytest.mark.parametrize("token", ["", "zz", "616263", b"su_1:abc".hex(), "é"])
def test_what_is_no_token_confirms_nothing(world: World, token: str) -> None:
    with pytest.raises((InvalidInput, NotFound)):
        confirmations.confirm(world.ctx, ANA, token=token)


@pytest.mark.parametrize("address", ["", "a", "a@b@c", "a b@c.de", "a@c.de\nBcc: d@e.fg", "a@c.de, d@e.fg", "<a@c.de>"])
def test_what_is_no_address_is_refused(world: World, address: str) -> None:
    with pytest.raises(InvalidInput, match="e-mail address"):
        topics.subscribe(world.ctx, ANA, topic="ops", kind="email", url=address)


def test_an_alarm_writes_what_a_person_wants_to_know(world: World, mailbox: Mailbox) -> None:
    topics.subscribe(world.ctx, ANA, topic="ops", kind="email", url="night@example.com")
    world.settle(lambda: bool(mailbox.letters))
    token = token_of(mailbox.letters[0].text.split("https://")[1].split()[0])
    confirmations.confirm(world.ctx, ANA, token=token)
    alarms.put(world.ctx, ANA, name="few", namespace="Shop", metric="orders", threshold=5, actions=["topic:ops"])
    alarms.set_state(world.ctx, ANA, name="few", state="ALARM", reason="a drill")
    world.settle(lambda: len(mailbox.letters) == 2)
    letter = mailbox.letters[1]
    assert letter.message["subject"] == 'ALARM: "few"' and "a drill" in letter.text and "orders" in letter.text


def test_a_receiver_of_sns_is_asked_and_told_in_its_form(world: World, sink: Sink) -> None:
    topics.subscribe(
        world.ctx, ANA, topic="ops", kind="sns", url=f"http://{sink.place}/sns", settings={"topic_arn": ARN}
    )
    world.settle(lambda: bool(sink.seen))
    headers, _ = sink.seen[0]
    asked = sink.said[0]
    assert headers["x-amz-sns-message-type"] == asked["Type"] == "SubscriptionConfirmation"
    assert asked["TopicArn"] == ARN and token_of(asked["SubscribeURL"]) == asked["Token"]
    confirmations.confirm(world.ctx, ANA, token=asked["Token"])
    publishing.publish(world.ctx, ANA, topic="ops", subject="Hi", message="text", attributes={"color": "red"})
    world.settle(lambda: len(sink.seen) == 2)
    told = sink.said[1]
    assert (told["Type"], told["Subject"], told["Message"]) == ("Notification", "Hi", "text")
    assert told["MessageAttributes"] == {"color": {"Type": "String", "Value": "red"}}
    assert sink.seen[1][0]["x-amz-sns-subscription-arn"].startswith(f"{ARN}:su_")


def test_an_alarm_reaches_a_receiver_of_sns_as_cloudwatch_words_it(world: World, sink: Sink) -> None:
    topics.subscribe(
        world.ctx, ANA, topic="ops", kind="sns", url=f"http://{sink.place}/sns", settings={"topic_arn": ARN}
    )
    world.settle(lambda: bool(sink.seen))
    confirmations.confirm(world.ctx, ANA, token=sink.said[0]["Token"])
    alarms.put(
        world.ctx,
        ANA,
        name="slow",
        namespace="loopline",
        dimensions={"endpoint": "shop"},
        metric="latency_us",
        statistic="p99",
        threshold=2_000_000,
        description="p99 above 2 s",
        actions=["topic:ops"],
    )
    alarms.set_state(world.ctx, ANA, name="slow", state="ALARM", reason="a drill")
    world.settle(lambda: len(sink.seen) == 2)
    assert sink.said[1]["Subject"] == 'ALARM: "slow" in us-east-1'
    message = json.loads(sink.said[1]["Message"])
    assert message["AlarmName"] == "slow" and message["AlarmDescription"] == "p99 above 2 s"
    assert (message["OldStateValue"], message["NewStateValue"]) == ("INSUFFICIENT_DATA", "ALARM")
    assert message["NewStateReason"] == "a drill" and message["AWSAccountId"] == "123456789012"
    assert message["Trigger"]["MetricName"] == "ModelLatency" and message["Trigger"]["ExtendedStatistic"] == "p99"
    assert {"name": "EndpointName", "value": "shop"} in message["Trigger"]["Dimensions"]


def test_raw_delivery_is_the_message_alone(world: World, sink: Sink) -> None:
    settings = {"topic_arn": ARN, "raw": True}
    topics.subscribe(world.ctx, ANA, topic="ops", kind="sns", url=f"http://{sink.place}/sns", settings=settings)
    world.settle(lambda: bool(sink.seen))
    confirmations.confirm(world.ctx, ANA, token=sink.said[0]["Token"])
    publishing.publish(world.ctx, ANA, topic="ops", message="only this")
    world.settle(lambda: len(sink.seen) == 2)
    assert sink.seen[1][1] == b"only this" and sink.seen[1][0]["x-amz-sns-rawdelivery"] == "true"


def test_a_mail_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(
    world: World, mailbox: Mailbox, clock: ManualClock
) -> None:
    mailbox.refuse = ["450 later"]
    topics.subscribe(world.ctx, ANA, topic="ops", kind="email", url="night@example.com")
    world.settle(lambda: deliveries.list_(world.ctx, ANA)["items"][0]["tries"] == 1)
    clock.advance(10)
    world.settle(lambda: status(world) == ["Delivered"])
    assert len(mailbox.letters) == 1
    mailbox.refuse = ["550 no such person"]
    topics.subscribe(world.ctx, ANA, topic="ops", kind="email", url="nobody@example.com")
    world.settle(lambda: "Failed" in status(world))
    (failed,) = deliveries.list_(world.ctx, ANA, status="Failed")["items"]
    assert failed["tries"] == 1 and "550 no such person" in failed["answers"][0]["error"]


def test_without_a_mail_server_the_reason_names_the_setting(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    topics.create(world.ctx, ANA, name="ops", events=[])
    topics.subscribe(world.ctx, ANA, topic="ops", kind="email", url="night@example.com")
    world.settle(lambda: status(world) == ["Failed"])
    assert "smtp_url" in deliveries.list_(world.ctx, ANA)["items"][0]["answers"][0]["error"]
    world.close()


@pytest.mark.parametrize("url", ["", "http://x", "smtp://", "smtp://a:b", "smtp://h/path", "mail.example.com"])
def test_what_is_no_mail_server_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidInput, match="smtp_url"):
        mail_server(url)
    if url:
        with pytest.raises(InvalidInput, match="smtp_url"):
            load({}, smtp_url=url)
    with pytest.raises(InvalidInput, match="smtp_from"):
        load({}, smtp_url="smtp://mail.example.com", smtp_from="a b@example.com")


def test_a_password_is_not_sent_in_the_clear(mailbox: Mailbox) -> None:
    server = mailbox.url.replace("smtp://", "smtp://user:secret@")
    with pytest.raises(Exception, match="no TLS") as caught:
        Mailer(server, "loop@example.com").send("night@example.com", "s", "t", {})
    assert "secret" not in str(caught.value) and mailbox.letters == []
