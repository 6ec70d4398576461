"""A real gateway before a slow model server that is offered more than it can do, and one that hangs."""

import asyncio
import json
import threading
import time

SLOW = """
    import time
    def load(model_dir): return None
    def predict(model, rows):
        time.sleep(0.02 * len(rows))
        return [row[0] for row in rows]
"""
GATE = """
    import pathlib, time
    def load(model_dir): return pathlib.Path(model_dir)
    def predict(folder, rows):
        if any(row[0] for row in rows):
            (folder / "entered").touch()
            while not (folder / "go").exists():
                time.sleep(0.005)
        return [row[0] for row in rows]
"""


async def _one(rig, answers: list, *extra: str, body: object = None) -> None:
    host, port = rig.address.split(":")
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        rig.request_bytes(body or {"x": 0.0}, "".join(f"{line}\r\n" for line in ("Connection: close", *extra)))
    )
    whole = await reader.read()
    writer.close()
    head, _, answer = whole.partition(b"\r\n\r\n")
    answers.append((int(head.split()[1]), time.monotonic() - began, head.lower(), json.loads(answer)))


async def _offer(rig, rate: float, seconds: float, *extra: str) -> list:
    """(status, seconds, head, document) of requests that come whatever becomes of the earlier ones."""
    answers: list = []
    asked = []
    began = time.monotonic()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        asked.append(asyncio.ensure_future(_one(rig, answers, *extra)))
    await asyncio.wait_for(asyncio.gather(*asked), 120)
    return answers


def test_five_times_too_much_is_answered_in_time_or_refused_at_once(rig, make_variant):
    rig.publish(make_variant("v1", rig.start_server("a", SLOW)), wait=False)
    rig.start_gateway()
    answers = asyncio.run(_offer(rig, 250, 4.0, "x-loopline-timeout-ms: 20000"))
    assert len(answers) == 1000, "somebody hangs"
    served = [answer for answer in answers if answer[0] == 200]
    refused = [answer for answer in answers if answer[0] != 200]
    assert {answer[0] for answer in refused} == {429}
    assert len(served) > 100
    for _, _, head, document in refused:
        assert b"retry-after: " in head and b"x-loopline-variant: none" in head
        assert document["error"]["code"] == "overloaded"
    # The queue holds a second's wait at most, half of it here and half at the server; the rest is this machine's. Were
    # nobody refused, who came last would wait for sixteen.
    assert sorted(seconds for _, seconds, _, _ in served)[int(0.99 * len(served))] < 10.0
    assert rig.ask({"x": 1})[0] == 200


def test_a_request_whose_time_is_over_in_the_queue_never_reaches_a_model(rig, make_variant, until):
    rig.publish(make_variant("v1", rig.start_server("a", GATE)), wait=False, max_concurrent=1, timeout_ms=60_000)
    rig.start_gateway()
    first = []
    thread = threading.Thread(target=lambda: first.append(rig.ask({"x": 1.0})[0]))
    thread.start()
    until((rig.folder / "a" / "entered").exists)
    status, document, answer = rig.ask({"x": 0.0}, x_loopline_timeout_ms="100")
    assert status == 504 and document["error"]["code"] == "timeout" and "not sent" in document["error"]["message"]
    assert answer.headers["x-loopline-variant"] == "none"
    (rig.folder / "a" / "go").touch()
    thread.join()
    assert first == [200]


def test_a_clients_deadline_is_kept_and_never_longer_than_the_endpoints(rig, make_variant, until):
    only = make_variant("v1", rig.start_server("a", GATE))
    rig.publish(only, wait=False, timeout_ms=60_000)
    rig.start_gateway()
    assert rig.ask({"x": 0.0}, x_loopline_timeout_ms="50000")[0] == 200
    status, document, _ = rig.ask({"x": 1.0}, x_loopline_timeout_ms="100")
    assert status == 504 and document["error"]["code"] == "timeout"
    go = rig.folder / "a" / "go"
    go.touch()
    assert rig.ask({"x": 0.0})[0] == 200
    go.unlink()
    rig.publish(only, timeout_ms=400)
    assert rig.ask({"x": 1.0}, x_loopline_timeout_ms="50000")[0] == 504


def test_a_deadline_that_is_no_number_is_refused(rig, make_variant):
    rig.publish(make_variant("v1", rig.start_server("a", GATE)), wait=False)
    rig.start_gateway()
    for value in ("0", "-1", "1.5", "1e3", "soon", "9" * 12):
        status, document, _ = rig.ask({"x": 0.0}, x_loopline_timeout_ms=value)
        assert status == 400 and "x-loopline-timeout-ms" in document["error"]["message"], value


def test_a_variant_that_hangs_fills_its_own_places_only(rig, make_variant):
    one = make_variant("v1", rig.start_server("one", GATE), weight=50.0)
    two = make_variant("v2", rig.start_server("two", GATE), weight=50.0, version=2)
    rig.publish(one, two, wait=False, max_concurrent=8, timeout_ms=60_000)
    rig.start_gateway()
    stuck: list = []
    served: list = []

    async def load() -> None:
        asked = [asyncio.ensure_future(_one(rig, stuck, "x-loopline-variant: v1", body={"x": 1.0})) for _ in range(60)]
        while len(stuck) < 52:
            await asyncio.sleep(0.01)
        for _ in range(40):
            await _one(rig, served, "x-loopline-variant: v2")
        assert len(stuck) == 52
        (rig.folder / "one" / "go").touch()
        await asyncio.gather(*asked)

    asyncio.run(asyncio.wait_for(load(), 120))
    assert {answer[0] for answer in served} == {200}
    assert {answer[0] for answer in stuck[:52]} == {429}, "what came for the variant that hangs was told so"
    assert [answer[0] for answer in stuck[52:]] == [200] * 8
