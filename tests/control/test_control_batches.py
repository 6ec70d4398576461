"""Batches: tables scored by a version, in order, to the end, whatever dies on the way."""

import csv
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from loopline.control import aliases, artifacts, assets, batches, deliveries, events, jobs, pushes, registry, topics
from loopline.domain import states
from loopline.domain.access import Actor
from loopline.errors import Conflict, Forbidden, GateRefused, InvalidInput, NotFound
from loopline.runtime import batchinput
from loopline.store.schema import subscriptions
from loopline.testing import boxes
from loopline.testing.world import World

EDITOR = Actor("eve", "editor")
# It can be held at work, and has a poisonous size.
PREDICT = boxes.PREDICT.replace(
    "    return [",
    """    import os, time
    global rows
    rows = globals().get("rows", 0) + len(batch)
    while rows > 4000 and os.path.exists("HOLD"):
        time.sleep(0.01)
    if any(row["size"] == 99 for row in batch):
        import os
        os.abort()
    if any(row["size"] == 13 for row in batch):
        raise ValueError("thirteen")
    return [""",
)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file is there, no process of a batch goes on after some thousand rows."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, held: Path) -> Iterator[World]:
    opened = World(tmp_path_factory.mktemp("data"))
    files = boxes.project(predict_py=PREDICT.replace("HOLD", str(held)))
    push = pushes.run(opened.ctx, opened.actor, tree=opened.tree(files))["id"]
    assert boxes.follow(opened, push)["status"] == "Succeeded"
    registry.approve(opened.ctx, opened.actor, model="boxes", number=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def kind(world: World) -> Callable[[float], str]:
    """The prediction, computed here."""
    with world.ctx.db.read() as tx:
        version = registry.version_row(tx, "boxes", 1)
    limit = json.loads((artifacts.model_dir(world.ctx, version) / "model.json").read_text())["limit"]
    return lambda size: "large" if size > limit else "small"


def begin(world: World, text: str, file: str = "sizes.csv", **options: Any) -> dict[str, Any]:
    digest = batches.upload(world.ctx, EDITOR, stream=iter([text.encode()]))["digest"]
    return batches.run(world.ctx, EDITOR, **{"model": "boxes", "number": 1, "digest": digest, "file": file, **options})


def shown(world: World, batch: dict[str, Any]) -> dict[str, Any]:
    return batches.show(world.ctx, EDITOR, batch=batch["id"])


def ended(world: World, batch: dict[str, Any]) -> dict[str, Any]:
    world.settle(lambda: states.is_terminal("batch", shown(world, batch)["status"]))
    return shown(world, batch)


def content(world: World, batch: dict[str, Any], which: str = "output") -> str:
    found = {"output": batches.output, "errors": batches.errors}[which](world.ctx, EDITOR, batch=batch["id"])
    return world.ctx.blobs.read(found["digest"]).decode()


def size_of(number: int) -> float:
    return number % 7 - 2.5


def plain(count: int) -> str:
    return "id,size\n" + "".join(f"n{number},{size_of(number)}\n" for number in range(count))


def plain_output(count: int, kind: Callable[[float], str]) -> str:
    return "id,prediction\n" + "".join(f"n{number},{kind(size_of(number))}\n" for number in range(count))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a thousand rows, as the job is told by its call."""
    told = batches.jobs.submit

    def submit(*given: Any, spec: dict[str, Any], **named: Any) -> Any:
        return told(*given, spec={**spec, "call": {**spec["call"], "chunk_rows": 1000}}, **named)

    monkeypatch.setattr(batches.jobs, "submit", submit)


# -- what it gives ----------------------------------------------------------------------------------------------------


def test_a_csv_of_100000_rows_gives_100000_rows_in_order(world: World, kind: Callable[[float], str]) -> None:
    batch = begin(world, plain(100_000), keep=["id"], workers=2)
    found = ended(world, batch)
    assert (found["status"], found["rows"], found["bad"], found["reason"]) == ("Succeeded", 100_000, 0, "100000 rows")
    assert content(world, batch) == plain_output(100_000, kind)
    assert content(world, batch, "errors") == ""
    assert found["output"]["columns"] == ["id", "prediction"]
    assert found["progress"]["rows_done"] == found["progress"]["rows_total"] == 100_000
    assert not (world.ctx.settings.dir / "batches" / batch["id"]).exists()


def test_cells_with_commas_quotes_and_lines_are_passed_through(world: World, kind: Callable[[float], str]) -> None:
    table = "id,size,note\n" + "".join(f'{n},{size_of(n)},"a, ""{n}""\nc"\r\n\n' for n in range(500))
    batch = begin(world, table, keep=["note", "id"])
    assert ended(world, batch)["rows"] == 500
    rows = list(csv.reader(io.StringIO(content(world, batch), newline="")))
    assert rows[0] == ["note", "id", "prediction"]
    assert rows[1:] == [[f'a, "{n}"\nc', str(n), kind(size_of(n))] for n in range(500)]


def test_json_lines_come_back_as_json_lines(world: World, kind: Callable[[float], str]) -> None:
    lines = "".join(json.dumps({"size": size_of(n), "who": {"n": n}}) + "\n" for n in range(50))
    batch = begin(world, lines, "sizes.jsonl", keep=["who"])
    ended(world, batch)
    found = [json.loads(line) for line in content(world, batch).splitlines()]
    assert found == [{"who": {"n": n}, "prediction": kind(size_of(n))} for n in range(50)]


def test_a_data_asset_is_scored_and_the_output_becomes_one(world: World) -> None:
    batch = batches.run(
        world.ctx, EDITOR, model="boxes", number=1, asset="boxes-test", keep=["kind"], save_as="guesses"
    )
    assert batch["input"]["asset"] == "boxes-test:1"
    found = ended(world, batch)
    assert found["asset"] == "guesses:1"
    made = assets.show(world.ctx, EDITOR, project="boxes", reference="guesses")
    assert made["digest"] == found["output"]["digest"]
    assert (made["source"]["kind"], made["source"]["batch"], made["by"]) == ("batch", batch["id"], "eve")
    kinds = [row["kind"] == row["prediction"] for row in csv.DictReader(io.StringIO(content(world, batch)))]
    assert len(kinds) == 200 and sum(kinds) > 160


def test_the_champion_is_the_default(world: World) -> None:
    with pytest.raises(NotFound, match="no champion; say which version: boxes:1"):
        begin(world, plain(1), number=None)
    aliases.set_alias(world.ctx, world.actor, model="boxes", alias="champion", number=1)
    assert begin(world, plain(1), number=None)["number"] == 1
    aliases.delete_alias(world.ctx, world.actor, model="boxes", alias="champion")


# -- bad rows ---------------------------------------------------------------------------------------------------------


def test_bad_rows_are_set_aside_with_reasons_while_the_rest_goes_on(world: World, kind: Callable[[float], str]) -> None:
    lines = [f"n{number},{size_of(number)}" for number in range(3000)]
    lines[10], lines[1500], lines[2999] = "n10", "n1500,13", 'n2999,"1'
    batch = begin(world, "\n".join(["id,size", *lines]), keep=["id"], workers=2)
    found = ended(world, batch)
    assert (found["status"], found["rows"], found["bad"]) == ("Succeeded", 3000, 3), found["reason"]
    assert found["reason"] == "3000 rows, 3 of them set aside"
    aside = [json.loads(line) for line in content(world, batch, "errors").splitlines()]
    assert aside == [
        {"row": 11, "reason": "row 11 has 1 cells; the header has 2", "input": "n10"},
        {"row": 1501, "reason": "row 1501: ValueError: thirteen", "input": {"id": "n1500", "size": "13"}},
        {"row": 3000, "reason": "row 3000 is no CSV: unexpected end of data", "input": 'n2999,"1'},
    ]
    right = [f"n{n},{kind(size_of(n))}\n" for n in range(3000) if n not in (10, 1500, 2999)]
    assert content(world, batch) == "id,prediction\n" + "".join(right)


def test_too_many_bad_rows_stop_it_and_name_the_first(world: World) -> None:
    batch = begin(world, "size\n" + "1.5\n13\n" * 500, max_bad_share=0.2)
    found = ended(world, batch)
    assert found["status"] == "Failed" and found["output"] is None
    assert "500 of 1000 rows were set aside so far" in found["reason"]
    assert "max_bad_share is 0.2: row 2: ValueError: thirteen; row 4" in found["reason"]
    with pytest.raises(Conflict, match="is Failed: it has no output yet"):
        batches.output(world.ctx, EDITOR, batch=batch["id"])


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("size\n1\n", {"keep": ["id"]}, "the table has no column 'id'; it has size"),
        ("size\n", {}, "the table has no rows"),
        ("size,size\n1,2\n", {}, "must name each column once"),
        (
            "PAR1",
            {"file": "x.parquet", "output_format": "csv"},
            "needs pyarrow or polars in the model's requirements.txt",
        ),
        ("size\n1\n", {"output_format": "parquet"}, "needs polars or pyarrow in the model's requirements.txt"),
        ("size\n1\n", {"keep": ["size"], "timeout_seconds": 30.0}, None),
    ],
)
def test_a_table_that_is_none_is_explained(world: World, text: str, options: dict[str, Any], says: str | None) -> None:
    found = ended(world, begin(world, text, **options))
    assert found["status"] == ("Succeeded" if says is None else "Failed")
    assert says is None or says in found["reason"]


# -- deaths -----------------------------------------------------------------------------------------------------------


def folder_of(world: World, batch: dict[str, Any]) -> Path:
    return Path(world.ctx.settings.dir / "batches" / batch["id"])


def chunks_done(world: World, batch: dict[str, Any]) -> int:
    try:
        return (folder_of(world, batch) / "done.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def victims(world: World, batch: dict[str, Any]) -> dict[str, int]:
    """The pids of the shim and of the job's own process."""
    newest = jobs.show(world.ctx, EDITOR, job=shown(world, batch)["job"])["attempts"][-1]
    folder = world.ctx.settings.dir / "attempts" / newest["id"]
    return {name: json.loads((folder / name).read_text())["pid"] for name in ("claim", "group")}


@pytest.mark.parametrize("victim", ["claim", "group"])
@pytest.mark.usefixtures("small_chunks")
def test_a_killed_job_or_shim_goes_on_where_it_was(
    world: World, held: Path, kind: Callable[[float], str], victim: str
) -> None:
    held.touch()
    batch = begin(world, plain(60_000), keep=["id"], workers=2)
    world.settle(lambda: chunks_done(world, batch) >= 3)
    os.kill(victims(world, batch)[victim], signal.SIGKILL)
    (folder_of(world, batch) / "done.jsonl").open("ab").write(b'{"chunk": 19, "ro')  # as a death leaves it
    held.unlink()
    found = ended(world, batch)
    assert (found["status"], found["rows"]) == ("Succeeded", 60_000)
    assert content(world, batch) == plain_output(60_000, kind)
    job = jobs.show(world.ctx, EDITOR, job=found["job"])
    assert [attempt["status"] for attempt in job["attempts"]] == ["Lost", "Succeeded"]
    assert "[loopline] going on: " in jobs.log(world.ctx, EDITOR, job=found["job"])["text"]


@pytest.mark.usefixtures("small_chunks")
def test_a_stopped_batch_is_resumed(world: World, held: Path, kind: Callable[[float], str]) -> None:
    held.touch()
    batch = begin(world, plain(60_000), keep=["id"])
    world.settle(lambda: chunks_done(world, batch) >= 2)
    assert shown(world, batch)["status"] == "Running"
    assert batches.stop(world.ctx, EDITOR, batch=batch["id"])["status"] == "Stopping"
    assert ended(world, batch)["status"] == "Stopped"
    before = chunks_done(world, batch)
    assert 2 <= before < 60
    held.unlink()
    assert batches.resume(world.ctx, EDITOR, batch=batch["id"])["status"] == "Pending"
    assert ended(world, batch)["status"] == "Succeeded"
    assert content(world, batch) == plain_output(60_000, kind)
    with pytest.raises(Conflict, match="Succeeded cannot become Pending"):
        batches.resume(world.ctx, EDITOR, batch=batch["id"])


@pytest.mark.usefixtures("small_chunks")
def test_a_piece_that_is_not_as_its_line_says_is_made_anew(
    world: World, held: Path, kind: Callable[[float], str]
) -> None:
    held.touch()
    batch = begin(world, plain(60_000), keep=["id"])
    world.settle(lambda: chunks_done(world, batch) >= 3)
    batches.stop(world.ctx, EDITOR, batch=batch["id"])
    ended(world, batch)
    held.unlink()
    os.truncate(folder_of(world, batch) / "00000001.out", 5)
    batches.resume(world.ctx, EDITOR, batch=batch["id"])
    assert ended(world, batch)["status"] == "Succeeded"
    assert content(world, batch) == plain_output(60_000, kind)


@pytest.mark.usefixtures("small_chunks")
def test_a_row_that_kills_the_process_is_set_aside(world: World, kind: Callable[[float], str]) -> None:
    lines = [f"n{number},{size_of(number)}" for number in range(3000)]
    lines[1234] = "n1234,99"
    batch = begin(world, "\n".join(["id,size", *lines]), keep=["id"], workers=2)
    found = ended(world, batch)
    assert (found["status"], found["reason"]) == ("Succeeded", "3000 rows, 1 of them set aside")
    reason = "row 1235: the process that predicted it ended with signal 6 (SIGABRT)"
    aside = [json.loads(line) for line in content(world, batch, "errors").splitlines()]
    assert aside == [{"row": 1235, "reason": reason, "input": {"id": "n1234", "size": "99"}}]
    right = [f"n{n},{kind(size_of(n))}\n" for n in range(3000) if n != 1234]
    assert content(world, batch) == "id,prediction\n" + "".join(right)
    log = jobs.log(world.ctx, EDITOR, job=found["job"])["text"]
    assert "ended with signal 6 (SIGABRT) while it predicted row 1235\n" in log
    assert len(jobs.show(world.ctx, EDITOR, job=found["job"])["attempts"]) == 1


# -- who may, and what is told ----------------------------------------------------------------------------------------


def test_what_cannot_be_asked_for_is_explained(world: World) -> None:
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (InvalidInput, "workers must be between 1 and 64", {"workers": 0}),
        (InvalidInput, "max_bad_share must be between 0 and 1", {"max_bad_share": 1.5}),
        (InvalidInput, "say its format", {"file": "sizes.bin"}),
        (InvalidInput, "is not a format of an output", {"output_format": "xml"}),
        (InvalidInput, "a file", {"file": "../sizes.csv"}),
        (InvalidInput, "say what is scored", {"asset": "boxes"}),
        (NotFound, "nothing was uploaded with the digest", {"digest": "0" * 64}),
        (NotFound, "has no data asset", {"digest": None, "file": None, "asset": "none"}),
        (NotFound, "has no version 9", {"number": 9}),
    ]
    for kind_of_error, says, options in cases:
        with pytest.raises(kind_of_error, match=says):
            begin(world, plain(1), **options)


