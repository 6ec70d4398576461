"""SNS, asked by boto3: receivers are asked first as AWS asks them, and then get what is published and what alarms say.
The effects are seen by a receiver and a mail server of this machine, and through loopline's own API."""

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from botocore.exceptions import ClientError

from loopline.testing.live import Platform, until
from loopline.testing.mailbox import Mailbox

TOPIC = "arn:aws:sns:us-east-1:123456789012:{}"


class Sink:
    """An HTTP server on loopback that keeps what it is sent."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                outer.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.place = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://{self.place}/{path}"

    def at(self, path: str, count: int) -> list[str]:
        """The bodies that came to a path, once there are so many."""

        def look() -> list[str] | None:
            found = [body for where, _, body in self.seen if where == f"/{path}"]
            return found if len(found) >= count else None

        return until(look, f"{count} messages at /{path}")


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    made = Sink()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def mailbox() -> Iterator[Mailbox]:
    made = Mailbox()
    yield made
    made.close()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, sink: Sink, mailbox: Mailbox) -> Iterator[Platform]:
    """An installation that may send to the receiver and by the mail server."""
    installation = Platform(
        tmp_path_factory.mktemp("wire") / "loopline",
        outbound_allow=sink.place,
        smtp_url=mailbox.url,
        smtp_from="loop@example.com",
    )
    try:
        installation.start()
        yield installation
    finally:
        installation.stop()


@pytest.fixture(scope="module")
def sns(client: Callable[..., Any]) -> Any:
    return client("sns")


def code(call: Callable[..., Any], **given: Any) -> str:
    """The code that a call is refused with."""
    with pytest.raises(ClientError) as failure:
        call(**given)
    return str(failure.value.response["Error"]["Code"])


def subscribed(sns: Any, sink: Sink, topic: str, path: str, **attributes: str) -> str:
    """A confirmed subscription of the receiver; gives its ARN."""
    asked = sns.subscribe(TopicArn=topic, Protocol="http", Endpoint=sink.url(path), Attributes=attributes)
    assert asked["SubscriptionArn"] == "pending confirmation"
    message = json.loads(sink.at(path, 1)[0])
    assert message["Type"] == "SubscriptionConfirmation" and message["TopicArn"] == topic
    return str(sns.confirm_subscription(TopicArn=topic, Token=message["Token"])["SubscriptionArn"])


def test_topics_are_made_once_described_and_removed(sns: Any, platform: Platform) -> None:
    arn = sns.create_topic(Name="made", Attributes={"DisplayName": "Made"})["TopicArn"]
    assert arn == TOPIC.format("made") == sns.create_topic(Name="made")["TopicArn"]
    assert {"TopicArn": arn} in sns.list_topics()["Topics"]
    assert "made" in [row["name"] for row in platform.call("GET", "/api/topics")["items"]]
    attributes = sns.get_topic_attributes(TopicArn=arn)["Attributes"]
    assert attributes["DisplayName"] == "Made" and attributes["SubscriptionsConfirmed"] == "0"
    sns.set_topic_attributes(TopicArn=arn, AttributeName="DisplayName", AttributeValue="Other")
    assert sns.get_topic_attributes(TopicArn=arn)["Attributes"]["DisplayName"] == "Other"
    sns.delete_topic(TopicArn=arn)
    sns.delete_topic(TopicArn=arn)
    assert code(sns.get_topic_attributes, TopicArn=arn) == "NotFound"
    assert "made" not in [row["name"] for row in platform.call("GET", "/api/topics")["items"]]


def test_a_receiver_confirms_and_gets_what_is_published(sns: Any, sink: Sink, platform: Platform) -> None:
    topic = sns.create_topic(Name="news")["TopicArn"]
    asked = sns.subscribe(TopicArn=topic, Protocol="http", Endpoint=sink.url("news"))
    assert asked["SubscriptionArn"] == "pending confirmation"
    message = json.loads(sink.at("news", 1)[0])
    sns.publish(TopicArn=topic, Message="too early")
    (pending,) = sns.list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]
    assert pending["SubscriptionArn"] == "PendingConfirmation" and pending["Endpoint"] == sink.url("news")
    arn = sns.confirm_subscription(TopicArn=topic, Token=message["Token"])["SubscriptionArn"]
    published = sns.publish(
        TopicArn=topic,
        Subject="安全",
        Message="本文 & <tags>",
        MessageAttributes={"level": {"DataType": "String", "StringValue": "high"}},
    )
    assert len(published["MessageId"]) == 36
    told = json.loads(sink.at("news", 2)[1])
    assert (told["Type"], told["Subject"], told["Message"]) == ("Notification", "安全", "本文 & <tags>")
    assert told["MessageAttributes"] == {"level": {"Type": "String", "Value": "high"}}
    headers = [headers for path, headers, _ in sink.seen if path == "/news"][1]
    assert headers["x-amz-sns-message-type"] == "Notification" and headers["x-amz-sns-subscription-arn"] == arn
    until(
        lambda: platform.call("GET", "/api/deliveries?topic=news&status=Delivered")["items"][1:], "both are delivered"
    )
    (shown,) = sns.list_subscriptions()["Subscriptions"]
    assert shown["SubscriptionArn"] == arn and shown["Protocol"] == "http"
    assert sns.subscribe(TopicArn=topic, Protocol="http", Endpoint=sink.url("news"))["SubscriptionArn"] == arn
    sns.unsubscribe(SubscriptionArn=arn)
    sns.unsubscribe(SubscriptionArn=arn)
    assert sns.list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"] == []


def test_the_link_in_the_message_confirms_too(sns: Any, sink: Sink) -> None:
    topic = sns.create_topic(Name="links")["TopicArn"]
    sns.subscribe(TopicArn=topic, Protocol="http", Endpoint=sink.url("links"))
    link = json.loads(sink.at("links", 1)[0])["SubscribeURL"]
    with urllib.request.urlopen(link, timeout=30) as answer:
        assert answer.status == 200
    (shown,) = sns.list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]
    assert shown["SubscriptionArn"].startswith(f"{topic}:")
    assert sns.get_topic_attributes(TopicArn=topic)["Attributes"]["SubscriptionsConfirmed"] == "1"


def test_an_address_is_asked_by_mail_and_then_told(sns: Any, mailbox: Mailbox) -> None:
    topic = sns.create_topic(Name="mail")["TopicArn"]
    sns.subscribe(TopicArn=topic, Protocol="email", Endpoint="night@example.com")

    def letters() -> list[Any]:
        return [letter for letter in mailbox.letters if letter.to == ["night@example.com"]]

    until(letters, "the address is asked")
    (link,) = [word for word in letters()[0].text.split() if "/api/subscriptions/confirm" in word]
    with urllib.request.urlopen(link, timeout=30) as answer:
        assert answer.status == 200
    structured = {"default": "for all", "email": "for people", "http": "for programs"}
    sns.publish(TopicArn=topic, Subject="Report", Message=json.dumps(structured), MessageStructure="json")
    until(lambda: letters()[1:], "the address is told")
    assert letters()[1].message["subject"] == "Report" and letters()[1].text == "for people\n"


def test_an_alarm_tells_its_topic_when_it_fires_and_when_it_clears(
    sns: Any, sink: Sink, client: Callable[..., Any]
) -> None:
    topic = sns.create_topic(Name="alarms")["TopicArn"]
    subscribed(sns, sink, topic, "alarms")
    cw = client("cloudwatch")
    cw.put_metric_alarm(
        AlarmName="few-orders",
        AlarmDescription="The shop sells nothing.",
        Namespace="Shop",
        MetricName="Orders",
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1,
        ComparisonOperator="LessThanThreshold",
        AlarmActions=[topic],
        OKActions=[topic],
    )
    (shown,) = cw.describe_alarms(AlarmNames=["few-orders"])["MetricAlarms"]
    assert shown["AlarmActions"] == shown["OKActions"] == [topic] and shown["InsufficientDataActions"] == []
    cw.set_alarm_state(AlarmName="few-orders", StateValue="ALARM", StateReason="a drill")
    fired = json.loads(sink.at("alarms", 2)[1])
    assert fired["Subject"] == 'ALARM: "few-orders" in us-east-1'
    message = json.loads(fired["Message"])
    assert message["NewStateValue"] == "ALARM" and message["NewStateReason"] == "a drill"
    assert message["AlarmDescription"] == "The shop sells nothing." and message["AWSAccountId"] == "123456789012"
    assert message["Trigger"]["MetricName"] == "Orders" and message["Trigger"]["Statistic"] == "SUM"
    cw.set_alarm_state(AlarmName="few-orders", StateValue="OK", StateReason="over")
    cleared = json.loads(json.loads(sink.at("alarms", 3)[2])["Message"])
    assert (cleared["OldStateValue"], cleared["NewStateValue"]) == ("ALARM", "OK")
    items = cw.describe_alarm_history(AlarmName="few-orders", HistoryItemType="Action")["AlarmHistoryItems"]
    assert [each["HistorySummary"] for each in items] == ["the subscribers of alarms are told"] * 2


def test_raw_delivery_is_the_message_alone(sns: Any, sink: Sink) -> None:
    topic = sns.create_topic(Name="raw")["TopicArn"]
    subscribed(sns, sink, topic, "raw", RawMessageDelivery="true")
    sns.publish(TopicArn=topic, Message="only this")
    assert sink.at("raw", 2)[1] == "only this"


# -- objects of a bucket ----------------------------------------------------------------------------------------------


def rule(topic: str, *events: str, **affixes: str) -> dict[str, Any]:
    """A configuration of a bucket's notifications."""
    rules = [{"Name": name, "Value": value} for name, value in affixes.items()]
    return {"TopicArn": topic, "Events": list(events), **({"Filter": {"Key": {"FilterRules": rules}}} if rules else {})}


