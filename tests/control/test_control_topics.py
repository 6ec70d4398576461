"""Who is told what, exactly once, signed, and again when a receiver was not there."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from standardwebhooks.webhooks import Webhook

from loopline.config import load
from loopline.control import deliveries, events, topics
from loopline.control.context import Context, Ids
from loopline.domain.access import Actor
from loopline.domain.projects import Notification
from loopline.errors import Conflict, IllegalMove, InvalidInput, NotFound
from loopline.outbound.http import Sender
from loopline.store import queue as tasks
from loopline.store import records
from loopline.store.blobs import LocalBlobs
from loopline.store.db import Db
from loopline.store.schema import events as events_table
from loopline.store.schema import metadata
from loopline.store.secrets import Secrets
from loopline.testing.clock import ManualClock

ANA = Actor("ana", "editor")
SECRET_PATH = "/services/T0/VERY-SECRET-PATH"


class Receiver:
    """An HTTP server on loopback that keeps what it is sent and answers from a list."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                status, headers = outer.answers.pop(0) if outer.answers else (200, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"answer " + b"x" * 2000)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{SECRET_PATH}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_790_000_000.0)


@pytest.fixture
def ctx(tmp_path: Path, clock: ManualClock, receiver: Receiver) -> Iterator[Context]:
    settings = load({}, dir=str(tmp_path / "data"))
    settings.dir.mkdir()
    ids = Ids(clock, seed="1")
    db = Db(settings.database, clock=clock.now, new_id=ids.new)
    metadata.create_all(db.engine)
    unused: Any = None
    context = Context(
        settings=settings,
        db=db,
        blobs=LocalBlobs(tmp_path / "blobs"),
        secrets=Secrets(db, settings.dir / "keys"),
        signer=unused,
        compute=unused,
        environments=unused,
        outbound=Sender((f"127.0.0.1:{receiver.port}",)),
        clock=clock,
        ids=ids,
        host="here",
    )
    with db.transaction() as tx:
        records.create(tx, "project", actor="ana", name="hospital", changed_at=tx.now)
        records.create(
            tx,
            "model",
            actor="ana",
            name="patients",
            project="hospital",
            gate_mode="off",
            last_version=0,
            created_by="ana",
        )
    events.consume(context, "notify", topics.notify)
    yield context
    db.close()


def new_version(ctx: Context, number: int = 1) -> None:
    with ctx.db.transaction() as tx:
        records.create(
            tx,
            "version",
            actor="ana",
            model="patients",
            number=number,
            handler="predict",
            metrics={"accuracy": 0.91},
            requested_by="ana",
        )


def work(ctx: Context, clock: ManualClock, seconds: float = 0.0) -> int:
    """What the engine does for notifications, during some seconds; gives how many tasks ran."""
    end = clock.now() + seconds
    done = 0
    while True:
        events.consume(ctx, "notify", topics.notify)
        for task in tasks.claim(ctx.db, [deliveries.TASK], "test", 60.0, 100):
            again = deliveries.send(ctx, task.key)
            done += 1
            with ctx.db.transaction() as tx:
                tasks.finish(tx, task)
                if again is not None:
                    tasks.ask(tx, task.kind, task.key, tx.now + again)
        due = tasks.next_due(ctx.db, [deliveries.TASK])
        if due is None or due > end:
            return done
        clock.advance(max(due - clock.now(), 0.0))