def test_an_unapproved_version_needs_force_by_an_approver(world: World) -> None:
    push = pushes.run(world.ctx, world.actor, tree=world.tree(boxes.project()), parameters={"shift": 0.1})["id"]
    boxes.follow(world, push)
    number = registry.show_model(world.ctx, EDITOR, model="boxes")["last_version"]
    with pytest.raises(GateRefused, match="not Approved; run: loopline approve boxes"):
        begin(world, plain(1), number=number)
    with pytest.raises(Forbidden):
        begin(world, plain(1), number=number, force=True, reason="now")
    digest = batches.upload(world.ctx, world.actor, stream=iter([b"size\n1\n"]))["digest"]
    forced = {"model": "boxes", "number": number, "digest": digest, "file": "x.csv", "force": True}
    with pytest.raises(InvalidInput, match="--reason"):
        batches.run(world.ctx, world.actor, **forced)
    batch = batches.run(world.ctx, world.actor, **forced, reason="now")
    assert ended(world, batch)["status"] == "Succeeded"
    noted = events.list_(world.ctx, EDITOR, noun="version", limit=1000)["items"]
    assert [event["reason"] for event in noted if event["kind"] == "forced"] == ["now"]


def test_a_waiting_batch_stops_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches.jobs, "_fill_last", lambda ctx, tx: None)  # no slot is free
    batch = begin(world, plain(10))
    assert batches.stop(world.ctx, EDITOR, batch=batch["id"], reason="enough")["status"] == "Stopped"
    assert shown(world, batch)["reason"] == "enough"