def test_a_receiver_hears_of_a_buckets_objects_as_s3_tells(
    sns: Any, sink: Sink, client: Callable[..., Any], platform: Platform
) -> None:
    s3, topic = client("s3"), sns.create_topic(Name="arrivals")["TopicArn"]
    subscribed(sns, sink, topic, "arrivals")
    s3.create_bucket(Bucket="arrivals")
    s3.put_bucket_versioning(Bucket="arrivals", VersioningConfiguration={"Status": "Enabled"})
    wanted = [
        {"Id": "csv", **rule(topic, "s3:ObjectCreated:*", prefix="raw/", suffix=".csv")},
        rule(topic, "s3:ObjectRemoved:*", "s3:ObjectCreated:Copy", prefix="raw/", suffix=".txt"),
    ]
    s3.put_bucket_notification_configuration(
        Bucket="arrivals", NotificationConfiguration={"TopicConfigurations": wanted}
    )
    trial = json.loads(json.loads(sink.at("arrivals", 2)[1])["Message"])
    assert (trial["Event"], trial["Bucket"]) == ("s3:TestEvent", "arrivals")
    shown = s3.get_bucket_notification_configuration(Bucket="arrivals")["TopicConfigurations"]
    assert [(each["TopicArn"], sorted(each["Events"])) for each in shown] == [
        (topic, ["s3:ObjectCreated:*"]),
        (topic, ["s3:ObjectCreated:Copy", "s3:ObjectRemoved:*"]),
    ]
    native = platform.call("GET", "/api/buckets/arrivals/notifications")["items"]
    assert (native[0]["id"], native[0]["events"], native[0]["suffix"]) == (
        "csv",
        ["put", "copy", "upload"],
        ".csv",
    )

    s3.put_object(Bucket="arrivals", Key="elsewhere/a.csv", Body=b"no")
    s3.put_object(Bucket="arrivals", Key="raw/a b+é.csv", Body=b"1,2\n")
    made = s3.put_object(Bucket="arrivals", Key="raw/notes.txt", Body=b"nobody is told")["VersionId"]
    s3.copy_object(Bucket="arrivals", Key="raw/copy.txt", CopySource={"Bucket": "arrivals", "Key": "raw/notes.txt"})
    mark = s3.delete_object(Bucket="arrivals", Key="raw/notes.txt")["VersionId"]
    s3.delete_object(Bucket="arrivals", Key="raw/notes.txt", VersionId=made)
    place = {"Bucket": "arrivals", "Key": "raw/parts.csv"}
    upload = s3.create_multipart_upload(**place)["UploadId"]
    part = s3.upload_part(**place, UploadId=upload, PartNumber=1, Body=b"3,4\n")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    s3.complete_multipart_upload(**place, UploadId=upload, MultipartUpload=parts)

    told = [json.loads(each) for each in sink.at("arrivals", 7)[2:]]
    assert {each["Subject"] for each in told} == {"Amazon S3 Notification"}
    records = [record for each in told for record in json.loads(each["Message"])["Records"]]
    records.sort(key=lambda record: record["s3"]["object"]["sequencer"])
    assert [(each["eventName"], each["s3"]["object"]["key"]) for each in records] == [
        ("ObjectCreated:Put", "raw/a+b%2B%C3%A9.csv"),
        ("ObjectCreated:Copy", "raw/copy.txt"),
        ("ObjectRemoved:DeleteMarkerCreated", "raw/notes.txt"),
        ("ObjectRemoved:Delete", "raw/notes.txt"),
        ("ObjectCreated:CompleteMultipartUpload", "raw/parts.csv"),
    ]
    first, _, marked, deleted, _ = records
    assert first["s3"]["configurationId"] == "csv" and first["s3"]["bucket"]["arn"] == "arn:aws:s3:::arrivals"
    head = s3.head_object(Bucket="arrivals", Key="raw/a b+é.csv")
    said = first["s3"]["object"]
    assert (said["size"], f'"{said["eTag"]}"', said["versionId"]) == (4, head["ETag"], head["VersionId"])
    assert (marked["s3"]["object"]["versionId"], deleted["s3"]["object"]["versionId"]) == (mark, made)
    assert (first["eventSource"], first["awsRegion"], first["eventVersion"]) == ("aws:s3", "us-east-1", "2.1")