def test_a_webhook_is_signed_for_an_independent_verifier_and_says_what_happened(
    ctx: Context, clock: ManualClock, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics.create(ctx, ANA, name="news", events=["version.*"], project="hospital")
    made = topics.subscribe(ctx, ANA, topic="news", kind="webhook", url=receiver.url)
    new_version(ctx, 3)
    work(ctx, clock)
    ((path, headers, body),) = receiver.seen
    assert path == SECRET_PATH and headers["content-type"] == "application/json"
    monkeypatch.setattr("time.time", clock.now)

    import datetime

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.fromtimestamp(clock.now(), tz)

    monkeypatch.setattr("standardwebhooks.webhooks.datetime", Then)
    told = Webhook(made["signing_secret"]).verify(body, headers)
    assert told["type"] == "version.PendingManualApproval"
    assert told["data"]["summary"] == "Version patients v3 is PendingManualApproval (by ana)"
    assert told["data"]["project"] == "hospital" and told["data"]["metrics"] == {"accuracy": 0.91}
    (delivery,) = deliveries.list_(ctx, ANA, topic="news")["items"]
    assert headers["webhook-id"] == delivery["id"] and delivery["status"] == "Delivered"
    assert delivery["answers"][0]["status"] == 200 and len(delivery["answers"][0]["body"]) == 500


def test_a_slack_message_is_readable_and_unsigned(ctx: Context, clock: ManualClock, receiver: Receiver) -> None:
    topics.create(ctx, ANA, name="news", events=["version.*"])
    topics.subscribe(ctx, ANA, topic="news", kind="slack", url=receiver.url)
    new_version(ctx)
    work(ctx, clock)
    ((_, headers, body),) = receiver.seen
    assert "webhook-signature" not in headers
    said = json.loads(body)
    assert said["text"] == "Version patients v1 is PendingManualApproval (by ana)"
    assert "accuracy 0.91" in json.dumps(said["blocks"])


def test_a_receiver_that_fails_is_tried_again_with_growing_pauses_and_every_answer_is_kept(
    ctx: Context, clock: ManualClock, receiver: Receiver
) -> None:
    topics.create(ctx, ANA, name="news", events=["version.*"])
    topics.subscribe(ctx, ANA, topic="news", kind="webhook", url=receiver.url)
    receiver.answers = [(500, {}), (503, {"Retry-After": "60"}), (302, {"Location": "http://127.0.0.1:1/"})]
    new_version(ctx)
    begun = clock.now()
    work(ctx, clock, 300)
    (delivery,) = deliveries.list_(ctx, ANA)["items"]
    assert delivery["status"] == "Delivered" and delivery["tries"] == 4
    assert [answer["status"] for answer in delivery["answers"]] == [500, 503, 302, 200]
    assert [round(answer["at"] - begun) for answer in delivery["answers"]] == [0, 1, 61, 86]
    assert len({headers["webhook-id"] for _, headers, _ in receiver.seen}) == 1


def test_after_ten_tries_it_is_over_and_a_person_may_send_it_again(
    ctx: Context, clock: ManualClock, receiver: Receiver
) -> None:
    topics.create(ctx, ANA, name="news", events=["version.*"])
    topics.subscribe(ctx, ANA, topic="news", kind="webhook", url=receiver.url)
    receiver.answers = [(500, {})] * 10
    new_version(ctx)
    work(ctx, clock, 86_400)
    (delivery,) = deliveries.list_(ctx, ANA, status="Failed")["items"]
    assert delivery["tries"] == 10 and len(receiver.seen) == 10
    deliveries.redeliver(ctx, ANA, delivery=delivery["id"])
    with pytest.raises(IllegalMove):
        deliveries.redeliver(ctx, ANA, delivery=delivery["id"])
    work(ctx, clock)
    (delivery,) = deliveries.list_(ctx, ANA)["items"]
    assert delivery["status"] == "Delivered" and len(delivery["answers"]) == 11


def test_a_receiver_that_is_gone_is_switched_off(ctx: Context, clock: ManualClock, receiver: Receiver) -> None:
    topics.create(ctx, ANA, name="news", events=["version.*"])
    topics.subscribe(ctx, ANA, topic="news", kind="webhook", url=receiver.url)
    receiver.answers = [(410, {})]
    new_version(ctx, 1)
    work(ctx, clock)
    new_version(ctx, 2)
    work(ctx, clock, 3600)
    assert len(receiver.seen) == 1
    assert topics.list_(ctx, ANA)["items"][0]["subscriptions"][0]["enabled"] is False


def test_a_private_address_is_refused_once_and_the_setting_is_named(
    ctx: Context, clock: ManualClock, receiver: Receiver
) -> None:
    topics.create(ctx, ANA, name="news", events=["version.*"])
    topics.subscribe(ctx, ANA, topic="news", kind="webhook", url="http://169.254.169.254/latest/meta-data")
    new_version(ctx)
    work(ctx, clock, 86_400)
    (delivery,) = deliveries.list_(ctx, ANA)["items"]
    assert delivery["status"] == "Failed" and delivery["tries"] == 1
    assert "outbound_allow" in delivery["answers"][0]["error"]
    assert "meta-data" not in json.dumps(delivery["answers"])


def test_an_event_that_is_looked_at_twice_is_told_once(ctx: Context, clock: ManualClock, receiver: Receiver) -> None:
    topics.create(ctx, ANA, name="news", events=["version.*", "version.created", "*.*"])
    topics.subscribe(ctx, ANA, topic="news", kind="webhook", url=receiver.url)
    new_version(ctx)
    with ctx.db.transaction() as tx:
        (event,) = tx.rows(sa.select(events_table).where(events_table.c.noun == "version"))
        for _ in range(3):
            topics.notify(ctx, tx, event)
    work(ctx, clock)
    assert len(receiver.seen) == 1


def test_an_event_about_something_that_is_no_record_is_told_too(
    ctx: Context, clock: ManualClock, receiver: Receiver
) -> None:
    topics.create(ctx, ANA, name="all", events=["*.*"])
    topics.subscribe(ctx, ANA, topic="all", kind="webhook", url=receiver.url)
    with ctx.db.transaction() as tx:
        records.note(tx, "gateway", "gateway-0", "acknowledged", actor="loopline", number=7)
    work(ctx, clock)
    assert [json.loads(body)["type"] for _, _, body in receiver.seen] == ["gateway.acknowledged"]


def test_a_topic_of_another_project_or_other_events_hears_nothing(
    ctx: Context, clock: ManualClock, receiver: Receiver
) -> None:
    with ctx.db.transaction() as tx:
        records.create(tx, "project", actor="ana", name="shop", changed_at=tx.now)
    topics.create(ctx, ANA, name="shop", events=["version.*"], project="shop")
    topics.create(ctx, ANA, name="rollouts", events=["rollout.*"])
    for topic in ("shop", "rollouts"):
        topics.subscribe(ctx, ANA, topic=topic, kind="webhook", url=receiver.url)
    new_version(ctx)
    work(ctx, clock)
    assert receiver.seen == []


def test_an_alarm_without_notify_is_silent(ctx: Context, clock: ManualClock, receiver: Receiver) -> None:
    topics.create(ctx, ANA, name="news", events=["alarm.*"])
    topics.subscribe(ctx, ANA, topic="news", kind="webhook", url=receiver.url)
    with ctx.db.transaction() as tx:
        for name, actions in (("loud", ["notify"]), ("mute", ["rollback"])):
            definition = {"metric": "drift", "threshold": 1}
            row = records.create(
                tx,
                "alarm",
                actor="ana",
                name=name,
                project="hospital",
                endpoint="patients",
                definition=definition,
                actions=actions,
                enabled=True,
                since_at=tx.now,
            )
            records.move(tx, "alarm", row["id"], "ALARM", actor="loopline", reason="psi of age is 0.31")
    work(ctx, clock)
    ((_, _, body),) = receiver.seen
    assert json.loads(body)["data"]["summary"] == "Alarm loud of endpoint patients is ALARM: psi of age is 0.31"


def test_the_url_and_its_secret_stand_nowhere_in_the_open(ctx: Context, clock: ManualClock, receiver: Receiver) -> None:
    topics.create(ctx, ANA, name="news", events=["version.*"])
    made = topics.subscribe(ctx, ANA, topic="news", kind="webhook", url=receiver.url)
    receiver.answers = [(500, {})]
    new_version(ctx)
    work(ctx, clock)
    with ctx.db.read() as tx:
        for table in metadata.sorted_tables:
            text = repr(tx.execute(sa.select(table)).all())
            assert "VERY-SECRET" not in text and made["signing_secret"] not in text
    assert "VERY-SECRET" not in json.dumps(topics.list_(ctx, ANA))


def test_a_test_message_arrives(ctx: Context, clock: ManualClock, receiver: Receiver) -> None:
    topics.create(ctx, ANA, name="news", events=["version.*"])
    topics.subscribe(ctx, ANA, topic="news", kind="slack", url=receiver.url)
    assert len(topics.send_test(ctx, ANA, topic="news")["items"]) == 1
    work(ctx, clock)
    assert "test message" in json.loads(receiver.seen[0][2])["text"]


def test_loop_toml_is_applied_once_and_followed_when_it_changes(ctx: Context, receiver: Receiver) -> None:
    one = Notification("webhook", receiver.url, events=("version.*",))
    two = Notification("slack", receiver.url, events=("alarm.*",))

    def install(*wanted: Notification) -> list[str]:
        with ctx.db.transaction() as tx:
            changes = topics.apply_notifications(ctx, tx, actor="ana", project="hospital", notifications=wanted)
        return [f"{each['noun']} {each['change']}" for each in changes]

    assert install(one, two) == ["topic created", "subscription created"] * 2
    first = topics.list_(ctx, ANA, project="hospital")
    assert install(one, two) == []
    assert topics.list_(ctx, ANA, project="hospital") == first
    assert install(one) == ["topic deleted"]
    name = topics.list_(ctx, ANA)["items"][0]["name"]
    with pytest.raises(Conflict, match=r"loop\.toml"):
        topics.delete(ctx, ANA, name=name)
    assert install() == ["topic deleted"]
    with ctx.db.read() as tx:
        assert ctx.secrets.names(tx) == []


def test_removing_a_subscription_ends_its_deliveries(ctx: Context, clock: ManualClock, receiver: Receiver) -> None:
    topics.create(ctx, ANA, name="news", events=["version.*"])
    made = topics.subscribe(ctx, ANA, topic="news", kind="webhook", url=receiver.url)
    new_version(ctx)
    events.consume(ctx, "notify", topics.notify)
    topics.unsubscribe(ctx, ANA, subscription=made["id"])
    work(ctx, clock)
    assert receiver.seen == [] and deliveries.list_(ctx, ANA)["items"][0]["status"] == "Failed"
    topics.delete(ctx, ANA, name="news")
    assert topics.list_(ctx, ANA)["items"] == []


def test_what_cannot_be_subscribed_is_refused(ctx: Context) -> None:
    topics.create(ctx, ANA, name="news")
    for kind, url in (
        ("mail", "https://x.example/"),
        ("webhook", "ftp://x.example/"),
        ("webhook", "https://u:p@x.example/"),
        ("webhook", "https://"),
        ("webhook", "https://x.example/\r\n"),
    ):
        with pytest.raises(InvalidInput):
            topics.subscribe(ctx, ANA, topic="news", kind=kind, url=url)
    with pytest.raises(NotFound):
        topics.subscribe(ctx, ANA, topic="nobody", kind="slack", url="https://x.example/")
    with pytest.raises(NotFound, match="secret"):
        topics.subscribe(ctx, ANA, topic="news", kind="webhook", url="https://x.example/", secret="none")
    with pytest.raises(InvalidInput):
        topics.create(ctx, ANA, name="x", events=["versions.*"])
    with pytest.raises(Conflict):
        topics.create(ctx, ANA, name="news")