# -- where a table is cut ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["a,b\n1,2\n\n3,4\n", 'a,b\n1,"x\ny"\n5,6', 'a,b\n"1,2\n3,4\n', 'a,b\n1"2,"q"\n3,4\n', "a,b\r\n1,2\r\n\r\n5"],
)
def test_chunks_hold_the_records_of_the_whole(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())

    def read(rows: int) -> list[Any]:
        plan = batchinput.plan(str(path), "csv", rows)
        reader = batchinput.Reader(str(path), plan, None, [])
        parts = [reader.read(number) for number in range(len(plan.chunks))]
        assert plan.rows == sum(len(part.rows) + len(part.bad) for part in parts)
        fields = ([item for part in parts for item in getattr(part, name)] for name in ("rows", "numbers", "bad"))
        return list(fields)

    assert read(1) == read(2) == read(1000)


# -- notifications ----------------------------------------------------------------------------------------------------


def told(world: World, topic: str, batch: dict[str, Any]) -> list[tuple[str, str]]:
    found = deliveries.list_(world.ctx, EDITOR, limit=1000)["items"]
    with world.ctx.db.read() as tx:
        own = {row["id"] for row in tx.rows(sa.select(subscriptions).where(subscriptions.c.topic == topic))}
    sent = [each["body"] for each in found if each["subscription"] in own]
    return [(body["type"], body["data"]["summary"]) for body in sent if body["data"]["id"] == batch["id"]]


def test_subscribers_are_told_of_the_end(world: World) -> None:
    for name, patterns in (("ends", ["batch.*"]), ("failures", ["batch.Failed"]), ("elsewhere", ["batch.*"])):
        endpoint = "parcels" if name == "elsewhere" else None
        topics.create(world.ctx, EDITOR, name=name, events=patterns, project="boxes", endpoint=endpoint)
        topics.subscribe(world.ctx, EDITOR, topic=name, kind="webhook", url="https://example.com/x")
    batch = begin(world, plain(100))
    ended(world, batch)
    world.settle(lambda: told(world, "ends", batch) != [])
    assert told(world, "ends", batch) == [("batch.Succeeded", "Batch of boxes v1 is Succeeded: 100 rows")]
    assert told(world, "failures", batch) == told(world, "elsewhere", batch) == []