def test_objects_that_are_overwritten_are_not_removed_and_rules_end_with_their_bucket(
    sns: Any, sink: Sink, client: Callable[..., Any], platform: Platform
) -> None:
    s3, topic = client("s3"), sns.create_topic(Name="removals")["TopicArn"]
    subscribed(sns, sink, topic, "removals", RawMessageDelivery="true")
    s3.create_bucket(Bucket="removals")
    wanted = {"TopicConfigurations": [rule(topic, "s3:ObjectRemoved:Delete")]}
    s3.put_bucket_notification_configuration(Bucket="removals", NotificationConfiguration=wanted)
    for body in (b"one", b"two"):
        s3.put_object(Bucket="removals", Key="k", Body=body)
    s3.delete_objects(Bucket="removals", Delete={"Objects": [{"Key": "k"}, {"Key": "never there"}]})
    (record,) = json.loads(sink.at("removals", 3)[2])["Records"]
    assert (record["eventName"], record["s3"]["object"].keys()) == ("ObjectRemoved:Delete", {"key", "sequencer"})

    s3.delete_bucket(Bucket="removals")
    s3.create_bucket(Bucket="removals")
    assert "TopicConfigurations" not in s3.get_bucket_notification_configuration(Bucket="removals")
    said = platform.cli("objects", "notify", "s3://removals/in/", "removals", "--suffix", ".npy", "--event", "put")
    assert said.returncode == 0, said.stderr
    (shown,) = s3.get_bucket_notification_configuration(Bucket="removals")["TopicConfigurations"]
    assert (shown["TopicArn"], shown["Events"]) == (topic, ["s3:ObjectCreated:Put"])
    rules = shown["Filter"]["Key"]["FilterRules"]
    assert rules == [{"Name": "Prefix", "Value": "in/"}, {"Name": "Suffix", "Value": ".npy"}]
    assert platform.cli("objects", "notifications", "removals", "--remove", shown["Id"]).returncode == 0
    assert platform.call("GET", "/api/buckets/removals/notifications")["items"] == []
    assert len(sink.at("removals", 3)) == 3


