"""What the monitor reported becomes answers; labels that come a day later find their requests."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopline.config import load
from loopline.control import labels, monitoring, requests
from loopline.control.context import Context, Ids
from loopline.domain import names
from loopline.domain.access import Actor
from loopline.domain.capture import encode_record
from loopline.domain.captured import encode_join
from loopline.domain.latency import Histogram
from loopline.errors import InvalidInput, NotFound
from loopline.monitor.process import Monitor
from loopline.monitor.reports import ReportStream
from loopline.outbound.http import Sender
from loopline.store import metrics, records
from loopline.store.blobs import LocalBlobs
from loopline.store.db import Db
from loopline.store.schema import metadata
from loopline.store.secrets import Secrets
from loopline.testing.clock import ManualClock

NOW = 1_790_000_000.0
ANA = Actor("ana", "editor")
FEATURES = [{"name": "age", "type": "number"}, {"name": "city", "type": "string"}]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def ctx(tmp_path: Path, clock: ManualClock) -> Iterator[Context]:
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
        outbound=Sender(),
        clock=clock,
        ids=ids,
        host="here",
    )
    with db.transaction() as tx:
        version = records.create(
            tx,
            "version",
            actor="ana",
            model="patients",
            number=3,
            handler="predict",
            signature={"features": FEATURES},
            baseline={"format": 1, "rows": 0, "features": {}},
            requested_by="ana",
        )
        records.create(
            tx, "endpoint", actor="ana", name="patients", settings={"monitor": {"psi": 0.1}}, created_by="ana"
        )
        records.create(
            tx,
            "variant",
            actor="ana",
            endpoint="patients",
            name="v3",
            version=version["id"],
            model="patients",
            number=3,
            weight=100.0,
            instances=1,
            digest="d",
        )
    yield context
    db.close()


def stream(ctx: Context) -> ReportStream:
    return ReportStream(ctx.settings.dir / "spool" / "monitor")


def traffic_row(at: float, count: int = 1, latency_us: float = 1000.0, **given: Any) -> dict[str, Any]:
    buckets = Histogram.of([latency_us] * count).buckets
    row = {"kind": "traffic", "endpoint": "patients", "variant": "v3", "at": int(at), "count": count}
    return {**row, "errors_4xx": 0, "errors_5xx": 0, "latency": {str(k): v for k, v in buckets.items()}, **given}


# -- taking in --------------------------------------------------------------------------------------------------------


def test_each_line_is_taken_once_however_often_it_is_looked_at(ctx: Context) -> None:
    out = stream(ctx)
    for _ in range(5):
        out.append(NOW, {}, [traffic_row(NOW - 10)])
    assert monitoring.ingest(ctx) == 5
    assert monitoring.ingest(ctx) == 0
    ctx.cache.clear()  # a restarted control
    assert monitoring.ingest(ctx) == 0
    out.append(NOW, {}, [traffic_row(NOW - 10)])
    assert monitoring.ingest(ctx) == 1
    assert monitoring.traffic(ctx, ANA, endpoint="patients")["total"]["requests"] == 6


def test_a_torn_line_waits_and_more_files_and_lines_than_one_batch_are_taken(ctx: Context) -> None:
    folder = ctx.settings.dir / "spool" / "monitor"
    out = ReportStream(folder, rotate_bytes=5000)
    for _ in range(450):
        out.append(NOW, {}, [traffic_row(NOW - 10)])
    newest = max(folder.iterdir())
    with newest.open("ab") as file:
        file.write(b'{"seq": 451, "rows": [')
    assert len(list(folder.iterdir())) > 3
    assert monitoring.ingest(ctx) == 450
    again = ReportStream(folder, rotate_bytes=5000)  # the monitor restarts: the torn line goes
    again.append(NOW, {}, [traffic_row(NOW - 10, count=2)])
    assert monitoring.ingest(ctx) == 1
    assert monitoring.traffic(ctx, ANA, endpoint="patients")["total"]["requests"] == 452


def test_what_fails_half_way_is_taken_whole_later(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    stream(ctx).append(NOW, {}, [traffic_row(NOW - 10)])
    real = metrics.add_traffic

    def add_and_die(tx: Any, rows: Any) -> None:
        real(tx, rows)
        raise OSError("the disk is full")

    monkeypatch.setattr(metrics, "add_traffic", add_and_die)
    with pytest.raises(OSError, match="full"):
        monitoring.ingest(ctx)
    monkeypatch.undo()
    ctx.cache.clear()
    assert monitoring.ingest(ctx) == 1
    assert monitoring.traffic(ctx, ANA, endpoint="patients")["total"]["requests"] == 1


def test_old_report_files_go_when_they_have_been_taken(ctx: Context, clock: ManualClock) -> None:
    folder = ctx.settings.dir / "spool" / "monitor"
    out = ReportStream(folder, rotate_bytes=100)
    for _ in range(4):
        out.append(NOW, {}, [traffic_row(NOW)])
    clock.advance(1e9)  # the files' own times are of today
    monitoring.ingest(ctx)
    monitoring.prune(ctx)
    left = sorted(folder.iterdir())
    assert len(left) == 1
    assert ReportStream(folder).seq == 4


def test_percentiles_of_any_period_are_within_five_percent(ctx: Context) -> None:
    chance = np.random.default_rng(1)
    start = NOW // 300 * 300 - 600
    truth: list[float] = []
    out = stream(ctx)
    for second in range(600):
        values = np.exp(chance.normal(9, 0.8, 20))
        truth += values.tolist()
        buckets = {str(k): v for k, v in Histogram.of(values).buckets.items()}
        row = {**traffic_row(start + second, 20), "latency": buckets, "errors_5xx": int(second % 2)}
        out.append(NOW, {}, [row])
    monitoring.ingest(ctx)
    for period in (10, 60, 300):
        found = monitoring.traffic(ctx, ANA, endpoint="patients", start=start, end=start + 600, period_seconds=period)
        assert found["total"]["requests"] == 12_000 and found["total"]["errors_5xx"] == 300
        assert found["total"]["error_rate"] == pytest.approx(0.025)
        assert [item["requests"] for item in found["items"]] == [20 * period] * (600 // period)
        for percent in (50, 90, 99):
            value = found["total"]["latency_ms"][f"p{percent}"]
            assert value == pytest.approx(np.percentile(truth, percent) / 1000, rel=0.05)
        assert found["total"]["latency_ms"]["average"] == pytest.approx(np.mean(truth) / 1000, rel=0.05)


def test_questions_that_cannot_be_answered_are_refused(ctx: Context) -> None:
    with pytest.raises(NotFound):
        monitoring.traffic(ctx, ANA, endpoint="nobody")
    for wrong in ({"period_seconds": 0}, {"period_seconds": 90}, {"start": NOW, "end": NOW - 1}, {"start": 0.0}):
        with pytest.raises(InvalidInput):
            monitoring.traffic(ctx, ANA, endpoint="patients", **wrong)


def test_monitors_json_names_what_to_watch_and_changes_only_with_it(ctx: Context) -> None:
    assert monitoring.write_monitors(ctx)
    written = json.loads((ctx.settings.dir / "monitors.json").read_text())["endpoints"]["patients"]
    assert written["monitor"] == {"psi": 0.1}
    assert written["variants"]["v3"]["signature"] == {"features": FEATURES}
    assert not monitoring.write_monitors(ctx)
    with ctx.db.transaction() as tx:
        row = records.find(tx, "variant", name="v3")
        assert row is not None
        records.move(tx, "variant", row["id"], "Stopped", actor="ana")
    assert monitoring.write_monitors(ctx)
    assert json.loads((ctx.settings.dir / "monitors.json").read_text())["endpoints"]["patients"]["variants"] == {}


def drift_row(end_at: float, psi: float, fired: bool) -> dict[str, Any]:
    feature = {"feature": "age", "psi": psi, "n": 500, "drifted": fired}
    body = {"rule": "psi > 0.1", "rows": 500, "drifted": ["age"] if fired else [], "features": [feature]}
    return {
        "kind": "drift",
        "endpoint": "patients",
        "variant": "v3",
        "version": "ve_1",
        "start_at": end_at - 10,
        "end_at": end_at,
        "fired": fired,
        "body": body,
    }


def test_drift_becomes_series_and_a_report_when_something_changes(ctx: Context) -> None:
    out = stream(ctx)
    for second in range(30):
        out.append(NOW, {}, [drift_row(NOW - 100 + second, 0.01 if second < 20 else 0.5, second >= 20)])
    monitoring.ingest(ctx)
    found = monitoring.drift(ctx, ANA, endpoint="patients")["items"]
    assert [(row["end_at"], row["fired"]) for row in found] == [(NOW - 80, True), (NOW - 100, False)]
    points = monitoring.get_series(ctx, ANA, endpoint="patients", name="psi.age")["variants"]["v3"]
    assert len(points) == 30 and points[-1]["value"] == 0.5
    drifted = monitoring.get_series(ctx, ANA, endpoint="patients", name="drift")["variants"]["v3"]
    assert [point["value"] for point in drifted] == [0.0] * 20 + [1.0] * 10


# -- the request log and labels ---------------------------------------------------------------------------------------


class Gateway:
    """Writes captured requests as a gateway does, a segment a minute."""

    def __init__(self, ctx: Context, folder: str = "gateway-0") -> None:
        self.folder = ctx.settings.dir / "spool" / folder
        self.folder.mkdir(parents=True)
        self._bits = itertools.count(1)

    def write(self, at: float, row: Any, prediction: Any, **given: Any) -> str:
        identifier = names.make_id("rq", at, lambda _: next(self._bits))
        meta = {
            "id": identifier,
            "at": at,
            "endpoint": "patients",
            "variant": "v3",
            "version": 3,
            "model": "patients",
            "key": None,
            "status": 200,
            "latency_us": 1500,
            "content_type": "application/json",
            "join": None,
            **given,
        }
        body = json.dumps({"instances": row if isinstance(row, list) else [row]}).encode()
        predictions = prediction if isinstance(prediction, list) else [prediction]
        data = encode_record(meta, body, json.dumps({"predictions": predictions}).encode())
        path = self.folder / f"{int(at // 60 * 60 * 1000):015d}.seg"
        offset = path.stat().st_size if path.exists() else 0
        with path.open("ab") as file:
            file.write(data)
        if meta["join"]:
            with path.with_suffix(".joins").open("ab") as file:
                file.write(encode_join(offset, str(meta["join"])))
        return identifier


def test_labels_of_a_day_later_give_the_accuracy_of_that_day(ctx: Context, clock: ManualClock) -> None:
    gateway = Gateway(ctx)
    yesterday = NOW // 86_400 * 86_400
    wanted = []
    for minute in range(120):
        for second in (1, 20, 40):
            at = yesterday + 60 * minute + second
            right = (minute + second) % 4 != 0
            identifier = gateway.write(at, {"age": minute, "city": "Oslo"}, "ill")
            wanted.append({"request_id": identifier, "label": "ill" if right else "well"})
    clock.advance(86_400)
    assert labels.put_labels(ctx, ANA, endpoint="patients", items=wanted)["accepted"] == 360
    assert labels.join(ctx, "patients") is None
    found = labels.quality(ctx, ANA, endpoint="patients", start=yesterday, end=yesterday + 86_400)
    right = sum(item["label"] == "ill" for item in wanted)
    assert found["total"]["labels"] == 360 and found["total"]["accuracy"] == pytest.approx(right / 360)
    assert [item["at"] for item in found["items"]] == [yesterday, yesterday + 3600]
    by_minute = labels.quality(ctx, ANA, endpoint="patients", start=yesterday, end=yesterday + 7200, period_seconds=60)[
        "items"
    ]
    assert len(by_minute) == 120 and all(item["labels"] == 3 for item in by_minute)
    points = monitoring.get_series(
        ctx, ANA, endpoint="patients", name="accuracy", start=yesterday, end=yesterday + 86_400
    )
    assert len(points["variants"]["v3"]) == 120


def test_labels_sent_again_change_nothing_and_another_value_is_not_taken(ctx: Context) -> None:
    gateway = Gateway(ctx)
    identifier = gateway.write(NOW - 5, {"age": 1}, "ill")
    item = {"request_id": identifier, "label": "ill"}
    for _ in range(3):
        labels.put_labels(ctx, ANA, endpoint="patients", items=[item, item])
        labels.join(ctx, "patients")
    again = labels.put_labels(ctx, ANA, endpoint="patients", items=[item, {**item, "label": "well"}])
    assert again == {"accepted": 0, "duplicates": 1, "conflicts": 1}
    assert labels.quality(ctx, ANA, endpoint="patients")["total"]["labels"] == 1
    assert labels.quality(ctx, ANA, endpoint="patients")["total"]["accuracy"] == 1.0


def test_a_label_waits_for_its_record_and_is_given_up_after_a_while(ctx: Context, clock: ManualClock) -> None:
    gateway = Gateway(ctx)
    late = names.make_id("rq", NOW, lambda _: 1)
    items = [{"request_id": late, "label": "ill"}, {"request_id": names.make_id("rq", NOW, lambda _: 99), "label": 1}]
    labels.put_labels(ctx, ANA, endpoint="patients", items=items)
    assert labels.join(ctx, "patients") == labels.SOON_SECONDS
    assert gateway.write(NOW, {"age": 1}, "ill") == late
    assert labels.join(ctx, "patients") == labels.SOON_SECONDS
    assert labels.quality(ctx, ANA, endpoint="patients", end=NOW + 1)["total"]["waiting"] == 1
    clock.advance(61)
    assert labels.join(ctx, "patients") is None
    total = labels.quality(ctx, ANA, endpoint="patients")["total"]
    assert (total["labels"], total["waiting"], total["unmatched"]) == (1, 0, 1)


def test_a_clients_own_id_joins_on_any_day_and_on_any_gateway(ctx: Context, clock: ManualClock) -> None:
    gateways = [Gateway(ctx, f"gateway-{number}") for number in range(2)]
    for number in range(20):
        gateways[number % 2].write(NOW + 30 * number, {"age": 1}, 0.9, join=f"order-{number}")
    clock.advance(86_400)
    items = [{"join_id": f"order-{number}", "label": int(number < 15)} for number in range(20)]
    labels.put_labels(ctx, ANA, endpoint="patients", items=items)
    assert labels.join(ctx, "patients") is None
    assert labels.quality(ctx, ANA, endpoint="patients")["total"]["accuracy"] == 0.75  # 0.9 means 1


def test_numbers_give_errors_and_rows_of_one_request_have_a_label_each(ctx: Context) -> None:
    gateway = Gateway(ctx)
    identifier = gateway.write(NOW - 60, [{"age": 1}, {"age": 2}], [10.5, 20.0])
    labels.put_labels(ctx, ANA, endpoint="patients", items=[{"request_id": identifier, "label": [10.0, 23.0]}])
    labels.join(ctx, "patients")
    total = labels.quality(ctx, ANA, endpoint="patients")["total"]
    assert total["mae"] == pytest.approx(1.75) and total["mse"] == pytest.approx((0.25 + 9) / 2)


def test_labels_come_as_csv_in_any_pieces(ctx: Context) -> None:
    gateway = Gateway(ctx)
    ids = [gateway.write(NOW - 60, {"age": n}, True) for n in range(3)]
    text = f"label,request_id\ntrue,{ids[0]}\nfalse,{ids[1]}\n\ntrue,{ids[2]}".encode()
    pieces = [text[i : i + 7] for i in range(0, len(text), 7)]
    assert labels.put_labels_csv(ctx, ANA, endpoint="patients", chunks=pieces)["accepted"] == 3
    labels.join(ctx, "patients")
    assert labels.quality(ctx, ANA, endpoint="patients")["total"]["accuracy"] == pytest.approx(2 / 3)
    for wrong in (b"a,b\n1,2\n", b"request_id,label\nx\n", b"request_id,label\n\xff,1\n", b"", b"request_id,label\n,1"):
        with pytest.raises(InvalidInput):
            labels.put_labels_csv(ctx, ANA, endpoint="patients", chunks=[wrong])


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"label": 1},
        {"request_id": "a", "join_id": "b", "label": 1},
        {"request_id": "", "label": 1},
        {"request_id": "x" * 128, "label": 1},
        {"request_id": "a", "label": None},
        {"request_id": "a", "label": float("nan")},
        {"request_id": "a", "label": {"x": 1}},
        "text",
    ],
)
def test_labels_that_say_nothing_are_refused(ctx: Context, item: Any) -> None:
    with pytest.raises(InvalidInput, match="item 0"):
        labels.put_labels(ctx, ANA, endpoint="patients", items=[item])
    with pytest.raises(NotFound):
        labels.put_labels(ctx, ANA, endpoint="nobody", items=[{"request_id": "a", "label": 1}])


def test_captured_rows_carry_labels_in_the_form_that_training_needs(ctx: Context) -> None:
    gateway = Gateway(ctx)
    first = gateway.write(NOW - 90, {"age": 1, "city": "Oslo"}, "a")
    gateway.write(NOW - 80, {"age": 2, "city": "Rome"}, "a")
    gateway.write(NOW - 70, [[3, "Bonn"]], "b", join="mine")
    gateway.write(NOW - 60, {"age": 9, "city": "Oslo"}, "a", status=500)
    gateway.write(NOW - 50, {"age": 9, "city": "Oslo"}, "a", endpoint="other")
    items = [{"request_id": first, "label": "x"}, {"join_id": "mine", "label": "y"}]
    labels.put_labels(ctx, ANA, endpoint="patients", items=items)
    rows = list(requests.captured_rows(ctx, "patients", NOW - 100, NOW))
    assert [(row.features, row.label) for row in rows] == [
        ({"age": 1, "city": "Oslo"}, "x"),
        ({"age": 3, "city": "Bonn"}, "y"),
    ]
    everything = list(requests.captured_rows(ctx, "patients", NOW - 100, NOW, labelled_only=False))
    assert [row.label for row in everything] == ["x", None, "y"]
    assert next(iter(requests.captured_rows(ctx, "patients", NOW - 85, NOW))).features["age"] == 3


def test_rows_are_exported_with_answers_and_labels(ctx: Context) -> None:
    test_captured_rows_carry_labels_in_the_form_that_training_needs(ctx)
    lines = b"".join(requests.export(ctx, ANA, endpoint="patients", start=NOW - 100, end=NOW)).splitlines()
    rows = list(requests.captured_rows(ctx, "patients", NOW - 100, NOW, labelled_only=False))
    told = [json.loads(line) for line in lines]
    assert [(row["@request"], row["@label"], row["age"]) for row in told] == [
        (row.request, row.label, row.features["age"]) for row in rows
    ]
    assert [row["@row"] for row in told] == [row.position for row in rows] and told[0]["@model"] == "patients"
    with pytest.raises(NotFound):
        requests.export(ctx, ANA, endpoint="nobody")


def test_one_request_is_found_again_among_many(ctx: Context) -> None:
    gateway = Gateway(ctx)
    ids = [gateway.write(NOW - 3600 + second, {"age": second}, "a") for second in range(0, 3600, 30)]
    found = requests.show(ctx, ANA, request_id=ids[50])
    assert found["at"] == NOW - 3600 + 1500 and found["output"] == {"predictions": ["a"]}
    assert len(found["input_sha256"]) == 64 and found["latency_ms"] == 1.5 and found["version"] == 3
    with pytest.raises(NotFound):
        requests.show(ctx, ANA, request_id=names.make_id("rq", NOW - 100, lambda _: 12345))
    with pytest.raises(NotFound):
        requests.show(ctx, ANA, request_id="../../etc/passwd")
    newest = requests.list_(ctx, ANA, endpoint="patients", limit=3)["items"]
    assert [meta["id"] for meta in newest] == ids[:-4:-1]


def test_why_joins_everything_that_a_prediction_rests_on(ctx: Context) -> None:
    with ctx.db.transaction() as tx:
        common: dict[str, Any] = {"actor": "ana", "by": "ana"}
        environment = records.create(
            tx, "environment", actor="ana", key="k" * 64, requirements="numpy", lock="numpy==2.4", python="3.11"
        )
        push = records.create(
            tx,
            "push",
            **common,
            project="hospital",
            commit="abc123",
            dirty=False,
            tree="t",
            source="push",
            environment=environment["id"],
        )
        execution = records.create(
            tx,
            "execution",
            **common,
            project="hospital",
            pipeline="train",
            pipeline_version=1,
            push=push["id"],
            environment=environment["id"],
            cache=True,
            max_parallel=1,
            assets=[{"name": "visits", "version": 2}],
        )
        records.create(
            tx,
            "asset",
            **common,
            project="hospital",
            name="visits",
            version=2,
            digest="d" * 64,
            kind="file",
            size_bytes=9,
        )
        run = records.create(
            tx,
            "run",
            **common,
            project="hospital",
            experiment="train",
            name="train-1",
            dirty=False,
            commit="abc123",
            metrics={"accuracy": 0.9},
            inputs=[{"asset": "visits:2", "digest": "d" * 64}, {"asset": "elsewhere", "digest": "e" * 64}],
        )
        version = records.find(tx, "version", model="patients", number=3)
        assert version is not None
        records.move(
            tx,
            "version",
            version["id"],
            "Approved",
            actor="eve",
            decided_by="eve",
            policy="manual",
            comment="looks good",
            run=run["id"],
            execution=execution["id"],
            environment=environment["id"],
        )
        key = records.create(
            tx, "key", actor="ana", user="clinic", role="invoker", sha256="s" * 64, created_by="ana", name="k"
        )
    identifier = Gateway(ctx).write(NOW - 5, {"age": 1, "city": "Oslo"}, "ill", key=key["id"])
    found = requests.why(ctx, ANA, request_id=identifier)
    assert found["request"]["user"] == "clinic" and found["request"]["output"] == {"predictions": ["ill"]}
    assert found["version"]["decided_by"] == "eve" and found["version"]["comment"] == "looks good"
    assert found["push"]["commit"] == "abc123" and found["run"]["metrics"] == {"accuracy": 0.9}
    assert [(each["name"], each["use"], each["digest"][0]) for each in found["data"]] == [
        ("visits", ["pipeline", "run"], "d"),
        ("elsewhere", ["run"], "e"),
    ]
    assert found["environment"]["lock"] == "numpy==2.4"
    assert len(found["baseline"]["sha256"]) == 64
    json.dumps(found, allow_nan=False)


def test_spool_to_answer_through_the_monitor_itself(ctx: Context) -> None:
    gateway = Gateway(ctx)
    for second in range(30):
        gateway.write(NOW - 40 + second, {"age": 1}, "a", status=500 if second % 3 == 0 else 200)
    monitor = Monitor(ctx.settings, NOW)
    monitor.step(NOW + 1)
    monitor.flush(NOW + 1)
    monitoring.ingest(ctx)
    total = monitoring.traffic(ctx, ANA, endpoint="patients", start=NOW - 60, end=NOW, period_seconds=10)["total"]
    assert (total["requests"], total["errors_5xx"]) == (30, 10)
    assert total["latency_ms"]["p50"] == pytest.approx(1.5, rel=0.01)