def test_notifications_that_cannot_be_are_refused(sns: Any, client: Callable[..., Any], platform: Platform) -> None:
    s3, topic = client("s3"), sns.create_topic(Name="strict")["TopicArn"]
    s3.create_bucket(Bucket="strict-notifications")

    def refuse(**configuration: Any) -> str:
        given = {"Bucket": "strict-notifications", "NotificationConfiguration": configuration}
        return code(s3.put_bucket_notification_configuration, **given)

    created = "s3:ObjectCreated:*"
    queue = {"QueueArn": "arn:aws:sqs:us-east-1:123456789012:q", "Events": [created]}
    function = {"LambdaFunctionArn": "arn:aws:lambda:us-east-1:123456789012:function:f", "Events": [created]}
    assert refuse(QueueConfigurations=[queue]) == refuse(LambdaFunctionConfigurations=[function]) == "NotImplemented"
    assert refuse(EventBridgeConfiguration={}) == "NotImplemented"
    for each in (
        rule(TOPIC.format("missing"), created),
        rule("arn:aws:sqs:us-east-1:123456789012:q", created),
        rule(topic, "s3:ReducedRedundancyLostObject"),
        rule(topic, created, middle="x"),
    ):
        assert refuse(TopicConfigurations=[each]) == "InvalidArgument"
    overlapping = [rule(topic, created, prefix="a/"), rule(topic, "s3:ObjectCreated:Put", prefix="a/b/")]
    assert refuse(TopicConfigurations=overlapping) == "InvalidArgument"
    assert platform.call("GET", "/api/buckets/strict-notifications/notifications")["items"] == []
    missing = {"Bucket": "no-such-bucket", "NotificationConfiguration": {}}
    assert code(s3.put_bucket_notification_configuration, **missing) == "NoSuchBucket"


def test_what_is_not_done_is_refused_by_name(sns: Any, sink: Sink) -> None:
    topic = sns.create_topic(Name="refusing")["TopicArn"]
    missing = TOPIC.format("missing")
    assert code(sns.create_topic, Name="orders.fifo") == "InvalidParameter"
    assert code(sns.create_topic, Name="no/slash") == "InvalidParameter"
    subscribe = {"TopicArn": topic, "Protocol": "http", "Endpoint": sink.url("x")}
    assert code(sns.subscribe, **{**subscribe, "TopicArn": missing}) == "NotFound"
    assert code(sns.subscribe, **{**subscribe, "Protocol": "sqs"}) == "InvalidParameter"
    assert code(sns.subscribe, **{**subscribe, "Endpoint": "file:///etc/passwd"}) == "InvalidParameter"
    assert code(sns.subscribe, **{**subscribe, "Protocol": "email", "Endpoint": "a b"}) == "InvalidParameter"
    assert code(sns.subscribe, **subscribe, Attributes={"FilterPolicy": "{}"}) == "InvalidParameter"
    assert code(sns.confirm_subscription, TopicArn=topic, Token="abc") == "InvalidParameter"
    assert code(sns.publish, TopicArn=missing, Message="x") == "NotFound"
    assert code(sns.publish, TopicArn=topic, Message="{}", MessageStructure="json") == "InvalidParameter"
    assert code(sns.publish, PhoneNumber="+100", Message="x") == "InvalidParameter"
    assert sns.list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"] == []
